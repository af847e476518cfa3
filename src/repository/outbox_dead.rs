//! The `outbox_dead` table: events that the broker will not have, until an operator decides.

use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::timestamp::Timestamp;

/// Moves an event out of the outbox.
pub async fn bury(connection: &mut PgConnection, seq: i64, reason: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "WITH event AS (DELETE FROM outbox WHERE seq = $1 RETURNING *)
         INSERT INTO outbox_dead (event_id, event_type, user_id, user_version, trace_id, traceparent, occurred_at,
                                  payload, reason)
         SELECT event_id, event_type, user_id, user_version, trace_id, traceparent, occurred_at, payload, $2 FROM event",
        seq,
        reason
    )
    .execute(connection)
    .await
    .map(|_done| ())
}

/// An event that was given up. Says nothing of what the user is called.
#[derive(Debug, Serialize)]
pub struct DeadEvent {
    pub event_id: Uuid,
    pub event_type: String,
    pub user_id: i64,
    pub user_version: i64,
    pub trace_id: String,
    pub occurred_at: Timestamp,
    pub died_at: Timestamp,
    pub reason: String,
}

/// All of them, the oldest first.
pub async fn list(connection: &mut PgConnection) -> sqlx::Result<Vec<DeadEvent>> {
    sqlx::query_as!(
        DeadEvent,
        "SELECT event_id, event_type, user_id, user_version, trace_id, occurred_at, died_at, reason
           FROM outbox_dead ORDER BY died_at, event_id"
    )
    .fetch_all(connection)
    .await
}

/// Puts an event back at the end of the outbox; `false` where there is none with this id.
pub async fn retry(connection: &mut PgConnection, id: Uuid) -> sqlx::Result<bool> {
    let moved = sqlx::query!(
        "WITH event AS (DELETE FROM outbox_dead WHERE event_id = $1 RETURNING *)
         INSERT INTO outbox (event_id, event_type, user_id, user_version, trace_id, traceparent, occurred_at, payload)
         SELECT event_id, event_type, user_id, user_version, trace_id, traceparent, occurred_at, payload FROM event",
        id
    );
    moved.execute(connection).await.map(|done| done.rows_affected() > 0)
}

/// [`retry`] for all, or all of one type; a user's in the order of their changes. How many there were.
pub async fn retry_all(connection: &mut PgConnection, event_type: Option<&str>) -> sqlx::Result<u64> {
    let moved = sqlx::query!(
        "WITH event AS (DELETE FROM outbox_dead WHERE $1::text IS NULL OR event_type = $1 RETURNING *)
         INSERT INTO outbox (event_id, event_type, user_id, user_version, trace_id, traceparent, occurred_at, payload)
         SELECT event_id, event_type, user_id, user_version, trace_id, traceparent, occurred_at, payload FROM event
         ORDER BY occurred_at, user_version",
        event_type
    );
    moved.execute(connection).await.map(|done| done.rows_affected())
}

/// [`drop`] for all, or all of one type. How many there were.
pub async fn drop_all(connection: &mut PgConnection, event_type: Option<&str>) -> sqlx::Result<u64> {
    let deleted = sqlx::query!("DELETE FROM outbox_dead WHERE $1::text IS NULL OR event_type = $1", event_type);
    deleted.execute(connection).await.map(|done| done.rows_affected())
}

/// Forgets an event for ever; `false` where there is none with this id.
pub async fn drop(connection: &mut PgConnection, id: Uuid) -> sqlx::Result<bool> {
    let deleted = sqlx::query!("DELETE FROM outbox_dead WHERE event_id = $1", id);
    deleted.execute(connection).await.map(|done| done.rows_affected() > 0)
}
