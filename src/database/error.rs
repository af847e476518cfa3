//! Database errors, and whether waiting may help.

use std::sync::Arc;

use sqlx::postgres::PgDatabaseError;

use super::sqlstate;

/// Why a database operation failed. `Clone`, because every caller of a batch gets a copy.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The database is away, too busy, or not ready: the same request may succeed later.
    #[error("the database did not answer within the time limit")]
    Timeout,
    /// Like [`Self::Timeout`], with the cause from the driver or the server.
    #[error(transparent)]
    Unavailable(Arc<sqlx::Error>),
    /// Typical of a pooler that the service takes for PostgreSQL: the session holds other clients'
    /// statements, or refuses our settings.
    #[error("{0}. Is a pooler in between? Set DATABASE_DIRECT_URL to PostgreSQL itself")]
    Pooled(Arc<sqlx::Error>),
    /// The server takes no writes: a standby, or set to read-only. Nothing was changed.
    #[error(transparent)]
    ReadOnly(Arc<sqlx::Error>),
    /// A table is missing: migrations are pending. Nothing was changed.
    #[error(transparent)]
    NotMigrated(Arc<sqlx::Error>),
    /// The next id is taken, or the sequence is exhausted: users were inserted without drawing
    /// their ids from it. Nothing was changed.
    #[error(transparent)]
    IdTaken(Arc<sqlx::Error>),
    /// Too many operations wait for the database, or too little time is left. The operation was
    /// not sent.
    #[error("too many operations wait for the database")]
    Overloaded,
    /// The statement itself failed: a bug in the service.
    #[error(transparent)]
    Statement(Arc<sqlx::Error>),
}

impl From<sqlx::Error> for DatabaseError {
    fn from(error: sqlx::Error) -> Self {
        let shared = Arc::new(error);
        match sqlstate::of(&shared).as_deref() {
            Some(
                sqlstate::INVALID_STATEMENT_NAME
                | sqlstate::DUPLICATE_STATEMENT
                | sqlstate::PROTOCOL_VIOLATION,
            ) => Self::Pooled(shared),
            Some(sqlstate::READ_ONLY_TRANSACTION) => Self::ReadOnly(shared),
            Some(sqlstate::UNIQUE_VIOLATION) if is_taken_id(&shared) => Self::IdTaken(shared),
            // The sequence is exhausted: ids up to the largest possible one are taken.
            Some(sqlstate::SEQUENCE_GENERATOR_LIMIT_EXCEEDED) => Self::IdTaken(shared),
            Some(sqlstate::UNDEFINED_TABLE) => Self::NotMigrated(shared),
            _ if is_transient(&shared) => Self::Unavailable(shared),
            _ => Self::Statement(shared),
        }
    }
}

impl DatabaseError {
    /// Converts an error from connecting. No statement was sent, so none is at fault.
    pub fn of_connecting(error: sqlx::Error) -> Self {
        match Self::from(error) {
            Self::Statement(error) => Self::Unavailable(error),
            other => other,
        }
    }

    /// Whether the login lacks a privilege.
    pub fn is_not_allowed(&self) -> bool {
        matches!(self, Self::Statement(error) if is_not_allowed(error))
    }

    /// Whether a statement exceeded `statement_timeout`.
    pub fn is_statement_timeout(&self) -> bool {
        matches!(self, Self::Unavailable(error)
            if sqlstate::of(error).as_deref() == Some(sqlstate::QUERY_CANCELED))
    }

    /// Whether the server refused before it did anything, and because of the session: the session
    /// leads to a standby, or its cached plans predate a change of the tables. A new session may
    /// succeed.
    pub fn is_of_the_session(&self) -> bool {
        match self {
            Self::ReadOnly(_) => true,
            Self::Unavailable(error) => has_outdated_plan(error),
            _ => false,
        }
    }
}

/// Whether the login lacks a privilege.
pub(crate) fn is_not_allowed(error: &sqlx::Error) -> bool {
    sqlstate::of(error).as_deref() == Some(sqlstate::INSUFFICIENT_PRIVILEGE)
}

/// Whether a table is missing.
pub(crate) fn is_missing_table(error: &sqlx::Error) -> bool {
    sqlstate::of(error).as_deref() == Some(sqlstate::UNDEFINED_TABLE)
}

fn is_taken_id(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .is_some_and(|refusal| refusal.constraint() == Some("users_pkey"))
}

/// Recognizes "cached plan must not change result type" in any language of the server.
fn has_outdated_plan(error: &sqlx::Error) -> bool {
    let refusal = error
        .as_database_error()
        .and_then(|refusal| refusal.try_downcast_ref::<PgDatabaseError>());
    refusal.is_some_and(|refusal| {
        refusal.code() == sqlstate::FEATURE_NOT_SUPPORTED
            && refusal.routine() == Some("RevalidateCachedQuery")
    })
}

/// Whether an error is about the server or the network, not about the statement.
pub(crate) fn is_transient(error: &sqlx::Error) -> bool {
    use sqlx::Error as E;
    match error {
        E::Io(_)
        | E::Tls(_)
        | E::Protocol(_)
        | E::PoolTimedOut
        | E::PoolClosed
        | E::WorkerCrashed => true,
        E::Database(refusal) => {
            // The outbox's sequence was set back.
            let is_taken_place = refusal.constraint() == Some("outbox_pkey");
            is_taken_place
                || has_outdated_plan(error)
                || refusal
                    .code()
                    .is_some_and(|state| sqlstate::is_transient(&state))
        }
        _ => false,
    }
}

/// Whether the connection broke. A refusal to open one does not count.
pub(crate) fn is_dead_connection(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(cause) => cause.kind() != std::io::ErrorKind::ConnectionRefused,
        error => matches!(
            sqlstate::of(error).as_deref(),
            Some(sqlstate::ADMIN_SHUTDOWN | sqlstate::CRASH_SHUTDOWN)
        ),
    }
}

/// Whether a server that refuses connections may just be starting.
pub(crate) fn is_starting(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(cause) => cause.kind() == std::io::ErrorKind::ConnectionRefused,
        error => sqlstate::of(error).as_deref() == Some(sqlstate::CANNOT_CONNECT_NOW),
    }
}
