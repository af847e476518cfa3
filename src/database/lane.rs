//! A connection with a single owner, opened when needed and again when it broke. Needs no pool: nobody waits for it, and
//! while it is busy nothing is asked of the server but the statements themselves.

use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::error::{DatabaseError, is_dead_connection, is_starting};
use super::pool::{ACQUIRE_TIMEOUT, Database, Route, TEST_AFTER_IDLE, TEST_TIMEOUT, run_on};

/// A connection is replaced when it is so old: so that a name that leads elsewhere by now is looked up again.
const LONGEST_LIFE: Duration = Duration::from_mins(30);
/// Attempts of one read on connections that turn out to be dead.
const ATTEMPTS: usize = 10;
/// Pause between attempts to reach a server that is starting.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

pub struct Lane {
    options: PgConnectOptions,
    route: Route,
    /// Taken out while in use: an operation that is given up half-way takes its connection with it.
    idle: Option<Idle>,
}

struct Idle {
    connection: PgConnection,
    opened: Instant,
    since: Instant,
}

impl Lane {
    /// Leads where the pool of `database` does, within the same limits; connects when first used.
    pub fn beside(database: &Database) -> Self {
        let options = match database.route {
            // Statements over arrays are planned once: PostgreSQL would take a generic plan for dearer than one for a
            // single element, and plan anew each time. And by the index: the table may be small when it is planned.
            Route::Direct => {
                let options = [("plan_cache_mode", "force_generic_plan"), ("enable_seqscan", "off")];
                (*database.options).clone().options(options)
            }
            Route::TransactionPooler => (*database.options).clone(),
        };
        Self { options, route: database.route, idle: None }
    }

    /// Runs a read until `deadline`; tried again when the connection turns out to be dead, as it does after a restart of
    /// the server.
    ///
    /// # Errors
    /// [`DatabaseError::Timeout`] at the deadline, and when no connection can be had; else what the driver reports.
    pub async fn read<T>(
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
        timeout_at(deadline, attempts).await.map_err(|_elapsed| DatabaseError::Timeout)?
    }

    /// Runs a write until `deadline`.
    ///
    /// # Errors
    /// As [`Self::read`]. After a timeout or a broken connection, whether it was committed is not known.
    pub async fn write<T>(
        &mut self,
        deadline: Instant,
        operation: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, sqlx::Result<T>> + Send,
    ) -> Result<T, DatabaseError> {
        timeout_at(deadline, self.run(operation)).await.map_err(|_elapsed| DatabaseError::Timeout)?
    }

    async fn run<T>(
        &mut self,
        operation: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, sqlx::Result<T>> + Send,
    ) -> Result<T, DatabaseError> {
        let (mut connection, opened) = if let Some(idle) = self.take_idle().await {
            (idle.connection, idle.opened)
        } else {
            let connected = timeout(ACQUIRE_TIMEOUT, self.connect()).await;
            (connected.map_err(|_elapsed| DatabaseError::Timeout)??, Instant::now())
        };
        let result = run_on(&mut connection, self.route, operation).await;
        let usable = match &result {
            Ok(_) => true,
            Err(error @ sqlx::Error::Database(_)) => !is_dead_connection(error),
            Err(_) => false,
        };
        if usable {
            self.idle = Some(Idle { connection, opened, since: Instant::now() });
        }
        Ok(result?)
    }

    /// Tried before use where it rested long, as the pool's are.
    async fn take_idle(&mut self) -> Option<Idle> {
        let mut idle = self.idle.take()?;
        let alive = idle.opened.elapsed() < LONGEST_LIFE
            && (idle.since.elapsed() < TEST_AFTER_IDLE
                || timeout(TEST_TIMEOUT, idle.connection.ping()).await.is_ok_and(|answer| answer.is_ok()));
        alive.then_some(idle)
    }

    /// As the pool does, waits for a server that refuses connections: it may be starting.
    async fn connect(&self) -> sqlx::Result<PgConnection> {
        loop {
            match PgConnection::connect_with(&self.options).await {
                Err(error) if is_starting(&error) => sleep(RECONNECT_PAUSE).await,
                settled => return settled,
            }
        }
    }

    pub async fn close(self) {
        if let Some(idle) = self.idle {
            _ = timeout(CLOSE_TIMEOUT, idle.connection.close()).await;
        }
    }
}
