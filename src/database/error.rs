//! Database errors, and whether waiting may help.

use std::sync::Arc;

/// `Clone`, because every caller of a batch gets a copy.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DatabaseError {
    /// Away, too busy, or not ready for us: the same request may succeed later.
    #[error("the database did not answer within the time limit")]
    Timeout,
    /// Like [`Self::Timeout`], with the cause from the driver or the server.
    #[error(transparent)]
    Unavailable(Arc<sqlx::Error>),
    /// Too many operations wait for the database, or too little time is left. This one was not sent.
    #[error("too many operations wait for the database")]
    Overloaded,
    /// The statement itself failed: a bug in the service.
    #[error(transparent)]
    Statement(Arc<sqlx::Error>),
}

impl From<sqlx::Error> for DatabaseError {
    fn from(error: sqlx::Error) -> Self {
        if is_transient(&error) { Self::Unavailable(Arc::new(error)) } else { Self::Statement(Arc::new(error)) }
    }
}

/// Whether an error is about the server or the network, not about the statement.
pub fn is_transient(error: &sqlx::Error) -> bool {
    use sqlx::Error as E;
    match error {
        E::Io(_) | E::Tls(_) | E::Protocol(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed => true,
        E::Database(refusal) => refusal.code().is_some_and(|state| is_transient_state(&state)),
        _ => false,
    }
}

/// Whether a SQLSTATE is about the server, not about the statement.
/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn is_transient_state(state: &str) -> bool {
    const CLASSES: [&str; 4] = [
        "08", // connection exception
        "28", // invalid authorization: credentials are being changed, or wrong
        "53", // insufficient resources
        "57", // operator intervention: shutdown, start-up, statement_timeout
    ];
    const STATES: [&str; 6] = [
        "25006", // read-only transaction: a standby that is about to be promoted
        "3D000", // the database does not exist yet
        "40001", // serialization failure
        "40P01", // deadlock
        "42P01", // a table is missing: migrations are pending
        "55P03", // lock_timeout
    ];
    CLASSES.iter().any(|class| state.starts_with(class)) || STATES.contains(&state)
}

/// Whether the connection broke. A refusal to open one does not count.
pub fn is_dead_connection(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(cause) => cause.kind() != std::io::ErrorKind::ConnectionRefused,
        sqlx::Error::Database(refusal) => refusal.code().is_some_and(|state| state == "57P01" || state == "57P02"),
        _ => false,
    }
}

/// Whether a server that refuses connections may just be starting.
pub fn is_starting(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(cause) => cause.kind() == std::io::ErrorKind::ConnectionRefused,
        sqlx::Error::Database(refusal) => refusal.code().is_some_and(|state| state == "57P03"),
        _ => false,
    }
}
