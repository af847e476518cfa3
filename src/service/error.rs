//! What can go wrong in a use case.

use std::error::Error;

use crate::database::DatabaseError;
use crate::domain::user::Version;
use crate::password::HashError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ServiceError {
    #[error("there is no such user")]
    UserNotFound,
    /// Nothing was changed. Holds the user's version; `None` if there is no such user.
    #[error("the user's version is not one that was asked for")]
    PreconditionFailed(Option<Version>),
    /// A write may or may not have been committed; in either case, user and event stay together.
    #[error("the database is unavailable")]
    DatabaseUnavailable(#[source] DatabaseError),
    /// Nothing was changed.
    #[error("the database takes no writes")]
    DatabaseReadOnly(#[source] DatabaseError),
    /// Nothing was changed.
    #[error("the next id is taken")]
    IdTaken(#[source] DatabaseError),
    /// Nothing was changed.
    #[error("the database's schema is not current")]
    SchemaNotCurrent(#[source] DatabaseError),
    /// Nothing was changed.
    #[error("the service is saturated")]
    Overloaded(#[source] Box<dyn Error + Send + Sync>),
    /// A bug in the service.
    #[error("internal error")]
    Internal(#[source] Box<dyn Error + Send + Sync>),
}

impl From<DatabaseError> for ServiceError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Timeout | DatabaseError::Unavailable(_) | DatabaseError::Pooled(_) => {
                Self::DatabaseUnavailable(error)
            }
            DatabaseError::ReadOnly(_) => Self::DatabaseReadOnly(error),
            DatabaseError::IdTaken(_) => Self::IdTaken(error),
            DatabaseError::NotMigrated(_) => Self::SchemaNotCurrent(error),
            DatabaseError::Overloaded => Self::Overloaded(Box::new(error)),
            DatabaseError::Statement(_) => Self::Internal(Box::new(error)),
        }
    }
}

impl From<HashError> for ServiceError {
    fn from(error: HashError) -> Self {
        match error {
            HashError::Overloaded | HashError::CallerGone => Self::Overloaded(Box::new(error)),
            HashError::Argon2(_) | HashError::Task(_) => Self::Internal(Box::new(error)),
        }
    }
}
