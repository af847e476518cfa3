//! The connection pool, and the time limits of every statement.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, Postgres};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};
use tokio::time::{Instant, timeout};

use super::error::{DatabaseError, is_dead_connection};
use super::trust::Trust;

/// Time limits of what runs on a pool, and on connections beside it.
#[derive(Clone, Copy, Debug)]
pub struct TimeLimits {
    /// Longest wait for a free connection, including connecting.
    pub acquire: Duration,
    /// Longest time for a whole operation, including waiting.
    pub operation: Duration,
    /// The server's limit of a statement. Below `operation`, so that the server gives up first and
    /// says why.
    pub statement_ms: u32,
    /// The server's limit of a wait for a lock.
    pub lock_ms: u32,
    /// The server's limit of a transaction's pause.
    pub idle_in_transaction_ms: u32,
}

impl TimeLimits {
    /// For requests, those that wait to be combined included: the client learns of a lost database
    /// within 3 s, which leaves half a second for a preceding hash and a busy machine.
    pub const REQUESTS: Self = Self {
        acquire: Duration::from_secs(2),
        operation: Duration::from_millis(2_500),
        statement_ms: 2_300,
        lock_ms: 1_800,
        idle_in_transaction_ms: 10_000,
    };

    /// The settings of a session.
    const fn settings(&self) -> [(&'static str, u32); 3] {
        [
            ("statement_timeout", self.statement_ms),
            ("lock_timeout", self.lock_ms),
            (
                "idle_in_transaction_session_timeout",
                self.idle_in_transaction_ms,
            ),
        ]
    }
}

/// A connection idle for longer than this is tested before use. A dead connection thus fails no
/// request, and a busy one costs no extra round trip.
pub(crate) const TEST_AFTER_IDLE: Duration = Duration::from_secs(1);
/// Longest time for that test, after which the connection counts as dead.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_millis(500);
/// Time limit of one attempt to connect outside the pool.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens a connection outside any pool.
///
/// # Errors
/// When the server refuses it or does not answer within five seconds.
pub(crate) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, DatabaseError> {
    timeout(CONNECT_TIMEOUT, PgConnection::connect_with(options))
        .await
        .map_err(|_elapsed| DatabaseError::Timeout)?
        .map_err(DatabaseError::of_connecting)
}

/// Runs `operation` on a connection opened for it.
///
/// # Errors
/// As [`connect`]; [`DatabaseError::Timeout`] after 2.5 s more; else what the driver reports.
pub(crate) async fn run_once<T>(
    options: &PgConnectOptions,
    route: Route,
    operation: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, sqlx::Result<T>> + Send,
) -> Result<T, DatabaseError> {
    let mut connection = connect(options).await?;
    let limits = TimeLimits::REQUESTS;
    let running = run_on(&mut connection, route, limits, operation);
    Ok(timeout(limits.operation, running)
        .await
        .map_err(|_elapsed| DatabaseError::Timeout)??)
}

/// Whether a session keeps the settings that requests need. A pooler that the service takes for
/// PostgreSQL drops or refuses them, and mixes up prepared statements.
pub(crate) async fn keeps_settings(options: &PgConnectOptions) -> Result<bool, DatabaseError> {
    let limited = options.clone().options(TimeLimits::REQUESTS.settings());
    match run_once(&limited, Route::Direct, |connection| {
        Box::pin(has_limits(connection))
    })
    .await
    {
        Err(DatabaseError::Pooled(_)) => Ok(false),
        settled => settled,
    }
}

async fn has_limits(connection: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT current_setting('statement_timeout') = '2300ms' AS "has_limits!""#
    )
    .fetch_one(connection)
    .await
}

/// What is between us and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    Direct,
    /// Such as pgbouncer in transaction mode. Each transaction may run on another server
    /// connection, so limits and prepared statements must be set within the transaction.
    TransactionPooler,
}

/// The pool that requests share.
#[derive(Clone)]
pub struct Database {
    pool: PgPool,
    /// Options for connections outside the pool, with the same limits.
    pub(crate) options: Arc<PgConnectOptions>,
    pub(crate) route: Route,
    pub(crate) limits: TimeLimits,
    pub(crate) trust: Trust,
}

impl Database {
    /// Connects on first use, so that the service starts and stays up without its database.
    pub fn new(
        options: PgConnectOptions,
        max_connections: u32,
        route: Route,
        limits: TimeLimits,
    ) -> Self {
        let options = match route {
            Route::Direct => options.options(limits.settings()),
            Route::TransactionPooler => options.statement_cache_capacity(0),
        };
        Self::with(options, max_connections, route, limits, Trust::default())
    }

    /// Another pool for the same server.
    #[must_use]
    pub fn beside(&self, max_connections: u32) -> Self {
        Self::with(
            (*self.options).clone(),
            max_connections,
            self.route,
            self.limits,
            self.trust.clone(),
        )
    }

    fn with(
        options: PgConnectOptions,
        max_connections: u32,
        route: Route,
        limits: TimeLimits,
        trust: Trust,
    ) -> Self {
        let trusted = trust.clone();
        let pool = PgPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(limits.acquire)
            .test_before_acquire(false)
            .before_acquire(move |connection, usage| {
                let is_trusted = Instant::now()
                    .checked_sub(usage.age)
                    .is_none_or(|opened| trusted.covers(opened));
                Box::pin(async move {
                    Ok(is_trusted
                        && (usage.idle_for < TEST_AFTER_IDLE
                            || timeout(TEST_TIMEOUT, connection.ping())
                                .await
                                .is_ok_and(|answer| answer.is_ok())))
                })
            })
            .connect_lazy_with(options.clone());
        Self {
            pool,
            options: Arc::new(options),
            route,
            limits,
            trust,
        }
    }

    /// Runs `operation` on a connection of the pool, and once more on a new one if the server
    /// refused before it did anything and the session was the reason.
    ///
    /// # Errors
    /// [`DatabaseError::Timeout`] after [`TimeLimits::operation`] in all; else what the driver
    /// reports. After a timeout or a broken connection, whether a write was committed is not known.
    pub async fn run<T>(
        &self,
        operation: impl for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, sqlx::Result<T>> + Send + Sync,
    ) -> Result<T, DatabaseError> {
        let attempts = async {
            let began = Instant::now();
            let mut is_last = false;
            loop {
                match self.attempt(&operation).await {
                    Err(error) if error.is_of_the_session() && !is_last => {
                        self.trust.doubt(began).await;
                    }
                    settled => return settled,
                }
                is_last = true;
            }
        };
        timeout(self.limits.operation, attempts)
            .await
            .map_err(|_elapsed| DatabaseError::Timeout)?
    }

    async fn attempt<T>(
        &self,
        operation: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, sqlx::Result<T>> + Send,
    ) -> Result<T, DatabaseError> {
        let connection = self
            .pool
            .acquire()
            .await
            .map_err(DatabaseError::of_connecting)?;
        let mut guard = ConnectionGuard {
            connection,
            completed: false,
        };
        let result = run_on(&mut guard.connection, self.route, self.limits, operation).await;
        guard.completed = matches!(result, Ok(_) | Err(sqlx::Error::Database(_)));
        Ok(result?)
    }

    /// Like [`Self::run`], for reads: tries again if the pool's connections turn out to be dead, as
    /// they do after a restart of the server.
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
        timeout(self.limits.operation, retried)
            .await
            .map_err(|_elapsed| DatabaseError::Timeout)?
    }

    /// Whether the server takes writes; asked again on a new connection if an older one says no.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn takes_writes(&self) -> Result<bool, DatabaseError> {
        let began = Instant::now();
        let ask = || {
            self.read(|connection| Box::pin(takes_writes(connection)))
                .boxed()
        };
        if ask().await? {
            return Ok(true);
        }
        self.trust.doubt(began).await;
        ask().await
    }

    pub fn max_connections(&self) -> usize {
        usize::try_from(self.pool.options().get_max_connections()).unwrap_or(usize::MAX)
    }

    /// How many connections are idle, and how many in use.
    pub fn connections(&self) -> (f64, f64) {
        let idle = u32::try_from(self.pool.num_idle()).unwrap_or(u32::MAX);
        (
            f64::from(idle),
            f64::from(self.pool.size().saturating_sub(idle)),
        )
    }

    /// Waits until every connection is returned to the pool and closed.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

pub(crate) async fn run_on<T>(
    connection: &mut PgConnection,
    route: Route,
    limits: TimeLimits,
    operation: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, sqlx::Result<T>> + Send,
) -> sqlx::Result<T> {
    let running = async {
        match route {
            Route::Direct => operation(connection).await,
            Route::TransactionPooler => in_transaction(connection, limits, operation).await,
        }
    };
    // The driver panics on values that it cannot represent, such as a date in the year 300,000.
    AssertUnwindSafe(running)
        .catch_unwind()
        .await
        .unwrap_or_else(|panic| {
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref().copied());
            let message = format!(
                "the driver panicked: {}",
                message.unwrap_or("for an unknown reason")
            );
            Err(sqlx::Error::Decode(message.into()))
        })
}

/// Runs `operation` in a transaction that sets its own limits, as a [`Route::TransactionPooler`]
/// requires.
async fn in_transaction<T>(
    connection: &mut PgConnection,
    limits: TimeLimits,
    operation: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, sqlx::Result<T>> + Send,
) -> sqlx::Result<T> {
    let settings = limits
        .settings()
        .map(|(name, value)| format!("; SET LOCAL {name} = {value}"))
        .concat();
    connection
        .execute(AssertSqlSafe(format!("BEGIN; DEALLOCATE ALL{settings}")))
        .await?;
    let result = operation(connection).await;
    match &result {
        Ok(_) => connection.execute("COMMIT").await?,
        // If the connection is broken, the first error says more.
        Err(sqlx::Error::Database(_)) => connection.execute("ROLLBACK").await?,
        Err(_) => return result,
    };
    result
}

/// Whether the session's server takes writes: it is no standby, and not set to read-only.
async fn takes_writes(connection: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT current_setting('transaction_read_only') = 'off' AS "takes_writes!""#
    )
    .fetch_one(connection)
    .await
}

/// Closes its connection unless the operation ran to its end: an abandoned one may be waiting for a
/// dead peer, and would never return to the pool (sqlx issue 4349).
struct ConnectionGuard {
    connection: PoolConnection<Postgres>,
    completed: bool,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        if !self.completed {
            self.connection.close_on_drop();
        }
    }
}
