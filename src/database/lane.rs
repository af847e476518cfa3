//! A connection with a single owner, opened when needed and reopened when it breaks. Cheaper than a
//! pool: nobody waits for it, and while it is busy it needs no extra round trips.

use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::error::{DatabaseError, is_dead_connection, is_starting};
use super::pool::{Database, Route, TEST_AFTER_IDLE, TEST_TIMEOUT, TimeLimits, run_on};
use super::trust::Trust;

/// A connection is replaced at this age, so that its host name is resolved again.
const LONGEST_LIFE: Duration = Duration::from_mins(30);
/// Maximum number of attempts at one read, if connections turn out to be dead.
const ATTEMPTS: usize = 10;
/// Pause between attempts to reach a server that is starting.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);
/// How long a connection may take to close cleanly before it is dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) struct Lane {
    options: PgConnectOptions,
    route: Route,
    limits: TimeLimits,
    trust: Trust,
    /// Taken out while in use, so that an abandoned operation drops its connection.
    idle: Option<Idle>,
}

struct Idle {
    connection: PgConnection,
    opened: Instant,
    since: Instant,
}

impl Lane {
    /// Creates a lane to the same server as `database`, with the same limits. Connects on first
    /// use.
    pub(crate) fn beside(database: &Database) -> Self {
        let options = match database.route {
            // Plan statements over arrays only once: PostgreSQL would estimate a generic plan as
            // more expensive, and plan every time. Use the index even if the table is small when
            // the plan is made.
            Route::Direct => {
                let options = [
                    ("plan_cache_mode", "force_generic_plan"),
                    ("enable_seqscan", "off"),
                ];
                (*database.options).clone().options(options)
            }
            Route::TransactionPooler => (*database.options).clone(),
        };
        Self {
            options,
            route: database.route,
            limits: database.limits,
            trust: database.trust.clone(),
            idle: None,
        }
    }

    /// Runs a read until `deadline`. Tries again if the connection turns out to be dead, as it does
    /// after a restart of the server.
    ///
    /// # Errors
    /// [`DatabaseError::Timeout`] at the deadline, or if no connection can be opened in time; else
    /// what the driver reports.
    pub(crate) async fn read<T>(
        &mut self,
        deadline: Instant,
        operation: impl for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, sqlx::Result<T>> + Send + Sync,
    ) -> Result<T, DatabaseError> {
        let attempts = async {
            for _ in 1..ATTEMPTS {
                match self.run(&operation).await {
                    Err(DatabaseError::Unavailable(error)) if is_dead_connection(&error) => {}
                    settled => return settled,
                }
            }
            self.run(&operation).await
        };
        timeout_at(deadline, attempts)
            .await
            .map_err(|_elapsed| DatabaseError::Timeout)?
    }

    /// Runs a write until `deadline`.
    ///
    /// # Errors
    /// As [`Self::read`]. After a timeout or a broken connection, whether it was committed is not
    /// known.
    pub(crate) async fn write<T>(
        &mut self,
        deadline: Instant,
        operation: impl for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, sqlx::Result<T>> + Send + Sync,
    ) -> Result<T, DatabaseError> {
        timeout_at(deadline, self.run(&operation))
            .await
            .map_err(|_elapsed| DatabaseError::Timeout)?
    }

    /// Runs `operation`, once more on a new connection if the server refused before it did
    /// anything and the session was the reason.
    async fn run<T>(
        &mut self,
        operation: &(
             impl for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, sqlx::Result<T>> + Send + Sync
         ),
    ) -> Result<T, DatabaseError> {
        let began = Instant::now();
        let mut is_last = false;
        loop {
            match self.attempt(operation).await {
                Err(error) if error.is_of_the_session() && !is_last => {
                    self.trust.doubt(began).await;
                }
                settled => return settled,
            }
            is_last = true;
        }
    }

    async fn attempt<T>(
        &mut self,
        operation: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, sqlx::Result<T>> + Send,
    ) -> Result<T, DatabaseError> {
        let (mut connection, opened) = if let Some(idle) = self.take_idle().await {
            (idle.connection, idle.opened)
        } else {
            let connected = timeout(self.limits.acquire, self.connect()).await;
            let connection = connected.map_err(|_elapsed| DatabaseError::Timeout)?;
            (
                connection.map_err(DatabaseError::of_connecting)?,
                Instant::now(),
            )
        };
        let result = run_on(&mut connection, self.route, self.limits, operation).await;
        let usable = match &result {
            Ok(_) => true,
            Err(error @ sqlx::Error::Database(_)) => !is_dead_connection(error),
            Err(_) => false,
        };
        if usable {
            self.idle = Some(Idle {
                connection,
                opened,
                since: Instant::now(),
            });
        }
        Ok(result?)
    }

    /// Tests the connection before use if it was idle for long, as the pool does.
    async fn take_idle(&mut self) -> Option<Idle> {
        let mut idle = self.idle.take()?;
        let alive = idle.opened.elapsed() < LONGEST_LIFE
            && self.trust.covers(idle.opened)
            && (idle.since.elapsed() < TEST_AFTER_IDLE
                || timeout(TEST_TIMEOUT, idle.connection.ping())
                    .await
                    .is_ok_and(|answer| answer.is_ok()));
        alive.then_some(idle)
    }

    /// Waits for a server that refuses connections, as the pool does: it may be starting.
    async fn connect(&self) -> sqlx::Result<PgConnection> {
        loop {
            match PgConnection::connect_with(&self.options).await {
                Err(error) if is_starting(&error) => sleep(RECONNECT_PAUSE).await,
                settled => return settled,
            }
        }
    }

    pub(crate) async fn close(self) {
        if let Some(idle) = self.idle {
            _ = timeout(CLOSE_TIMEOUT, idle.connection.close()).await;
        }
    }
}
