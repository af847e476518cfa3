//! The `api_keys` table. A token is stored as its SHA-256 alone.

use std::time::Duration;

use serde::Serialize;
use sqlx::postgres::types::PgInterval;
use sqlx::{Acquire, PgConnection};

use super::stored_time::StoredTime;
use crate::domain::timestamp::Timestamp;

/// What the service needs of a key.
pub(crate) struct StoredKey {
    pub id: i64,
    pub name: String,
    pub scopes: Vec<String>,
    pub token_sha256: Vec<u8>,
    pub expires_at: Option<Timestamp>,
}

/// Every key, expired ones too.
pub(crate) async fn all(connection: &mut PgConnection) -> sqlx::Result<Vec<StoredKey>> {
    let rows = sqlx::query!(
        r#"SELECT id, name, scopes, token_sha256, expires_at AS "expires_at: StoredTime"
           FROM api_keys"#
    );
    rows.map(|row| StoredKey {
        id: row.id,
        name: row.name,
        scopes: row.scopes,
        token_sha256: row.token_sha256,
        expires_at: row.expires_at.map(Timestamp::from),
    })
    .fetch_all(connection)
    .await
}

/// Notes that keys were used in this minute. Those that another session has locked are
/// skipped: another replica notes them.
pub(crate) async fn note_uses(connection: &mut PgConnection, ids: &[i64]) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE api_keys SET last_used_at = date_trunc('minute', now())
         WHERE id IN (SELECT id FROM api_keys
                      WHERE id = ANY($1) AND last_used_at IS DISTINCT FROM date_trunc('minute', now())
                      ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)",
        ids
    )
    .execute(connection)
    .await
    .map(|_done| ())
}

/// A key for an operator's eyes: neither token nor digest.
#[derive(Debug, Serialize)]
pub(crate) struct ListedKey {
    pub id: i64,
    pub name: String,
    pub scopes: Vec<String>,
    pub created_at: StoredTime,
    pub expires_at: Option<StoredTime>,
    pub last_used_at: Option<StoredTime>,
}

/// By name, the oldest first.
pub(crate) async fn list(connection: &mut PgConnection) -> sqlx::Result<Vec<ListedKey>> {
    sqlx::query_as!(
        ListedKey,
        r#"SELECT id, name, scopes, created_at AS "created_at: StoredTime",
                  expires_at AS "expires_at: StoredTime",
                  last_used_at AS "last_used_at: StoredTime"
           FROM api_keys ORDER BY name, id"#
    )
    .fetch_all(connection)
    .await
}

/// How many keys work.
pub(crate) async fn count_live(connection: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "live!" FROM api_keys WHERE coalesce(expires_at > now(), true)"#
    )
    .fetch_one(connection)
    .await
}

/// A key that was made.
#[derive(Debug, Serialize)]
pub(crate) struct MadeKey {
    pub name: String,
    pub scopes: Vec<String>,
    pub expires_at: Option<StoredTime>,
}

/// `None` if a key of this name works.
pub(crate) async fn create(
    connection: &mut PgConnection,
    name: &str,
    scopes: &[String],
    token_sha256: &[u8],
    lifetime: Option<Duration>,
) -> sqlx::Result<Option<MadeKey>> {
    let lifetime = lifetime.map(interval).transpose()?;
    let mut transaction = lock(connection).await?;
    let made = sqlx::query_as!(
        MadeKey,
        r#"INSERT INTO api_keys (name, scopes, token_sha256, expires_at)
           SELECT $1, $2, $3, now() + $4::interval
           WHERE NOT EXISTS (
               SELECT FROM api_keys WHERE name = $1 AND coalesce(expires_at > now(), true)
           )
           RETURNING name, scopes, expires_at AS "expires_at: StoredTime""#,
        name,
        scopes,
        token_sha256,
        lifetime
    )
    .fetch_optional(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(made)
}

/// Makes another key of the same name, with the scopes and the lifetime of the newest one that
/// works. Those before expire after `keep_old`. `None` if none of this name works.
pub(crate) async fn rotate(
    connection: &mut PgConnection,
    name: &str,
    token_sha256: &[u8],
    keep_old: Duration,
) -> sqlx::Result<Option<MadeKey>> {
    let keep_old = interval(keep_old)?;
    let mut transaction = lock(connection).await?;
    let made = sqlx::query_as!(
        MadeKey,
        r#"WITH old AS (
               SELECT id, scopes, expires_at - created_at AS lifetime FROM api_keys
               WHERE name = $1 AND coalesce(expires_at > now(), true)
           ), expiring AS (
               UPDATE api_keys SET expires_at = least(expires_at, now() + $3::interval)
               WHERE id IN (SELECT id FROM old)
           )
           INSERT INTO api_keys (name, scopes, token_sha256, expires_at)
           SELECT $1, scopes, $2, now() + lifetime FROM old ORDER BY id DESC LIMIT 1
           RETURNING name, scopes, expires_at AS "expires_at: StoredTime""#,
        name,
        token_sha256,
        keep_old
    )
    .fetch_optional(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(made)
}

/// Deletes every key of this name, and returns how many there were.
pub(crate) async fn revoke(connection: &mut PgConnection, name: &str) -> sqlx::Result<u64> {
    let deleted = sqlx::query!("DELETE FROM api_keys WHERE name = $1", name);
    Ok(deleted.execute(connection).await?.rows_affected())
}

/// One who makes keys at a time: two keys of one name are made by a rotation only.
async fn lock(
    connection: &mut PgConnection,
) -> sqlx::Result<sqlx::Transaction<'_, sqlx::Postgres>> {
    let mut transaction = connection.begin().await?;
    sqlx::query!("LOCK TABLE api_keys IN SHARE ROW EXCLUSIVE MODE")
        .execute(&mut *transaction)
        .await?;
    Ok(transaction)
}

fn interval(duration: Duration) -> sqlx::Result<PgInterval> {
    PgInterval::try_from(duration).map_err(sqlx::Error::Encode)
}
