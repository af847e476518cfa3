//! Writes of users whose rows another transaction has locked. Each runs as a task on the pool and
//! may wait for the lock without delaying its lane.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use super::request::ReplyTo;
use crate::database::{Database, DatabaseError};
use crate::domain::user::UserId;
use crate::repository::users::{self, Change, Outcome};

/// Most connections of the pool that one lane's locked writes may use: requests need them too.
const SLOTS: usize = 2;

/// The locked writes of one lane.
pub(crate) struct LockedWrites {
    database: Database,
    tasks: JoinSet<UserId>,
    users: HashSet<UserId>,
    /// Permits to hold a connection of the pool.
    slots: Arc<Semaphore>,
}

impl LockedWrites {
    pub(crate) fn on(database: &Database) -> Self {
        let tasks = JoinSet::new();
        let users = HashSet::new();
        let slots = Arc::new(Semaphore::new(SLOTS));
        Self {
            database: database.clone(),
            tasks,
            users,
            slots,
        }
    }

    /// Whether a change of the user is in progress. Later changes of the user wait for it, to keep
    /// their order.
    pub(crate) fn holds(&self, user: UserId) -> bool {
        self.users.contains(&user)
    }

    /// Writes a change within its caller's deadline, unless the caller has gone before it is sent.
    pub(crate) fn write(&mut self, change: Change, caller: ReplyTo<Outcome>) {
        let database = self.database.clone();
        let slots = self.slots.clone();
        let user = change.id();
        let change = Arc::new(change);
        self.users.insert(user);
        self.tasks.spawn(async move {
            let written = async {
                let _slot = slots.acquire().await;
                if caller.has_gone() {
                    return Err(DatabaseError::Timeout);
                }
                let write = database.run(move |connection| {
                    let change = change.clone();
                    Box::pin(async move { users::write(connection, &change).await })
                });
                write.await
            };
            let written = timeout_at(caller.deadline, written).await;
            caller.send(written.unwrap_or(Err(DatabaseError::Timeout)));
            user
        });
    }

    /// Removes the writes that have ended.
    pub(crate) fn take_done(&mut self) {
        while let Some(done) = self.tasks.try_join_next() {
            if let Ok(user) = done {
                self.users.remove(&user);
            }
        }
    }

    /// Waits until a write ends; `None` if none is running.
    pub(crate) async fn next_done(&mut self) -> Option<()> {
        // None of them panics or is aborted.
        let user = self.tasks.join_next().await?.ok()?;
        self.users.remove(&user);
        Some(())
    }
}
