//! Updates and deletions in the `users` table, one by one or many by one statement. Each also
//! writes its event: both are committed, or neither is.

use std::collections::HashMap;

use sqlx::error::BoxDynError;
use sqlx::postgres::{PgTypeInfo, PgValueRef};
use sqlx::{Decode, PgConnection, Postgres, Type};
use uuid::Uuid;

use super::stored_time::StoredTime;
use super::users::{UserRow, stored_id};
use crate::domain::event::{EventHeader, EventType};
use crate::domain::name::Name;
use crate::domain::password::PasswordHash;
use crate::domain::user::{User, UserId};

/// New values of one user's names, and the event; `None` leaves a column as it is.
#[derive(Clone)]
pub struct Update {
    pub id: UserId,
    pub name: Option<Name>,
    pub surname: Option<Name>,
    pub event: EventHeader,
}

/// The end of one user, and the event.
#[derive(Clone)]
pub struct Deletion {
    pub id: UserId,
    pub event: EventHeader,
}

/// A change of one user.
#[derive(Clone)]
pub enum Change {
    Update(Update),
    /// Always writes, because nobody can tell whether a password is another one.
    UpdateWithPassword(Update, PasswordHash),
    Deletion(Deletion),
}

impl Change {
    pub const fn id(&self) -> UserId {
        match self {
            Self::Update(update) | Self::UpdateWithPassword(update, _) => update.id,
            Self::Deletion(deletion) => deletion.id,
        }
    }

    pub const fn event_type(&self) -> EventType {
        match self {
            Self::Update(_) | Self::UpdateWithPassword(..) => EventType::Updated,
            Self::Deletion(_) => EventType::Deleted,
        }
    }
}

/// Changes of different users that one statement can write.
pub enum Group {
    Updates(Vec<Update>),
    UpdatesWithPasswords(Vec<(Update, PasswordHash)>),
    Deletions(Vec<Deletion>),
}

impl Group {
    pub fn of(change: Change) -> Self {
        match change {
            Change::Update(update) => Self::Updates(vec![update]),
            Change::UpdateWithPassword(update, hash) => {
                Self::UpdatesWithPasswords(vec![(update, hash)])
            }
            Change::Deletion(deletion) => Self::Deletions(vec![deletion]),
        }
    }

    /// Takes one more change, of another user, or hands it back if it is of another kind.
    pub fn push(&mut self, change: Change) -> Result<(), Change> {
        match (self, change) {
            (Self::Updates(updates), Change::Update(update)) => updates.push(update),
            (Self::UpdatesWithPasswords(updates), Change::UpdateWithPassword(update, hash)) => {
                updates.push((update, hash));
            }
            (Self::Deletions(deletions), Change::Deletion(deletion)) => deletions.push(deletion),
            (_, change) => return Err(change),
        }
        Ok(())
    }

    /// A copy of the change at `place`, counted from 0.
    pub fn change(&self, place: usize) -> Change {
        match self {
            Self::Updates(updates) => Change::Update(updates[place].clone()),
            Self::UpdatesWithPasswords(updates) => {
                let (update, hash) = updates[place].clone();
                Change::UpdateWithPassword(update, hash)
            }
            Self::Deletions(deletions) => Change::Deletion(deletions[place].clone()),
        }
    }

    fn ids(&self) -> Vec<UserId> {
        match self {
            Self::Updates(updates) => updates.iter().map(|update| update.id).collect(),
            Self::UpdatesWithPasswords(updates) => {
                updates.iter().map(|(update, _)| update.id).collect()
            }
            Self::Deletions(deletions) => deletions.iter().map(|deletion| deletion.id).collect(),
        }
    }
}

/// Result of a change.
#[derive(Debug)]
pub enum Outcome {
    /// The user after the change, or before the deletion.
    Changed(User),
    /// No value differed: nothing was written, and there is no event.
    Unchanged(User),
    /// There is no such user.
    NotFound,
}

/// Result of a change in a group.
#[derive(Debug)]
pub enum GroupOutcome {
    Settled(Outcome),
    /// Nothing was written: somebody else has locked the user's row.
    Locked,
}

/// What the statement says of a row.
#[derive(Clone, Copy)]
enum RowOutcome {
    Changed,
    Unchanged,
    Locked,
}

impl Type<Postgres> for RowOutcome {
    fn type_info() -> PgTypeInfo {
        <&str as Type<Postgres>>::type_info()
    }
}

impl<'r> Decode<'r, Postgres> for RowOutcome {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        match <&str as Decode<Postgres>>::decode(value)? {
            "changed" => Ok(Self::Changed),
            "unchanged" => Ok(Self::Unchanged),
            "locked" => Ok(Self::Locked),
            other => Err(format!("no outcome of a change: {other}").into()),
        }
    }
}

/// A row per requested user who exists.
struct Row {
    outcome: RowOutcome,
    id: i64,
    name: String,
    surname: String,
    version: i64,
    created_at: StoredTime,
    updated_at: StoredTime,
}

impl Row {
    fn outcome(self) -> sqlx::Result<GroupOutcome> {
        let user = UserRow {
            id: self.id,
            name: self.name,
            surname: self.surname,
            version: self.version,
            created_at: self.created_at.into(),
            updated_at: self.updated_at.into(),
        };
        Ok(match self.outcome {
            RowOutcome::Changed => GroupOutcome::Settled(Outcome::Changed(user.try_into()?)),
            RowOutcome::Unchanged => GroupOutcome::Settled(Outcome::Unchanged(user.try_into()?)),
            RowOutcome::Locked => GroupOutcome::Locked,
        })
    }
}

/// Writes one change. Waits if somebody else has locked the row.
pub async fn write(connection: &mut PgConnection, change: &Change) -> sqlx::Result<Outcome> {
    let row = match change {
        Change::Update(change) => update(connection, change).await?,
        Change::UpdateWithPassword(change, hash) => {
            update_with_password(connection, change, hash).await?
        }
        Change::Deletion(change) => delete(connection, change).await?,
    };
    match row.map(Row::outcome).transpose()? {
        Some(GroupOutcome::Settled(outcome)) => Ok(outcome),
        Some(GroupOutcome::Locked) => Err(sqlx::Error::Decode("waited, and left out".into())),
        None => Ok(Outcome::NotFound),
    }
}

/// Writes a group by one statement, and returns the outcomes in its order. Never waits for row
/// locks, so that no change holds the others up and no two statements wait for each other.
pub async fn write_group(
    connection: &mut PgConnection,
    group: &Group,
) -> sqlx::Result<Vec<GroupOutcome>> {
    let rows = match group {
        Group::Updates(updates) => update_together(connection, updates).await?,
        Group::UpdatesWithPasswords(updates) => {
            update_with_passwords_together(connection, updates).await?
        }
        Group::Deletions(deletions) => delete_together(connection, deletions).await?,
    };
    let outcomes = rows
        .into_iter()
        .map(|row| Ok((stored_id(row.id)?, row.outcome()?)));
    let mut outcomes: HashMap<UserId, GroupOutcome> = outcomes.collect::<sqlx::Result<_>>()?;
    let outcome = |id| {
        outcomes
            .remove(&id)
            .unwrap_or(GroupOutcome::Settled(Outcome::NotFound))
    };
    Ok(group.ids().into_iter().map(outcome).collect())
}

/// The statement of an update; `$condition` says of a row whether it changes. Where no password is
/// given, the column is not named: to read a hash needs a right that the service's login need not
/// have.
macro_rules! update_one {
    ($set:literal, $condition:literal, $update:ident $(, $password:expr)?) => {
        // `current` waits for the row's lock and then reads its newest state. So the comparison
        // sees what the update will change, and of two partial updates racing on one user, both
        // survive.
        outbox_query!(query_as!(
            Row,
            r#"WITH current AS (
                   SELECT id, name, surname, version, created_at, updated_at
                   FROM users WHERE id = $1 FOR NO KEY UPDATE
               ), updated AS (
                   UPDATE users
                   SET name = coalesce($2, users.name), surname = coalesce($3, users.surname),
                       version = users.version + 1, updated_at = clock_timestamp()"# + $set +
            r#"    FROM current
                   WHERE users.id = current.id AND "# + $condition +
            r#"    RETURNING users.id, users.name, users.surname, users.version, users.updated_at
               ), event AS (
                   INSERT INTO outbox ("# columns r#")
                   SELECT $4, $5, id, version, $6, updated_at,
                          row_to_json((SELECT data FROM (SELECT name, surname) AS data))
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
            $($password,)?
        ))
    };
}

async fn update(connection: &mut PgConnection, update: &Update) -> sqlx::Result<Option<Row>> {
    update_one!(
        " ",
        "(current.name <> $2 OR current.surname <> $3) ",
        update
    )
    .fetch_optional(connection)
    .await
}

async fn update_with_password(
    connection: &mut PgConnection,
    update: &Update,
    hash: &PasswordHash,
) -> sqlx::Result<Option<Row>> {
    update_one!(", password = $7 ", "true ", update, hash.expose())
        .fetch_optional(connection)
        .await
}

/// [`update_one`] over arrays. Users in `asked` but not in `current` are locked.
macro_rules! update_many {
    (
        $set:literal, $condition:literal, $updates:ident, $unnest:literal, $columns:literal
        $(, $passwords:expr)?
    ) => {
        outbox_query!(query_as!(
            Row,
            r#"WITH change AS (
                   SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::uuid[],
                                        $5::text[]"# + $unnest + r#")
                       AS change (id, name, surname, event_id, trace_id"# + $columns + r#")
               ), current AS (
                   SELECT id, name, surname, version, created_at, updated_at FROM users
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
                             change.event_id, change.trace_id
               ), event AS (
                   INSERT INTO outbox ("# columns r#")
                   SELECT event_id, $6, id, version, trace_id, updated_at,
                          row_to_json((SELECT data FROM (SELECT name, surname) AS data))
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
            EventType::Updated.as_str(),
            $($passwords as Vec<&str>,)?
        ))
    };
}

/// The values of updates, a column an array.
#[derive(Default)]
struct Columns<'u> {
    ids: Vec<i64>,
    names: Vec<Option<&'u str>>,
    surnames: Vec<Option<&'u str>>,
    event_ids: Vec<Uuid>,
    trace_ids: Vec<&'u str>,
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
        }
        columns
    }
}

async fn update_together(
    connection: &mut PgConnection,
    updates: &[Update],
) -> sqlx::Result<Vec<Row>> {
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

async fn update_with_passwords_together(
    connection: &mut PgConnection,
    updates: &[(Update, PasswordHash)],
) -> sqlx::Result<Vec<Row>> {
    let hashes: Vec<&str> = updates.iter().map(|(_, hash)| hash.expose()).collect();
    let updates = Columns::of(updates.iter().map(|(update, _)| update));
    update_many!(
        ", password = change.password ",
        "true ",
        updates,
        ", $7::text[]",
        ", password",
        hashes
    )
    .fetch_all(connection)
    .await
}

async fn delete(connection: &mut PgConnection, deletion: &Deletion) -> sqlx::Result<Option<Row>> {
    outbox_query!(query_as!(
        Row,
        r#"WITH deleted AS (
               DELETE FROM users WHERE id = $1
               RETURNING id, name, surname, version, created_at, updated_at
           ), event AS (
               INSERT INTO outbox ("# columns r#")
               SELECT $2, $3, id, version + 1, $4, clock_timestamp(), 'null' FROM deleted
           )
           SELECT 'changed' AS "outcome!: RowOutcome", id AS "id!", name AS "name!",
                  surname AS "surname!", version AS "version!",
                  created_at AS "created_at!: StoredTime", updated_at AS "updated_at!: StoredTime"
           FROM deleted"#,
        deletion.id.get(),
        deletion.event.id,
        EventType::Deleted.as_str(),
        deletion.event.trace_id.as_str(),
    ))
    .fetch_optional(connection)
    .await
}

/// The statement of [`delete`] over arrays, like [`update_many`].
async fn delete_together(
    connection: &mut PgConnection,
    deletions: &[Deletion],
) -> sqlx::Result<Vec<Row>> {
    let ids: Vec<i64> = deletions.iter().map(|deletion| deletion.id.get()).collect();
    let events = || deletions.iter().map(|deletion| &deletion.event);
    let event_ids: Vec<Uuid> = events().map(|event| event.id).collect();
    let trace_ids: Vec<&str> = events().map(|event| event.trace_id.as_str()).collect();
    outbox_query!(query_as!(
        Row,
        r#"WITH change AS (
               SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::text[])
                   AS change (id, event_id, trace_id)
           ), current AS (
               SELECT id FROM users
               WHERE id = ANY($1) ORDER BY id FOR UPDATE SKIP LOCKED
           ), deleted AS (
               DELETE FROM users USING current JOIN change USING (id)
               WHERE users.id = current.id AND users.id = ANY($1)
               RETURNING users.id, users.name, users.surname, users.version, users.created_at,
                         users.updated_at, change.event_id, change.trace_id
           ), event AS (
               INSERT INTO outbox ("# columns r#")
               SELECT event_id, $4, id, version + 1, trace_id, clock_timestamp(), 'null'
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
        EventType::Deleted.as_str(),
    ))
    .fetch_all(connection)
    .await
}
