//! Changes of names and passwords.

use sqlx::PgConnection;
use uuid::Uuid;

use super::change::Update;
use super::changed_row::{ChangedRow, RowOutcome};
use super::version_lists::{VersionLists, allowed, refused};
use crate::domain::event::EventType;
use crate::domain::name::Name;
use crate::domain::password::PasswordHash;
use crate::repository::stored_time::StoredTime;

/// The statement of updates, of one row or of many. `$change` has a row for each user; `$condition`
/// decides whether a row that may change does. Without new passwords, the column is not named:
/// reading it requires a privilege that the service's login may lack.
///
/// `current` locks the rows, after a wait or not, and reads their newest state. What follows thus
/// sees what the update will change, and two partial updates racing on one user both survive. Users
/// in `asked` but not in `current` are reported as locked.
macro_rules! update {
    (
        [$($change:tt)*], $ids:literal, $lock:literal, $asked:literal, $set:literal,
        $condition:literal, $($argument:expr,)+
    ) => {
        table_query!(query_as!(
            ChangedRow,
            "WITH change AS (" + $($change)* + r#"
               ), current AS (
                   SELECT "# user r#" FROM users
                   WHERE id"# + $ids + "ORDER BY id FOR NO KEY UPDATE" + $lock + r#"
               ), judged AS ("# judged r#"
               ), updated AS (
                   UPDATE users
                   SET name = coalesce(new_name, users.name),
                       surname = coalesce(new_surname, users.surname),
                       version = users.version + 1, updated_at = clock_timestamp()"# + $set + r#"
                   FROM judged
                   -- The ids again, for their index: the planner does not know what `judged` holds.
                   WHERE users.id = judged.id AND users.id"# + $ids + "AND holds" + $condition + r#"
                   RETURNING users.id, users.name, users.surname, users.version, users.updated_at,
                             event_id, trace_id, actor
               ), event AS (
                   INSERT INTO outbox ("# event r#")
                   SELECT event_id, $9, id, version, trace_id, updated_at,
                          row_to_json((SELECT data FROM (SELECT name, surname) AS data)), actor
                   FROM updated
               )
               SELECT CASE WHEN updated.id IS NOT NULL THEN 'changed'
                           WHEN judged.holds THEN 'unchanged'
                           WHEN judged.id IS NOT NULL THEN 'stale'
                           ELSE 'locked' END AS "outcome!: RowOutcome",
                      asked.id AS "id!",
                      coalesce(updated.name, judged.name, asked.name) AS "name!",
                      coalesce(updated.surname, judged.surname, asked.surname) AS "surname!",
                      coalesce(updated.version, judged.version, asked.version) AS "version!",
                      coalesce(judged.created_at, asked.created_at)
                          AS "created_at!: StoredTime",
                      coalesce(updated.updated_at, judged.updated_at, asked.updated_at)
                          AS "updated_at!: StoredTime"
               FROM "# + $asked + r#" AS asked
               LEFT JOIN judged USING (id) LEFT JOIN updated USING (id)
               WHERE asked.id"# + $ids,
            $($argument,)+
        ))
    };
}

/// Waits for the row's lock.
macro_rules! update_one {
    ($column:literal, $set:literal, $condition:literal, $update:ident $(, $password:expr)?) => {
        update!(
            [r#"SELECT $1::bigint AS id, $2::text AS new_name, $3::text AS new_surname,
                       $4::uuid AS event_id, $5::text AS trace_id, $6::text AS actor,
                       $7::text::bigint[] AS allowed, $8::text::bigint[] AS refused"# + $column],
            " = $1 ",
            " ",
            "current",
            $set,
            $condition,
            $update.id.get(),
            $update.name.as_ref().map(Name::as_str),
            $update.surname.as_ref().map(Name::as_str),
            $update.event.id,
            $update.event.trace_id.as_str(),
            $update.event.actor(),
            allowed(&$update.precondition),
            refused(&$update.precondition),
            EventType::Updated.as_str(),
            $($password,)?
        )
    };
}

pub(crate) async fn one(
    connection: &mut PgConnection,
    update: &Update,
) -> sqlx::Result<Option<ChangedRow>> {
    update_one!(
        " ",
        " ",
        " AND (judged.name <> new_name OR judged.surname <> new_surname)",
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
    update_one!(
        ", $10::text AS new_password",
        ", password = new_password",
        " ",
        update,
        hash.expose()
    )
    .fetch_optional(connection)
    .await
}

/// Leaves out rows that are locked.
macro_rules! update_many {
    (
        $column:literal, $unnest:literal, $set:literal, $condition:literal, $updates:ident
        $(, $passwords:expr)?
    ) => {
        update!(
            [r#"SELECT id, new_name, new_surname, event_id, trace_id, actor,
                       allowed::bigint[], refused::bigint[]"# + $column + r#"
                FROM unnest($1::bigint[], $2::text[], $3::text[], $4::uuid[], $5::text[],
                            $6::text[], $7::text[], $8::text[]"# + $unnest + r#")
                    AS change (id, new_name, new_surname, event_id, trace_id, actor, allowed,
                               refused"# + $column + ")"],
            " = ANY($1) ",
            " SKIP LOCKED ",
            "users",
            $set,
            $condition,
            &$updates.ids,
            $updates.names as Vec<Option<&str>>,
            $updates.surnames as Vec<Option<&str>>,
            &$updates.event_ids,
            $updates.trace_ids as Vec<&str>,
            $updates.actors as Vec<Option<&str>>,
            $updates.versions.allowed as Vec<Option<String>>,
            $updates.versions.refused as Vec<Option<String>>,
            EventType::Updated.as_str(),
            $($passwords as Vec<&str>,)?
        )
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
    versions: VersionLists,
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
            columns.versions.push(&update.precondition);
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
        " ",
        " ",
        " AND (judged.name <> new_name OR judged.surname <> new_surname)",
        updates
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
        ", new_password",
        ", $10::text[]",
        ", password = new_password",
        " ",
        updates,
        hashes
    )
    .fetch_all(connection)
    .await
}
