//! The `users` table. Each write is one statement that changes the user and writes its event: both are committed, or
//! neither is.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::domain::{
    event::NewEvent,
    page::Page,
    user::{User, UserId},
};

struct UserRow {
    id: i64,
    name: String,
    surname: String,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl From<UserRow> for User {
    fn from(row: UserRow) -> Self {
        Self {
            id: row.id.into(),
            name: row.name,
            surname: row.surname,
            created_at: row.created_at.into(),
            updated_at: row.updated_at.into(),
        }
    }
}

/// Columns to write; in an update `None` leaves a column as it is.
#[derive(Clone, Copy)]
pub struct UserColumns<'a, Text> {
    pub name: Text,
    pub surname: Text,
    /// A PHC string.
    pub password: Text,
    pub event: &'a NewEvent,
}

/// The outcome of an update.
pub struct Updated {
    pub user: User,
    /// `false` when every value was there already: nothing was written, and there is no event.
    pub changed: bool,
}

pub async fn insert(connection: &mut PgConnection, columns: UserColumns<'_, &str>) -> sqlx::Result<User> {
    let UserColumns { name, surname, password, event } = columns;
    sqlx::query_as!(
        UserRow,
        r#"WITH created AS (
               INSERT INTO users (name, surname, password) VALUES ($1, $2, $3)
               RETURNING id, name, surname, version, created_at, updated_at
           ), event AS (
               INSERT INTO outbox (event_id, event_type, user_id, user_version, trace_id, occurred_at, payload)
               SELECT $4, $5, id, version, $6, updated_at, row_to_json((SELECT data FROM (SELECT name, surname) AS data))
               FROM created
           )
           SELECT id AS "id!", name AS "name!", surname AS "surname!",
                  created_at AS "created_at!", updated_at AS "updated_at!"
           FROM created"#,
        name,
        surname,
        password,
        event.id,
        event.event_type.as_str(),
        event.trace_id.as_str(),
    )
    .fetch_one(connection)
    .await
    .map(User::from)
}

pub async fn get(connection: &mut PgConnection, id: UserId) -> sqlx::Result<Option<User>> {
    sqlx::query_as!(UserRow, "SELECT id, name, surname, created_at, updated_at FROM users WHERE id = $1", id.get())
        .fetch_optional(connection)
        .await
        .map(|row| row.map(User::from))
}

/// Those that there are, in no order; an id that is given twice yields one.
pub async fn get_all(connection: &mut PgConnection, ids: &[i64]) -> sqlx::Result<Vec<User>> {
    let query =
        sqlx::query_as!(UserRow, "SELECT id, name, surname, created_at, updated_at FROM users WHERE id = ANY($1)", ids);
    Ok(query.fetch_all(connection).await?.into_iter().map(User::from).collect())
}

/// One page and the number of all users, from one snapshot.
pub async fn list(connection: &mut PgConnection, page: Page) -> sqlx::Result<(Vec<User>, i64)> {
    // The total stands on every row, and on a row of its own where the page is empty.
    let rows = sqlx::query!(
        r#"WITH page AS (
               SELECT id, name, surname, created_at, updated_at FROM users ORDER BY id LIMIT $1 OFFSET $2
           )
           SELECT total.count AS "total!", page.id AS "id?", page.name AS "name?", page.surname AS "surname?",
                  page.created_at AS "created_at?", page.updated_at AS "updated_at?"
           FROM (SELECT count(*) FROM users) AS total LEFT JOIN page ON true
           ORDER BY page.id"#,
        page.limit,
        page.offset,
    )
    .fetch_all(connection)
    .await?;
    let total = rows.first().map_or(0, |row| row.total);
    let users = rows.into_iter().filter_map(|row| {
        Some(User {
            id: row.id?.into(),
            name: row.name?,
            surname: row.surname?,
            created_at: row.created_at?.into(),
            updated_at: row.updated_at?.into(),
        })
    });
    Ok((users.collect(), total))
}

/// `None` when there is no such user.
pub async fn update(
    connection: &mut PgConnection,
    id: UserId,
    columns: UserColumns<'_, Option<&str>>,
) -> sqlx::Result<Option<Updated>> {
    let UserColumns { name, surname, password, event } = columns;
    // `current` waits for the row's lock and then shows its newest state, so that whether anything changes is decided on
    // what the update will meet, and two partial updates racing on one user both survive.
    let row = sqlx::query!(
        r#"WITH current AS (
               SELECT id, name, surname, created_at, updated_at FROM users WHERE id = $1 FOR NO KEY UPDATE
           ), updated AS (
               UPDATE users
               SET name = coalesce($2, users.name), surname = coalesce($3, users.surname),
                   password = coalesce($4, users.password), version = users.version + 1, updated_at = clock_timestamp()
               FROM current
               WHERE users.id = current.id
                 AND ($4::text IS NOT NULL OR current.name <> $2 OR current.surname <> $3)
               RETURNING users.id, users.name, users.surname, users.version, users.created_at, users.updated_at
           ), event AS (
               INSERT INTO outbox (event_id, event_type, user_id, user_version, trace_id, occurred_at, payload)
               SELECT $5, $6, id, version, $7, updated_at, row_to_json((SELECT data FROM (SELECT name, surname) AS data))
               FROM updated
           )
           SELECT id AS "id!", name AS "name!", surname AS "surname!", created_at AS "created_at!",
                  updated_at AS "updated_at!", true AS "changed!"
           FROM updated
           UNION ALL
           SELECT id, name, surname, created_at, updated_at, false FROM current
           WHERE NOT EXISTS (SELECT FROM updated)"#,
        id.get(),
        name,
        surname,
        password,
        event.id,
        event.event_type.as_str(),
        event.trace_id.as_str(),
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| Updated {
        changed: row.changed,
        user: User {
            id: row.id.into(),
            name: row.name,
            surname: row.surname,
            created_at: row.created_at.into(),
            updated_at: row.updated_at.into(),
        },
    }))
}

/// `false` when there is no such user.
pub async fn delete(connection: &mut PgConnection, id: UserId, event: &NewEvent) -> sqlx::Result<bool> {
    let deleted = sqlx::query_scalar!(
        r#"WITH deleted AS (
               DELETE FROM users WHERE id = $1 RETURNING id, version
           ), event AS (
               INSERT INTO outbox (event_id, event_type, user_id, user_version, trace_id, occurred_at, payload)
               SELECT $2, $3, id, version + 1, $4, clock_timestamp(), 'null' FROM deleted
           )
           SELECT id AS "id!" FROM deleted"#,
        id.get(),
        event.id,
        event.event_type.as_str(),
        event.trace_id.as_str(),
    )
    .fetch_optional(connection)
    .await?;
    Ok(deleted.is_some())
}
