//! The `outbox_held` table: events that wait longer than others, moved out of the way of new ones.
//! Later events of their users follow them there.
//!
//! Queries for one user or lane use a range and order by that column first. With equality and
//! `ORDER BY seq` alone, the planner may choose the primary key when most rows belong to one user
//! or type, and a search for another would then scan all of them.

use serde_json::value::RawValue;
use sqlx::PgConnection;
use sqlx::types::Json;

use super::outbox::Stored;
use super::outbox_event::OutboxEvent;
use super::stored_time::StoredTime;

/// Moves new events here. An event whose position is taken here stays in the outbox; that happens
/// after the sequence was set back.
pub(crate) async fn hold(connection: &mut PgConnection, seqs: &[i64]) -> sqlx::Result<()> {
    table_query!(query!(
        "WITH event AS (
             DELETE FROM ONLY outbox WHERE seq = ANY($1) AND seq NOT IN (SELECT seq FROM outbox_held WHERE seq = ANY($1))
             RETURNING *
         )
         INSERT INTO outbox_held (seq, " event ")
         SELECT seq, " event " FROM event ORDER BY seq",
        seqs
    ))
    .execute(connection)
    .await
    .map(|_done| ())
}

/// Reads at most `limit` events of a lane in order, after position `after` and without those in
/// `known`. Events of users in `holders` are marked as behind: earlier ones are in memory.
pub(crate) async fn read(
    connection: &mut PgConnection,
    lane: &str,
    after: i64,
    known: &[i64],
    holders: &[i64],
    limit: i64,
) -> sqlx::Result<Vec<OutboxEvent>> {
    let rows = sqlx::query_as!(
        Stored,
        r#"SELECT seq, event_id, event_type, user_id, user_version, trace_id,
                  occurred_at AS "occurred_at: StoredTime", payload AS "payload: Json<Box<RawValue>>",
                  actor,
                  -- Looked up once for each user: where many were deleted of late, that takes milliseconds.
                  CASE WHEN user_id IN (SELECT unnest($5::bigint[])) THEN true
                       WHEN row_number() OVER (PARTITION BY user_id ORDER BY seq) > 1 THEN true
                       ELSE (SELECT earlier.seq FROM outbox_held AS earlier
                             WHERE earlier.user_id BETWEEN held.user_id AND held.user_id
                             ORDER BY earlier.user_id, earlier.seq LIMIT 1) < seq
                  END AS "is_behind!"
           FROM (SELECT * FROM outbox_held
                 WHERE (lane, seq) > ($1, $2) AND lane <= $1 AND seq NOT IN (SELECT unnest($3::bigint[]))
                 ORDER BY lane, seq LIMIT $4) AS held
           ORDER BY seq"#,
        lane,
        after,
        known,
        limit,
        holders
    );
    rows.map(OutboxEvent::from).fetch_all(connection).await
}

/// Reads the first events of these users in order, at most `limit` of each.
pub(crate) async fn read_of(
    connection: &mut PgConnection,
    users: &[i64],
    limit: i64,
) -> sqlx::Result<Vec<OutboxEvent>> {
    let rows = sqlx::query_as!(
        Stored,
        r#"SELECT seq, event_id, event_type, user_id, user_version, trace_id,
                  occurred_at AS "occurred_at: StoredTime", payload AS "payload: Json<Box<RawValue>>",
                  actor,
                  false AS "is_behind!"
           FROM unnest($1::bigint[]) AS wanted,
                LATERAL (SELECT * FROM outbox_held WHERE user_id BETWEEN wanted AND wanted
                         ORDER BY user_id, seq LIMIT $2) AS held
           ORDER BY seq"#,
        users,
        limit
    );
    rows.map(OutboxEvent::from).fetch_all(connection).await
}
