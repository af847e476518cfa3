//! A circuit breaker with slow start: how many events of one type may be in flight.
//!
//! ```text
//!             a probe passes            the window is whole
//! ┌─────────┐ ──────────────▶ ┌─────────┐ ──────────────▶ ┌────────┐
//! │ probing │                 │ ramping │                 │ closed │
//! └─────────┘ ◀────────────── └─────────┘ ◀────────────── └────────┘
//!  one at a    rejections, or  one more with   confirms
//!  time, with  a closed        each that       come late
//!  pauses      channel         passes
//! ```
//! Rejections and closed channels lead back to probing from every state.
//! <https://martinfowler.com/bliki/CircuitBreaker.html>

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;

/// Most events of a type in flight.
pub const WINDOW: usize = if cfg!(test) { 16 } else { 2_000 };
/// This many rejections without a confirm in between open the breaker. Fewer say that one queue of several is full.
const IN_A_ROW: usize = if cfg!(test) { 4 } else { 8 };
/// A queue that confirms later than this gets less at a time.
const SLOW: Duration = Duration::from_secs(2);
/// Events that must pass alone after one closed its channel, because others of its type may do the same.
const AFTER_A_FAILURE: u32 = 16;

#[derive(Debug)]
pub struct Breaker {
    state: State,
    pause: Backoff,
    not_before: Option<Instant>,
    rejected_in_a_row: usize,
    /// From trouble until it is closed again.
    is_troubled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// One event at a time; this many must pass.
    Probing(u32),
    /// So many at a time.
    Ramping(usize),
    Closed,
}

impl Default for Breaker {
    /// Begins with one event, because a thousand rejected ones are a thousand repeats.
    fn default() -> Self {
        Self {
            state: State::Probing(1),
            pause: Backoff::default(),
            not_before: None,
            rejected_in_a_row: 0,
            is_troubled: false,
        }
    }
}

impl Breaker {
    pub const fn is_probing(&self) -> bool {
        matches!(self.state, State::Probing(_))
    }

    /// Whether it is slow, or was in trouble and has not recovered.
    pub const fn is_troubled(&self) -> bool {
        self.is_troubled
    }

    /// How many events may be in flight.
    pub const fn window(&self) -> usize {
        match self.state {
            State::Probing(_) => 1,
            State::Ramping(window) => window,
            State::Closed => WINDOW,
        }
    }

    /// No probe may go before this.
    pub const fn not_before(&self) -> Option<Instant> {
        self.not_before
    }

    pub fn pass_probe(&mut self) {
        self.rejected_in_a_row = 0;
        self.not_before = None;
        self.pause = Backoff::default();
        if let State::Probing(left) = self.state {
            self.state = if left > 1 { State::Probing(left - 1) } else { State::Ramping(1) };
        }
    }

    pub fn reject_probe(&mut self, now: Instant) {
        self.wait(now);
        self.probe(1);
    }

    /// An event that is no probe was confirmed.
    pub fn pass(&mut self, latency: Duration) {
        self.rejected_in_a_row = 0;
        let window = match self.state {
            // It belongs to a burst of which others were rejected.
            State::Probing(_) => return,
            State::Ramping(window) => window,
            State::Closed => WINDOW,
        };
        if latency > SLOW {
            self.is_troubled = true;
            self.state = State::Ramping((window - 1).max(1));
        } else if window + 1 < WINDOW {
            self.state = State::Ramping(window + 1);
        } else {
            self.is_troubled = false;
            self.state = State::Closed;
        }
    }

    /// An event that is no probe was rejected. Returns whether that opens the breaker; a burst does so once.
    pub fn reject(&mut self, now: Instant) -> bool {
        self.rejected_in_a_row += 1;
        let trips = !self.is_probing() && self.rejected_in_a_row >= IN_A_ROW.min(self.window());
        if trips {
            self.wait(now);
            self.probe(1);
        }
        trips
    }

    /// The channel closed with several in flight: one of them may be the cause.
    pub fn interrupt(&mut self) {
        self.probe(1);
    }

    /// An event closed its channel, alone on it.
    pub fn fail(&mut self, now: Instant) {
        self.wait(now);
        self.probe(AFTER_A_FAILURE);
    }

    /// An event is quarantined. The next one is tried without a pause.
    pub fn pass_over(&mut self) {
        self.not_before = None;
        self.probe(AFTER_A_FAILURE);
    }

    fn probe(&mut self, at_least: u32) {
        let left = if let State::Probing(left) = self.state { left } else { 1 };
        self.state = State::Probing(left.max(at_least));
        self.is_troubled = true;
    }

    fn wait(&mut self, now: Instant) {
        self.not_before = Some(now + self.pause.next_pause());
    }
}

/// How many rejected events may be tried at a time beside those that pass: one, and one more with each that passes.
#[derive(Debug)]
pub struct Retries {
    window: usize,
    pause: Backoff,
    not_before: Option<Instant>,
}

impl Default for Retries {
    fn default() -> Self {
        Self { window: 1, pause: Backoff::default(), not_before: None }
    }
}

impl Retries {
    pub const fn window(&self) -> usize {
        self.window
    }

    pub const fn not_before(&self) -> Option<Instant> {
        self.not_before
    }

    pub fn pass(&mut self) {
        self.window = (self.window + 1).min(WINDOW);
        self.pause = Backoff::default();
        self.not_before = None;
    }

    /// A burst counts once.
    pub fn reject(&mut self, now: Instant) {
        self.window = 1;
        if self.not_before.is_none_or(|at| at <= now) {
            self.not_before = Some(now + self.pause.next_pause());
        }
    }
}
