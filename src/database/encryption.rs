//! Whether others can read what we say to the server.

use std::net::IpAddr;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::time::timeout;

use super::{
    error::DatabaseError,
    pool::{OPERATION_TIMEOUT, connect},
};

/// Whether the server, on another machine, speaks with us in plain text though nobody asked it to: `sslmode` is `prefer` where the URL
/// says nothing, and a server without TLS is taken as it is.
///
/// # Errors
/// When the database is away.
pub async fn is_missing(options: &PgConnectOptions) -> Result<bool, DatabaseError> {
    let is_asked_for = matches!(options.get_ssl_mode(), PgSslMode::Disable);
    if is_asked_for || options.get_socket().is_some() || !is_remote(options.get_host()) {
        return Ok(false);
    }
    let mut connection = connect(options).await?;
    let encrypted = sqlx::query_scalar!(r#"SELECT ssl AS "ssl!" FROM pg_stat_ssl WHERE pid = pg_backend_pid()"#);
    let encrypted = timeout(OPERATION_TIMEOUT, encrypted.fetch_one(&mut connection));
    Ok(!encrypted.await.map_err(|_elapsed| DatabaseError::Timeout)??)
}

fn is_remote(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    !host.starts_with('/') && host != "localhost" && !address.is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_remote;

    #[test]
    fn loopback_and_sockets_are_this_machine() {
        for host in ["localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]", "::ffff:127.0.0.1", "/var/run/postgresql"] {
            assert!(!is_remote(host), "{host}");
        }
        for host in ["postgres", "192.0.2.1", "2001:db8::1", "localhost.example"] {
            assert!(is_remote(host), "{host}");
        }
    }
}
