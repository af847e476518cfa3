//! Updates and deletions of users. Under load, those that wait share one statement and one commit,
//! each with its event.
//!
//! Each lane is a task with its own connection and writes everything that waits for it. No write
//! waits for others to arrive: groups grow while a lane is busy.
//!
//! A grouped write differs from a single one only in speed:
//! - **One change per user at a time.** A user belongs to one lane, and two changes of a user never
//!   share a statement. Each gets its version and its event, in the order of arrival.
//! - **The newest row is changed.** The statement locks its rows, in the order of their ids, before
//!   it decides whether anything changes and before it draws an event's position in the outbox.
//! - **No waiting for locks.** A user whose row is locked is left out and written on the pool, by a
//!   statement that waits. Later changes of that user wait for it.
//! - **Failures stay apart.** A group that the server refuses is rolled back and written one by
//!   one. Only a failure that would affect every write, such as a lost server, reaches all; as with
//!   any write, the outcome is then unknown.
//! - **Cancellation stays apart.** A caller that goes away undoes nothing; if its write has not
//!   been sent, it is dropped.
//! - **Bounded** in time by `TimeLimits::REQUESTS.operation` and in number by
//!   [`QUEUE_CAPACITY`] per lane and 64 changes per user.
//!
//! `tests/api/grouped_writes.rs` compares them with single writes.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::FutureExt;
use metrics::Counter;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::locked::LockedWrites;
use super::request::{ReplyTo, request};
use crate::database::lane::Lane;
use crate::database::{Database, DatabaseError};
use crate::domain::user::UserId;
use crate::monitoring::catalogue;
use crate::repository::users::{self, Change, Group, GroupOutcome, Outcome};

/// Number of lanes; each has a connection.
const LANES: usize = 2;
/// Writes in one statement.
const LARGEST_GROUP: usize = 128;
/// Writes that may wait for each lane.
pub(crate) const QUEUE_CAPACITY: usize = 8_192;
/// Changes of one user that may wait: each waits for the one before, so more would only fill the
/// lane.
const MOST_PER_USER: u32 = 64;
/// Number of waiting writes from which a lane chooses its next group.
const WINDOW: usize = 1_024;

type Answer = Result<Outcome, DatabaseError>;

/// Writes users, one by one or in groups; cheap to clone.
#[derive(Clone)]
pub struct UserWrites(Mode);

#[derive(Clone)]
enum Mode {
    OneByOne(Database),
    Grouped {
        queues: [mpsc::Sender<Pending>; LANES],
        per_user: Arc<PerUser>,
        stop: CancellationToken,
        tasks: TaskTracker,
    },
}

impl UserWrites {
    /// Each write is a statement on the pool.
    pub fn one_by_one(database: Database) -> Self {
        Self(Mode::OneByOne(database))
    }

    /// Starts the lanes. Each connects to the server of `database` on first use.
    pub fn grouped(database: &Database) -> Self {
        Self::with_capacity(database, QUEUE_CAPACITY)
    }

    /// Like [`Self::grouped`], with another queue capacity.
    pub fn with_capacity(database: &Database, capacity: usize) -> Self {
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let queues = std::array::from_fn(|_| {
            let (queue, waiting) = mpsc::channel(capacity);
            let lane = GroupLane {
                lane: Lane::beside(database),
                pending: Vec::new(),
                waiting,
                locked: LockedWrites::on(database),
                writes: catalogue::grouped_writes(),
                groups: catalogue::write_groups(),
            };
            tasks.spawn(lane.run(stop.clone()));
            queue
        });
        Self(Mode::Grouped {
            queues,
            per_user: Arc::default(),
            stop,
            tasks,
        })
    }

    /// Writes a change and its event.
    ///
    /// # Errors
    /// [`DatabaseError::Overloaded`] when too many writes wait, in all or for this user: nothing
    /// was changed. Else as [`Database::run`].
    pub async fn write(&self, change: Change) -> Answer {
        let (queues, per_user) = match &self.0 {
            Mode::OneByOne(database) => {
                let change = Arc::new(change);
                let alone = database.run(move |connection| {
                    let change = change.clone();
                    Box::pin(async move { users::write(connection, &change).await })
                });
                // Boxed, so that the future of a grouped write does not carry its size.
                return alone.boxed().await;
            }
            Mode::Grouped {
                queues, per_user, ..
            } => (queues, per_user),
        };
        let _counted = per_user
            .count(change.id())
            .ok_or(DatabaseError::Overloaded)?;
        let queue = &queues[lane_of(&change)];
        request(|caller| Ok(queue.try_send(Pending { change, caller })?)).await
    }

    /// Writes what still waits, then closes the lanes' connections. Refuses later writes.
    pub async fn close(&self) {
        if let Mode::Grouped { stop, tasks, .. } = &self.0 {
            stop.cancel();
            tasks.close();
            tasks.wait().await;
        }
    }
}

/// How many changes of each user wait.
#[derive(Default)]
struct PerUser(Mutex<HashMap<UserId, u32>>);

impl PerUser {
    /// Counts one more until the guard is dropped; `None` at [`MOST_PER_USER`].
    fn count(self: &Arc<Self>, id: UserId) -> Option<Counted> {
        let mut counts = self.0.lock();
        let count = counts.entry(id).or_default();
        if *count >= MOST_PER_USER {
            return None;
        }
        *count += 1;
        Some(Counted {
            per_user: self.clone(),
            id,
        })
    }
}

struct Counted {
    per_user: Arc<PerUser>,
    id: UserId,
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.per_user.0.lock().entry(self.id) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// A user's changes always go to the same lane.
fn lane_of(change: &Change) -> usize {
    usize::try_from(change.id().get()).unwrap_or_default() % LANES
}

struct Pending {
    change: Change,
    caller: ReplyTo<Outcome>,
}

struct GroupLane {
    lane: Lane,
    /// Taken from the queue, in order.
    pending: Vec<Pending>,
    waiting: mpsc::Receiver<Pending>,
    locked: LockedWrites,
    writes: Counter,
    groups: Counter,
}

impl GroupLane {
    async fn run(mut self, stop: CancellationToken) {
        while self.take(&stop).await {
            if let Some((group, callers)) = next_group(&mut self.pending, &self.locked) {
                self.write(group, callers).await;
            }
        }
        while self.locked.next_done().await.is_some() {}
        self.lane.close().await;
    }

    /// Waits until something can be written; `false` once nothing more will come.
    async fn take(&mut self, stop: &CancellationToken) -> bool {
        loop {
            self.locked.take_done();
            while self.pending.len() < WINDOW
                && let Ok(next) = self.waiting.try_recv()
            {
                self.pending.push(next);
            }
            if self
                .pending
                .iter()
                .any(|write| !self.locked.holds(write.change.id()))
            {
                return true;
            }
            tokio::select! {
                next = self.waiting.recv(), if self.pending.len() < WINDOW => match next {
                    Some(next) => self.pending.push(next),
                    None if self.pending.is_empty() => return false,
                    // The rest waits for locked users.
                    None => _ = self.locked.next_done().await,
                },
                Some(()) = self.locked.next_done() => {}
                () = stop.cancelled(), if !self.waiting.is_closed() => self.waiting.close(),
            }
        }
    }

    async fn write(&mut self, group: Group, callers: Vec<ReplyTo<Outcome>>) {
        self.writes.increment(callers.len() as u64);
        let Some(last_deadline) = callers.iter().map(|caller| caller.deadline).max() else {
            return;
        };
        let group = Arc::new(group);
        match self.write_group(&group, last_deadline).await {
            Ok(outcomes) => {
                for (place, (outcome, caller)) in outcomes.into_iter().zip(callers).enumerate() {
                    match outcome {
                        GroupOutcome::Settled(outcome) => caller.send(Ok(outcome)),
                        GroupOutcome::Locked => self.locked.write(group.change(place), caller),
                    }
                }
            }
            Err(DatabaseError::Statement(refused)) if is_refusal(&refused) && callers.len() > 1 => {
                // Nothing was written, and one of the changes is at fault.
                for (place, caller) in callers.into_iter().enumerate() {
                    self.write_alone(group.change(place), caller).await;
                }
            }
            Err(error) => callers
                .into_iter()
                .for_each(|caller| caller.send(Err(error.clone()))),
        }
    }

    async fn write_alone(&mut self, change: Change, caller: ReplyTo<Outcome>) {
        if caller.has_gone() {
            return;
        }
        let alone = Arc::new(Group::of(change.clone()));
        match self.write_group(&alone, caller.deadline).await {
            Ok(mut outcomes) => match outcomes.pop() {
                Some(GroupOutcome::Settled(outcome)) => caller.send(Ok(outcome)),
                Some(GroupOutcome::Locked) | None => self.locked.write(change, caller),
            },
            Err(error) => caller.send(Err(error)),
        }
    }

    async fn write_group(
        &mut self,
        group: &Arc<Group>,
        deadline: Instant,
    ) -> Result<Vec<GroupOutcome>, DatabaseError> {
        self.groups.increment(1);
        let written = self.lane.write(deadline, |connection| {
            let group = group.clone();
            Box::pin(async move { users::write_group(connection, &group).await })
        });
        written.await
    }
}

/// Whether the server rolled the statement back, as opposed to a response that could not be read.
fn is_refusal(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(_))
}

/// Takes the first pending change of each user who has none in `locked`, if it is of the same kind
/// as the first, up to [`LARGEST_GROUP`]. Changes whose callers are gone are dropped.
fn next_group(
    pending: &mut Vec<Pending>,
    locked: &LockedWrites,
) -> Option<(Group, Vec<ReplyTo<Outcome>>)> {
    let mut group: Option<Group> = None;
    let mut callers = Vec::new();
    let mut left = Vec::new();
    let mut users = HashSet::new();
    for write in pending.drain(..).filter(|write| !write.caller.has_gone()) {
        let user = write.change.id();
        let is_next_of_user = !locked.holds(user) && users.insert(user);
        if !is_next_of_user || callers.len() == LARGEST_GROUP {
            left.push(write);
            continue;
        }
        let Pending { change, caller } = write;
        let refused = if let Some(group) = &mut group {
            group.push(change)
        } else {
            group = Some(Group::of(change));
            None
        };
        match refused {
            Some(change) => left.push(Pending { change, caller }),
            None => callers.push(caller),
        }
    }
    *pending = left;
    Some((group?, callers))
}
