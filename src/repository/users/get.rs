//! Users by id.

use sqlx::PgConnection;

use super::row::UserRow;
use crate::domain::user::{User, UserId};
use crate::repository::stored_time::StoredTime;

pub(crate) async fn get(connection: &mut PgConnection, id: UserId) -> sqlx::Result<Option<User>> {
    let query = table_query!(query_as!(
        UserRow,
        "SELECT " read_user " FROM users WHERE id = $1",
        id.get()
    ));
    query
        .try_map(User::try_from)
        .fetch_optional(connection)
        .await
}

/// Returns the users that exist, in no particular order, each once.
pub(crate) async fn get_all(connection: &mut PgConnection, ids: &[i64]) -> sqlx::Result<Vec<User>> {
    let query = table_query!(query_as!(
        UserRow,
        "SELECT " read_user " FROM users WHERE id = ANY($1)",
        ids
    ));
    query.try_map(User::try_from).fetch_all(connection).await
}
