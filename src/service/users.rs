//! The use cases of users. A write also stores its event and wakes the relay. Writes do not need
//! RabbitMQ.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::completion::run_to_completion;
use super::error::ServiceError;
use crate::batching::user_lists::SharedPage;
use crate::batching::user_reads::UserReads;
use crate::batching::user_writes::UserWrites;
use crate::database::{Database, DatabaseError, TimeLimits};
use crate::domain::actor::Actor;
use crate::domain::context::Context;
use crate::domain::event::{EventHeader, EventType};
use crate::domain::name::Name;
use crate::domain::page::Page;
use crate::domain::password::PasswordHash;
use crate::domain::precondition::Precondition;
use crate::domain::user::{NewUser, User, UserChanges, UserId, Version};
pub(crate) use crate::password::Caller;
use crate::password::PasswordHasher;
use crate::repository::users::{self, Change, Deletion, Outcome, Update};

/// Time for hashing and the write, on top of the longest wait for a hashing slot.
const AFTER_THE_HASH: Duration = Duration::from_millis(500);
/// A write is not attempted with less time than this left.
const TOO_SHORT: Duration = Duration::from_millis(50);

/// More than two, because ids may be taken again while the sequence is being lifted.
const ATTEMPTS_TO_INSERT: u32 = 3;

#[derive(Clone)]
pub(crate) struct UserService {
    pub database: Database,
    pub reads: UserReads,
    pub writes: UserWrites,
    pub hasher: PasswordHasher,
    /// Notified after each commit that wrote an event.
    pub outbox_filled: Arc<Notify>,
    /// Tracks writes that continue after their clients have gone.
    pub tasks: TaskTracker,
}

impl UserService {
    /// # Errors
    /// [`ServiceError::Overloaded`] if no core becomes free in time to hash;
    /// [`ServiceError::DatabaseUnavailable`].
    pub(crate) async fn create(
        &self,
        new: NewUser,
        context: Context,
        caller: Caller<impl Future<Output = ()>>,
    ) -> Result<User, ServiceError> {
        let began = Instant::now();
        let password = self.hasher.hash(new.password, caller).await?;
        let service = self.clone();
        run_to_completion(&self.tasks, async move {
            let actor = context.actor.clone();
            let event = EventHeader::new(context);
            let row = Arc::new((new.name, new.surname, password, event));
            let user = service.in_time(began, service.insert(row)).await?;
            service.outbox_filled.notify_one();
            info!(
                user_id = user.id.get(),
                actor = actor.as_ref().map(Actor::as_str),
                "User created"
            );
            Ok(user)
        })
        .await
    }

    /// Inserts the user. If its id is taken, because users were inserted without drawing their ids,
    /// lifts the sequence past them and tries again.
    async fn insert(
        &self,
        row: Arc<(Name, Name, PasswordHash, EventHeader)>,
    ) -> Result<User, DatabaseError> {
        let mut attempts_left = ATTEMPTS_TO_INSERT;
        loop {
            let insert = self.database.run(|connection| {
                let row = row.clone();
                Box::pin(async move {
                    let (name, surname, password, event) = &*row;
                    users::insert(connection, name, surname, password, event).await
                })
            });
            attempts_left -= 1;
            match insert.await {
                Err(error @ DatabaseError::IdTaken(_)) if attempts_left > 0 => {
                    let lifting = self
                        .database
                        .run(|connection| Box::pin(users::draw_past_taken_ids(connection)));
                    if !lifting.await? {
                        return Err(error);
                    }
                    warn!(
                        "The next id was taken, so the sequence of ids was lifted past the highest \
                         one in use"
                    );
                }
                settled => return settled,
            }
        }
    }

    /// Returns one page of users in the order of their ids, and the number of all users.
    pub(crate) async fn list(&self, page: Page) -> Result<Arc<SharedPage>, ServiceError> {
        Ok(self.reads.list(page).await?)
    }

    pub(crate) async fn get(&self, id: UserId) -> Result<User, ServiceError> {
        self.reads.get(id).await?.ok_or(ServiceError::UserNotFound)
    }

    /// Changes the given fields. If none differs, nothing is written and there is no event. A given
    /// password always counts as a change.
    ///
    /// # Errors
    /// [`ServiceError::PreconditionFailed`], even if no value differs.
    pub(crate) async fn update(
        &self,
        id: UserId,
        changes: UserChanges,
        precondition: Precondition,
        context: Context,
        caller: Caller<impl Future<Output = ()>>,
    ) -> Result<User, ServiceError> {
        let began = Instant::now();
        let UserChanges {
            name,
            surname,
            password,
        } = changes;
        let password = match password {
            Some(password) => {
                // Hashing is expensive: do not hash for nothing.
                let user = self.reads.get(id).await?;
                expect(&precondition, user.map(|user| user.version))?;
                Some(self.hasher.hash(password, caller).await?)
            }
            None => None,
        };
        let update = Update {
            id,
            name,
            surname,
            precondition,
            event: EventHeader::new(context),
        };
        let change = match password {
            Some(hash) => Change::UpdateWithPassword(update, hash),
            None => Change::Update(update),
        };
        self.write(began, change).await
    }

    pub(crate) async fn delete(
        &self,
        id: UserId,
        precondition: Precondition,
        context: Context,
    ) -> Result<(), ServiceError> {
        let deletion = Deletion {
            id,
            precondition,
            event: EventHeader::new(context),
        };
        self.write(Instant::now(), Change::Deletion(deletion))
            .await?;
        Ok(())
    }

    /// Writes a change. Returns the user after an update, or before a deletion.
    async fn write(&self, began: Instant, change: Change) -> Result<User, ServiceError> {
        let service = self.clone();
        run_to_completion(&self.tasks, async move {
            let done = match change.event_type() {
                EventType::Deleted => "User deleted",
                _ => "User updated",
            };
            let actor = change.event().actor.clone();
            let missing = missing(change.precondition());
            match service.in_time(began, service.writes.write(change)).await? {
                Outcome::Changed(user) => {
                    service.outbox_filled.notify_one();
                    info!(
                        user_id = user.id.get(),
                        actor = actor.as_ref().map(Actor::as_str),
                        "{done}"
                    );
                    Ok(user)
                }
                Outcome::Unchanged(user) => Ok(user),
                Outcome::Stale(version) => Err(ServiceError::PreconditionFailed(Some(version))),
                Outcome::NotFound => Err(missing),
            }
        })
        .await
    }

    /// Limits the time of a write, so that the client learns of a lost database within 3 s of
    /// `began` even if a hash has waited up to 2 s for a core (the setting's default).
    async fn in_time<T>(
        &self,
        began: Instant,
        write: impl Future<Output = Result<T, DatabaseError>>,
    ) -> Result<T, DatabaseError> {
        let limit = TimeLimits::REQUESTS
            .operation
            .max(self.hasher.longest_wait() + AFTER_THE_HASH);
        let left = limit.saturating_sub(began.elapsed());
        if left < TOO_SHORT {
            return Err(DatabaseError::Overloaded);
        }
        timeout(left, write)
            .await
            .unwrap_or(Err(DatabaseError::Timeout))
    }
}

/// Judges the precondition of a change. `None` stands for a user who does not exist.
fn expect(precondition: &Precondition, version: Option<Version>) -> Result<(), ServiceError> {
    if version.is_none() {
        Err(missing(precondition))
    } else if precondition.holds(version) {
        Ok(())
    } else {
        Err(ServiceError::PreconditionFailed(version))
    }
}

/// The error of a change of a user who does not exist.
fn missing(precondition: &Precondition) -> ServiceError {
    if precondition.holds(None) {
        ServiceError::UserNotFound
    } else {
        ServiceError::PreconditionFailed(None)
    }
}
