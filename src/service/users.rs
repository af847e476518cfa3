//! The use cases of users. A write also stores its event and wakes the relay; whether RabbitMQ is there does not matter.

use std::sync::Arc;

use tokio::sync::Notify;
use tracing::{Instrument, Span, info};

use super::error::ServiceError;
use crate::{
    domain::{
        event::{EventType, NewEvent},
        page::Page,
        user::{Name, NewUser, User, UserChanges, UserId},
    },
    password::{PasswordHash, PasswordHasher},
    repository::{
        database::Database,
        user_reads::UserReads,
        users::{self, UserColumns},
    },
    trace_id::TraceId,
};

#[derive(Clone)]
pub struct UserService {
    database: Database,
    reads: UserReads,
    hasher: PasswordHasher,
    /// Told after each commit that wrote an event.
    outbox_filled: Arc<Notify>,
}

impl UserService {
    #[must_use]
    pub fn new(database: Database, reads: UserReads, hasher: PasswordHasher, outbox_filled: Arc<Notify>) -> Self {
        Self { database, reads, hasher, outbox_filled }
    }

    /// # Errors
    /// [`ServiceError::Overloaded`] when no core comes free to hash; [`ServiceError::DatabaseUnavailable`].
    pub async fn create(&self, new: NewUser, trace_id: TraceId) -> Result<User, ServiceError> {
        let hash = self.hasher.hash(new.password).await?;
        let service = self.clone();
        to_the_end(async move {
            let event = NewEvent::new(EventType::Created, trace_id);
            let user = service
                .database
                .run(move |connection| {
                    Box::pin(async move {
                        let columns = UserColumns {
                            name: new.name.as_str(),
                            surname: new.surname.as_str(),
                            password: hash.expose(),
                            event: &event,
                        };
                        users::insert(connection, columns).await
                    })
                })
                .await?;
            service.outbox_filled.notify_one();
            info!(user_id = user.id.get(), "User created");
            Ok(user)
        })
        .await
    }

    /// One page of users by id, and the number of all users.
    ///
    /// # Errors
    /// [`ServiceError::DatabaseUnavailable`]
    pub async fn list(&self, page: Page) -> Result<(Vec<User>, i64), ServiceError> {
        Ok(self.database.read(|connection| Box::pin(users::list(connection, page))).await?)
    }

    /// # Errors
    /// [`ServiceError::UserNotFound`], [`ServiceError::Overloaded`], [`ServiceError::DatabaseUnavailable`]
    pub async fn get(&self, id: UserId) -> Result<User, ServiceError> {
        self.reads.get(id).await?.ok_or(ServiceError::UserNotFound)
    }

    /// Changes the fields that are given. When none of them differs, nothing is written and no event arises; a password
    /// that is given always counts as a change.
    ///
    /// # Errors
    /// [`ServiceError::UserNotFound`], [`ServiceError::Overloaded`], [`ServiceError::DatabaseUnavailable`]
    pub async fn update(&self, id: UserId, changes: UserChanges, trace_id: TraceId) -> Result<User, ServiceError> {
        let hash = match changes.password {
            Some(password) => Some(self.hasher.hash(password).await?),
            None => None,
        };
        let service = self.clone();
        to_the_end(async move {
            let event = NewEvent::new(EventType::Updated, trace_id);
            let updated = service
                .database
                .run(move |connection| {
                    Box::pin(async move {
                        let columns = UserColumns {
                            name: changes.name.as_ref().map(Name::as_str),
                            surname: changes.surname.as_ref().map(Name::as_str),
                            password: hash.as_ref().map(PasswordHash::expose),
                            event: &event,
                        };
                        users::update(connection, id, columns).await
                    })
                })
                .await?
                .ok_or(ServiceError::UserNotFound)?;
            if updated.changed {
                service.outbox_filled.notify_one();
                info!(user_id = id.get(), "User updated");
            }
            Ok(updated.user)
        })
        .await
    }

    /// # Errors
    /// [`ServiceError::UserNotFound`], [`ServiceError::DatabaseUnavailable`]
    pub async fn delete(&self, id: UserId, trace_id: TraceId) -> Result<(), ServiceError> {
        let service = self.clone();
        to_the_end(async move {
            let event = NewEvent::new(EventType::Deleted, trace_id);
            if !service
                .database
                .run(move |connection| Box::pin(async move { users::delete(connection, id, &event).await }))
                .await?
            {
                return Err(ServiceError::UserNotFound);
            }
            service.outbox_filled.notify_one();
            info!(user_id = id.get(), "User deleted");
            Ok(())
        })
        .await
    }
}

/// Runs a write in a task of its own, so that a client who hangs up never cuts one in half.
async fn to_the_end<T: Send + 'static>(
    write: impl Future<Output = Result<T, ServiceError>> + Send + 'static,
) -> Result<T, ServiceError> {
    match tokio::spawn(write.instrument(Span::current())).await {
        Ok(result) => result,
        Err(failure) if failure.is_panic() => std::panic::resume_unwind(failure.into_panic()),
        Err(cancelled) => Err(ServiceError::Internal(Box::new(cancelled))),
    }
}
