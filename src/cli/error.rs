//! Why a command could not do its work.

use crate::database::DatabaseError;
use crate::messaging::session::SessionError;

#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("PostgreSQL")]
    Database(#[from] DatabaseError),
    #[error("migrations are pending: run `user-management-api migrate`")]
    Migrations,
    #[error(transparent)]
    Broker(#[from] SessionError),
}

impl From<sqlx::Error> for CommandError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}
