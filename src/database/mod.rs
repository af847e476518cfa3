//! The connection pool, and the bounds within which every statement runs.

pub(crate) mod caller;
pub(crate) mod durability;
pub(crate) mod encryption;
pub(crate) mod lane;
pub(crate) mod preflight;
pub mod schema;

use std::{fmt, panic::AssertUnwindSafe, str::FromStr, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, PgPool,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions, Postgres},
};
use tokio::time::timeout;

/// Longest wait for a free connection, connecting included.
pub(crate) const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time for a whole operation, waiting included: a client hears of a lost database within 3 s, with half a second
/// to spare for a hash before it and a busy machine.
pub const OPERATION_TIMEOUT: Duration = Duration::from_millis(2_500);
/// A connection that rested longer than this is tried before use: one that died meanwhile costs nobody a request, and a
/// busy one costs no round trip.
pub(crate) const TEST_AFTER_IDLE: Duration = Duration::from_secs(1);
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_millis(500);
/// Limits that the server keeps, in milliseconds; under [`OPERATION_TIMEOUT`], so that the server gives up first and says why.
const SERVER_LIMITS: [(&str, &str); 3] =
    [("statement_timeout", "2300"), ("lock_timeout", "1800"), ("idle_in_transaction_session_timeout", "10000")];
/// Time for one attempt to connect outside the pool.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Of a batch, every caller has a copy.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DatabaseError {
    /// Away, too busy, or not ready for us: the same request may succeed later.
    #[error("the database did not answer within the time limit")]
    Timeout,
    /// As [`Self::Timeout`], and the driver or the server said why.
    #[error(transparent)]
    Unavailable(Arc<sqlx::Error>),
    /// More operations wait than the database can deal with in time: nothing was sent to it.
    #[error("too many operations wait for the database")]
    Overloaded,
    /// The statement itself failed: a defect of ours.
    #[error(transparent)]
    Statement(Arc<sqlx::Error>),
}

impl From<sqlx::Error> for DatabaseError {
    fn from(error: sqlx::Error) -> Self {
        if is_passing(&error) { Self::Unavailable(Arc::new(error)) } else { Self::Statement(Arc::new(error)) }
    }
}

/// Whether an error speaks of the server's condition, or the network's, rather than of the statement.
pub(crate) fn is_passing(error: &sqlx::Error) -> bool {
    use sqlx::Error as E;
    match error {
        E::Io(_) | E::Tls(_) | E::Protocol(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed => true,
        E::Database(refusal) => refusal.code().is_some_and(|state| is_passing_state(&state)),
        _ => false,
    }
}

/// Whether a SQLSTATE speaks of the server's condition rather than of the statement.
/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn is_passing_state(state: &str) -> bool {
    const CLASSES: [&str; 4] = [
        "08", // connection exception
        "28", // invalid authorization: credentials are being changed, or wrong
        "53", // insufficient resources
        "57", // operator intervention: shutdown, start-up, statement_timeout
    ];
    const STATES: [&str; 6] = [
        "25006", // read-only transaction: a standby that is about to be promoted
        "3D000", // the database does not exist yet
        "40001", // serialization failure
        "40P01", // deadlock
        "42P01", // a table is missing: migrations are pending
        "55P03", // lock_timeout
    ];
    CLASSES.iter().any(|class| state.starts_with(class)) || STATES.contains(&state)
}

/// Where the database is and how to log in; `Debug` does not show the password.
#[derive(Clone)]
pub struct DatabaseUrl(PgConnectOptions);

impl DatabaseUrl {
    #[must_use]
    pub fn options(&self) -> PgConnectOptions {
        self.0.clone()
    }
}

impl FromStr for DatabaseUrl {
    type Err = &'static str;

    /// Takes `postgresql+driver://` too, as other languages' libraries write it. The error says what is wrong without
    /// repeating the URL: it holds a password.
    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "must be a URL such as postgresql://user:password@host:5432/database";
        let (scheme, rest) = raw.split_once("://").ok_or(EXPECTED)?;
        let scheme = scheme.split_once('+').map_or(scheme, |(scheme, _driver)| scheme);
        if !matches!(scheme, "postgresql" | "postgres") {
            return Err(EXPECTED);
        }
        PgConnectOptions::from_str(&format!("{scheme}://{rest}"))
            .map(|options| Self(options.application_name(env!("CARGO_PKG_NAME")).disable_statement_logging()))
            .map_err(|_details_may_hold_the_password| EXPECTED)
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.0.get_host(), self.0.get_port(), self.0.get_database().unwrap_or_default())
    }
}

/// Opens a connection of its own, outside any pool.
///
/// # Errors
/// When the server refuses it or does not answer within [`CONNECT_TIMEOUT`].
pub async fn connect(options: &PgConnectOptions) -> Result<PgConnection, DatabaseError> {
    timeout(CONNECT_TIMEOUT, PgConnection::connect_with(options))
        .await
        .map_err(|_elapsed| DatabaseError::Timeout)?
        .map_err(DatabaseError::from)
}

/// What stands between us and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    Direct,
    /// Such as pgbouncer in transaction mode: each transaction may have another connection to the server, so that limits
    /// and prepared statements must be made within it.
    TransactionPooler,
}

/// The pool that requests share.
#[derive(Clone)]
pub struct Database {
    pool: PgPool,
    /// For connections beside the pool, within the same limits.
    pub(crate) options: Arc<PgConnectOptions>,
    pub(crate) route: Route,
}

impl Database {
    /// Connects when first used: the service starts, and stays up, without its database.
    #[must_use]
    pub fn new(options: PgConnectOptions, max_connections: u32, route: Route) -> Self {
        let options = match route {
            Route::Direct => options.options(SERVER_LIMITS),
            // A pooler refuses start-up parameters that it does not know.
            Route::TransactionPooler => options.extra_float_digits(None).statement_cache_capacity(0),
        };
        let pool = PgPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(|connection, usage| {
                Box::pin(async move {
                    Ok(usage.idle_for < TEST_AFTER_IDLE
                        || timeout(TEST_TIMEOUT, connection.ping()).await.is_ok_and(|answer| answer.is_ok()))
                })
            })
            .connect_lazy_with(options.clone());
        Self { pool, options: Arc::new(options), route }
    }

    /// Runs `operation` on a connection of the pool.
    ///
    /// # Errors
    /// [`DatabaseError::Timeout`] after 2.5 s in all; else what the driver reports. After a timeout or a broken
    /// connection, whether a write was committed is not known.
    pub async fn run<T>(
        &self,
        operation: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, sqlx::Result<T>> + Send,
    ) -> Result<T, DatabaseError> {
        let bounded = async {
            let mut lease = Lease { connection: self.pool.acquire().await?, completed: false };
            let result = run_on(&mut lease.connection, self.route, operation).await;
            lease.completed = matches!(result, Ok(_) | Err(sqlx::Error::Database(_)));
            result
        };
        timeout(OPERATION_TIMEOUT, bounded)
            .await
            .map_err(|_elapsed| DatabaseError::Timeout)?
            .map_err(DatabaseError::from)
    }

    /// As [`Self::run`], for reads: tried again while the connections that the pool hands out turn out to be dead, as
    /// they do after a restart of the server.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn read<T>(
        &self,
        operation: impl for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, sqlx::Result<T>> + Send + Sync,
    ) -> Result<T, DatabaseError> {
        let attempts = self.pool.options().get_max_connections();
        let retried = async {
            for _ in 0..attempts {
                match self.run(&operation).await {
                    Err(DatabaseError::Unavailable(error)) if is_dead_connection(&error) => {}
                    settled => return settled,
                }
            }
            self.run(&operation).await
        };
        timeout(OPERATION_TIMEOUT, retried).await.map_err(|_elapsed| DatabaseError::Timeout)?
    }

    /// How many connections are idle, and how many in use.
    pub fn connections(&self) -> (f64, f64) {
        let idle = u32::try_from(self.pool.num_idle()).unwrap_or(u32::MAX);
        (f64::from(idle), f64::from(self.pool.size().saturating_sub(idle)))
    }

    /// Waits until every connection is back and closed.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

pub(crate) async fn run_on<T>(
    connection: &mut PgConnection,
    route: Route,
    operation: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, sqlx::Result<T>> + Send,
) -> sqlx::Result<T> {
    let running = async {
        match route {
            Route::Direct => operation(connection).await,
            Route::TransactionPooler => in_transaction(connection, operation).await,
        }
    };
    // The driver panics on values that it has no room for, such as a date of the year 300,000.
    AssertUnwindSafe(running).catch_unwind().await.unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
        let message = format!("the driver panicked: {}", message.unwrap_or("for an unknown reason"));
        Err(sqlx::Error::Decode(message.into()))
    })
}

/// Runs `operation` as one transaction, which begins with a clean connection whoever had it before.
async fn in_transaction<T>(
    connection: &mut PgConnection,
    operation: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, sqlx::Result<T>> + Send,
) -> sqlx::Result<T> {
    let limits = SERVER_LIMITS.map(|(name, value)| format!("; SET LOCAL {name} = {value}")).concat();
    connection.execute(AssertSqlSafe(format!("BEGIN; DEALLOCATE ALL{limits}"))).await?;
    let result = operation(connection).await;
    match &result {
        Ok(_) => connection.execute("COMMIT").await?,
        // Of a broken connection, the first error says more.
        Err(sqlx::Error::Database(_)) => connection.execute("ROLLBACK").await?,
        Err(_) => return result,
    };
    result
}

/// Whether the connection broke in use, as opposed to none being had.
pub(crate) fn is_dead_connection(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(cause) => cause.kind() != std::io::ErrorKind::ConnectionRefused,
        sqlx::Error::Database(refusal) => refusal.code().is_some_and(|state| state == "57P01" || state == "57P02"),
        _ => false,
    }
}

/// Whether a server that cannot be connected to may only be starting.
pub(crate) fn is_starting(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(cause) => cause.kind() == std::io::ErrorKind::ConnectionRefused,
        sqlx::Error::Database(refusal) => refusal.code().is_some_and(|state| state == "57P03"),
        _ => false,
    }
}

/// Closes its connection unless the operation on it ran to its end: one that was given up half-way may be waiting for a
/// dead peer, and would never come back to the pool (sqlx issue 4349).
struct Lease {
    connection: PoolConnection<Postgres>,
    completed: bool,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.completed {
            self.connection.close_on_drop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::DatabaseUrl;

    #[test]
    fn other_languages_driver_suffixes_are_taken() {
        for url in ["postgres://u:p@h/d", "postgresql://u:p@h/d", "postgresql+asyncpg://u:p@h:5432/d"] {
            assert_eq!(format!("{:?}", url.parse::<DatabaseUrl>().unwrap()), "h:5432/d", "{url}");
        }
    }

    #[test]
    fn what_is_no_database_url_is_refused_without_being_repeated() {
        for url in ["", "secret", "mysql://u:secret@h/d", "postgresql://u:secret@h:port/d"] {
            assert!(!url.parse::<DatabaseUrl>().unwrap_err().contains("secret"), "{url}");
        }
    }
}
