//! The SQLSTATEs that the service distinguishes, under PostgreSQL's names.
//! <https://www.postgresql.org/docs/current/errcodes-appendix.html>

use std::borrow::Cow;

pub(crate) const PROTOCOL_VIOLATION: &str = "08P01";
pub(crate) const FEATURE_NOT_SUPPORTED: &str = "0A000";
/// A sequence is exhausted.
pub(crate) const SEQUENCE_GENERATOR_LIMIT_EXCEEDED: &str = "2200H";
pub(crate) const UNIQUE_VIOLATION: &str = "23505";
pub(crate) const READ_ONLY_TRANSACTION: &str = "25006";
pub(crate) const INVALID_STATEMENT_NAME: &str = "26000";
pub(crate) const INVALID_AUTHORIZATION: &str = "28000";
pub(crate) const INVALID_PASSWORD: &str = "28P01";
/// The database does not exist.
pub(crate) const INVALID_CATALOG_NAME: &str = "3D000";
pub(crate) const SERIALIZATION_FAILURE: &str = "40001";
pub(crate) const DEADLOCK_DETECTED: &str = "40P01";
pub(crate) const INSUFFICIENT_PRIVILEGE: &str = "42501";
pub(crate) const UNDEFINED_TABLE: &str = "42P01";
pub(crate) const DUPLICATE_STATEMENT: &str = "42P05";
pub(crate) const TOO_MANY_CONNECTIONS: &str = "53300";
/// The database allows no connections.
pub(crate) const OBJECT_NOT_IN_PREREQUISITE_STATE: &str = "55000";
/// `lock_timeout`.
pub(crate) const LOCK_NOT_AVAILABLE: &str = "55P03";
/// `statement_timeout`, or a cancel request.
pub(crate) const QUERY_CANCELED: &str = "57014";
pub(crate) const ADMIN_SHUTDOWN: &str = "57P01";
pub(crate) const CRASH_SHUTDOWN: &str = "57P02";
/// The server is starting or stopping.
pub(crate) const CANNOT_CONNECT_NOW: &str = "57P03";

/// Returns the SQLSTATE; `None` if the error does not come from the server.
pub(crate) fn of(error: &sqlx::Error) -> Option<Cow<'_, str>> {
    error.as_database_error()?.code()
}

/// Whether a SQLSTATE is about the server, not about the statement.
pub(crate) fn is_transient(state: &str) -> bool {
    const CLASSES: [&str; 4] = [
        "08", // connection exception
        "28", // invalid authorization: credentials are being changed, or wrong
        "53", // insufficient resources
        "57", // operator intervention: shutdown, start-up, statement_timeout
    ];
    const STATES: [&str; 8] = [
        INVALID_STATEMENT_NAME, // a pooler in between
        DUPLICATE_STATEMENT,    // likewise
        READ_ONLY_TRANSACTION,  // a standby that is about to be promoted
        INVALID_CATALOG_NAME,   // the database does not exist yet
        SERIALIZATION_FAILURE,
        DEADLOCK_DETECTED,
        UNDEFINED_TABLE, // migrations are pending
        LOCK_NOT_AVAILABLE,
    ];
    CLASSES.iter().any(|class| state.starts_with(class)) || STATES.contains(&state)
}
