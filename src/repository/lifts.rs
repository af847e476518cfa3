//! The `lifts` table. After a restore or a failover that lost changes, a lift raises versions and
//! ids above those that subscribers have already seen, so that none is handed out twice.

use serde::Serialize;
use sqlx::PgConnection;

use crate::trace_id::TraceId;

/// Users lifted by one statement.
const BATCH: i64 = 5_000;

/// A run that has not ended.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Lift {
    #[serde(skip)]
    pub id: i64,
    /// Added to each version, and to the highest id.
    pub step: i64,
    /// Whether each user gets a `user.updated`.
    pub republish: bool,
    pub trace_id: String,
    #[serde(skip)]
    pub last_id: i64,
    #[serde(skip)]
    pub lifted_to: i64,
    /// Users lifted so far.
    pub lifted: i64,
}

/// Returns an identity of server and database that differs from that of a restored backup.
async fn server(connection: &mut PgConnection) -> sqlx::Result<String> {
    sqlx::query_scalar!(
        r#"SELECT concat_ws('/', system_identifier, substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8),
                            (SELECT oid FROM pg_database WHERE datname = current_database())) AS "server!"
           FROM pg_control_system()"#
    )
    .fetch_one(connection)
    .await
}

/// Returns the latest unfinished run that was started on this server.
pub(crate) async fn unfinished(connection: &mut PgConnection) -> sqlx::Result<Option<Lift>> {
    let server = server(connection).await?;
    sqlx::query_as!(
        Lift,
        "SELECT id, step, republish, trace_id, last_id, lifted_to, lifted FROM lifts
         WHERE ended_at IS NULL AND server = $1 ORDER BY id DESC LIMIT 1",
        server
    )
    .fetch_optional(connection)
    .await
}

/// Starts a run: stores how far it lifts, and up to which id.
pub(crate) async fn begin(
    connection: &mut PgConnection,
    step: i64,
    republish: bool,
    trace_id: &TraceId,
) -> sqlx::Result<Lift> {
    let server = server(connection).await?;
    sqlx::query_as!(
        Lift,
        "INSERT INTO lifts (server, step, republish, trace_id, last_id)
         SELECT $1, $2, $3, $4,
                greatest(pg_sequence_last_value(pg_get_serial_sequence('users', 'id')::regclass),
                         (SELECT max(id) FROM users), 0) + $2
         RETURNING id, step, republish, trace_id, last_id, lifted_to, lifted",
        server,
        step,
        republish,
        trace_id.as_str()
    )
    .fetch_one(connection)
    .await
}

/// Lifts the sequence of ids, unless it was lifted before.
pub(crate) async fn lift_ids(connection: &mut PgConnection, lift: &Lift) -> sqlx::Result<()> {
    sqlx::query_scalar!(
        "SELECT setval(ids, $1) FROM CAST(pg_get_serial_sequence('users', 'id') AS regclass) AS ids
         WHERE coalesce(pg_sequence_last_value(ids), 0) < $1",
        lift.last_id
    )
    .fetch_optional(connection)
    .await
    .map(|_set| ())
}

/// Lifts the next batch of users and records the progress in the same statement. `false` if no
/// users were left: the run has ended.
pub(crate) async fn lift_some(
    connection: &mut PgConnection,
    lift: &mut Lift,
) -> sqlx::Result<bool> {
    let progress = table_query!(query!(
        r#"WITH batch AS (
               SELECT id FROM users WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3 FOR NO KEY UPDATE
           ), lifted AS (
               UPDATE users SET version = version + $4 FROM batch WHERE users.id = batch.id
               RETURNING users.id, name, surname, version
           ), event AS (
               INSERT INTO outbox ("# event r#")
               SELECT gen_random_uuid(), 'user.updated', id, version, $5, clock_timestamp(),
                      row_to_json((SELECT data FROM (SELECT name, surname) AS data)), NULL
               -- The outbox refuses a larger one, which somebody has written by hand.
               FROM lifted WHERE $6 AND octet_length(name) + octet_length(surname) < 10000 ORDER BY id
           )
           UPDATE lifts
           SET lifted = lifts.lifted + (SELECT count(*) FROM lifted),
               lifted_to = coalesce((SELECT max(id) FROM lifted), lifted_to),
               ended_at = CASE WHEN NOT EXISTS (SELECT FROM lifted) THEN now() END
           WHERE lifts.id = $7
           RETURNING lifts.lifted, lifted_to, ended_at IS NOT NULL AS "has_ended!""#,
        lift.lifted_to,
        lift.last_id,
        BATCH,
        lift.step,
        lift.trace_id,
        lift.republish,
        lift.id
    ))
    .fetch_one(connection)
    .await?;
    lift.lifted = progress.lifted;
    lift.lifted_to = progress.lifted_to;
    Ok(!progress.has_ended)
}
