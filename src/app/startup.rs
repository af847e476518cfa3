//! Starts the relay once the schema is current. The service answers requests meanwhile.

use sqlx::postgres::PgConnectOptions;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::error::AppError;
use crate::backoff::Backoff;
use crate::config::DatabaseConfig;
use crate::database::schema::{self, SchemaError};
use crate::database::{identity, warnings};
use crate::error_chain::Chain;
use crate::messaging::relay::Relay;

/// Runs the relay once the schema is current.
pub(crate) async fn relay_once_ready(
    relay: Relay,
    database: DatabaseConfig,
    stop: CancellationToken,
) -> Result<(), AppError> {
    if let Some(outcome) = stop.run_until_cancelled(schema_ready(&database)).await {
        outcome?;
        relay.run(stop).await;
    }
    Ok(())
}

/// Waits until the schema is current: applies the migrations, or waits until they are applied.
async fn schema_ready(database: &DatabaseConfig) -> Result<(), SchemaError> {
    let options = database.direct_url.options();
    let mut backoff = Backoff::default();
    loop {
        match bring_up_to_date(&options, database.migrate_on_start).await {
            Ok(true) => {
                warn_of_another_server(&options).await;
                warn_of_dangers(database).await;
                return Ok(());
            }
            Ok(false) => warn!("Migrations are pending: run `user-management-api migrate`"),
            Err(error) if error.is_transient() => {
                warn!(error = %Chain(&error), "The database is unavailable, trying again");
            }
            Err(error) => return Err(error),
        }
        sleep(backoff.next_pause()).await;
    }
}

/// Returns whether the schema is current; migrates first if `migrate` is set.
async fn bring_up_to_date(options: &PgConnectOptions, migrate: bool) -> Result<bool, SchemaError> {
    if !migrate {
        return schema::is_current_at(options).await;
    }
    match schema::migrate(options).await {
        Ok(()) => Ok(true),
        // A login that owns no tables may not even check for pending migrations; on a standby, no
        // login may.
        Err(error) if error.is_not_allowed() => match schema::is_current_at(options).await {
            Ok(true) => Ok(true),
            _pending_or_unknown => Err(error),
        },
        Err(error) => Err(error),
    }
}

async fn warn_of_another_server(options: &PgConnectOptions) {
    match identity::has_changed(options).await {
        Ok(false) => {}
        Ok(true) => warn!(
            "The database's server is another one than at the last start, or was promoted or \
             recovered: if changes may have been lost, stop the service and run \
             `user-management-api after-restore`"
        ),
        Err(error) => {
            warn!(error = %Chain(&error), "Cannot tell whether the database was restored");
        }
    }
}

async fn warn_of_dangers(database: &DatabaseConfig) {
    for found in warnings::check(
        &database.direct_url.options(),
        &database.url.options(),
        database.route,
    )
    .await
    {
        match found {
            Ok(None) => {}
            Ok(Some(danger)) => warn!("{danger}"),
            Err(error) => {
                warn!(
                    error = %Chain(&error),
                    "Cannot tell whether PostgreSQL encrypts, or keeps what it commits"
                );
            }
        }
    }
}
