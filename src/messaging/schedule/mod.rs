//! What to publish next. Pure: rows and answers come in, events go out, and the caller supplies the
//! time.
//!
//! A user has one event in flight, so no rejection and no lost channel can reorder a user's events.
//! Queues are bound by type, so each type has a [`lane`]: a full or forbidden queue stops only one
//! type. Each lane has a [`breaker`]. The [`backlog`] is what waits.

pub(crate) mod backlog;
pub(crate) mod breaker;
pub(crate) mod lane;
#[cfg(test)]
mod simulation;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use self::backlog::Backlog;
use self::lane::{Attempt, CAPACITY, Closed, LANES, Lane};
use crate::repository::outbox_event::OutboxEvent;

/// How long a confirm counts as evidence that the broker accepts events at all.
const EVIDENCE: Duration = Duration::from_mins(1);

/// An event on its way to the broker, to be settled.
#[derive(Clone, Debug)]
pub(crate) struct Publish {
    pub event: Arc<OutboxEvent>,
    pub lane: usize,
    /// Unique to this attempt.
    pub number: u64,
}

/// How a publish ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Confirmed,
    /// Returned, nacked, published to a missing exchange, or without an answer.
    Rejected,
    /// The broker closed the channel while it was in flight, with this AMQP reply code.
    ChannelClosed(u16),
    /// The connection was lost.
    Lost,
}

/// What became of a settled event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// Its row can be deleted.
    Done,
    /// Its row must be moved to quarantine. Then [`Schedule::quarantined`] lets the next event of
    /// its user go.
    Quarantined,
    /// It will be published again.
    Waits,
}

#[derive(Debug, Default)]
pub(crate) struct Schedule {
    pub backlog: Backlog,
    lanes: [Lane; LANES],
    publishes: u64,
    confirmed: u64,
    /// Confirms on channels that are not in doubt, which show that the broker accepts events; and
    /// when the last one came.
    evidence: u64,
    evidence_at: Option<Instant>,
}

impl Schedule {
    /// Takes a new event, or has it held.
    pub(crate) fn add(&mut self, event: OutboxEvent) {
        self.backlog.add(event, &mut self.lanes);
    }

    /// Takes held events of a lane; there may be more after this position.
    pub(crate) fn add_held(&mut self, lane: usize, events: Vec<OutboxEvent>, after: Option<i64>) {
        self.backlog.add_held(lane, events, after, &mut self.lanes);
        if !self.backlog.has_held(lane) {
            self.lanes[lane].limit(false);
        }
    }

    /// Takes held events that follow others of their users.
    pub(crate) fn add_followers(&mut self, events: Vec<OutboxEvent>) {
        self.backlog.add_followers(events, &mut self.lanes);
    }

    /// A lane whose held events may be read now, the position after which they are, and how many.
    pub(crate) fn wanted(&self) -> Option<(usize, i64, usize)> {
        self.backlog.wanted(&self.lanes)
    }

    /// Whether events wait to be held, or held ones may be read.
    pub(crate) fn has_work(&self) -> bool {
        self.backlog.has_work(&self.lanes)
    }

    /// How many new rows may be read.
    pub(crate) fn room(&self) -> usize {
        CAPACITY.saturating_sub(self.healthy().map(|lane| self.backlog.buffered(lane)).sum())
    }

    /// Makes room for new rows by limiting the fullest healthy lane: from now on, its new events
    /// are held.
    pub(crate) fn make_room(&mut self) {
        if let Some(fullest) = self
            .healthy()
            .max_by_key(|lane| self.backlog.buffered(*lane))
        {
            self.lanes[fullest].limit(true);
        }
    }

    fn healthy(&self) -> impl Iterator<Item = usize> {
        (0..LANES).filter(|lane| !self.lanes[*lane].is_limited())
    }

    /// The next event to publish, if one may go now in a lane that is `open`: probes and retries
    /// first, then the oldest.
    pub(crate) fn next(&mut self, now: Instant, open: [bool; LANES]) -> Option<Publish> {
        let lanes = (0..LANES).filter(|lane| open[*lane]);
        let next =
            lanes.filter_map(|lane| Some((lane, self.lanes[lane].next(now, self.evidence)?)));
        let oldest =
            next.min_by_key(|(_, (position, attempt))| (*attempt == Attempt::Usual, *position));
        let (lane, (position, attempt)) = oldest?;
        let event = self.backlog.event(position)?.clone();
        self.publishes += 1;
        self.lanes[lane].begin(self.publishes, (position, attempt), now);
        Some(Publish {
            event,
            lane,
            number: self.publishes,
        })
    }

    /// Ends a publish. Ignores one that was given up: its event waits, or is in flight again.
    pub(crate) fn settle(&mut self, publish: &Publish, outcome: Outcome, now: Instant) -> Settled {
        let others_pass = self.evidence_at.is_some_and(|at| now - at < EVIDENCE);
        let lane = &mut self.lanes[publish.lane];
        match outcome {
            Outcome::Confirmed if lane.confirm(publish.number, now) => {
                self.confirmed += 1;
                if lane.is_evidence(publish.number) {
                    self.evidence += 1;
                    self.evidence_at = Some(now);
                }
                self.backlog.forget(&publish.event, &mut self.lanes);
                return Settled::Done;
            }
            Outcome::Confirmed => {}
            Outcome::Rejected => {
                lane.reject(publish.number, now);
                self.backlog.reject(&publish.event);
            }
            Outcome::Lost => lane.lose(publish.number, now),
            Outcome::ChannelClosed(code) => {
                match lane.close(publish.number, code, self.evidence, others_pass, now) {
                    Closed::Waits => {}
                    Closed::Suspect => self.lanes.iter_mut().for_each(Lane::doubt),
                    Closed::Quarantine => return Settled::Quarantined,
                }
            }
        }
        Settled::Waits
    }

    /// Lets the next event of its user go, once the row is in quarantine. Earlier, another session
    /// could publish this event after the next one.
    pub(crate) fn quarantined(&mut self, event: &OutboxEvent) {
        self.backlog.forget(event, &mut self.lanes);
        // `forget` ignores an event that could not be published, because it was never in memory.
        self.backlog.follow(event.user_id);
    }

    /// Gives up publishes that have waited too long for an answer; their events will be published
    /// again. Time until the broker last blocked a lane does not count. Returns how many.
    pub(crate) fn give_up(&mut self, now: Instant, blocked_at: &[Instant; LANES]) -> usize {
        let lanes = self.lanes.iter_mut().zip(blocked_at);
        let given_up: Vec<i64> = lanes
            .flat_map(|(lane, blocked_at)| lane.give_up(now, *blocked_at))
            .collect();
        for position in &given_up {
            if let Some(event) = self.backlog.event(*position).cloned() {
                self.backlog.reject(&event);
            }
        }
        given_up.len()
    }

    /// Whether the publish still waits for its answer.
    pub(crate) fn awaits(&self, publish: &Publish) -> bool {
        self.lanes[publish.lane].awaits(publish.number)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.lanes.iter().map(Lane::in_flight).sum()
    }

    /// How many events were confirmed.
    pub(crate) const fn confirmed(&self) -> u64 {
        self.confirmed
    }

    /// When the next pause ends.
    pub(crate) fn next_try(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(Lane::next_try).min()
    }

    /// Lanes whose channel must be replaced before anything else is published there.
    pub(crate) fn lanes_without_channel(&self, now: Instant) -> Vec<usize> {
        (0..LANES)
            .filter(|lane| self.lanes[*lane].needs_channel(now))
            .collect()
    }

    pub(crate) const fn channel_is_new(&mut self, lane: usize) {
        self.lanes[lane].channel_is_new(self.publishes + 1);
    }
}
