//! Whether this process can do its work, dependency by dependency.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::{
    in_turn::InTurn,
    state::{Link, Status},
};
use crate::database::{Database, schema};

/// A probe wants its answer sooner than a client.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Readiness {
    Ready,
    /// Reads and writes work; events wait in the outbox until the broker is back
    Degraded,
    Unavailable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DatabaseState {
    Up,
    Down,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SchemaState {
    Current,
    /// Migrations wait to be applied
    Pending,
    /// The database is away
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RelayState {
    Leading,
    /// Another replica publishes, or this one is not connected
    Standby,
}

/// The state of each dependency
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Checks {
    pub database: DatabaseState,
    pub schema: SchemaState,
    /// The connection that publishes
    pub publisher: Link,
    /// The connection that consumes
    pub consumer: Link,
    pub relay: RelayState,
    /// The process is about to stop
    pub draining: bool,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct HealthReport {
    pub status: Readiness,
    pub checks: Checks,
}

#[derive(Clone)]
pub struct HealthService {
    database: Database,
    status: Arc<Status>,
    /// Of the database, and whether its schema is current.
    seen: Arc<InTurn<(DatabaseState, SchemaState)>>,
}

impl Checks {
    /// What a service tells while its database is away; for the document's example.
    #[must_use]
    pub const fn without_database() -> Self {
        Self {
            database: DatabaseState::Down,
            schema: SchemaState::Unknown,
            publisher: Link::Down,
            consumer: Link::Up,
            relay: RelayState::Standby,
            draining: false,
        }
    }
}

impl HealthService {
    /// `database` is not the requests' pool: a probe must be answered when that is exhausted.
    #[must_use]
    pub fn new(database: Database, status: Arc<Status>) -> Self {
        Self { database, status, seen: Arc::default() }
    }

    pub async fn report(&self) -> HealthReport {
        let (database, schema) = self.seen.look(self.look_at_database()).await;
        let checks = Checks {
            database,
            schema,
            publisher: self.status.publisher(),
            consumer: self.status.consumer(),
            relay: if self.status.relay_leads() { RelayState::Leading } else { RelayState::Standby },
            draining: self.status.is_draining(),
        };
        HealthReport { status: readiness(&checks), checks }
    }

    async fn look_at_database(&self) -> (DatabaseState, SchemaState) {
        let is_current = self.database.read(|connection| Box::pin(schema::is_current(connection)));
        match timeout(PROBE_TIMEOUT, is_current).await {
            Ok(Ok(true)) => (DatabaseState::Up, SchemaState::Current),
            Ok(Ok(false)) => (DatabaseState::Up, SchemaState::Pending),
            Ok(Err(_)) | Err(_) => (DatabaseState::Down, SchemaState::Unknown),
        }
    }
}

fn readiness(checks: &Checks) -> Readiness {
    if checks.draining || checks.schema != SchemaState::Current {
        Readiness::Unavailable
    } else if checks.publisher == Link::Up && checks.consumer == Link::Up {
        Readiness::Ready
    } else {
        Readiness::Degraded
    }
}
