//! The `users` table: new users, and reads. A user and its event are written by one statement: both
//! are committed, or neither is.

use sqlx::PgConnection;

use super::stored_time::StoredTime;
use crate::domain::event::{EventHeader, EventType};
use crate::domain::name::Name;
use crate::domain::page::Page;
use crate::domain::password::PasswordHash;
use crate::domain::timestamp::Timestamp;
use crate::domain::user::{User, UserId, UserPage};

pub struct UserRow {
    pub id: i64,
    pub name: String,
    pub surname: String,
    pub version: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl TryFrom<UserRow> for User {
    type Error = sqlx::Error;

    fn try_from(
        UserRow {
            id,
            name,
            surname,
            version,
            created_at,
            updated_at,
        }: UserRow,
    ) -> sqlx::Result<Self> {
        Ok(Self {
            id: stored_id(id)?,
            name: Name::stored(name),
            surname: Name::stored(surname),
            version,
            created_at,
            updated_at,
        })
    }
}

pub fn stored_id(id: i64) -> sqlx::Result<UserId> {
    UserId::new(id).ok_or_else(|| sqlx::Error::Decode(format!("a user's id is {id}").into()))
}

pub async fn insert(
    connection: &mut PgConnection,
    name: &Name,
    surname: &Name,
    password: &PasswordHash,
    event: &EventHeader,
) -> sqlx::Result<User> {
    outbox_query!(query_as!(
        UserRow,
        r#"WITH created AS (
               INSERT INTO users (name, surname, password) VALUES ($1, $2, $3)
               RETURNING id, name, surname, version, created_at, updated_at
           ), event AS (
               INSERT INTO outbox ("# columns r#")
               SELECT $4, $5, id, version, $6, updated_at,
                      row_to_json((SELECT data FROM (SELECT name, surname) AS data))
               FROM created
           )
           SELECT id AS "id!", name AS "name!", surname AS "surname!", version AS "version!",
                  created_at AS "created_at!: StoredTime", updated_at AS "updated_at!: StoredTime"
           FROM created"#,
        name.as_str(),
        surname.as_str(),
        password.expose(),
        event.id,
        EventType::Created.as_str(),
        event.trace_id.as_str(),
    ))
    .fetch_one(connection)
    .await?
    .try_into()
}

/// Lifts the sequence of ids past those that are taken. `false` if the login may not.
pub async fn draw_past_taken_ids(connection: &mut PgConnection) -> sqlx::Result<bool> {
    let lifted = sqlx::query_scalar!(
        r#"SELECT setval(sequence, greatest((SELECT max(id) FROM users),
                                            pg_sequence_last_value(sequence))) AS "to!"
           FROM CAST(pg_get_serial_sequence('users', 'id') AS regclass) AS sequence
           WHERE has_sequence_privilege(sequence, 'SELECT')
                 AND has_sequence_privilege(sequence, 'UPDATE')"#
    );
    Ok(lifted.fetch_optional(connection).await?.is_some())
}

pub async fn get(connection: &mut PgConnection, id: UserId) -> sqlx::Result<Option<User>> {
    let query = sqlx::query_as!(
        UserRow,
        r#"SELECT id, name, surname, version, created_at AS "created_at: StoredTime",
                  updated_at AS "updated_at: StoredTime"
           FROM users WHERE id = $1"#,
        id.get()
    );
    query
        .fetch_optional(connection)
        .await?
        .map(User::try_from)
        .transpose()
}

/// Those that exist, in no order, each once.
pub async fn get_all(connection: &mut PgConnection, ids: &[i64]) -> sqlx::Result<Vec<User>> {
    let query = sqlx::query_as!(
        UserRow,
        r#"SELECT id, name, surname, version, created_at AS "created_at: StoredTime",
                  updated_at AS "updated_at: StoredTime"
           FROM users WHERE id = ANY($1)"#,
        ids
    );
    query
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(User::try_from)
        .collect()
}

/// One page and the number of all users, from one snapshot.
pub async fn list(connection: &mut PgConnection, page: Page) -> sqlx::Result<UserPage> {
    // No path leads to a user whose id, written by hand, is not positive. The total is on every
    // row, and on a row of its own if the page is empty.
    let rows = sqlx::query!(
        r#"WITH page AS (
               SELECT id, name, surname, version, created_at, updated_at FROM users
               WHERE id > 0 ORDER BY id LIMIT $1 OFFSET $2
           )
           SELECT total.users AS "total!", page.id AS "id?", page.name AS "name?",
                  page.surname AS "surname?", page.version AS "version?",
                  page.created_at AS "created_at?: StoredTime",
                  page.updated_at AS "updated_at?: StoredTime"
           FROM (SELECT coalesce(sum(users), 0)::bigint AS users FROM users_count) AS total
           LEFT JOIN page ON true
           ORDER BY page.id"#,
        page.limit(),
        page.offset(),
    )
    .fetch_all(connection)
    .await?;
    let total = rows.first().map_or(0, |row| row.total);
    let users = rows.into_iter().filter_map(|row| {
        Some(UserRow {
            id: row.id?,
            name: row.name?,
            surname: row.surname?,
            version: row.version?,
            created_at: row.created_at?.into(),
            updated_at: row.updated_at?.into(),
        })
    });
    let users = users.map(User::try_from).collect::<sqlx::Result<_>>()?;
    Ok(UserPage { users, total })
}
