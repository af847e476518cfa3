//! Why a command failed.

use crate::database::DatabaseError;
use crate::messaging::session::SessionError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("PostgreSQL")]
    Database(#[from] DatabaseError),
    #[error("the login may not do this: run the command as the owner of the tables")]
    NotAllowed(#[source] DatabaseError),
    #[error("migrations are pending: run `user-management-api migrate`")]
    Migrations,
    #[error("a relay leads: stop the service, all replicas, and run this again")]
    Running,
    #[error("a pooler in between shares the session: set DATABASE_DIRECT_URL to PostgreSQL itself")]
    Shared,
    #[error(
        "the database takes no writes: name the primary in DATABASE_URL, or in DATABASE_DIRECT_URL"
    )]
    ReadOnly,
    #[error("a key of this name works: `api-key rotate` makes another token for it")]
    KeyExists,
    #[error("no key of this name works: `api-key list` shows all")]
    NoSuchKey,
    #[error(transparent)]
    Broker(#[from] SessionError),
}

impl From<sqlx::Error> for CommandError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}
