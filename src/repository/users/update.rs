//! Changes of names and passwords.

use sqlx::PgConnection;
use uuid::Uuid;

use super::change::Update;
use super::changed_row::{ChangedRow, RowOutcome};
use crate::domain::event::EventType;
use crate::domain::name::Name;
use crate::domain::password::PasswordHash;
use crate::repository::stored_time::StoredTime;

/// The statement of an update; `$condition` decides whether a row changes. Without a new password,
/// the column is not named: reading it requires a privilege that the service's login may lack.
macro_rules! update_one {
    ($set:literal, $condition:literal, $update:ident $(, $password:expr)?) => {
        // `current` waits for the row's lock and then reads its newest state. The comparison thus
        // sees what the update will change, and two partial updates racing on one user both
        // survive.
        table_query!(query_as!(
            ChangedRow,
            r#"WITH current AS (
                   SELECT "# user r#" FROM users WHERE id = $1 FOR NO KEY UPDATE
               ), updated AS (
                   UPDATE users
                   SET name = coalesce($2, users.name), surname = coalesce($3, users.surname),
                       version = users.version + 1, updated_at = clock_timestamp()"# + $set +
            r#"    FROM current
                   WHERE users.id = current.id AND "# + $condition +
            r#"    RETURNING users.id, users.name, users.surname, users.version, users.updated_at
               ), event AS (
                   INSERT INTO outbox ("# event r#")
                   SELECT $4, $5, id, version, $6, updated_at,
                          row_to_json((SELECT data FROM (SELECT name, surname) AS data)), $7
                   FROM updated
               )
               SELECT CASE WHEN updated.id IS NULL THEN 'unchanged' ELSE 'changed' END
                          AS "outcome!: RowOutcome",
                      current.id AS "id!", coalesce(updated.name, current.name) AS "name!",
                      coalesce(updated.surname, current.surname) AS "surname!",
                      coalesce(updated.version, current.version) AS "version!",
                      current.created_at AS "created_at!: StoredTime",
                      coalesce(updated.updated_at, current.updated_at) AS "updated_at!: StoredTime"
               FROM current LEFT JOIN updated USING (id)"#,
            $update.id.get(),
            $update.name.as_ref().map(Name::as_str),
            $update.surname.as_ref().map(Name::as_str),
            $update.event.id,
            EventType::Updated.as_str(),
            $update.event.trace_id.as_str(),
            $update.event.actor(),
            $($password,)?
        ))
    };
}

pub(crate) async fn one(
    connection: &mut PgConnection,
    update: &Update,
) -> sqlx::Result<Option<ChangedRow>> {
    update_one!(
        " ",
        "(current.name <> $2 OR current.surname <> $3) ",
        update
    )
    .fetch_optional(connection)
    .await
}

pub(crate) async fn one_with_password(
    connection: &mut PgConnection,
    update: &Update,
    hash: &PasswordHash,
) -> sqlx::Result<Option<ChangedRow>> {
    update_one!(", password = $8 ", "true ", update, hash.expose())
        .fetch_optional(connection)
        .await
}

/// [`update_one`] over arrays. Users in `asked` but not in `current` are reported as locked.
macro_rules! update_many {
    (
        $set:literal, $condition:literal, $updates:ident, $unnest:literal, $columns:literal
        $(, $passwords:expr)?
    ) => {
        table_query!(query_as!(
            ChangedRow,
            r#"WITH change AS (
                   SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::uuid[],
                                        $5::text[], $6::text[]"# + $unnest + r#")
                       AS change (id, name, surname, event_id, trace_id, actor"# + $columns + r#")
               ), current AS (
                   SELECT "# user r#" FROM users
                   WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
               ), updated AS (
                   UPDATE users
                   SET name = coalesce(change.name, users.name),
                       surname = coalesce(change.surname, users.surname),
                       version = users.version + 1, updated_at = clock_timestamp()"# + $set +
            r#"    FROM current JOIN change USING (id)
                   -- The array again, for its index: the planner does not know what `current` holds.
                   WHERE users.id = current.id AND users.id = ANY($1) AND "# + $condition +
            r#"    RETURNING users.id, users.name, users.surname, users.version, users.updated_at,
                             change.event_id, change.trace_id, change.actor
               ), event AS (
                   INSERT INTO outbox ("# event r#")
                   SELECT event_id, $7, id, version, trace_id, updated_at,
                          row_to_json((SELECT data FROM (SELECT name, surname) AS data)), actor
                   FROM updated
               )
               SELECT CASE WHEN updated.id IS NOT NULL THEN 'changed'
                           WHEN current.id IS NOT NULL THEN 'unchanged'
                           ELSE 'locked' END AS "outcome!: RowOutcome",
                      asked.id, coalesce(updated.name, current.name, asked.name) AS "name!",
                      coalesce(updated.surname, current.surname, asked.surname) AS "surname!",
                      coalesce(updated.version, current.version, asked.version) AS "version!",
                      coalesce(current.created_at, asked.created_at)
                          AS "created_at!: StoredTime",
                      coalesce(updated.updated_at, current.updated_at, asked.updated_at)
                          AS "updated_at!: StoredTime"
               FROM users AS asked LEFT JOIN current USING (id) LEFT JOIN updated USING (id)
               WHERE asked.id = ANY($1)"#,
            &$updates.ids,
            $updates.names as Vec<Option<&str>>,
            $updates.surnames as Vec<Option<&str>>,
            &$updates.event_ids,
            $updates.trace_ids as Vec<&str>,
            $updates.actors as Vec<Option<&str>>,
            EventType::Updated.as_str(),
            $($passwords as Vec<&str>,)?
        ))
    };
}

/// The values of updates, one array per column.
#[derive(Default)]
struct Columns<'u> {
    ids: Vec<i64>,
    names: Vec<Option<&'u str>>,
    surnames: Vec<Option<&'u str>>,
    event_ids: Vec<Uuid>,
    trace_ids: Vec<&'u str>,
    actors: Vec<Option<&'u str>>,
}

impl<'u> Columns<'u> {
    fn of(updates: impl Iterator<Item = &'u Update>) -> Self {
        let mut columns = Self::default();
        for update in updates {
            columns.ids.push(update.id.get());
            columns.names.push(update.name.as_ref().map(Name::as_str));
            columns
                .surnames
                .push(update.surname.as_ref().map(Name::as_str));
            columns.event_ids.push(update.event.id);
            columns.trace_ids.push(update.event.trace_id.as_str());
            columns.actors.push(update.event.actor());
        }
        columns
    }
}

pub(crate) async fn many(
    connection: &mut PgConnection,
    updates: &[Update],
) -> sqlx::Result<Vec<ChangedRow>> {
    let updates = Columns::of(updates.iter());
    update_many!(
        " ",
        "(current.name <> change.name OR current.surname <> change.surname) ",
        updates,
        "",
        ""
    )
    .fetch_all(connection)
    .await
}

pub(crate) async fn many_with_passwords(
    connection: &mut PgConnection,
    updates: &[(Update, PasswordHash)],
) -> sqlx::Result<Vec<ChangedRow>> {
    let hashes: Vec<&str> = updates.iter().map(|(_, hash)| hash.expose()).collect();
    let updates = Columns::of(updates.iter().map(|(update, _)| update));
    update_many!(
        ", password = change.password ",
        "true ",
        updates,
        ", $8::text[]",
        ", password",
        hashes
    )
    .fetch_all(connection)
    .await
}
