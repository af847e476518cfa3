//! Checks of a database before the service runs on it.

use sqlx::PgConnection;

use super::schema;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preflight {
    /// PostgreSQL's version number: 170002 is 17.2.
    pub version: i32,
    pub is_standby: bool,
    pub schema: Schema,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schema {
    /// Every migration is applied, and the login may read and write the tables.
    Ready,
    /// Every migration is applied, but the login may not read and write the tables.
    NotGranted,
    /// Migrations are pending, and the login may create tables.
    Pending,
    /// Migrations are pending, and the login may not create tables.
    PendingAndNotAllowed,
    /// There is a table `users` that our migrations did not create.
    Foreign,
}

pub async fn look(connection: &mut PgConnection) -> sqlx::Result<Preflight> {
    let found = sqlx::query!(
        r#"SELECT current_setting('server_version_num')::int AS "version!", pg_is_in_recovery() AS "is_standby!",
                  coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS "may_create!",
                  to_regclass('users') IS NOT NULL AS "has_users!",
                  to_regclass('_sqlx_migrations') IS NOT NULL AS "is_migrated!""#
    )
    .fetch_one(&mut *connection)
    .await?;
    let schema = if found.has_users && !found.is_migrated {
        Schema::Foreign
    } else if !found.is_migrated || !schema::is_current(connection).await? {
        if found.may_create { Schema::Pending } else { Schema::PendingAndNotAllowed }
    } else if is_granted(connection).await? {
        Schema::Ready
    } else {
        Schema::NotGranted
    };
    Ok(Preflight { version: found.version, is_standby: found.is_standby, schema })
}

async fn is_granted(connection: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT bool_and(has_table_privilege(name, privilege)) AS "granted!"
           FROM unnest(ARRAY['users', 'outbox', 'outbox_quarantine', 'users_count']) AS name,
                unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege"#
    )
    .fetch_one(connection)
    .await
}
