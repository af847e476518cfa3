//! Reads of users. Under load, waiting reads by id share one query, and so do waiting requests for
//! one page (`user_lists`).
//!
//! Two lanes, each a task with its own connection, take turns to query everything that waits. No
//! read waits for others to come: batches grow while a query runs, as in a group commit. If a query
//! is slow or stuck, the other lane goes ahead.
//!
//! A shared read differs from a single one only in speed:
//! - **Fresh.** A read joins only a query that has not been sent yet, so it sees everything
//!   committed before it began.
//! - **Failures stay apart.** If the server refuses a batch or a row cannot be decoded, the batch
//!   runs again user by user. Only a failure that would affect every read, such as a lost server,
//!   reaches all of them.
//! - **Cancellation stays apart.** Batches run in the lanes' tasks. A caller that goes away affects
//!   no other.
//! - **Bounded.** Every caller gets an answer within `TimeLimits::REQUESTS.operation`. Reads
//!   beyond [`QUEUE_CAPACITY`] are refused.
//!
//! `tests/api/coalesced_reads.rs` compares them with single reads; `tests/api/read_faults.rs` tests
//! them with a database in trouble.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use metrics::Counter;
use tokio::sync::{Mutex, MutexGuard, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::request::{ReplyTo, request};
use super::user_lists::{SharedPage, UserLists};
use crate::database::lane::Lane;
use crate::database::{Database, DatabaseError};
use crate::domain::page::Page;
use crate::domain::user::{User, UserId};
use crate::monitoring::catalogue;
use crate::repository::users;

/// Number of lanes; each has a connection.
const LANES: usize = 2;
/// How long a lane waits for the other lane's query while its own batch grows. A local database
/// answers sooner.
const LONG_QUERY: Duration = Duration::from_millis(1);
/// Most reads in one query.
const LARGEST_BATCH: usize = 128;
/// Maximum number of waiting reads: a few hundred milliseconds' worth at full speed. More is
/// overload, not a burst.
pub(crate) const QUEUE_CAPACITY: usize = 16_384;

struct Read {
    id: UserId,
    caller: ReplyTo<Option<User>>,
}

/// Reads users, one by one or in batches; cheap to clone.
#[derive(Clone)]
pub struct UserReads {
    mode: Mode,
    lists: UserLists,
}

#[derive(Clone)]
enum Mode {
    OneByOne(Database),
    Coalesced {
        queue: mpsc::Sender<Read>,
        stop: CancellationToken,
        lanes: TaskTracker,
    },
}

impl UserReads {
    /// Each read is a query on the pool.
    pub fn one_by_one(database: Database) -> Self {
        Self {
            lists: UserLists::new(database.clone()),
            mode: Mode::OneByOne(database),
        }
    }

    /// Starts the lanes. Each connects to the server of `database` on first use.
    pub fn coalesced(database: &Database) -> Self {
        Self::with_capacity(database, QUEUE_CAPACITY)
    }

    /// Like [`Self::coalesced`], with another queue capacity.
    pub fn with_capacity(database: &Database, capacity: usize) -> Self {
        let (queue, waiting) = mpsc::channel(capacity);
        let shared = Arc::new(Queue {
            waiting: Mutex::new(waiting),
            turn: Mutex::new(()),
        });
        let stop = CancellationToken::new();
        let lanes = TaskTracker::new();
        for _ in 0..LANES {
            lanes.spawn(answer_what_waits(
                Lane::beside(database),
                shared.clone(),
                stop.clone(),
            ));
        }
        Self {
            lists: UserLists::new(database.clone()),
            mode: Mode::Coalesced { queue, stop, lanes },
        }
    }

    /// Reads a user; `None` when there is no such user.
    ///
    /// # Errors
    /// [`DatabaseError::Overloaded`] when too many reads wait; else as [`Database::read`].
    pub async fn get(&self, id: UserId) -> Result<Option<User>, DatabaseError> {
        let queue = match &self.mode {
            Mode::OneByOne(database) => {
                // Boxed, so that the future of a coalesced read does not carry its size through
                // every layer.
                return database
                    .read(|connection| Box::pin(users::get(connection, id)))
                    .boxed()
                    .await;
            }
            Mode::Coalesced { queue, .. } => queue,
        };
        request(|caller| Ok(queue.try_send(Read { id, caller })?)).await
    }

    /// Reads one page of users, and the number of all users.
    pub async fn list(&self, page: Page) -> Result<Arc<SharedPage>, DatabaseError> {
        match &self.mode {
            Mode::OneByOne(_) => self.lists.get_alone(page).await,
            Mode::Coalesced { .. } => self.lists.get(page).await,
        }
    }

    /// Stops the lanes and closes their connections; reads that still wait are not answered.
    pub async fn close(&self) {
        if let Mode::Coalesced { stop, lanes, .. } = &self.mode {
            stop.cancel();
            lanes.close();
            lanes.wait().await;
        }
    }
}

/// What the lanes share.
struct Queue {
    waiting: Mutex<mpsc::Receiver<Read>>,
    /// Held by the lane whose query is running.
    turn: Mutex<()>,
}

impl Queue {
    /// Waits for reads, and for the other lane's query up to [`LONG_QUERY`]. Takes all reads that
    /// wait by then, up to [`LARGEST_BATCH`].
    async fn take(&self, batch: &mut Vec<Read>) -> Option<MutexGuard<'_, ()>> {
        let mut waiting = self.waiting.lock().await;
        waiting.recv_many(batch, LARGEST_BATCH).await;
        let turn = timeout(LONG_QUERY, self.turn.lock()).await.ok();
        while batch.len() < LARGEST_BATCH
            && let Ok(read) = waiting.try_recv()
        {
            batch.push(read);
        }
        turn
    }
}

/// Runs a lane until `stop`: takes a batch, answers it, repeats.
async fn answer_what_waits(mut lane: Lane, queue: Arc<Queue>, stop: CancellationToken) {
    let reads = catalogue::coalesced_reads();
    let queries = catalogue::coalesced_queries();
    let mut batch = Vec::with_capacity(LARGEST_BATCH);
    while let Some(turn) = stop.run_until_cancelled(queue.take(&mut batch)).await
        && !batch.is_empty()
    {
        reads.increment(batch.len() as u64);
        answer(&mut lane, &mut batch, &queries).await;
        drop(turn);
    }
    lane.close().await;
}

async fn answer(lane: &mut Lane, batch: &mut Vec<Read>, queries: &Counter) {
    batch.retain(|read| !read.caller.has_gone());
    let outcome = query(lane, batch, queries).await;
    if !matches!(outcome, Err(DatabaseError::Statement(_))) {
        return deliver(batch.drain(..), &outcome);
    }
    // One of the users is at fault: query each separately.
    batch.sort_unstable_by_key(|read| read.id);
    while let Some(first) = batch.first().map(|read| read.id) {
        let of_others = batch.split_off(batch.partition_point(|read| read.id == first));
        batch.retain(|read| !read.caller.has_gone());
        let outcome = query(lane, batch, queries).await;
        deliver(batch.drain(..), &outcome);
        *batch = of_others;
    }
}

fn deliver(
    reads: impl Iterator<Item = Read>,
    outcome: &Result<HashMap<UserId, User>, DatabaseError>,
) {
    for Read { id, caller } in reads {
        let user = outcome.as_ref().map(|users| users.get(&id).cloned());
        caller.send(user.map_err(Clone::clone));
    }
}

async fn query(
    lane: &mut Lane,
    batch: &[Read],
    queries: &Counter,
) -> Result<HashMap<UserId, User>, DatabaseError> {
    let Some(last_deadline) = batch.iter().map(|read| read.caller.deadline).max() else {
        return Ok(HashMap::new());
    };
    let mut ids: Vec<i64> = batch.iter().map(|read| read.id.get()).collect();
    ids.sort_unstable();
    ids.dedup();
    queries.increment(1);
    let ids: Arc<[i64]> = ids.into();
    let users = lane.read(last_deadline, |connection| {
        let ids = ids.clone();
        Box::pin(async move { users::get_all(connection, &ids).await })
    });
    Ok(users
        .await?
        .into_iter()
        .map(|user| (user.id, user))
        .collect())
}
