//! New users, and their ids.

use sqlx::PgConnection;

use super::row::UserRow;
use crate::domain::event::{EventHeader, EventType};
use crate::domain::name::Name;
use crate::domain::password::PasswordHash;
use crate::domain::user::User;
use crate::repository::stored_time::StoredTime;

pub(crate) async fn insert(
    connection: &mut PgConnection,
    name: &Name,
    surname: &Name,
    password: &PasswordHash,
    event: &EventHeader,
) -> sqlx::Result<User> {
    table_query!(query_as!(
        UserRow,
        r#"WITH created AS (
               INSERT INTO users (name, surname, password) VALUES ($1, $2, $3)
               RETURNING "# user r#"
           ), event AS (
               INSERT INTO outbox ("# event r#")
               SELECT $4, $5, id, version, $6, updated_at,
                      row_to_json((SELECT data FROM (SELECT name, surname) AS data)), $7
               FROM created
           )
           SELECT "# read_user r#" FROM created"#,
        name.as_str(),
        surname.as_str(),
        password.expose(),
        event.id,
        EventType::Created.as_str(),
        event.trace_id.as_str(),
        event.actor(),
    ))
    .try_map(User::try_from)
    .fetch_one(connection)
    .await
}

/// Lifts the sequence of ids past the highest taken one. `false` if the login may not change it.
pub(crate) async fn draw_past_taken_ids(connection: &mut PgConnection) -> sqlx::Result<bool> {
    let lifted = sqlx::query_scalar!(
        r#"SELECT setval(sequence, greatest((SELECT max(id) FROM users),
                                            pg_sequence_last_value(sequence))) AS "to!"
           FROM CAST(pg_get_serial_sequence('users', 'id') AS regclass) AS sequence
           WHERE has_sequence_privilege(sequence, 'SELECT')
                 AND has_sequence_privilege(sequence, 'UPDATE')"#
    );
    Ok(lifted.fetch_optional(connection).await?.is_some())
}
