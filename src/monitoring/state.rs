//! What the running parts know of themselves, for `/health/ready`. A leaf: written by the parts, read by `http`.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};

/// The state of one connection to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Link {
    /// Not connected; tried again with growing pauses, for ever.
    Down = 0,
    Up,
    /// Connected, and told by the broker to wait: it is short of memory or disk.
    Blocked,
}

/// Down to begin with, as its number is 0.
#[derive(Debug, Default)]
struct LinkCell(AtomicU8);

impl LinkCell {
    fn get(&self) -> Link {
        match self.0.load(Relaxed) {
            state if state == Link::Up as u8 => Link::Up,
            state if state == Link::Blocked as u8 => Link::Blocked,
            _ => Link::Down,
        }
    }
}

/// Shared by all parts of one process.
#[derive(Debug, Default)]
pub struct Status {
    draining: AtomicBool,
    relay_leads: AtomicBool,
    publisher: LinkCell,
    consumer: LinkCell,
    dead_letters_blocked: AtomicBool,
}

impl Status {
    pub fn start_draining(&self) {
        self.draining.store(true, Relaxed);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    pub fn set_relay_leads(&self, leads: bool) {
        self.relay_leads.store(leads, Relaxed);
    }

    pub fn relay_leads(&self) -> bool {
        self.relay_leads.load(Relaxed)
    }

    pub fn set_publisher(&self, link: Link) {
        self.publisher.0.store(link as u8, Relaxed);
    }

    pub fn publisher(&self) -> Link {
        self.publisher.get()
    }

    pub fn set_consumer(&self, link: Link) {
        self.consumer.0.store(link as u8, Relaxed);
    }

    /// Whether a dead letter waits because the broker, short of memory or disk, takes no publishes.
    pub fn set_dead_letters_blocked(&self, blocked: bool) {
        self.dead_letters_blocked.store(blocked, Relaxed);
    }

    pub fn consumer(&self) -> Link {
        match self.consumer.get() {
            Link::Up if self.dead_letters_blocked.load(Relaxed) => Link::Blocked,
            link => link,
        }
    }
}
