//! The connections that are open: never more than the limit, and the longest idle ones make room for new ones.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use metrics::gauge;
use tokio::{sync::Notify, time::timeout};

use super::activity::Activity;

/// A connection that has waited less than this for a request is left alone.
const SPARED: Duration = Duration::from_secs(1);
/// Asked to make room at once, so that a crowd at the door does not have all of them looked through each time.
const DISPLACED_AT_ONCE: usize = 32;
/// Longest wait for one of them to be gone.
const ROOM_WAIT: Duration = Duration::from_millis(500);

pub struct Open {
    max: usize,
    connections: Mutex<Connections>,
    one_less: Notify,
}

#[derive(Default)]
struct Connections {
    by_number: HashMap<u64, Arc<Activity>>,
    opened: u64,
}

impl Open {
    pub fn new(max: usize) -> Self {
        Self { max, connections: Mutex::default(), one_less: Notify::new() }
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) -> usize {
        self.connections().by_number.len()
    }

    /// A place for one more connection. When all are taken, those that have waited longest for a request have to go; `None` when
    /// all are busy, or came just now.
    pub async fn place(self: &Arc<Self>) -> Option<Place> {
        if self.count() >= self.max {
            if !self.displace_idle() {
                return None;
            }
            let room = async {
                while self.count() >= self.max {
                    self.one_less.notified().await;
                }
            };
            timeout(ROOM_WAIT, room).await.ok()?;
        }
        let activity = Arc::new(Activity::new());
        let mut connections = self.connections();
        connections.opened += 1;
        let number = connections.opened;
        connections.by_number.insert(number, activity.clone());
        gauge!("http_connections").increment(1.0);
        Some(Place { open: self.clone(), number, activity })
    }

    /// Whether there are any.
    fn displace_idle(&self) -> bool {
        let connections = self.connections();
        let mut idle: Vec<_> = connections
            .by_number
            .values()
            .filter_map(|activity| {
                activity.waiting_for().filter(|waited| *waited >= SPARED).map(|waited| (waited, activity))
            })
            .collect();
        if idle.len() > DISPLACED_AT_ONCE {
            idle.select_nth_unstable_by(DISPLACED_AT_ONCE, |(one, _), (other, _)| other.cmp(one));
            idle.truncate(DISPLACED_AT_ONCE);
        }
        for (_, activity) in &idle {
            activity.close();
        }
        !idle.is_empty()
    }

    /// Asks all to finish, and waits until they have.
    pub async fn finish(&self) {
        for activity in self.connections().by_number.values() {
            activity.finish();
        }
        while self.count() > 0 {
            self.one_less.notified().await;
        }
    }
}

/// The place of one connection, free again when dropped.
pub struct Place {
    open: Arc<Open>,
    number: u64,
    activity: Arc<Activity>,
}

impl Place {
    pub fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.connections().by_number.remove(&self.number);
        gauge!("http_connections").decrement(1.0);
        self.open.one_less.notify_one();
    }
}
