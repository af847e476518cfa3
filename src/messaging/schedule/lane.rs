//! The events of one type: which may go next, and which are in flight. Every lane has its own
//! connection, so that one queue's rejections, silence, slowness and flow control delay no other
//! type.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::breaker::Breaker;
use crate::domain::event::EventType;

/// One for each type of event, and the last for whatever else appears.
pub(crate) const LANES: usize = EventType::ALL.len() + 1;
/// The lane of whatever else appears.
pub(crate) const OTHERS: usize = LANES - 1;
/// Most events in memory of all healthy lanes together. The largest event takes about 3 kB.
pub(crate) const CAPACITY: usize = if cfg!(test) { 64 } else { 8_000 };
/// Most events in memory of one lane in trouble, besides those that were rejected. The rest are
/// held.
const CAPACITY_IN_TROUBLE: usize = if cfg!(test) { 4 } else { 1_000 };
/// Most rejected events in memory of one lane.
const MOST_REJECTED: usize = if cfg!(test) { 32 } else { 4_000 };
/// How many times an event must close its channel, alone on it, before it is quarantined.
const FAILURES: u32 = 3;
/// An event without an answer for this long counts as rejected.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The timeout grows up to this where answers come late.
const LONGEST_ANSWER_TIMEOUT: Duration = Duration::from_mins(1);
/// Most unanswered events on one channel; each takes about 0.8 kB until the channel closes.
const MOST_UNANSWERED: usize = 1_000;
/// An answer may take this many times as long as the last confirm.
const PATIENCE: u32 = 5;

/// How an event is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// With others.
    Usual,
    /// Again, after it was rejected, with others that pass.
    Retry,
    /// Alone on its channel: if that closes, this event is the cause.
    Probe,
}

/// What follows from a closed channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    Waits,
    /// This event may be the cause: it was alone on the channel, for the first time.
    Suspect,
    Quarantine,
}

#[derive(Debug)]
struct InFlight {
    position: i64,
    attempt: Attempt,
    began: Instant,
}

/// History of an event that closed its channel.
#[derive(Debug)]
struct Failed {
    times: u32,
    /// The evidence when it first did so. If there is more now, the broker is not at fault.
    evidence: u64,
}

impl Failed {
    /// Whether to wait: trying it again proves nothing until another event has passed.
    const fn rests(&self, evidence: u64) -> bool {
        self.times >= FAILURES && self.evidence == evidence
    }
}

/// Events are known by their position. Each is the first of its user.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    breaker: Breaker,
    /// Limits how many rejected events are tried beside those that pass.
    retries: Breaker,
    /// Events that were not rejected.
    ready: BTreeSet<i64>,
    /// Rejected events, the least recently tried first.
    rejected: VecDeque<i64>,
    /// Events that closed a channel.
    failed: BTreeMap<i64, Failed>,
    /// By number, so in the order in which they began.
    in_flight: BTreeMap<u64, InFlight>,
    probe: Option<u64>,
    retrying: usize,
    /// How long the last confirm took.
    latency: Duration,
    /// The channel must be replaced before anything else is published.
    needs_channel: bool,
    /// The number of the first publish on this channel.
    channel_begins: u64,
    /// Publishes on this channel that got no answer in time.
    unanswered: usize,
    /// It took so much memory, and gave it back so slowly, that no new rows could be read for
    /// others. Stays set until its held events are read.
    is_crowded: bool,
    /// The AMQP reply code for which events of this type were quarantined since a probe last
    /// passed.
    quarantining: Option<u16>,
}

/// The lane of a type.
pub(crate) fn lane(event_type: &str) -> usize {
    EventType::ALL
        .iter()
        .position(|known| known.as_str() == event_type)
        .unwrap_or(OTHERS)
}

/// The name of a lane, as held events have it.
pub(crate) fn name(lane: usize) -> &'static str {
    EventType::ALL
        .get(lane)
        .map_or("others", |event_type| event_type.as_str())
}

impl Lane {
    /// Whether it must not take memory from others.
    pub(crate) fn is_limited(&self) -> bool {
        self.is_troubled() || self.is_crowded
    }

    fn is_troubled(&self) -> bool {
        self.breaker.is_troubled() || self.rejected.len() > CAPACITY_IN_TROUBLE / 2
    }

    /// Whether it takes no more events with this many in memory.
    pub(crate) fn is_full(&self, buffered: usize) -> bool {
        self.is_limited() && buffered >= self.capacity()
    }

    /// How many held events may be read with this many in memory.
    pub(crate) fn held_room(&self, buffered: usize) -> usize {
        let room = self.capacity().saturating_sub(buffered);
        // A lane that probes needs something to try that was not rejected.
        let is_enough =
            self.ready.is_empty() || !self.breaker.is_probing() && room >= CAPACITY_IN_TROUBLE / 2;
        if is_enough { room } else { 0 }
    }

    fn capacity(&self) -> usize {
        if self.is_troubled() {
            CAPACITY_IN_TROUBLE + self.rejected.len().min(MOST_REJECTED)
        } else if self.is_crowded {
            CAPACITY / 2
        } else {
            CAPACITY
        }
    }

    /// Starts or stops keeping it from taking more memory.
    pub(crate) const fn limit(&mut self, is_crowded: bool) {
        self.is_crowded = is_crowded;
    }

    /// Whether its channel must be replaced now.
    pub(crate) fn needs_channel(&self, now: Instant) -> bool {
        self.needs_channel && self.breaker.is_due(now)
    }

    /// The channel was replaced; the next publish has this number.
    pub(crate) const fn channel_is_new(&mut self, next: u64) {
        self.needs_channel = false;
        self.channel_begins = next;
        self.unanswered = 0;
    }

    /// RabbitMQ remembers for a while what a channel may do, so only a new one shows what is
    /// allowed now.
    pub(crate) const fn doubt(&mut self) {
        self.needs_channel = true;
    }

    /// Whether the confirm of a publish shows that the broker takes events now.
    pub(crate) const fn is_evidence(&self, number: u64) -> bool {
        !self.needs_channel && number >= self.channel_begins
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether the publish still waits for its answer.
    pub(crate) fn awaits(&self, number: u64) -> bool {
        self.in_flight.contains_key(&number)
    }

    /// Takes an event that is the first of its user now.
    pub(crate) fn push(&mut self, position: i64) {
        self.ready.insert(position);
    }

    /// When the next event may go, if something waits for a pause.
    pub(crate) fn next_try(&self) -> Option<Instant> {
        let is_idle = self.ready.is_empty() && self.rejected.is_empty() && self.failed.is_empty();
        match self.breaker.is_probing() {
            true if !is_idle && self.probe.is_none() => self.breaker.not_before(),
            false if !self.rejected.is_empty() => self.retries.not_before(),
            _ => None,
        }
    }

    /// The event that may go now, and how. `evidence` is that of all lanes.
    pub(crate) fn next(&self, now: Instant, evidence: u64) -> Option<(i64, Attempt)> {
        let ready = self.ready.first().copied();
        let rejected = self.rejected.front().copied();
        if self.needs_channel {
            None
        } else if self.breaker.is_probing() {
            let failed = |rests| {
                self.failed
                    .iter()
                    .find(|(_, it)| it.rests(evidence) == rests)
                    .map(|(at, _)| *at)
            };
            let next = failed(false)
                .or(ready)
                .or(rejected)
                .or_else(|| failed(true))?;
            (self.probe.is_none() && self.breaker.is_due(now)).then_some((next, Attempt::Probe))
        } else if self.in_flight.len() >= self.breaker.window() {
            None
        } else if let Some(next) = rejected
            && self.retrying < self.retries.window()
            && self.retries.is_due(now)
        {
            Some((next, Attempt::Retry))
        } else {
            Some((ready?, Attempt::Usual))
        }
    }

    /// Records that the event goes, as [`Self::next`] said.
    pub(crate) fn begin(&mut self, number: u64, (position, attempt): (i64, Attempt), now: Instant) {
        if !self.ready.remove(&position) {
            self.rejected.pop_front_if(|next| *next == position);
        }
        match attempt {
            Attempt::Usual => {}
            Attempt::Retry => self.retrying += 1,
            Attempt::Probe => self.probe = Some(number),
        }
        self.in_flight.insert(
            number,
            InFlight {
                position,
                attempt,
                began: now,
            },
        );
    }

    /// Removes a publish from those in flight; `None` if it was given up.
    fn end(&mut self, number: u64) -> Option<InFlight> {
        let ended = self.in_flight.remove(&number)?;
        self.probe.take_if(|probe| *probe == number);
        self.retrying -= usize::from(ended.attempt == Attempt::Retry);
        Some(ended)
    }

    /// Records a confirm. Returns whether the publish was in flight.
    pub(crate) fn confirm(&mut self, number: u64, now: Instant) -> bool {
        let Some(InFlight {
            position,
            attempt,
            began,
        }) = self.end(number)
        else {
            return false;
        };
        self.latency = now - began;
        self.failed.remove(&position);
        match attempt {
            // Others of its burst were rejected.
            Attempt::Usual if self.breaker.is_probing() => {}
            Attempt::Usual => self.breaker.pass(self.latency),
            Attempt::Retry => self.retries.pass(self.latency),
            Attempt::Probe => {
                self.breaker.pass(self.latency);
                self.quarantining = None;
            }
        }
        true
    }

    /// Records that an event was rejected, or got no answer.
    pub(crate) fn reject(&mut self, number: u64, now: Instant) {
        let Some(InFlight {
            position, attempt, ..
        }) = self.end(number)
        else {
            return;
        };
        // On a channel that was open when a cluster lost a node, publishes may be rejected
        // permanently, although the queue has a new leader (seen with RabbitMQ 3.10).
        match attempt {
            Attempt::Usual => self.needs_channel |= self.breaker.reject(now),
            Attempt::Retry => self.retries.open(now),
            Attempt::Probe => {
                self.breaker.open(now);
                self.needs_channel = true;
            }
        }
        self.failed.remove(&position);
        self.rejected.push_back(position);
    }

    /// The connection was lost while it was in flight; or its channel closed, but it was not a
    /// probe, so another event may be the cause.
    pub(crate) fn lose(&mut self, number: u64, now: Instant) {
        self.needs_channel = true;
        if self.probe == Some(number) {
            self.reject(number, now);
        } else if let Some(InFlight { position, .. }) = self.end(number) {
            self.breaker.interrupt();
            self.push(position);
        }
    }

    /// The broker closed the channel while it was in flight. `evidence` is that of all lanes;
    /// `others_pass` says whether there was any recently.
    pub(crate) fn close(
        &mut self,
        number: u64,
        code: u16,
        evidence: u64,
        others_pass: bool,
        now: Instant,
    ) -> Closed {
        if self.probe != Some(number) {
            self.lose(number, now);
            return Closed::Waits;
        }
        let Some(InFlight { position, .. }) = self.end(number) else {
            return Closed::Waits;
        };
        self.needs_channel = true;
        let failed = self
            .failed
            .entry(position)
            .or_insert(Failed { times: 0, evidence });
        failed.times += 1;
        let is_first = failed.times == 1;
        let is_known = self.quarantining == Some(code) && others_pass;
        if is_known || failed.times >= FAILURES && failed.evidence < evidence {
            self.failed.remove(&position);
            self.quarantining = Some(code);
            self.breaker.pass_over();
            return Closed::Quarantine;
        }
        self.breaker.fail(now);
        if is_first {
            Closed::Suspect
        } else {
            Closed::Waits
        }
    }

    /// Gives up publishes that have waited too long for an answer. Time until `blocked_at`, when
    /// the broker last blocked us, does not count. Returns their positions.
    pub(crate) fn give_up(&mut self, now: Instant, blocked_at: Instant) -> Vec<i64> {
        let limit = (self.latency * PATIENCE).clamp(ANSWER_TIMEOUT, LONGEST_ANSWER_TIMEOUT);
        let mut given_up = Vec::new();
        while let Some((number, oldest)) = self.in_flight.first_key_value()
            && now - oldest.began.max(blocked_at) >= limit
        {
            given_up.push(oldest.position);
            self.reject(*number, now);
        }
        self.unanswered += given_up.len();
        self.needs_channel |= self.unanswered >= MOST_UNANSWERED;
        given_up
    }
}
