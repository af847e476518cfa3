//! The `outbox_quarantine` table: events that the broker rejects for good, until an operator
//! decides.

use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use super::stored_time::StoredTime;
use crate::domain::timestamp::Timestamp;

/// Moves an event out of the outbox into quarantine. If its id is there already, it is the same
/// event, and is only deleted from the outbox.
pub(crate) async fn quarantine(
    connection: &mut PgConnection,
    seq: i64,
    id: Uuid,
    reason: &str,
) -> sqlx::Result<()> {
    table_query!(query!(
        "WITH event AS (DELETE FROM outbox WHERE seq = $1 AND event_id = $2 RETURNING *)
         INSERT INTO outbox_quarantine (" event ", reason)
         SELECT " event ", $3 FROM event
         ON CONFLICT (event_id) DO NOTHING",
        seq,
        id,
        reason
    ))
    .execute(connection)
    .await
    .map(|_done| ())
}

/// An event in quarantine, without the user's name.
#[derive(Debug, Serialize)]
pub(crate) struct QuarantinedEvent {
    pub event_id: Uuid,
    pub event_type: String,
    pub user_id: i64,
    pub user_version: i64,
    pub trace_id: String,
    pub occurred_at: Timestamp,
    pub quarantined_at: Timestamp,
    pub reason: String,
}

/// Returns all events in quarantine, the oldest entry first.
pub(crate) async fn list(connection: &mut PgConnection) -> sqlx::Result<Vec<QuarantinedEvent>> {
    sqlx::query_as!(
        QuarantinedEvent,
        r#"SELECT event_id, event_type, user_id, user_version, trace_id, occurred_at AS "occurred_at: StoredTime",
                  quarantined_at AS "quarantined_at: StoredTime", reason
           FROM outbox_quarantine ORDER BY quarantined_at, event_id"#
    )
    .fetch_all(connection)
    .await
}

/// Puts events back at the end of the outbox, in order for each user. If given, `ids` and
/// `event_type` select them. Returns their ids.
pub(crate) async fn retry(
    connection: &mut PgConnection,
    ids: Option<&[Uuid]>,
    event_type: Option<&str>,
) -> sqlx::Result<Vec<Uuid>> {
    table_query!(query_scalar!(
        r#"WITH event AS (
               DELETE FROM outbox_quarantine
               WHERE ($1::uuid[] IS NULL OR event_id = ANY($1)) AND ($2::text IS NULL OR event_type = $2)
               RETURNING *
           )
           INSERT INTO outbox ("# event r#")
           SELECT "# event r#" FROM event
           ORDER BY user_version, occurred_at
           RETURNING event_id"#,
        ids,
        event_type
    ))
    .fetch_all(connection)
    .await
}

/// Deletes events permanently, selected as in [`retry`]. Returns their ids.
pub(crate) async fn drop(
    connection: &mut PgConnection,
    ids: Option<&[Uuid]>,
    event_type: Option<&str>,
) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "DELETE FROM outbox_quarantine
         WHERE ($1::uuid[] IS NULL OR event_id = ANY($1)) AND ($2::text IS NULL OR event_type = $2)
         RETURNING event_id",
        ids,
        event_type
    )
    .fetch_all(connection)
    .await
}
