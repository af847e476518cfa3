//! Whether the server keeps what it has committed.

use sqlx::postgres::PgConnectOptions;
use tokio::time::timeout;

use super::{
    error::DatabaseError,
    pool::{OPERATION_TIMEOUT, connect},
};

/// Whether a commit is answered before it is on the disk because somebody configured this database or this login so. What is
/// configured for the whole server is its administrator's decision.
///
/// # Errors
/// When the database is away.
pub async fn is_missing(options: &PgConnectOptions) -> Result<bool, DatabaseError> {
    let mut connection = connect(options).await?;
    let off = sqlx::query_scalar!(
        r#"SELECT setting = 'off' AND source NOT IN ('command line', 'configuration file') AS "off!"
           FROM pg_settings WHERE name = 'synchronous_commit'"#
    );
    timeout(OPERATION_TIMEOUT, off.fetch_one(&mut connection))
        .await
        .map_err(|_elapsed| DatabaseError::Timeout)?
        .map_err(DatabaseError::from)
}
