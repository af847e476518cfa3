//! Whether this process can do its work, dependency by dependency.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::timeout;

use super::single_flight::SingleFlight;
use super::state::{Link, Status};
use crate::database::{Database, DatabaseError, schema};

/// Time limit of a check: a probe needs its answer sooner than a client.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    Ready,
    /// Reads work. Writes work too unless the database is read-only; their events wait in the
    /// outbox until the broker is back.
    Degraded,
    Unavailable,
}

/// The state of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DatabaseState {
    Down,
    MigrationsPending,
    /// It takes no writes: a standby, or set to read-only.
    ReadOnly,
    Current,
}

/// The state of each dependency.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Health {
    pub database: DatabaseState,
    /// The connection that publishes.
    pub publisher: Link,
    /// The connection that consumes.
    pub consumer: Link,
    /// `false` if another replica publishes, or this one is not connected.
    pub relay_leads: bool,
    /// The process is about to stop.
    pub is_draining: bool,
}

impl Health {
    pub(crate) fn readiness(self) -> Readiness {
        let takes_writes = match self.database {
            DatabaseState::Down | DatabaseState::MigrationsPending => {
                return Readiness::Unavailable;
            }
            DatabaseState::ReadOnly => false,
            DatabaseState::Current => true,
        };
        if self.is_draining {
            Readiness::Unavailable
        } else if takes_writes && self.publisher == Link::Up && self.consumer == Link::Up {
            Readiness::Ready
        } else {
            Readiness::Degraded
        }
    }
}

#[derive(Clone)]
pub(crate) struct HealthService {
    database: Database,
    status: Arc<Status>,
    seen: Arc<SingleFlight<DatabaseState>>,
}

impl HealthService {
    /// `database` is not the requests' pool, so that probes are answered even when that pool is
    /// exhausted.
    pub(crate) fn new(database: Database, status: Arc<Status>) -> Self {
        Self {
            database,
            status,
            seen: Arc::default(),
        }
    }

    pub(crate) async fn probe(&self) -> Health {
        Health {
            database: self.database().await,
            publisher: self.status.publisher.load(),
            consumer: self.status.consumer_link(),
            relay_leads: self.status.relay_leads.load(),
            is_draining: self.status.is_draining.load(),
        }
    }

    /// The state of the database alone.
    pub(crate) async fn database(&self) -> DatabaseState {
        self.seen.run(self.probe_database().boxed()).await
    }

    async fn probe_database(&self) -> DatabaseState {
        let looking = async {
            let is_current = self
                .database
                .read(|connection| Box::pin(schema::is_current(connection)))
                .await?;
            let takes_writes = self.database.takes_writes().await?;
            Ok::<_, DatabaseError>((is_current, takes_writes))
        };
        match timeout(PROBE_TIMEOUT, looking).await {
            Ok(Ok((false, _))) => DatabaseState::MigrationsPending,
            Ok(Ok((true, false))) => DatabaseState::ReadOnly,
            Ok(Ok((true, true))) => DatabaseState::Current,
            Ok(Err(_)) | Err(_) => DatabaseState::Down,
        }
    }
}
