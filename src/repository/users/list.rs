//! Pages of users.

use sqlx::PgConnection;

use super::row::UserRow;
use crate::domain::page::Page;
use crate::domain::user::{User, UserPage};
use crate::repository::stored_time::StoredTime;

/// One page and the number of all users, from one snapshot.
pub(crate) async fn list(connection: &mut PgConnection, page: Page) -> sqlx::Result<UserPage> {
    // A user inserted by hand may have an id that is not positive: no path can address it, so the
    // list leaves it out. The total is on every row, and on a row of its own if the page is empty.
    let rows = table_query!(query!(
        r#"WITH page AS (
               SELECT "# user r#" FROM users
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
    ))
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
