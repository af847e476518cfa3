//! What to publish next. Pure: rows and outcomes come in, events go out, and the caller supplies the time.
//!
//! A user has one event in flight, so no rejection and no lost channel can reorder a user's events. Queues are bound by type, so each
//! type has a [`Lane`]: a full or forbidden queue stops one type and the others pass it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::lane::{Attempt, CAPACITY, Closed, Deferred, Head, Lane, MOST_OF_A_USER, Wanted};
use crate::domain::event::{EventType, OutboxEvent};

/// One for each type of event, and the last for whatever else appears.
pub const LANES: usize = EventType::ALL.len() + 1;
/// The lane of whatever else appears.
pub const OTHERS: usize = LANES - 1;
/// Most users with deferred events. Beyond this, no new rows are read.
const DEFERRED_USERS: usize = 1_000_000;
/// Before deferred rows are read again of which none could be kept.
const NOTHING_KEPT: Duration = Duration::from_secs(1);
/// Evidence from within this time shows that the broker accepts events at all.
const EVIDENCE: Duration = Duration::from_mins(1);

/// An event on its way to the broker, to be settled.
#[derive(Clone, Debug)]
pub struct Publish {
    pub event: Arc<OutboxEvent>,
    pub lane: usize,
    /// Unique to this attempt.
    pub number: u64,
}

/// How a publish ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
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
pub enum Settled {
    /// Its row can be deleted.
    Done,
    /// The schedule has forgotten it; its row must be moved to quarantine.
    Quarantined,
    /// It will be published again.
    Waits,
}

#[derive(Debug, Default)]
pub struct Schedule {
    /// Each user's events in memory, in order. The first may be in flight; all wait in the lane of the first.
    users: HashMap<i64, VecDeque<Arc<OutboxEvent>>>,
    lanes: [Lane; LANES],
    /// The positions of all events in memory.
    known: BTreeMap<i64, i64>,
    publishes: u64,
    confirmed: u64,
    /// Confirms that show that the broker takes events, since a channel was last doubted; and when there was one.
    evidence: u64,
    evidence_at: Option<Instant>,
}

/// The lane of a type.
pub fn lane(event_type: &str) -> usize {
    EventType::ALL.iter().position(|known| known.as_str() == event_type).unwrap_or(OTHERS)
}

impl Schedule {
    /// Takes a row, or defers it. Ignores a known one.
    pub fn add(&mut self, event: OutboxEvent) {
        let head = Head { position: event.seq, user: event.user_id };
        let mut deferred = self.lanes.iter_mut().filter_map(|lane| lane.deferred.as_mut());
        match deferred.find(|deferred| deferred.users.contains(&head.user)) {
            Some(deferred) => deferred.add(head),
            None => _ = self.keep_or_defer(event, false),
        }
    }

    /// Returns whether the event is kept. One read `again` is kept if its lane passes, because there was room for it.
    fn keep_or_defer(&mut self, event: OutboxEvent, again: bool) -> bool {
        let head = Head { position: event.seq, user: event.user_id };
        if self.known.contains_key(&head.position) {
            return true;
        }
        let events = self.users.entry(head.user).or_default();
        let own = lane(&event.event_type);
        // It waits in the lane of its user's head, and later in its own.
        let first = events.front().map_or(own, |first| lane(&first.event_type));
        let full = [own, first].into_iter().find(|lane| self.lanes[*lane].is_full(again));
        if let Some(full) = full.or_else(|| (events.len() >= MOST_OF_A_USER).then_some(own)) {
            self.lanes[full].deferred.get_or_insert_default().add(head);
            if events.is_empty() {
                self.users.remove(&head.user);
            }
            return false;
        }
        let lane = &mut self.lanes[first];
        lane.buffered += 1;
        self.known.insert(head.position, head.user);
        if events.is_empty() {
            lane.push(head);
        }
        events.push_back(Arc::new(event));
        true
    }

    /// The next event to publish, if one may go now in a lane that is `open`: the oldest.
    pub fn next(&mut self, now: Instant, open: [bool; LANES]) -> Option<Publish> {
        let lanes = self.lanes.iter().enumerate().filter(|(lane, _)| open[*lane]);
        let heads = lanes.filter_map(|(lane, it)| Some((lane, it.next(now, self.evidence)?)));
        let (lane, (head, attempt)) =
            heads.min_by_key(|(_, (head, attempt))| (*attempt == Attempt::Usual, head.position))?;
        let event = self.users.get(&head.user)?.front()?.clone();
        self.publishes += 1;
        self.lanes[lane].begin(self.publishes, (head, attempt), now);
        Some(Publish { event, lane, number: self.publishes })
    }

    /// Ends a publish. Ignores one that was given up before, whose event waits or is on its way again.
    pub fn settle(&mut self, publish: &Publish, outcome: Outcome, now: Instant) -> Settled {
        let others_pass = self.evidence_at.is_some_and(|at| now - at < EVIDENCE);
        let lane = &mut self.lanes[publish.lane];
        match outcome {
            Outcome::Confirmed if lane.confirm(publish.number, now) => {
                self.confirmed += 1;
                if lane.is_evidence(publish.number) {
                    self.evidence += 1;
                    self.evidence_at = Some(now);
                }
                self.forget(&publish.event);
                return Settled::Done;
            }
            Outcome::Confirmed => {}
            Outcome::Rejected => lane.reject(publish.number, now),
            Outcome::Lost => lane.lose(publish.number, now),
            Outcome::ChannelClosed(code) => match lane.close(publish.number, code, self.evidence, others_pass, now) {
                Closed::Waits => {}
                Closed::Suspect => self.lanes.iter_mut().for_each(Lane::doubt),
                Closed::Quarantine => {
                    self.forget(&publish.event);
                    return Settled::Quarantined;
                }
            },
        }
        Settled::Waits
    }

    /// Gives up publishes that have waited too long for an answer; their events will be published again. Time until the broker last
    /// blocked a lane does not count. Returns how many.
    pub fn give_up(&mut self, now: Instant, blocked_at: &[Instant; LANES]) -> usize {
        self.lanes.iter_mut().zip(blocked_at).map(|(lane, blocked_at)| lane.give_up(now, *blocked_at)).sum()
    }

    /// Whether the publish was not given up.
    pub fn awaits(&self, publish: &Publish) -> bool {
        self.lanes[publish.lane].awaits(publish.number)
    }

    /// The first event of its user is done; the next may go.
    fn forget(&mut self, event: &OutboxEvent) {
        self.known.remove(&event.seq);
        let Some(events) = self.users.get_mut(&event.user_id) else { return };
        let buffered = events.len();
        events.pop_front();
        self.lanes[lane(&event.event_type)].buffered -= buffered;
        match events.front() {
            Some(next) => {
                let lane = &mut self.lanes[lane(&next.event_type)];
                lane.buffered += buffered - 1;
                lane.push(Head { position: next.seq, user: next.user_id });
            }
            None => _ = self.users.remove(&event.user_id),
        }
    }

    /// How many new rows may be read.
    pub fn room(&self) -> usize {
        if self.has_too_many_deferred() {
            return 0;
        }
        let buffered: usize = self.lanes.iter().filter(|lane| !lane.is_limited()).map(|lane| lane.buffered).sum();
        CAPACITY.saturating_sub(buffered)
    }

    fn has_too_many_deferred(&self) -> bool {
        self.deferred().map(|deferred| deferred.users.len()).sum::<usize>() >= DEFERRED_USERS
    }

    /// Makes room for new rows if a slow lane has taken all of it: from now on, its own are deferred.
    pub fn make_room(&mut self) {
        if self.has_too_many_deferred() {
            return;
        }
        let healthy = self.lanes.iter_mut().filter(|lane| !lane.is_limited());
        if let Some(fullest) = healthy.max_by_key(|lane| lane.buffered) {
            fullest.limit();
        }
    }

    /// A lane whose deferred rows may be read now.
    pub fn wanted(&self, now: Instant) -> Option<(usize, Wanted)> {
        let buffered = |user| self.users.get(&user).map_or(0, VecDeque::len);
        self.lanes.iter().enumerate().find_map(|(lane, it)| Some((lane, it.wants(buffered, now)?)))
    }

    /// Takes rows that [`Self::wanted`] asked for, of `users` alone if there are any; `all` if there were no more of them.
    pub fn add_deferred(&mut self, lane: usize, users: &[i64], rows: Vec<OutboxEvent>, all: bool, now: Instant) {
        let Some(mut deferred) = self.lanes[lane].deferred.take() else { return };
        // Those that were not asked for wait where they are.
        let mut others = Deferred { after: deferred.after, ..Deferred::default() };
        if !users.is_empty() {
            others.users = deferred.users.extract_if(|user| !users.contains(user)).collect();
        }
        let mut kept = 0;
        for row in rows {
            deferred.after = row.seq;
            if !deferred.users.contains(&row.user_id) {
                continue;
            }
            let user = row.user_id;
            if self.keep_or_defer(row, true) {
                kept += 1;
            } else {
                // The user now waits in this lane again, or in another one.
                deferred.users.remove(&user);
            }
        }
        if all {
            deferred.users.clear();
        }
        let lane = &mut self.lanes[lane];
        for waiting in [deferred, others].into_iter().filter(|waiting| !waiting.users.is_empty()) {
            lane.deferred.get_or_insert_default().merge(waiting);
        }
        match &mut lane.deferred {
            None => lane.relax(),
            Some(deferred) if kept == 0 => deferred.not_before = Some(now + NOTHING_KEPT),
            Some(_) => {}
        }
    }

    fn deferred(&self) -> impl Iterator<Item = &Deferred> {
        self.lanes.iter().filter_map(|lane| lane.deferred.as_ref())
    }

    /// The oldest event, if it is in memory.
    pub fn oldest(&self) -> Option<&OutboxEvent> {
        let (position, user) = self.known.first_key_value()?;
        let oldest = self.users.get(user)?.front()?;
        let is_oldest = self.deferred().all(|deferred| deferred.after >= *position);
        is_oldest.then_some(oldest)
    }

    pub fn has_deferred(&self) -> bool {
        self.deferred().next().is_some()
    }

    /// The positions in memory after `position`, in order.
    pub fn known_after(&self, position: i64) -> Vec<i64> {
        self.known.range(position + 1..).map(|(position, _)| *position).collect()
    }

    /// All rows read up to this position are published or quarantined; `None` if nothing is in memory or deferred.
    pub fn settled(&self) -> Option<i64> {
        let deferred = self.deferred().map(|deferred| deferred.after);
        self.known.keys().next().map(|position| position - 1).into_iter().chain(deferred).min()
    }

    pub fn in_flight(&self) -> usize {
        self.lanes.iter().map(Lane::in_flight).sum()
    }

    /// How many events were confirmed.
    pub const fn confirmed(&self) -> u64 {
        self.confirmed
    }

    /// When the next pause ends.
    pub fn next_try(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(Lane::next_try).min()
    }

    /// Lanes whose channel must be replaced before anything else is published there.
    pub fn lanes_without_channel(&self, now: Instant) -> Vec<usize> {
        (0..LANES).filter(|lane| self.lanes[*lane].needs_channel(now)).collect()
    }

    /// Nothing waits and nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty() && !self.has_deferred()
    }

    pub fn channel_is_new(&mut self, lane: usize) {
        self.lanes[lane].channel_is_new(self.publishes + 1);
    }
}
