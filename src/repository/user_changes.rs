//! Updates and deletions in the `users` table, one by one or many by one statement. Each also
//! writes its event: both are committed, or neither is.

use std::collections::HashMap;

use sqlx::PgConnection;
use uuid::Uuid;

use super::stored_time::StoredTime;
use super::users::{UserRow, stored_id};
use crate::domain::event::{EventType, NewEvent};
use crate::domain::name::Name;
use crate::domain::password::PasswordHash;
use crate::domain::user::{User, UserId};
use crate::trace_id::TraceId;

/// A change of one user, and its event.
pub struct Change {
    pub id: UserId,
    pub operation: Operation,
    pub event: NewEvent,
}

impl Change {
    pub fn new(id: UserId, operation: Operation, trace_id: TraceId) -> Self {
        let event_type = if operation.is_deletion() {
            EventType::Deleted
        } else {
            EventType::Updated
        };
        Self {
            id,
            operation,
            event: NewEvent::new(event_type, trace_id),
        }
    }
}

pub enum Operation {
    /// `None` leaves a column as it is.
    Update {
        name: Option<Name>,
        surname: Option<Name>,
        password: Option<PasswordHash>,
    },
    Delete,
}

impl Operation {
    pub fn is_deletion(&self) -> bool {
        matches!(self, Self::Delete)
    }

    /// Operations of one kind may share a statement.
    pub fn kind(&self) -> OperationKind {
        match self {
            Self::Update { password: None, .. } => OperationKind::Update,
            Self::Update {
                password: Some(_), ..
            } => OperationKind::UpdateWithPassword,
            Self::Delete => OperationKind::Delete,
        }
    }

    fn name(&self) -> Option<&str> {
        if let Self::Update { name, .. } = self {
            name.as_ref().map(Name::as_str)
        } else {
            None
        }
    }

    fn surname(&self) -> Option<&str> {
        if let Self::Update { surname, .. } = self {
            surname.as_ref().map(Name::as_str)
        } else {
            None
        }
    }

    fn password(&self) -> Option<&str> {
        if let Self::Update { password, .. } = self {
            password.as_ref().map(PasswordHash::expose)
        } else {
            None
        }
    }
}

/// Which statement writes an operation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum OperationKind {
    Update,
    UpdateWithPassword,
    Delete,
}

/// Result of a change.
pub struct Written {
    /// The user after the change, or before its deletion.
    pub user: User,
    /// `false` if no value differed: nothing was written, and there is no event.
    pub changed: bool,
}

/// Result of a change in a group.
pub enum Together {
    Written(Written),
    /// Nothing was written: somebody else has locked the user's row.
    LeftOut,
}

/// A row per requested user who exists; without values if the user was left out.
struct Row {
    id: i64,
    name: Option<String>,
    surname: Option<String>,
    created_at: Option<StoredTime>,
    updated_at: Option<StoredTime>,
    changed: bool,
}

impl Row {
    /// `None` if it was left out.
    fn written(self) -> sqlx::Result<Option<Written>> {
        let Self {
            id,
            name,
            surname,
            created_at,
            updated_at,
            changed,
        } = self;
        let (Some(name), Some(surname), Some(created_at), Some(updated_at)) =
            (name, surname, created_at, updated_at)
        else {
            return Ok(None);
        };
        let user = UserRow {
            id,
            name,
            surname,
            created_at: created_at.into(),
            updated_at: updated_at.into(),
        };
        Ok(Some(Written {
            user: user.try_into()?,
            changed,
        }))
    }
}

/// Writes one change. Waits if somebody else has locked the row. `None` if there is no such user.
pub async fn write(
    connection: &mut PgConnection,
    change: &Change,
) -> sqlx::Result<Option<Written>> {
    let row = if change.operation.is_deletion() {
        delete(connection, change).await?
    } else {
        update(connection, change).await?
    };
    row.map_or(Ok(None), Row::written)
}

/// Writes changes of different users by one statement. They are all of one [`Operation::kind`].
/// Never waits for row locks, so that no change holds the others up and no two statements wait for
/// each other. Users who do not exist are missing from the result.
pub async fn write_together(
    connection: &mut PgConnection,
    changes: &[Change],
) -> sqlx::Result<HashMap<UserId, Together>> {
    let rows = if changes.iter().all(|change| change.operation.is_deletion()) {
        delete_together(connection, changes).await?
    } else {
        update_together(connection, changes).await?
    };
    let outcome = |row: Row| {
        let id = stored_id(row.id)?;
        let written = row.written()?;
        Ok((id, written.map_or(Together::LeftOut, Together::Written)))
    };
    rows.into_iter().map(outcome).collect()
}

/// The statement of an update; `$condition` says of a row whether it changes. Where no password is
/// given, the column is not named: to read a hash needs a right that the service's login need not
/// have.
macro_rules! update_one {
    ($set:literal, $condition:literal, $change:ident $(, $password:expr)?) => {
        // `current` waits for the row's lock and then reads its newest state. So the comparison
        // sees what the update will change, and of two partial updates racing on one user, both
        // survive.
        outbox_query!(query_as!(
            Row,
            r#"WITH current AS (
                   SELECT id, name, surname, created_at, updated_at FROM users WHERE id = $1 FOR NO KEY UPDATE
               ), updated AS (
                   UPDATE users
                   SET name = coalesce($2, users.name), surname = coalesce($3, users.surname),
                       version = users.version + 1, updated_at = clock_timestamp()"# + $set +
            r#"    FROM current
                   WHERE users.id = current.id AND "# + $condition +
            r#"    RETURNING users.id, users.name, users.surname, users.version, users.created_at, users.updated_at
               ), event AS (
                   INSERT INTO outbox ("# columns r#")
                   SELECT $4, $5, id, version, $6, updated_at, row_to_json((SELECT data FROM (SELECT name, surname) AS data))
                   FROM updated
               )
               SELECT id AS "id!", name AS "name?", surname AS "surname?", created_at AS "created_at?: StoredTime",
                      updated_at AS "updated_at?: StoredTime", true AS "changed!"
               FROM updated
               UNION ALL
               SELECT id, name, surname, created_at, updated_at, false FROM current
               WHERE NOT EXISTS (SELECT FROM updated)"#,
            $change.id.get(),
            $change.operation.name(),
            $change.operation.surname(),
            $change.event.id,
            $change.event.event_type.as_str(),
            $change.event.trace_id.as_str(),
            $($password,)?
        ))
    };
}

async fn update(connection: &mut PgConnection, change: &Change) -> sqlx::Result<Option<Row>> {
    match change.operation.password() {
        Some(password) => {
            update_one!(", password = $7 ", "true ", change, password)
                .fetch_optional(connection)
                .await
        }
        None => {
            update_one!(
                " ",
                "(current.name <> $2 OR current.surname <> $3) ",
                change
            )
            .fetch_optional(connection)
            .await
        }
    }
}

/// [`update_one`] over arrays. Users in `asked` but not in `current` are left out.
macro_rules! update_many {
    ($set:literal, $condition:literal, $changes:ident, $unnest:literal, $columns:literal $(, $passwords:expr)?) => {
        outbox_query!(query_as!(
            Row,
            r#"WITH change AS (
                   SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::uuid[], $5::text[]"# + $unnest + r#")
                       AS change (id, name, surname, event_id, trace_id"# + $columns + r#")
               ), current AS (
                   SELECT id, name, surname, created_at, updated_at FROM users
                   WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
               ), updated AS (
                   UPDATE users
                   SET name = coalesce(change.name, users.name), surname = coalesce(change.surname, users.surname),
                       version = users.version + 1, updated_at = clock_timestamp()"# + $set +
            r#"    FROM current JOIN change USING (id)
                   -- The array once more, for its index: what `current` holds is not known to the planner.
                   WHERE users.id = current.id AND users.id = ANY($1) AND "# + $condition +
            r#"    RETURNING users.id, users.name, users.surname, users.version, users.updated_at,
                             change.event_id, change.trace_id
               ), event AS (
                   INSERT INTO outbox ("# columns r#")
                   SELECT event_id, $6, id, version, trace_id, updated_at,
                          row_to_json((SELECT data FROM (SELECT name, surname) AS data))
                   FROM updated
               )
               SELECT asked.id, coalesce(updated.name, current.name) AS "name?",
                      coalesce(updated.surname, current.surname) AS "surname?", current.created_at AS "created_at?: StoredTime",
                      coalesce(updated.updated_at, current.updated_at) AS "updated_at?: StoredTime", updated.id IS NOT NULL AS "changed!"
               FROM users AS asked LEFT JOIN current USING (id) LEFT JOIN updated USING (id)
               WHERE asked.id = ANY($1)"#,
            &ids($changes),
            of_each($changes, Operation::name) as Vec<Option<&str>>,
            of_each($changes, Operation::surname) as Vec<Option<&str>>,
            &event_ids($changes),
            trace_ids($changes) as Vec<&str>,
            EventType::Updated.as_str(),
            $($passwords as Vec<Option<&str>>,)?
        ))
    };
}

async fn update_together(
    connection: &mut PgConnection,
    changes: &[Change],
) -> sqlx::Result<Vec<Row>> {
    if changes
        .iter()
        .all(|change| change.operation.password().is_none())
    {
        return update_many!(
            " ",
            "(current.name <> change.name OR current.surname <> change.surname) ",
            changes,
            "",
            ""
        )
        .fetch_all(connection)
        .await;
    }
    let passwords = of_each(changes, Operation::password);
    update_many!(
        ", password = change.password ",
        "true ",
        changes,
        ", $7::text[]",
        ", password",
        passwords
    )
    .fetch_all(connection)
    .await
}

fn of_each<'c>(
    changes: &'c [Change],
    column: fn(&'c Operation) -> Option<&'c str>,
) -> Vec<Option<&'c str>> {
    changes
        .iter()
        .map(|change| column(&change.operation))
        .collect()
}

async fn delete(connection: &mut PgConnection, change: &Change) -> sqlx::Result<Option<Row>> {
    outbox_query!(query_as!(
        Row,
        r#"WITH deleted AS (
               DELETE FROM users WHERE id = $1 RETURNING id, name, surname, version, created_at, updated_at
           ), event AS (
               INSERT INTO outbox ("# columns r#")
               SELECT $2, $3, id, version + 1, $4, clock_timestamp(), 'null' FROM deleted
           )
           SELECT id AS "id!", name AS "name?", surname AS "surname?", created_at AS "created_at?: StoredTime",
                  updated_at AS "updated_at?: StoredTime", true AS "changed!"
           FROM deleted"#,
        change.id.get(),
        change.event.id,
        change.event.event_type.as_str(),
        change.event.trace_id.as_str(),
    ))
    .fetch_optional(connection)
    .await
}

/// The statement of [`delete`] over arrays, like [`update_together`].
async fn delete_together(
    connection: &mut PgConnection,
    changes: &[Change],
) -> sqlx::Result<Vec<Row>> {
    outbox_query!(query_as!(
        Row,
        r#"WITH change AS (
               SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::text[]) AS change (id, event_id, trace_id)
           ), current AS (
               SELECT id FROM users
               WHERE id = ANY($1) ORDER BY id FOR UPDATE SKIP LOCKED
           ), deleted AS (
               DELETE FROM users USING current JOIN change USING (id)
               WHERE users.id = current.id AND users.id = ANY($1)
               RETURNING users.id, users.name, users.surname, users.version, users.created_at, users.updated_at,
                         change.event_id, change.trace_id
           ), event AS (
               INSERT INTO outbox ("# columns r#")
               SELECT event_id, $4, id, version + 1, trace_id, clock_timestamp(), 'null' FROM deleted
           )
           SELECT asked.id, deleted.name AS "name?", deleted.surname AS "surname?", deleted.created_at AS "created_at?: StoredTime",
                  deleted.updated_at AS "updated_at?: StoredTime", true AS "changed!"
           FROM users AS asked LEFT JOIN deleted USING (id)
           WHERE asked.id = ANY($1)"#,
        &ids(changes),
        &event_ids(changes),
        trace_ids(changes) as Vec<&str>,
        EventType::Deleted.as_str(),
    ))
    .fetch_all(connection)
    .await
}

fn ids(changes: &[Change]) -> Vec<i64> {
    changes.iter().map(|change| change.id.get()).collect()
}

fn event_ids(changes: &[Change]) -> Vec<Uuid> {
    changes.iter().map(|change| change.event.id).collect()
}

fn trace_ids(changes: &[Change]) -> Vec<&str> {
    changes
        .iter()
        .map(|change| change.event.trace_id.as_str())
        .collect()
}
