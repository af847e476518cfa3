//! The state of each dependency, as clients see it.

use serde::Serialize;
use utoipa::ToSchema;

use crate::monitoring::health::{self, Health};
use crate::monitoring::state;

#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DatabaseState {
    Up,
    /// It takes no writes: a standby, or set to read-only
    ReadOnly,
    Down,
}

#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SchemaState {
    Current,
    /// Migrations wait to be applied
    Pending,
    /// The database is away
    Unknown,
}

/// The state of one connection to the broker.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Link {
    /// Not connected; retried without end, with growing pauses.
    Down,
    Up,
    /// Connected, but the broker blocks publishing: it is short of memory or disk.
    Blocked,
}

impl From<state::Link> for Link {
    fn from(link: state::Link) -> Self {
        match link {
            state::Link::Down => Self::Down,
            state::Link::Up => Self::Up,
            state::Link::Blocked => Self::Blocked,
        }
    }
}

#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RelayState {
    Leading,
    /// Another replica publishes, or this one is not connected
    Standby,
}

/// The state of each dependency
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(crate) struct Checks {
    database: DatabaseState,
    schema: SchemaState,
    /// The connection that publishes
    publisher: Link,
    /// The connection that consumes
    consumer: Link,
    relay: RelayState,
    /// The process is about to stop
    draining: bool,
}

impl From<Health> for Checks {
    fn from(health: Health) -> Self {
        let (database, schema) = match health.database {
            health::DatabaseState::Current => (DatabaseState::Up, SchemaState::Current),
            health::DatabaseState::ReadOnly => (DatabaseState::ReadOnly, SchemaState::Current),
            health::DatabaseState::MigrationsPending => (DatabaseState::Up, SchemaState::Pending),
            health::DatabaseState::Down => (DatabaseState::Down, SchemaState::Unknown),
        };
        Self {
            database,
            schema,
            publisher: health.publisher.into(),
            consumer: health.consumer.into(),
            relay: if health.relay_leads {
                RelayState::Leading
            } else {
                RelayState::Standby
            },
            draining: health.is_draining,
        }
    }
}
