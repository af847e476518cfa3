//! Checks of a database before the service runs on it.

use sqlx::PgConnection;

use super::schema;

/// The privileges that a login needs if it owns no tables: table, privilege, and the columns if
/// not all. `docs/operations.md` lists them for operators.
const GRANTS: [(&str, &str, &[&str]); 18] = [
    ("_sqlx_migrations", "SELECT", &["version", "success"]),
    // Not the password: nothing reads a hash.
    (
        "users",
        "SELECT",
        &[
            "id",
            "name",
            "surname",
            "version",
            "created_at",
            "updated_at",
        ],
    ),
    ("users", "INSERT", &["name", "surname", "password"]),
    (
        "users",
        "UPDATE",
        &["name", "surname", "password", "version", "updated_at"],
    ),
    ("users", "DELETE", &[]),
    ("users_count", "SELECT", &[]),
    ("users_count", "INSERT", &["users"]),
    ("users_count", "UPDATE", &["users"]),
    ("outbox", "SELECT", &[]),
    ("outbox", "INSERT", &[]),
    // Covers held events too.
    ("outbox", "DELETE", &[]),
    ("outbox_held", "SELECT", &[]),
    ("outbox_held", "INSERT", &[]),
    ("outbox_quarantine", "SELECT", &[]),
    ("outbox_quarantine", "INSERT", &[]),
    ("outbox_quarantine", "DELETE", &[]),
    ("api_keys", "SELECT", &[]),
    ("api_keys", "UPDATE", &["last_used_at"]),
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Preflight {
    /// PostgreSQL's version number: 170002 is 17.2.
    pub version: i32,
    pub is_standby: bool,
    /// Whether the session is read-only. On a standby it always is.
    pub is_read_only: bool,
    pub encoding: String,
    pub schema: Schema,
    /// Known only if the schema is ready.
    pub sequences: Option<Sequences>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sequences {
    /// Whether the users' sequence is behind the highest id, so that ids to come are taken.
    pub ids_are_taken: bool,
    /// Whether the login may lift the sequences of ids and of the outbox.
    pub may_be_lifted: bool,
    /// Should be 1: more would put events out of order.
    pub outbox_cache: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Schema {
    /// Every migration is applied, and the login may do what the service does.
    Ready,
    /// The login lacks privileges: each as `SELECT (id, name) ON users`.
    NotGranted(Vec<String>),
    /// Migrations are pending, and the login may create tables.
    Pending,
    /// Migrations are pending, and the login may not create tables.
    PendingAndNotAllowed,
    /// There is a table `users` that our migrations did not create.
    Foreign,
}

pub(crate) async fn inspect(connection: &mut PgConnection) -> sqlx::Result<Preflight> {
    let found = sqlx::query!(
        r#"SELECT current_setting('server_version_num')::int AS "version!", pg_is_in_recovery() AS "is_standby!",
                  current_setting('transaction_read_only') = 'on' AS "is_read_only!",
                  current_setting('server_encoding') AS "encoding!",
                  coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS "may_create!",
                  to_regclass('users') IS NOT NULL AS "has_users!",
                  to_regclass('_sqlx_migrations') IS NOT NULL AS "is_migrated!""#
    )
    .fetch_one(&mut *connection)
    .await?;
    let schema = if found.has_users && !found.is_migrated {
        Schema::Foreign
    } else if !found.is_migrated {
        if found.may_create {
            Schema::Pending
        } else {
            Schema::PendingAndNotAllowed
        }
    } else {
        inspect_migrated(connection, found.may_create).await?
    };
    let version = found.version;
    let is_standby = found.is_standby;
    let is_read_only = found.is_read_only;
    let sequences = if schema == Schema::Ready {
        Some(inspect_sequences(connection).await?)
    } else {
        None
    };
    Ok(Preflight {
        version,
        is_standby,
        is_read_only,
        encoding: found.encoding,
        schema,
        sequences,
    })
}

async fn inspect_sequences(connection: &mut PgConnection) -> sqlx::Result<Sequences> {
    sqlx::query_as!(
        Sequences,
        r#"SELECT CASE WHEN has_sequence_privilege(ids, 'SELECT')
                       THEN coalesce((SELECT max(id) FROM users), 0) > coalesce(pg_sequence_last_value(ids), 0)
                       ELSE false END AS "ids_are_taken!",
                  (SELECT bool_and(has_sequence_privilege(sequence, 'SELECT') AND has_sequence_privilege(sequence, 'UPDATE'))
                   FROM unnest(ARRAY[ids, places]) AS sequence) AS "may_be_lifted!",
                  (SELECT seqcache FROM pg_sequence WHERE seqrelid = places) AS "outbox_cache!"
           FROM CAST(pg_get_serial_sequence('users', 'id') AS regclass) AS ids,
                CAST(pg_get_serial_sequence('outbox', 'seq') AS regclass) AS places"#
    )
    .fetch_one(connection)
    .await
}

async fn inspect_migrated(connection: &mut PgConnection, may_create: bool) -> sqlx::Result<Schema> {
    let missing = missing_grants(connection).await?;
    // Without the first grant, the applied migrations cannot be read.
    if missing.iter().any(|grant| grant.contains(GRANTS[0].0)) {
        return Ok(Schema::NotGranted(missing));
    }
    Ok(match (schema::is_current(connection).await?, may_create) {
        (true, _) if missing.is_empty() => Schema::Ready,
        (true, _) => Schema::NotGranted(missing),
        (false, true) => Schema::Pending,
        (false, false) => Schema::PendingAndNotAllowed,
    })
}

/// Returns those of [`GRANTS`] that the login lacks, by table. Skips tables that do not exist yet.
async fn missing_grants(connection: &mut PgConnection) -> sqlx::Result<Vec<String>> {
    let mut missing: Vec<(&str, Vec<String>)> = Vec::new();
    for (table, privilege, columns) in GRANTS {
        let is_granted = sqlx::query_scalar!(
            r#"SELECT coalesce(CASE WHEN cardinality($3::text[]) = 0 THEN has_table_privilege(to_regclass($1), $2)
                      ELSE (SELECT bool_and(has_column_privilege(to_regclass($1), column_name, $2))
                            FROM unnest($3::text[]) AS column_name) END, true) AS "granted!""#,
            table,
            privilege,
            &columns.iter().map(ToString::to_string).collect::<Vec<_>>(),
        );
        if !is_granted.fetch_one(&mut *connection).await? {
            let columns = if columns.is_empty() {
                String::new()
            } else {
                format!(" ({})", columns.join(", "))
            };
            let privilege = format!("{privilege}{columns}");
            match missing.last_mut().filter(|(last, _)| *last == table) {
                Some((_, privileges)) => privileges.push(privilege),
                None => missing.push((table, vec![privilege])),
            }
        }
    }
    Ok(missing
        .into_iter()
        .map(|(table, privileges)| format!("{} ON {table}", privileges.join(", ")))
        .collect())
}
