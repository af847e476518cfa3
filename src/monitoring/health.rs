//! Whether this process can do its work, dependency by dependency.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::in_turn::InTurn;
use super::state::{Link, Status};
use crate::database::{Database, schema};

/// A probe wants its answer sooner than a client.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// Reads and writes work; events wait in the outbox until the broker is back.
    Degraded,
    Unavailable,
}

/// What is known of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseState {
    Down,
    MigrationsPending,
    Current,
}

/// The state of each dependency.
#[derive(Clone, Copy, Debug)]
pub struct Health {
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
    pub fn readiness(self) -> Readiness {
        if self.is_draining || self.database != DatabaseState::Current {
            Readiness::Unavailable
        } else if self.publisher == Link::Up && self.consumer == Link::Up {
            Readiness::Ready
        } else {
            Readiness::Degraded
        }
    }
}

#[derive(Clone)]
pub struct HealthService {
    database: Database,
    status: Arc<Status>,
    seen: Arc<InTurn<DatabaseState>>,
}

impl HealthService {
    /// `database` is not the requests' pool, so that probes are answered when that is exhausted.
    pub fn new(database: Database, status: Arc<Status>) -> Self {
        Self { database, status, seen: Arc::default() }
    }

    pub async fn look(&self) -> Health {
        Health {
            database: self.seen.look(self.look_at_database()).await,
            publisher: self.status.publisher.load(),
            consumer: self.status.consumer_link(),
            relay_leads: self.status.relay_leads.load(),
            is_draining: self.status.is_draining.load(),
        }
    }

    async fn look_at_database(&self) -> DatabaseState {
        let is_current = self.database.read(|connection| Box::pin(schema::is_current(connection)));
        match timeout(PROBE_TIMEOUT, is_current).await {
            Ok(Ok(true)) => DatabaseState::Current,
            Ok(Ok(false)) => DatabaseState::MigrationsPending,
            Ok(Err(_)) | Err(_) => DatabaseState::Down,
        }
    }
}
