//! Tells which server holds the database. A restored backup or a promoted standby has a different
//! identity.

use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;

use super::error::DatabaseError;
use super::pool::{Route, run_once};

/// Whether the server differs from that of the last start, or was promoted or recovered since.
/// Stores its identity. `false` if that is unknown: at the first start, on a standby, or for a
/// login without the privileges.
pub(crate) async fn has_changed(options: &PgConnectOptions) -> Result<bool, DatabaseError> {
    run_once(options, Route::Direct, |connection| {
        Box::pin(note(connection))
    })
    .await
}

/// <https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-CONTROLDATA>
async fn note(connection: &mut PgConnection) -> sqlx::Result<bool> {
    // Checked first, because the next statement calls functions that not every login may call, and
    // that fail on a standby.
    let may_look = sqlx::query_scalar!(
        r#"SELECT current_setting('transaction_read_only') = 'off'
                  AND coalesce(has_table_privilege(to_regclass('known_server'), 'SELECT, INSERT, UPDATE'), false)
                  AND has_function_privilege('pg_control_system()', 'EXECUTE')
                  AND has_function_privilege('pg_walfile_name(pg_lsn)', 'EXECUTE') AS "may_look!""#
    );
    if !may_look.fetch_one(&mut *connection).await? {
        return Ok(false);
    }
    // Both parts of the statement see the row as it was before.
    let known = sqlx::query_scalar!(
        r#"WITH server AS (
               SELECT system_identifier::text AS identifier,
                      ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint AS timeline
               FROM pg_control_system()
           ), noted AS (
               INSERT INTO known_server (system_identifier, timeline) SELECT identifier, timeline FROM server
               ON CONFLICT (singleton) DO UPDATE
               SET system_identifier = excluded.system_identifier, timeline = excluded.timeline
           )
           SELECT (known.system_identifier, known.timeline) = (server.identifier, server.timeline) AS "is_known!"
           FROM known_server AS known, server"#
    );
    Ok(known.fetch_optional(connection).await? == Some(false))
}
