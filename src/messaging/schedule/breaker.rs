//! A circuit breaker with slow start: how many events of one type may be in flight.
//!
//! ```text
//!             probes pass               window at its limit
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
pub(crate) const WINDOW: usize = if cfg!(test) { 16 } else { 2_000 };
/// This many rejections without a confirm in between open the breaker. Fewer only show that one of
/// several queues is full.
const IN_A_ROW: usize = if cfg!(test) { 4 } else { 8 };
/// A queue that confirms later than this gets fewer events at a time.
const SLOW: Duration = Duration::from_secs(2);
/// Events that must pass alone after one closed its channel, because others of its type may do the
/// same.
const AFTER_A_FAILURE: u32 = 16;

#[derive(Debug)]
pub(crate) struct Breaker {
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
    /// This many at a time.
    Ramping(usize),
    Closed,
}

impl Default for Breaker {
    /// Starts with one event, because a thousand rejected events mean a thousand retries.
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
    pub(crate) const fn is_probing(&self) -> bool {
        matches!(self.state, State::Probing(_))
    }

    /// Whether it is slow, or was in trouble and has not recovered.
    pub(crate) const fn is_troubled(&self) -> bool {
        self.is_troubled
    }

    /// How many events may be in flight.
    pub(crate) const fn window(&self) -> usize {
        match self.state {
            State::Probing(_) => 1,
            State::Ramping(window) => window,
            State::Closed => WINDOW,
        }
    }

    /// No probe may go before this.
    pub(crate) const fn not_before(&self) -> Option<Instant> {
        self.not_before
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| at <= now)
    }

    /// Records a confirm and its latency. While probing, to be called only for a probe.
    pub(crate) fn pass(&mut self, latency: Duration) {
        self.rejected_in_a_row = 0;
        self.not_before = None;
        self.pause = Backoff::default();
        let window = match self.state {
            State::Probing(left @ 2..) => return self.state = State::Probing(left - 1),
            State::Probing(_) => 0,
            State::Ramping(window) => window,
            State::Closed => WINDOW,
        };
        if latency > SLOW {
            self.is_troubled = true;
            self.state = State::Ramping(window.max(2) - 1);
        } else if window + 1 < WINDOW {
            self.state = State::Ramping(window + 1);
        } else {
            self.is_troubled = false;
            self.state = State::Closed;
        }
    }

    /// Records that an event published with others was rejected. Returns whether that opens the
    /// breaker; a burst does so once.
    pub(crate) fn reject(&mut self, now: Instant) -> bool {
        self.rejected_in_a_row += 1;
        let opens = !self.is_probing() && self.rejected_in_a_row >= IN_A_ROW.min(self.window());
        if opens {
            self.open(now);
        }
        opens
    }

    /// Opens the breaker: a probe was rejected, or several events in a row.
    pub(crate) fn open(&mut self, now: Instant) {
        if self.is_due(now) {
            self.not_before = Some(now + self.pause.next_pause());
        }
        self.probe(1);
    }

    /// Records that an event closed its channel, alone on it.
    pub(crate) fn fail(&mut self, now: Instant) {
        self.open(now);
        self.probe(AFTER_A_FAILURE);
    }

    /// The channel closed with several in flight: one of them may be the cause.
    pub(crate) fn interrupt(&mut self) {
        self.probe(1);
    }

    /// An event is quarantined. The next one is tried without a pause.
    pub(crate) fn pass_over(&mut self) {
        self.not_before = None;
        self.probe(AFTER_A_FAILURE);
    }

    fn probe(&mut self, at_least: u32) {
        let left = if let State::Probing(left) = self.state {
            left
        } else {
            1
        };
        self.state = State::Probing(left.max(at_least));
        self.is_troubled = true;
    }
}
