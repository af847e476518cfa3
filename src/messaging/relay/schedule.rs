//! What to publish next. Pure: rows and outcomes come in, events go out, and the caller supplies the time.
//!
//! A user has one event in flight, so no refusal and no lost channel can reorder a user's events. Events of one type share a
//! [`Flow`]: queues are bound by type, so a full or forbidden queue stops one type and the others pass it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::flow::{CAPACITY, Flow, Left, Track, WINDOW};
use crate::domain::event::OutboxEvent;

/// Most users with events left in the table. Beyond this, no new rows are read.
const LEFT_USERS: usize = 1_000_000;
/// How many times an event must close its channel, alone on it, before it is quarantined.
const STRIKES: u32 = 3;
/// A trial without an answer for this long makes room for trials of other types.
const PATIENCE: Duration = Duration::from_secs(2);
/// An event confirmed within this time shows that the broker accepts events at all.
const EVIDENCE: Duration = Duration::from_mins(1);

/// A publish in flight, to be settled once.
#[derive(Clone, Debug)]
pub struct Flight {
    pub event: Arc<OutboxEvent>,
    pub track: Track,
}

/// How a flight ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Confirmed,
    /// Returned, nacked, published to a missing exchange, or a trial without an answer.
    Refused,
    /// The channel closed while it was in flight, with this AMQP reply code.
    ChannelClosed(u16),
}

/// An event that is alone on its channel.
#[derive(Debug)]
struct Trial {
    flow: usize,
    place: i64,
    began: Instant,
}

/// History of an event that closed its channel.
#[derive(Debug)]
struct Record {
    strikes: u32,
    /// The count of all confirmed events when it first did so. If it has grown since, the broker is not at fault.
    confirmed: u64,
}

#[derive(Debug, Default)]
pub struct Schedule {
    /// Each user's events in memory, in order. The first may be in flight; all wait in the flow of the first.
    users: HashMap<i64, VecDeque<Arc<OutboxEvent>>>,
    flows: Flows,
    /// The places of all events in memory, and their users.
    known: BTreeMap<i64, i64>,
    trial: Option<Trial>,
    trials: u64,
    struck: HashMap<i64, Record>,
    confirmed: u64,
    confirmed_at: Option<Instant>,
}

impl Schedule {
    /// Takes a row, or leaves it in the table. Ignores a known one.
    pub fn add(&mut self, event: OutboxEvent) {
        let left = self.flows.0.iter_mut().filter_map(|flow| flow.left.as_mut());
        match left.into_iter().find(|left| left.users.contains(&event.user_id)) {
            Some(left) => left.add(event.seq, event.user_id),
            None => _ = self.keep_or_leave(event, false),
        }
    }

    /// Returns whether the event is kept. One read `again` is kept if its flow is open, because there was room for it.
    fn keep_or_leave(&mut self, event: OutboxEvent, again: bool) -> bool {
        let (place, user) = (event.seq, event.user_id);
        if self.known.contains_key(&place) {
            return true;
        }
        let first = self.users.get(&user).and_then(VecDeque::front);
        let flow = self.flows.of(first.map_or(&event.event_type, |first| &first.event_type));
        let capacity = if flow.is_limited() && !(again && flow.is_open()) { flow.capacity() } else { 2 * CAPACITY };
        if flow.kept >= capacity {
            flow.left.get_or_insert_default().add(place, user);
            return false;
        }
        flow.kept += 1;
        self.known.insert(place, user);
        let events = self.users.entry(user).or_default();
        if events.is_empty() {
            flow.heads.insert(place, user);
        }
        events.push_back(Arc::new(event));
        true
    }

    /// Sets a silent trial aside, because a queue may neither confirm nor refuse; its channel cannot be used for others. Time until
    /// `blocked_at`, when the broker last blocked us, does not count. Returns whether it did.
    pub fn set_aside(&mut self, now: Instant, blocked_at: Instant) -> bool {
        let silent = self.trial.take_if(|trial| now - trial.began.max(blocked_at) >= PATIENCE);
        if let Some(trial) = &silent {
            self.flows.0[trial.flow].set_aside();
        }
        silent.is_some()
    }

    /// The next event to publish, if one may go now.
    pub fn next(&mut self, now: Instant) -> Option<Flight> {
        let trial = self.next_trial(now).map(|found| (Track::Trial, found));
        let (track, (which, place)) = trial.or_else(|| Some((Track::Main, self.next_on_main()?)))?;
        let flow = &mut self.flows.0[which];
        let user = flow.heads.remove(&place)?;
        match track {
            Track::Main => flow.begin(now),
            Track::Trial => {
                self.trial = Some(Trial { flow: which, place, began: now });
                self.trials += 1;
                flow.tried = self.trials;
            }
        }
        let event = self.users.get(&user)?.front()?.clone();
        Some(Flight { event, track })
    }

    /// The flow on trial that has waited longest.
    fn next_trial(&self, now: Instant) -> Option<(usize, i64)> {
        if self.trial.is_some() {
            return None;
        }
        let waiting = self.flows.0.iter().enumerate().filter(|(_, flow)| flow.may_try(now));
        let (which, flow) = waiting.min_by_key(|(_, flow)| flow.tried)?;
        // Trying it again proves nothing until another event has passed.
        let rests = |place: &&i64| {
            self.struck.get(place).is_some_and(|it| it.strikes >= STRIKES && it.confirmed == self.confirmed)
        };
        let place = flow.heads.keys().find(|place| !rests(place)).or_else(|| flow.heads.keys().next())?;
        Some((which, *place))
    }

    /// The oldest event that may go.
    fn next_on_main(&self) -> Option<(usize, i64)> {
        if self.flows.on_main() >= WINDOW {
            return None;
        }
        let open = self.flows.0.iter().enumerate().filter(|(_, flow)| flow.has_room());
        let heads = open.filter_map(|(which, flow)| Some((which, *flow.heads.first_key_value()?.0)));
        heads.min_by_key(|(_, place)| *place)
    }

    /// Ends a flight. Returns `true` if the event must be quarantined; the schedule has then forgotten it.
    pub fn settle(&mut self, flight: &Flight, outcome: Outcome, now: Instant) -> bool {
        let event = &*flight.event;
        let flow = self.flows.of(&event.event_type);
        match flight.track {
            Track::Main => flow.end(now),
            Track::Trial if self.trial.take_if(|trial| trial.place == event.seq).is_none() => flow.is_aside = false,
            Track::Trial => {}
        }
        match (outcome, flight.track) {
            (Outcome::Confirmed, track) => {
                flow.confirm(track);
                self.confirmed_at = Some(now);
                self.confirmed += 1;
                self.struck.remove(&event.seq);
                self.forget(event);
                return false;
            }
            (Outcome::Refused, track) => flow.refuse(track, now),
            (Outcome::ChannelClosed(_), Track::Main) => flow.put_on_trial(),
            (Outcome::ChannelClosed(code), Track::Trial) => {
                let others_pass = self.confirmed_at.is_some_and(|at| now - at < EVIDENCE);
                let record = self.struck.entry(event.seq).or_insert(Record { strikes: 0, confirmed: self.confirmed });
                record.strikes += 1;
                let is_known_class = flow.condemned == Some(code) && others_pass;
                if is_known_class || record.strikes >= STRIKES && record.confirmed < self.confirmed {
                    flow.condemn(code);
                    self.struck.remove(&event.seq);
                    self.forget(event);
                    return true;
                }
                flow.strike(now);
            }
        }
        flow.heads.insert(event.seq, event.user_id);
        false
    }

    /// The first event of its user is done; the next may go.
    fn forget(&mut self, event: &OutboxEvent) {
        self.known.remove(&event.seq);
        let Some(events) = self.users.get_mut(&event.user_id) else { return };
        let kept = events.len();
        events.pop_front();
        self.flows.of(&event.event_type).kept -= kept;
        match events.front() {
            Some(next) => {
                let flow = self.flows.of(&next.event_type);
                flow.kept += kept - 1;
                flow.heads.insert(next.seq, next.user_id);
            }
            None => _ = self.users.remove(&event.user_id),
        }
    }

    /// How many new rows may be read.
    pub fn room(&self) -> usize {
        if self.lefts().map(|(_, left)| left.users.len()).sum::<usize>() >= LEFT_USERS {
            return 0;
        }
        let kept: usize = self.flows.0.iter().filter(|flow| !flow.is_limited()).map(|flow| flow.kept).sum();
        CAPACITY.saturating_sub(kept)
    }

    /// A type whose left rows may be read now, the place before the first of them, and how many to read.
    pub fn readable_left(&self) -> Option<(&str, i64, usize)> {
        self.lefts().find_map(|(flow, left)| {
            let room = flow.capacity().saturating_sub(flow.kept);
            // A flow on trial needs something to try.
            let is_due = flow.kept == 0 || flow.is_open() && room >= flow.capacity() / 2;
            is_due.then_some((&*flow.event_type, left.after, room))
        })
    }

    /// Takes rows that were read after the place of [`Self::readable_left`]; `all` if there were no more of them.
    pub fn add_left(&mut self, name: &str, rows: Vec<OutboxEvent>, all: bool) {
        let Some(mut left) = self.flows.of(name).left.take() else { return };
        for row in rows {
            left.after = row.seq;
            if !left.users.contains(&row.user_id) {
                continue;
            }
            let user = row.user_id;
            if !self.keep_or_leave(row, true) {
                // The user now waits in another flow.
                left.users.remove(&user);
            }
        }
        if !all {
            self.flows.of(name).left.get_or_insert_default().merge(left);
        }
    }

    fn lefts(&self) -> impl Iterator<Item = (&Flow, &Left)> {
        self.flows.0.iter().filter_map(|flow| Some((flow, flow.left.as_ref()?)))
    }

    /// The places in memory after `place`, in order.
    pub fn known_after(&self, place: i64) -> Vec<i64> {
        self.known.range(place + 1..).map(|(place, _)| *place).collect()
    }

    /// All rows read up to this place are published or quarantined; `None` if nothing is in memory or left.
    pub fn settled(&self) -> Option<i64> {
        let left = self.lefts().map(|(_, left)| left.after);
        self.known.keys().next().map(|place| place - 1).into_iter().chain(left).min()
    }

    pub fn in_flight(&self) -> usize {
        let aside = self.flows.0.iter().filter(|flow| flow.is_aside).count();
        self.flows.on_main() + usize::from(self.trial.is_some()) + aside
    }

    /// Since when no flight on the main channel has ended, for the type that has waited longest; `None` if none is in flight there.
    pub fn silent_since(&self) -> Option<Instant> {
        self.flows.0.iter().filter_map(Flow::silent_since).min()
    }

    /// When the next pause ends.
    pub fn next_try(&self) -> Option<Instant> {
        self.flows.0.iter().filter(|flow| !flow.heads.is_empty()).filter_map(|flow| flow.not_before).min()
    }
}

/// A short list: there are three types of events.
#[derive(Debug, Default)]
struct Flows(Vec<Flow>);

impl Flows {
    fn of(&mut self, event_type: &str) -> &mut Flow {
        let which = self.0.iter().position(|flow| flow.event_type == event_type);
        let which = which.unwrap_or_else(|| {
            self.0.push(Flow::of(event_type));
            self.0.len() - 1
        });
        &mut self.0[which]
    }

    fn on_main(&self) -> usize {
        self.0.iter().map(|flow| flow.in_flight).sum()
    }
}
