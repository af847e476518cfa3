//! Deletions.

use sqlx::PgConnection;
use uuid::Uuid;

use super::change::Deletion;
use super::changed_row::{ChangedRow, RowOutcome};
use crate::domain::event::{EventHeader, EventType};
use crate::repository::stored_time::StoredTime;

pub(crate) async fn one(
    connection: &mut PgConnection,
    deletion: &Deletion,
) -> sqlx::Result<Option<ChangedRow>> {
    table_query!(query_as!(
        ChangedRow,
        r#"WITH deleted AS (
               DELETE FROM users WHERE id = $1
               RETURNING "# user r#"
           ), event AS (
               INSERT INTO outbox ("# event r#")
               SELECT $2, $3, id, version + 1, $4, clock_timestamp(), 'null', $5 FROM deleted
           )
           SELECT 'changed' AS "outcome!: RowOutcome", "# read_user r#" FROM deleted"#,
        deletion.id.get(),
        deletion.event.id,
        EventType::Deleted.as_str(),
        deletion.event.trace_id.as_str(),
        deletion.event.actor(),
    ))
    .fetch_optional(connection)
    .await
}

/// The statement of [`one`] over arrays. Users who exist but were not deleted are reported as
/// locked.
pub(crate) async fn many(
    connection: &mut PgConnection,
    deletions: &[Deletion],
) -> sqlx::Result<Vec<ChangedRow>> {
    let ids: Vec<i64> = deletions.iter().map(|deletion| deletion.id.get()).collect();
    let events = || deletions.iter().map(|deletion| &deletion.event);
    let event_ids: Vec<Uuid> = events().map(|event| event.id).collect();
    let trace_ids: Vec<&str> = events().map(|event| event.trace_id.as_str()).collect();
    let actors: Vec<Option<&str>> = events().map(EventHeader::actor).collect();
    table_query!(query_as!(
        ChangedRow,
        r#"WITH change AS (
               SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::text[], $4::text[])
                   AS change (id, event_id, trace_id, actor)
           ), current AS (
               SELECT id FROM users
               WHERE id = ANY($1) ORDER BY id FOR UPDATE SKIP LOCKED
           ), deleted AS (
               DELETE FROM users USING current JOIN change USING (id)
               WHERE users.id = current.id AND users.id = ANY($1)
               RETURNING users.id, users.name, users.surname, users.version, users.created_at,
                         users.updated_at, change.event_id, change.trace_id, change.actor
           ), event AS (
               INSERT INTO outbox ("# event r#")
               SELECT event_id, $5, id, version + 1, trace_id, clock_timestamp(), 'null', actor
               FROM deleted
           )
           SELECT CASE WHEN deleted.id IS NULL THEN 'locked' ELSE 'changed' END
                      AS "outcome!: RowOutcome",
                  asked.id, coalesce(deleted.name, asked.name) AS "name!",
                  coalesce(deleted.surname, asked.surname) AS "surname!",
                  coalesce(deleted.version, asked.version) AS "version!",
                  coalesce(deleted.created_at, asked.created_at) AS "created_at!: StoredTime",
                  coalesce(deleted.updated_at, asked.updated_at) AS "updated_at!: StoredTime"
           FROM users AS asked LEFT JOIN deleted USING (id)
           WHERE asked.id = ANY($1)"#,
        &ids,
        &event_ids,
        trace_ids as Vec<&str>,
        actors as Vec<Option<&str>>,
        EventType::Deleted.as_str(),
    ))
    .fetch_all(connection)
    .await
}
