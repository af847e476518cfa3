//! The events of one type, and how many of them may be in flight: one, alone, at the start and after trouble; with pauses after a
//! refusal or a closed trial channel. Once enough have passed alone, one more with each that passes, up to the window.

use std::collections::{BTreeMap, HashSet};

use tokio::time::Instant;

use crate::backoff::Backoff;

/// Most events in flight.
pub const WINDOW: usize = if cfg!(test) { 16 } else { 2_000 };
/// Most events in memory of all unlimited types together. The largest event takes about 3 kB.
pub const CAPACITY: usize = if cfg!(test) { 64 } else { 8_000 };
/// Most events in memory of one limited type. The rest stay in the table until there is room.
const LIMITED_CAPACITY: usize = if cfg!(test) { 4 } else { 1_000 };
/// Events that must pass alone after one closed its channel, because others of its type may do the same.
const TRIALS: u32 = 16;

/// The channel that an event uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Track {
    /// For events that are expected to pass.
    Main,
    /// For one event at a time: if the channel closes, that event is the cause.
    Trial,
}

#[derive(Debug)]
pub struct Flow {
    pub event_type: String,
    /// The first event of each waiting user: place and user.
    pub heads: BTreeMap<i64, i64>,
    /// Events on the main channel.
    pub in_flight: usize,
    /// When the first of them began, or the last one ended.
    moved_at: Option<Instant>,
    /// A trial is still in flight, and others no longer wait for it.
    pub is_aside: bool,
    /// Events in memory of all users whose first event is of this type.
    pub kept: usize,
    /// Rows left in the table.
    pub left: Option<Left>,
    /// Number of its last trial.
    pub tried: u64,
    /// The AMQP reply code for which events of this type were quarantined.
    pub condemned: Option<u16>,
    pub not_before: Option<Instant>,
    pause: Backoff,
    /// Events that must pass alone before several may be in flight. One at the start, because a thousand refused events are a
    /// thousand repeats.
    trials: u32,
    window: usize,
    /// From a refusal, a closed channel or a silent trial until the window is fully open again.
    in_trouble: bool,
}

impl Flow {
    pub fn of(event_type: &str) -> Self {
        Self {
            event_type: event_type.to_owned(),
            heads: BTreeMap::new(),
            in_flight: 0,
            moved_at: None,
            is_aside: false,
            kept: 0,
            left: None,
            tried: 0,
            condemned: None,
            not_before: None,
            pause: Backoff::default(),
            trials: 1,
            window: 1,
            in_trouble: false,
        }
    }

    /// Whether it is slow, and must not take memory from others.
    pub const fn is_limited(&self) -> bool {
        self.in_trouble
    }

    pub const fn capacity(&self) -> usize {
        if self.is_limited() { LIMITED_CAPACITY } else { CAPACITY }
    }

    /// Whether its events may use the main channel, even if only a few at once.
    pub const fn is_open(&self) -> bool {
        self.trials == 0
    }

    /// Whether another event may go on the main channel.
    pub const fn has_room(&self) -> bool {
        self.is_open() && self.in_flight < self.window
    }

    pub fn may_try(&self, now: Instant) -> bool {
        !self.is_open() && !self.is_aside && !self.heads.is_empty() && self.not_before.is_none_or(|at| at <= now)
    }

    /// An event goes on the main channel.
    pub fn begin(&mut self, now: Instant) {
        if self.in_flight == 0 {
            self.moved_at = Some(now);
        }
        self.in_flight += 1;
    }

    /// One on the main channel has ended.
    pub fn end(&mut self, now: Instant) {
        self.in_flight -= 1;
        self.moved_at = Some(now);
    }

    /// Since when none on the main channel has ended.
    pub fn silent_since(&self) -> Option<Instant> {
        self.moved_at.filter(|_| self.in_flight > 0)
    }

    pub fn confirm(&mut self, track: Track) {
        match track {
            Track::Main if self.is_open() => {
                self.window = (self.window + 1).min(WINDOW);
                self.in_trouble &= self.window < WINDOW;
            }
            // Others of the same burst were refused.
            Track::Main => {}
            Track::Trial => {
                self.not_before = None;
                self.pause = Backoff::default();
                self.trials = self.trials.saturating_sub(1);
                if self.is_open() {
                    self.condemned = None;
                }
            }
        }
    }

    /// A burst of refusals counts as one.
    pub fn refuse(&mut self, track: Track, now: Instant) {
        if track == Track::Trial || self.is_open() {
            self.wait(now);
        }
        self.put_on_trial();
    }

    pub fn put_on_trial(&mut self) {
        self.trials = self.trials.max(1);
        self.window = 1;
        self.in_trouble = true;
    }

    /// Its trial gets no answer.
    pub fn set_aside(&mut self) {
        self.put_on_trial();
        self.is_aside = true;
    }

    /// An event closed the trial channel.
    pub fn strike(&mut self, now: Instant) {
        self.wait(now);
        self.put_on_trial();
        self.trials = TRIALS;
    }

    /// An event is quarantined. The next one is tried without a pause.
    pub fn condemn(&mut self, code: u16) {
        self.condemned = Some(code);
        self.not_before = None;
        self.put_on_trial();
        self.trials = TRIALS;
    }

    fn wait(&mut self, now: Instant) {
        self.not_before = Some(now + self.pause.next_pause());
    }
}

/// Rows that were read but not kept, until their type passes again.
#[derive(Debug)]
pub struct Left {
    /// All of them are after this place.
    pub after: i64,
    /// Their users. Later events of these users wait too.
    pub users: HashSet<i64>,
}

impl Default for Left {
    fn default() -> Self {
        Self { after: i64::MAX, users: HashSet::new() }
    }
}

impl Left {
    pub fn add(&mut self, place: i64, user: i64) {
        self.after = self.after.min(place - 1);
        self.users.insert(user);
    }

    pub fn merge(&mut self, other: Self) {
        self.after = self.after.min(other.after);
        self.users.extend(other.users);
    }
}
