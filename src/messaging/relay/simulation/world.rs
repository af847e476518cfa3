//! A table and a broker that behave in any way, and what the schedule must never do before them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use proptest::sample::Index;
use serde_json::value::RawValue;
use tokio::time::Instant;
use uuid::Uuid;

use crate::domain::event::OutboxEvent;
use crate::domain::timestamp::Timestamp;
use crate::messaging::relay::flow::Track;
use crate::messaging::relay::schedule::{Flight, Outcome, Schedule};

pub const TYPES: [&str; 3] = ["user.created", "user.updated", "user.deleted"];
pub const FORBIDDEN: u16 = 403;
const BATCH: usize = 8;
const ROUND: Duration = Duration::from_millis(500);
/// The leader gives up what is silent for this long.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);

pub fn event(seq: i64, user_id: i64, event_type: &str) -> OutboxEvent {
    OutboxEvent {
        seq,
        fault: None,
        id: Uuid::now_v7(),
        event_type: event_type.to_owned(),
        user_id,
        version: 1,
        trace_id: "t".to_owned(),
        occurred_at: Timestamp::now(),
        data: RawValue::NULL.to_owned(),
    }
}

/// What the broker does with the events of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Passes,
    Refused,
    Forbidden,
    /// Neither confirmed nor refused.
    Silent,
}

#[derive(Clone, Copy, Debug)]
pub enum Action {
    Write {
        user: i64,
        event_type: usize,
    },
    Read,
    ReadLeft,
    Publish,
    /// One of the flights lands.
    Land(Index),
    /// The main channel closes for no reason of its events.
    Close,
    Decide {
        event_type: usize,
        fate: Fate,
    },
    Wait,
    /// The session ends: what was in memory is read again.
    Restart,
}

pub struct World {
    pub schedule: Schedule,
    pub table: BTreeMap<i64, OutboxEvent>,
    pub next_place: i64,
    frontier: i64,
    pub flights: Vec<(Flight, Instant)>,
    pub now: Instant,
    began: Instant,
    pub fates: [Fate; 3],
    /// Of each user the last place that the broker took.
    published: HashMap<i64, i64>,
    pub quarantined: HashSet<i64>,
    /// Events that were taken, repeats included.
    pub taken: Vec<i64>,
}

impl World {
    pub fn new() -> Self {
        let began = Instant::now();
        Self {
            schedule: Schedule::default(),
            table: BTreeMap::new(),
            next_place: 1,
            frontier: 0,
            flights: Vec::new(),
            now: began,
            began,
            fates: [Fate::Passes; 3],
            published: HashMap::new(),
            quarantined: HashSet::new(),
            taken: Vec::new(),
        }
    }

    pub fn write(&mut self, user: i64, event_type: &str) {
        self.table.insert(self.next_place, event(self.next_place, user, event_type));
        self.next_place += 1;
    }

    pub fn rows(&self, after: i64, up_to: i64, limit: usize) -> Vec<OutboxEvent> {
        let known: HashSet<i64> = self.schedule.known_after(after).into_iter().collect();
        let rows = self.table.range(after + 1..).take_while(|(place, _)| **place <= up_to);
        let rows = rows.filter(|(place, _)| !known.contains(place));
        rows.take(limit).map(|(_, event)| event.clone()).collect()
    }

    pub fn read(&mut self) {
        let rows = self.rows(self.frontier, i64::MAX, self.schedule.room().min(BATCH));
        for row in rows {
            self.frontier = row.seq;
            self.schedule.add(row);
        }
    }

    pub fn read_left(&mut self) {
        if let Some((name, after, limit)) = self.schedule.readable_left() {
            let name = name.to_owned();
            let rows = self.rows(after, self.frontier, limit);
            let all = rows.len() < limit;
            self.schedule.add_left(&name, rows, all);
        }
    }

    pub fn publish(&mut self) {
        let is_aside = self.schedule.set_aside(self.now, self.began);
        while let Some(flight) = self.schedule.next(self.now) {
            let user = flight.event.user_id;
            assert!(self.flights.iter().all(|(other, _)| other.event.user_id != user), "two of user {user} in flight");
            let is_trial = |(other, _): &&(Flight, Instant)| other.track == Track::Trial;
            let last_trial = self.flights.iter().filter(is_trial).map(|(_, began)| *began).max();
            let is_alone = last_trial.is_none_or(|began| is_aside || self.now - began > ROUND);
            assert!(flight.track == Track::Main || is_alone, "two on trial");
            self.flights.push((flight, self.now));
        }
    }

    pub fn fate(&self, event: &OutboxEvent) -> Fate {
        self.fates[TYPES.iter().position(|name| *name == event.event_type).unwrap()]
    }

    pub fn land(&mut self, place: usize) {
        let (flight, began) = self.flights.remove(place);
        match self.fate(&flight.event) {
            Fate::Silent if flight.track == Track::Trial && self.now - began >= CONFIRM_TIMEOUT => {
                self.settle(&flight, Outcome::Refused);
            }
            Fate::Silent => self.flights.push((flight, began)),
            Fate::Passes => self.settle(&flight, Outcome::Confirmed),
            Fate::Refused => self.settle(&flight, Outcome::Refused),
            Fate::Forbidden => {
                self.settle(&flight, Outcome::ChannelClosed(FORBIDDEN));
                if flight.track == Track::Main {
                    self.close();
                }
            }
        }
    }

    pub fn close(&mut self) {
        let (main, trial) = self.flights.drain(..).partition(|(flight, _)| flight.track == Track::Main);
        self.flights = trial;
        let main: Vec<_> = main;
        for (flight, _) in main {
            self.settle(&flight, Outcome::ChannelClosed(FORBIDDEN));
        }
    }

    pub fn settle(&mut self, flight: &Flight, outcome: Outcome) {
        let event = &flight.event;
        let is_culprit = self.schedule.settle(flight, outcome, self.now);
        if outcome == Outcome::Confirmed {
            let before = self.published.entry(event.user_id).or_default();
            assert!(*before < event.seq || self.taken.contains(&event.seq), "{} after {before}", event.seq);
            *before = event.seq.max(*before);
            self.taken.push(event.seq);
            let earlier = self.table.range(..event.seq).find(|(_, other)| other.user_id == event.user_id);
            assert!(earlier.is_none(), "{earlier:?} is not published and {} is", event.seq);
        }
        assert!(!is_culprit || self.fate(event) == Fate::Forbidden, "an innocent event is quarantined");
        if is_culprit || outcome == Outcome::Confirmed {
            self.table.remove(&event.seq).expect("it was in the table");
            self.quarantined.extend(is_culprit.then_some(event.seq));
        }
    }

    pub fn restart(&mut self) {
        self.frontier = self.schedule.settled().map_or(self.frontier, |settled| settled.min(self.frontier));
        self.flights.clear();
        self.schedule = Schedule::default();
    }

    pub fn act(&mut self, action: Action) {
        match action {
            Action::Write { user, event_type } => self.write(user, TYPES[event_type]),
            Action::Read => self.read(),
            Action::ReadLeft => self.read_left(),
            Action::Publish => self.publish(),
            Action::Land(index) if !self.flights.is_empty() => self.land(index.index(self.flights.len())),
            Action::Land(_) => {}
            Action::Close => self.close(),
            Action::Decide { event_type, fate } => self.fates[event_type] = fate,
            Action::Wait => self.now += Duration::from_secs(1),
            Action::Restart => self.restart(),
        }
    }

    /// Everything that can be done is done, some time.
    pub fn run(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.read();
            self.read_left();
            self.publish();
            // One that is silent goes to the end.
            for _ in 0..self.flights.len() {
                if !self.flights.is_empty() {
                    self.land(0);
                }
            }
            self.now += ROUND;
            if self.schedule.silent_since().is_some_and(|since| self.now - since > CONFIRM_TIMEOUT) {
                self.restart();
            }
        }
    }
}
