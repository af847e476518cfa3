//! Deletions.

use sqlx::PgConnection;
use uuid::Uuid;

use super::change::Deletion;
use super::changed_row::{ChangedRow, RowOutcome};
use super::version_lists::{VersionLists, allowed, refused};
use crate::domain::event::{EventHeader, EventType};
use crate::repository::stored_time::StoredTime;

/// The statement of deletions, of one row or of many, built like that of updates.
macro_rules! delete {
    ($change:literal, $ids:literal, $lock:literal, $asked:literal, $($argument:expr,)+) => {
        table_query!(query_as!(
            ChangedRow,
            "WITH change AS (" + $change + r#"
               ), current AS (
                   SELECT "# user r#" FROM users
                   WHERE id"# + $ids + "ORDER BY id FOR UPDATE" + $lock + r#"
               ), judged AS ("# judged r#"
               ), deleted AS (
                   DELETE FROM users USING judged
                   WHERE users.id = judged.id AND users.id"# + $ids + r#"AND holds
                   RETURNING users.id, users.version, event_id, trace_id, actor
               ), event AS (
                   INSERT INTO outbox ("# event r#")
                   SELECT event_id, $7, id, version + 1, trace_id, clock_timestamp(), 'null', actor
                   FROM deleted
               )
               SELECT CASE WHEN deleted.id IS NOT NULL THEN 'changed'
                           WHEN judged.id IS NOT NULL THEN 'stale'
                           ELSE 'locked' END AS "outcome!: RowOutcome",
                      asked.id AS "id!", coalesce(judged.name, asked.name) AS "name!",
                      coalesce(judged.surname, asked.surname) AS "surname!",
                      coalesce(judged.version, asked.version) AS "version!",
                      coalesce(judged.created_at, asked.created_at) AS "created_at!: StoredTime",
                      coalesce(judged.updated_at, asked.updated_at) AS "updated_at!: StoredTime"
               FROM "# + $asked + r#" AS asked
               LEFT JOIN judged USING (id) LEFT JOIN deleted USING (id)
               WHERE asked.id"# + $ids,
            $($argument,)+
        ))
    };
}

/// Waits for the row's lock.
pub(crate) async fn one(
    connection: &mut PgConnection,
    deletion: &Deletion,
) -> sqlx::Result<Option<ChangedRow>> {
    delete!(
        r#"SELECT $1::bigint AS id, $2::uuid AS event_id, $3::text AS trace_id,
                  $4::text AS actor, $5::text::bigint[] AS allowed,
                  $6::text::bigint[] AS refused"#,
        " = $1 ",
        " ",
        "current",
        deletion.id.get(),
        deletion.event.id,
        deletion.event.trace_id.as_str(),
        deletion.event.actor(),
        allowed(&deletion.precondition),
        refused(&deletion.precondition),
        EventType::Deleted.as_str(),
    )
    .fetch_optional(connection)
    .await
}

/// Leaves out rows that are locked.
pub(crate) async fn many(
    connection: &mut PgConnection,
    deletions: &[Deletion],
) -> sqlx::Result<Vec<ChangedRow>> {
    let ids: Vec<i64> = deletions.iter().map(|deletion| deletion.id.get()).collect();
    let events = || deletions.iter().map(|deletion| &deletion.event);
    let event_ids: Vec<Uuid> = events().map(|event| event.id).collect();
    let trace_ids: Vec<&str> = events().map(|event| event.trace_id.as_str()).collect();
    let actors: Vec<Option<&str>> = events().map(EventHeader::actor).collect();
    let mut versions = VersionLists::default();
    for deletion in deletions {
        versions.push(&deletion.precondition);
    }
    delete!(
        r#"SELECT id, event_id, trace_id, actor, allowed::bigint[], refused::bigint[]
           FROM unnest($1::bigint[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[])
               AS change (id, event_id, trace_id, actor, allowed, refused)"#,
        " = ANY($1) ",
        " SKIP LOCKED ",
        "users",
        &ids,
        &event_ids,
        trace_ids as Vec<&str>,
        actors as Vec<Option<&str>>,
        versions.allowed as Vec<Option<String>>,
        versions.refused as Vec<Option<String>>,
        EventType::Deleted.as_str(),
    )
    .fetch_all(connection)
    .await
}
