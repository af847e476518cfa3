//! Which replica leads: the one that holds a session lock in PostgreSQL. The lock is on the connection that deletes, so a replica
//! that has lost it cannot delete.

use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use tokio::time::sleep;
use tracing::warn;

use super::store::TIMEOUT;
use crate::messaging::session::{SessionError, with_timeout};
use crate::repository::outbox;

/// How often a standby replica tries to lead, with jitter.
const INTERVAL: Duration = Duration::from_millis(400);

/// Waits until this replica leads, for as long as the connection lives.
pub async fn win(database: &PgConnectOptions) -> Result<PgConnection, SessionError> {
    let mut connection = outbox::connect_relay(database).await?;
    if !with_timeout(TIMEOUT, "look at the settings", outbox::has_its_settings(&mut connection)).await? {
        warn!(
            "The relay's session has not the settings that it asked for: a pooler in between? Set DATABASE_DIRECT_URL"
        );
    }
    while !with_timeout(TIMEOUT, "try to lead", outbox::try_lead(&mut connection)).await? {
        sleep(INTERVAL.mul_f64(0.5 + fastrand::f64())).await;
    }
    Ok(connection)
}
