//! Warns at startup about risky configurations of a database that otherwise works.

use std::net::IpAddr;

use sqlx::PgConnection;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::error::DatabaseError;
use super::pool::{Route, run_once};

/// What is wrong with a connection that is not encrypted.
const IN_PLAIN_TEXT: &str = "PostgreSQL is on another machine and does not encrypt; add \
                             ?sslmode=require, or disable if that is meant";
/// What is wrong with a server that confirms commits before they are on its disk.
const MAY_LOSE_COMMITS: &str = "PostgreSQL may lose what it has committed, users and events alike: \
                                synchronous_commit is off for this database or login";

type Found = Result<Option<&'static str>, DatabaseError>;

/// Returns a warning for each danger found. Requests connect by `url` and `route`; `direct` leads
/// to PostgreSQL itself.
pub(crate) async fn check(
    direct: &PgConnectOptions,
    url: &PgConnectOptions,
    route: Route,
) -> [Found; 2] {
    let may_lose = run_once(url, route, |connection| {
        Box::pin(may_lose_commits(connection))
    })
    .await;
    [
        plain_text(direct).await,
        may_lose.map(|is_so| is_so.then_some(MAY_LOSE_COMMITS)),
    ]
}

async fn plain_text(direct: &PgConnectOptions) -> Found {
    // If the URL says nothing, `sslmode` is `prefer`, which accepts a server without TLS.
    let may_be_plain =
        !matches!(direct.get_ssl_mode(), PgSslMode::Disable) && direct.get_socket().is_none();
    if !may_be_plain || !is_remote(direct.get_host()) {
        return Ok(None);
    }
    let encrypted = run_once(direct, Route::Direct, |connection| {
        Box::pin(is_encrypted(connection))
    })
    .await?;
    Ok((!encrypted).then_some(IN_PLAIN_TEXT))
}

async fn is_encrypted(connection: &mut PgConnection) -> sqlx::Result<bool> {
    let encrypted = sqlx::query_scalar!(
        r#"SELECT ssl AS "ssl!" FROM pg_stat_ssl WHERE pid = pg_backend_pid()"#
    );
    encrypted.fetch_one(connection).await
}

/// Whether `synchronous_commit` is off for the session, the login or the database. A server-wide
/// setting is the administrator's decision. A pooler's session may be older than the
/// configuration, so the catalogue is checked too.
/// <https://www.postgresql.org/docs/current/catalog-pg-db-role-setting.html>
async fn may_lose_commits(connection: &mut PgConnection) -> sqlx::Result<bool> {
    let off = sqlx::query_scalar!(
        r#"SELECT setting = 'off' AND source NOT IN ('command line', 'configuration file')
                  OR coalesce((
                      SELECT split_part(option, '=', 2) IN ('off', 'false', 'no', '0')
                      FROM pg_db_role_setting, unnest(setconfig) AS option
                      WHERE option LIKE 'synchronous_commit=%'
                        AND setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = current_user))
                        AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
                      -- The more special one prevails: a login's before a database's.
                      ORDER BY setrole <> 0 DESC, setdatabase <> 0 DESC LIMIT 1
                  ), false) AS "off!"
           FROM pg_settings WHERE name = 'synchronous_commit'"#
    );
    off.fetch_one(connection).await
}

/// Whether a host, as written in a URL, is another machine.
pub(crate) fn is_remote(host: &str) -> bool {
    let address = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>();
    !host.starts_with('/')
        && host != "localhost"
        && !address.is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_remote;

    #[test]
    fn loopback_and_sockets_are_this_machine() {
        for host in [
            "localhost",
            "127.0.0.1",
            "127.8.8.8",
            "::1",
            "[::1]",
            "::ffff:127.0.0.1",
            "/var/run/postgresql",
        ] {
            assert!(!is_remote(host), "{host}");
        }
        for host in ["postgres", "192.0.2.1", "2001:db8::1", "localhost.example"] {
            assert!(is_remote(host), "{host}");
        }
    }
}
