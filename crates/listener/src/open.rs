//! Open connections: never more than the limits, in total and per client. Connections that have
//! waited longest for their clients are closed to make room for new ones.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::activity::{Activity, SPARED};
use super::event::Event;

/// Connections closed at a time to make room, so that a burst does not scan all connections for
/// each newcomer.
const DISPLACED_AT_ONCE: usize = 32;
/// How long a new connection waits for a place.
const ROOM_WAIT: Duration = Duration::from_millis(1_500);
/// Shortest pause between two scans.
const RETRY: Duration = Duration::from_millis(10);
/// Most new connections that may wait for a place. Each takes a file descriptor.
pub const MAX_WAITING: usize = 32;
/// Most new connections of one client that may wait for a place.
const MAX_WAITING_PER_CLIENT: usize = 8;

pub struct Open {
    max: usize,
    max_per_client: usize,
    observe: fn(Event),
    connections: Mutex<Connections>,
    one_less: Notify,
    /// Number of closed connections since the last call of [`Self::take_counts`].
    displaced: AtomicU64,
    refused: AtomicU64,
}

#[derive(Default)]
struct Connections {
    by_number: HashMap<u64, Connection>,
    /// Excludes addresses that many clients share.
    per_client: HashMap<IpAddr, Counts>,
    waiting: usize,
    opened: u64,
    scanned: Option<Instant>,
    /// The service is stopping.
    closed: bool,
}

struct Connection {
    client: Option<IpAddr>,
    activity: Arc<Activity>,
}

/// A client's connections.
#[derive(Default)]
struct Counts {
    open: usize,
    waiting: usize,
}

impl Open {
    pub fn new(max: usize, max_per_client: usize, observe: fn(Event)) -> Self {
        let connections = Mutex::default();
        let one_less = Notify::new();
        let displaced = AtomicU64::new(0);
        let refused = AtomicU64::new(0);
        Self {
            max,
            max_per_client,
            observe,
            connections,
            one_less,
            displaced,
            refused,
        }
    }

    fn count(&self) -> usize {
        self.connections.lock().by_number.len()
    }

    /// A place for one more connection of `client`, if there is one.
    fn try_place(self: &Arc<Self>, client: Option<IpAddr>) -> Option<Place> {
        let mut connections = self.connections.lock();
        if connections.closed
            || connections.by_number.len() >= self.max
            || self.is_at_its_limit(&connections, client)
        {
            return None;
        }
        let activity = Arc::new(Activity::new());
        connections.opened += 1;
        let number = connections.opened;
        connections.by_number.insert(
            number,
            Connection {
                client,
                activity: activity.clone(),
            },
        );
        connections.count(client, |counts| counts.open += 1);
        (self.observe)(Event::Opened);
        Some(Place {
            open: self.clone(),
            number,
            activity,
        })
    }

    /// Decides whether a new connection of `client` gets a place, waits or is refused.
    pub fn admit(self: &Arc<Self>, client: Option<IpAddr>) -> Admission {
        if let Some(place) = self.try_place(client) {
            return Admission::Placed(place);
        }
        if let Some(waiting) = Waiting::start(self.clone(), client) {
            return Admission::Waits(waiting);
        }
        self.note_refused();
        Admission::Refused
    }

    fn note_refused(&self) {
        (self.observe)(Event::Refused);
        self.refused.fetch_add(1, Relaxed);
    }

    async fn make_room(self: &Arc<Self>, client: Option<IpAddr>) -> Option<Place> {
        loop {
            // Created first, so that a connection that ends meanwhile is not missed.
            let one_less = self.one_less.notified();
            if let Some(place) = self.try_place(client) {
                return Some(place);
            }
            let spared_for = self.displace(client)?;
            // A connection that ends by itself also makes room.
            _ = timeout(spared_for, one_less).await;
        }
    }

    fn is_at_its_limit(&self, connections: &Connections, client: Option<IpAddr>) -> bool {
        let counts = client.and_then(|client| connections.per_client.get(&client));
        counts.is_some_and(|counts| counts.open >= self.max_per_client)
    }

    /// Closes the connections that have waited longest; only those of `client` if it is at its own
    /// limit. Returns how long to pause before the next scan; `None` if all are being served.
    fn displace(&self, client: Option<IpAddr>) -> Option<Duration> {
        let mut connections = self.connections.lock();
        if connections
            .scanned
            .is_some_and(|scanned| scanned.elapsed() < RETRY)
        {
            return Some(RETRY);
        }
        connections.scanned = Some(Instant::now());
        let of_client_alone = self.is_at_its_limit(&connections, client);
        let chosen = connections
            .by_number
            .values()
            .filter(|it| !of_client_alone || it.client == client);
        let waiting = chosen.filter_map(|it| Some((it.activity.waiting_for()?, &it.activity)));
        let mut waiting: Vec<_> = waiting.collect();
        if waiting.len() > DISPLACED_AT_ONCE {
            waiting
                .select_nth_unstable_by(DISPLACED_AT_ONCE, |(one, _), (other, _)| other.cmp(one));
            waiting.truncate(DISPLACED_AT_ONCE);
        }
        let longest = waiting.iter().map(|(waited, _)| *waited).max()?;
        for (_, activity) in waiting.iter().filter(|(waited, _)| *waited >= SPARED) {
            self.displaced
                .fetch_add(u64::from(activity.close()), Relaxed);
        }
        // The first of the connections just closed ends almost immediately.
        Some(SPARED.saturating_sub(longest).max(RETRY))
    }

    /// Returns how many connections were closed to make room and how many were refused since the
    /// last call.
    pub fn take_counts(&self) -> (u64, u64) {
        (
            self.displaced.swap(0, Relaxed),
            self.refused.swap(0, Relaxed),
        )
    }

    /// Asks all connections to finish, and waits until they have.
    pub async fn finish(&self) {
        self.connections.lock().close();
        loop {
            let one_less = self.one_less.notified();
            if self.count() == 0 {
                return;
            }
            one_less.await;
        }
    }
}

impl Connections {
    fn close(&mut self) {
        self.closed = true;
        for connection in self.by_number.values() {
            connection.activity.finish();
        }
    }

    fn count(&mut self, client: Option<IpAddr>, change: impl FnOnce(&mut Counts)) {
        let Some(client) = client else { return };
        match self.per_client.entry(client) {
            Entry::Vacant(none) => change(none.insert(Counts::default())),
            Entry::Occupied(mut counts) => {
                change(counts.get_mut());
                if counts.get().open + counts.get().waiting == 0 {
                    counts.remove();
                }
            }
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
        let mut connections = self.open.connections.lock();
        let client = connections
            .by_number
            .remove(&self.number)
            .and_then(|connection| connection.client);
        connections.count(client, |counts| counts.open -= 1);
        drop(connections);
        (self.open.observe)(Event::Ended);
        // Wake all: the first may not use the place, because its client may be at its limit.
        self.open.one_less.notify_waiters();
    }
}

/// The decision about a new connection. Made immediately, because every connection that is not
/// refused keeps its file descriptor.
pub enum Admission {
    Placed(Place),
    Waits(Waiting),
    /// Too many wait already.
    Refused,
}

/// A new connection that waits for a place.
pub struct Waiting {
    open: Arc<Open>,
    client: Option<IpAddr>,
}

impl Waiting {
    /// `None` if too many wait.
    fn start(open: Arc<Open>, client: Option<IpAddr>) -> Option<Self> {
        let mut connections = open.connections.lock();
        let of_client = client
            .and_then(|client| connections.per_client.get(&client))
            .map_or(0, |counts| counts.waiting);
        if connections.waiting >= MAX_WAITING || of_client >= MAX_WAITING_PER_CLIENT {
            return None;
        }
        connections.waiting += 1;
        connections.count(client, |counts| counts.waiting += 1);
        drop(connections);
        Some(Self { open, client })
    }

    /// Closes the connections that have waited longest for their clients, and waits until one has
    /// ended. `None` if all are being served, or if no place becomes free in time.
    pub async fn place(self) -> Option<Place> {
        let place = timeout(ROOM_WAIT, self.open.make_room(self.client))
            .await
            .ok()
            .flatten();
        if place.is_none() {
            self.open.note_refused();
        }
        place
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut connections = self.open.connections.lock();
        connections.waiting -= 1;
        connections.count(self.client, |counts| counts.waiting -= 1);
    }
}
