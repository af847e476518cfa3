//! The state that the running parts report, for health and metrics.

use crossbeam_utils::atomic::AtomicCell;

use crate::domain::timestamp::Timestamp;

/// The state of one connection to the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Link {
    /// Not connected; retried without end, with growing pauses.
    #[default]
    Down,
    Up,
    /// Connected, but blocked by the broker, which is short of memory or disk.
    Blocked,
}

/// Shared by all parts of one process.
#[derive(Debug, Default)]
pub(crate) struct Status {
    pub is_draining: AtomicCell<bool>,
    pub relay_leads: AtomicCell<bool>,
    /// On the leader, when the oldest unconfirmed event occurred; `None` if there is none, or if it
    /// is not in memory.
    pub oldest_event: AtomicCell<Option<Timestamp>>,
    pub publisher: AtomicCell<Link>,
    pub consumer: AtomicCell<Link>,
    /// Whether a dead letter waits because the broker, short of memory or disk, accepts no
    /// publishes.
    pub dead_letters_blocked: AtomicCell<bool>,
}

impl Status {
    /// The state of the consumer's connection; `Blocked` if its dead letters are blocked.
    pub(crate) fn consumer_link(&self) -> Link {
        match self.consumer.load() {
            Link::Up if self.dead_letters_blocked.load() => Link::Blocked,
            link => link,
        }
    }
}
