//! Open connections: never more than the limit. The longest idle ones make room for new ones.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use metrics::gauge;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::activity::{Activity, SPARED};

/// Connections closed at a time to make room, so that a burst does not scan all connections for each newcomer.
const DISPLACED_AT_ONCE: usize = 32;
/// How long a new connection waits for a place, and the shortest pause between two scans.
const ROOM_WAIT: Duration = Duration::from_millis(1_500);
const RETRY: Duration = Duration::from_millis(10);

pub struct Open {
    max: usize,
    connections: Mutex<Connections>,
    one_less: Notify,
    /// Since the last call of [`Self::take_displaced`].
    displaced: AtomicU64,
}

#[derive(Default)]
struct Connections {
    by_number: HashMap<u64, Arc<Activity>>,
    opened: u64,
}

impl Open {
    pub fn new(max: usize) -> Self {
        Self { max, connections: Mutex::default(), one_less: Notify::new(), displaced: AtomicU64::new(0) }
    }

    fn count(&self) -> usize {
        self.connections.lock().by_number.len()
    }

    /// A place for one more connection. If all are taken, closes those that have waited longest. `None` if all are being served,
    /// or no place becomes free in time.
    pub async fn place(self: &Arc<Self>) -> Option<Place> {
        if self.count() >= self.max {
            timeout(ROOM_WAIT, self.make_room()).await.ok()??;
        }
        let activity = Arc::new(Activity::new());
        let mut connections = self.connections.lock();
        connections.opened += 1;
        let number = connections.opened;
        connections.by_number.insert(number, activity.clone());
        gauge!("http_connections").increment(1.0);
        Some(Place { open: self.clone(), number, activity })
    }

    async fn make_room(&self) -> Option<()> {
        loop {
            let spared_for = self.displace_idle()?;
            // One that ends by itself is just as good.
            _ = timeout(spared_for, self.one_less.notified()).await;
            if self.count() < self.max {
                return Some(());
            }
        }
    }

    /// Closes those that have waited longest. Returns how long to pause before the next scan; `None` if all are being served.
    fn displace_idle(&self) -> Option<Duration> {
        let connections = self.connections.lock();
        let waiting = connections.by_number.values().filter_map(|activity| Some((activity.waiting_for()?, activity)));
        let mut waiting: Vec<_> = waiting.collect();
        if waiting.len() > DISPLACED_AT_ONCE {
            waiting.select_nth_unstable_by(DISPLACED_AT_ONCE, |(one, _), (other, _)| other.cmp(one));
            waiting.truncate(DISPLACED_AT_ONCE);
        }
        let longest = waiting.iter().map(|(waited, _)| *waited).max()?;
        for (_, activity) in waiting.iter().filter(|(waited, _)| *waited >= SPARED) {
            self.displaced.fetch_add(u64::from(activity.close()), Relaxed);
        }
        // The first of those just closed is gone almost at once.
        Some(SPARED.saturating_sub(longest).max(RETRY))
    }

    /// How many were closed to make room since the last call.
    pub fn take_displaced(&self) -> u64 {
        self.displaced.swap(0, Relaxed)
    }

    /// Asks all to finish, and waits until they have.
    pub async fn finish(&self) {
        for activity in self.connections.lock().by_number.values() {
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
        self.open.connections.lock().by_number.remove(&self.number);
        gauge!("http_connections").decrement(1.0);
        self.open.one_less.notify_one();
    }
}
