//! Which replica leads: the one that holds a session lock in PostgreSQL. The lock is on the
//! connection that deletes, so a replica that has lost it cannot delete.

use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::store::TIMEOUT;
use crate::messaging::session::{SessionError, with_timeout};
use crate::repository::outbox::{self, Election};

/// How often a standby replica tries to lead, with jitter.
const INTERVAL: Duration = Duration::from_millis(400);

/// After this long on a server that takes no writes, a new connection is opened: by then the
/// address may lead to another server.
const READ_ONLY_FOR: Duration = Duration::from_secs(4);

/// Waits until this replica leads, for as long as the connection lives.
pub(crate) async fn win(database: &PgConnectOptions) -> Result<PgConnection, SessionError> {
    loop {
        if let Some(connection) = win_on_one_connection(database).await? {
            return Ok(connection);
        }
    }
}

/// `None` if its server takes no writes for a while.
async fn win_on_one_connection(
    database: &PgConnectOptions,
) -> Result<Option<PgConnection>, SessionError> {
    let mut connection = outbox::connect_relay(database).await?;
    let looking = outbox::keeps_relay_settings(&mut connection);
    if !with_timeout(TIMEOUT, "look at the settings", looking).await? {
        return Err(SessionError::Shared);
    }
    let mut read_only_until = None;
    loop {
        match with_timeout(TIMEOUT, "try to lead", outbox::try_lead(&mut connection)).await? {
            Election::Won => return Ok(Some(connection)),
            Election::Lost => read_only_until = None,
            Election::ReadOnly => {
                let until = *read_only_until.get_or_insert_with(|| {
                    warn!("The database takes no writes, so the relay does not lead");
                    Instant::now() + READ_ONLY_FOR
                });
                if Instant::now() >= until {
                    return Ok(None);
                }
            }
        }
        sleep(INTERVAL.mul_f64(0.5 + fastrand::f64())).await;
    }
}
