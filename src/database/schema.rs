//! The schema's version: applies the embedded migrations and checks whether any is missing.

use std::error::Error;

use sqlx::PgConnection;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use super::error::{DatabaseError, is_missing_table, is_not_allowed, is_transient};
use super::pool::{CONNECT_TIMEOUT, Route, run_once};

/// The migrations in `migrations/`, embedded in the binary.
pub static MIGRATOR: Migrator = sqlx::migrate!();

/// Limits waiting for the migrations' own lock and for locks on the tables they change. Short,
/// because every request for a table queues behind the migration that waits for it.
const LOCK_TIMEOUT: &str = "5s";
/// Time limit of each statement of a migration.
const STATEMENT_TIMEOUT: &str = "10min";

#[derive(Debug, thiserror::Error)]
pub(crate) enum SchemaError {
    #[error(transparent)]
    Connect(#[from] DatabaseError),
    #[error(transparent)]
    Migrate(MigrateError),
    #[error(
        "the database's encoding is {0}, which cannot hold every name: create one with ENCODING \
         'UTF8'"
    )]
    Encoding(String),
}

impl SchemaError {
    /// Whether waiting may help: the database is away, and the migrations themselves did not fail.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Connect(error) if !matches!(error, DatabaseError::Statement(_)))
    }
}

impl SchemaError {
    /// Whether the login lacks a privilege, or the server takes no writes.
    pub(crate) fn is_not_allowed(&self) -> bool {
        if matches!(self, Self::Connect(DatabaseError::ReadOnly(_))) {
            return true;
        }
        let mut error: Option<&(dyn Error + 'static)> = Some(self);
        while let Some(cause) = error {
            if cause.downcast_ref().is_some_and(is_not_allowed) {
                return true;
            }
            error = cause.source();
        }
        false
    }
}

/// Applies missing migrations on a new connection. Safe when several instances start at once,
/// because sqlx holds an advisory lock. A schema newer than the binary is left alone, so that a
/// rolled-back binary starts.
///
/// # Errors
/// [`SchemaError::Migrate`] if a migration fails, or if an applied one was edited;
/// [`SchemaError::Encoding`].
pub(crate) async fn migrate(options: &PgConnectOptions) -> Result<(), SchemaError> {
    require_utf8(options).await?;
    let connection = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(CONNECT_TIMEOUT);
    let limited = options.clone().options([
        ("lock_timeout", LOCK_TIMEOUT),
        ("statement_timeout", STATEMENT_TIMEOUT),
    ]);
    let connection = connection
        .connect_with(limited)
        .await
        .map_err(DatabaseError::of_connecting)?;
    let mut migrator = Migrator::with_migrations(MIGRATOR.iter().cloned().collect());
    migrator.set_ignore_missing(true);
    let outcome = migrator.run(&connection).await;
    connection.close().await;
    outcome.map_err(|error| match error {
        MigrateError::Execute(error) if is_transient(&error) => SchemaError::Connect(error.into()),
        // In a migration, a missing table is a bug that waiting does not fix.
        MigrateError::ExecuteMigration(error, _)
            if is_transient(&error) && !is_missing_table(&error) =>
        {
            SchemaError::Connect(error.into())
        }
        other => SchemaError::Migrate(other),
    })
}

/// Checks that the database can store every name.
async fn require_utf8(options: &PgConnectOptions) -> Result<(), SchemaError> {
    let encoding = run_once(options, Route::Direct, |connection| {
        Box::pin(encoding(connection))
    })
    .await?;
    if encoding == UTF8 {
        Ok(())
    } else {
        Err(SchemaError::Encoding(encoding))
    }
}

pub(crate) const UTF8: &str = "UTF8";

/// Returns the database's encoding.
async fn encoding(connection: &mut PgConnection) -> sqlx::Result<String> {
    sqlx::query_scalar!(r#"SELECT current_setting('server_encoding') AS "encoding!""#)
        .fetch_one(connection)
        .await
}

/// [`is_current`], on a new connection.
pub(crate) async fn is_current_at(options: &PgConnectOptions) -> Result<bool, SchemaError> {
    require_utf8(options).await?;
    Ok(run_once(options, Route::Direct, |connection| {
        Box::pin(is_current(connection))
    })
    .await?)
}

/// Whether all embedded migrations are applied.
///
/// # Errors
/// What the driver reports. A database that was never migrated is `Ok(false)`.
pub(crate) async fn is_current(connection: &mut PgConnection) -> sqlx::Result<bool> {
    let applied = match sqlx::query_scalar!("SELECT version FROM _sqlx_migrations WHERE success")
        .fetch_all(connection)
        .await
    {
        Err(error) if is_missing_table(&error) => return Ok(false),
        answer => answer?,
    };
    Ok(MIGRATOR
        .iter()
        .all(|migration| applied.contains(&migration.version)))
}
