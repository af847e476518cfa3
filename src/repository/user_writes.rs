//! Updates and deletions of users, committed in groups: those that wait are written, with their events, by one statement and
//! one commit.
//!
//! Each of a few lanes, a task with a connection of its own, takes what waits for it. There is no timer and no wait for
//! company: a write that comes alone goes out alone, and groups grow by themselves while a lane is busy.
//!
//! # Exactness
//!
//! A write in a group is told from one that was run by itself by nothing but its speed.
//! - **One change of a user at a time.** A user belongs to one lane, and two changes of one user never share a statement:
//!   both get a version and an event, in the order in which they came.
//! - **The newest row is changed.** The statement locks its rows, in the order of their ids, before it decides whether
//!   anything changes and before it draws an event's place in the outbox, as a single write does.
//! - **Nobody waits for another's lock.** A user whose row somebody else has locked is left out, and then written alone, by
//!   a statement that waits.
//! - **It fails alone.** A group that the server refuses is rolled back, and written one by one. What no write would
//!   survive, such as a lost server, all of them hear; as with any write, the outcome is not known then.
//! - **It is never cut in half.** Groups run in the lanes' tasks: a caller who goes away undoes nothing. A write whose
//!   caller has gone before it was sent is not begun.
//! - **It is bounded**, in time by [`OPERATION_TIMEOUT`], and in number by [`QUEUE_CAPACITY`].
//!
//! `tests/api/grouped_writes.rs` holds these against writes that run one by one.

use std::{collections::HashSet, sync::Arc};

use futures_util::FutureExt;
use metrics::{Counter, counter};
use tokio::{
    sync::{mpsc, mpsc::error::TrySendError, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    database::{Database, DatabaseError, OPERATION_TIMEOUT},
    lane::Lane,
    user_changes::{self, Change, Together, Written},
};

/// Lanes, and so connections.
const LANES: usize = 2;
/// Writes in one statement.
const LARGEST_GROUP: usize = 128;
/// Writes that may wait for each lane.
pub const QUEUE_CAPACITY: usize = 8_192;

type Answer = Result<Option<Written>, DatabaseError>;

/// Cheap to clone.
#[derive(Clone)]
pub struct UserWrites(Mode);

#[derive(Clone)]
enum Mode {
    OneByOne(Database),
    Grouped { queues: [mpsc::Sender<Pending>; LANES], stop: CancellationToken, tasks: TaskTracker },
}

impl UserWrites {
    /// Each write is a statement on the pool.
    #[must_use]
    pub fn one_by_one(database: Database) -> Self {
        Self(Mode::OneByOne(database))
    }

    /// Starts the lanes, of which each connects to where `database` leads when it is first used.
    #[must_use]
    pub fn grouped(database: &Database) -> Self {
        Self::with_capacity(database, QUEUE_CAPACITY)
    }

    /// As [`Self::grouped`], with another bound of the queues.
    #[must_use]
    pub fn with_capacity(database: &Database, capacity: usize) -> Self {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let queues = std::array::from_fn(|_| {
            let (queue, waiting) = mpsc::channel(capacity);
            let lane = GroupLane {
                lane: Lane::beside(database),
                database: database.clone(),
                tasks: tasks.clone(),
                waiting,
                pending: Vec::new(),
                writes: counter!("grouped_writes_total"),
                groups: counter!("write_groups_total"),
            };
            tasks.spawn(lane.run(stop.clone()));
            queue
        });
        Self(Mode::Grouped { queues, stop, tasks })
    }

    /// Writes a change and its event; `None` when there is no such user.
    ///
    /// # Errors
    /// [`DatabaseError::Overloaded`] when too many writes wait: nothing was changed. Else as [`Database::run`].
    pub async fn write(&self, change: Change) -> Answer {
        let queues = match &self.0 {
            // In a box, for its size would be carried by the grouped writes too.
            Mode::OneByOne(database) => return write_alone(database, Arc::new([change]), 0).boxed().await,
            Mode::Grouped { queues, .. } => queues,
        };
        let deadline = Instant::now() + OPERATION_TIMEOUT;
        let (answer, answered) = oneshot::channel();
        let queue = &queues[lane_of(&change)];
        queue.try_send(Pending { change, caller: Caller { deadline, answer } }).map_err(|refused| match refused {
            TrySendError::Full(_) => DatabaseError::Overloaded,
            TrySendError::Closed(_) => DatabaseError::Timeout,
        })?;
        // A lane drops what it cannot answer in time.
        timeout_at(deadline, answered).await.ok().and_then(Result::ok).unwrap_or(Err(DatabaseError::Timeout))
    }

    /// Writes what still waits, then closes the lanes' connections; whatever comes later is refused.
    pub async fn close(&self) {
        if let Mode::Grouped { stop, tasks, .. } = &self.0 {
            stop.cancel();
            tasks.close();
            tasks.wait().await;
        }
    }
}

/// Always the same one for a user.
fn lane_of(change: &Change) -> usize {
    usize::try_from(change.id.get()).unwrap_or_default() % LANES
}

async fn write_alone(database: &Database, changes: Arc<[Change]>, place: usize) -> Answer {
    database
        .run(move |connection| Box::pin(async move { user_changes::write(connection, &changes[place]).await }))
        .await
}

struct Pending {
    change: Change,
    caller: Caller,
}

struct Caller {
    deadline: Instant,
    answer: oneshot::Sender<Answer>,
}

impl Caller {
    fn tell(self, answer: Answer) {
        // It may have gone away.
        _ = self.answer.send(answer);
    }
}

struct GroupLane {
    lane: Lane,
    /// For writes that may wait for a lock: they must not hold the lane up.
    database: Database,
    tasks: TaskTracker,
    waiting: mpsc::Receiver<Pending>,
    /// Taken from the queue, in order.
    pending: Vec<Pending>,
    writes: Counter,
    groups: Counter,
}

impl GroupLane {
    async fn run(mut self, stop: CancellationToken) {
        while self.take(&stop).await {
            let group = next_group(&mut self.pending);
            if !group.is_empty() {
                self.write(group).await;
            }
        }
        self.lane.close().await;
    }

    /// Waits until something is pending; `false` when nothing will be any more.
    async fn take(&mut self, stop: &CancellationToken) -> bool {
        if self.pending.is_empty() {
            let first = if let Some(first) = stop.run_until_cancelled(self.waiting.recv()).await {
                first
            } else {
                self.waiting.close();
                self.waiting.recv().await
            };
            let Some(first) = first else { return false };
            self.pending.push(first);
        }
        while self.pending.len() < QUEUE_CAPACITY
            && let Ok(next) = self.waiting.try_recv()
        {
            self.pending.push(next);
        }
        true
    }

    async fn write(&mut self, group: Vec<Pending>) {
        self.writes.increment(group.len() as u64);
        self.groups.increment(1);
        let (changes, callers): (Vec<_>, Vec<_>) =
            group.into_iter().map(|pending| (pending.change, pending.caller)).unzip();
        let Some(last_deadline) = callers.iter().map(|caller| caller.deadline).max() else { return };
        let changes: Arc<[Change]> = changes.into();
        let group = changes.clone();
        let written = self.lane.write(last_deadline, move |connection| {
            Box::pin(async move { user_changes::write_together(connection, &group).await })
        });
        match written.await {
            Ok(mut written) => {
                for (place, caller) in callers.into_iter().enumerate() {
                    match written.remove(&changes[place].id) {
                        Some(Together::Written(written)) => caller.tell(Ok(Some(written))),
                        Some(Together::LeftOut) => self.write_aside(changes.clone(), place, caller),
                        None => caller.tell(Ok(None)),
                    }
                }
            }
            // One of them is at fault.
            Err(DatabaseError::Statement(_)) => {
                for (place, caller) in callers.into_iter().enumerate() {
                    self.write_one(changes.clone(), place, caller).await;
                }
            }
            Err(error) => callers.into_iter().for_each(|caller| caller.tell(Err(error.clone()))),
        }
    }

    async fn write_one(&mut self, changes: Arc<[Change]>, place: usize, caller: Caller) {
        if caller.answer.is_closed() {
            return;
        }
        let written = self.lane.write(caller.deadline, move |connection| {
            Box::pin(async move { user_changes::write(connection, &changes[place]).await })
        });
        let written = written.await;
        caller.tell(written);
    }

    fn write_aside(&self, changes: Arc<[Change]>, place: usize, caller: Caller) {
        let database = self.database.clone();
        self.tasks.spawn(async move {
            let written = timeout_at(caller.deadline, write_alone(&database, changes, place)).await;
            caller.tell(written.unwrap_or(Err(DatabaseError::Timeout)));
        });
    }
}

/// Takes the first pending change of each user, as long as they are all deletions, or all updates, and room is left. Those
/// whose callers have gone are dropped.
fn next_group(pending: &mut Vec<Pending>) -> Vec<Pending> {
    let (mut group, mut left, mut users) = (Vec::<Pending>::new(), Vec::new(), HashSet::new());
    for write in pending.drain(..).filter(|write| !write.caller.answer.is_closed()) {
        let is_first_of_user = users.insert(write.change.id);
        let is_alike = |first: &Pending| first.change.operation.is_deletion() == write.change.operation.is_deletion();
        if is_first_of_user && group.len() < LARGEST_GROUP && group.first().is_none_or(is_alike) {
            group.push(write);
        } else {
            left.push(write);
        }
    }
    *pending = left;
    group
}
