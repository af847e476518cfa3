//! A table and a broker that behave in any way, with assertions on what the schedule must never do.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::mem;
use std::time::Duration;

use proptest::sample::Index;
use serde_json::value::RawValue;
use tokio::time::Instant;
use uuid::Uuid;

use crate::domain::timestamp::Timestamp;
use crate::messaging::schedule::lane::{LANES, lane as lane_of};
use crate::messaging::schedule::{Outcome, Publish, Schedule, Settled};
use crate::repository::outbox_event::OutboxEvent;

pub(crate) const TYPES: [&str; 3] = ["user.created", "user.updated", "user.deleted"];
pub(crate) const FORBIDDEN: u16 = 403;
const BATCH: usize = 8;
/// How long a round of [`World::run`] takes.
pub(crate) const ROUND: Duration = Duration::from_millis(500);

pub(crate) fn event(seq: i64, user_id: i64, event_type: &str) -> OutboxEvent {
    OutboxEvent {
        seq,
        is_behind: false,
        fault: None,
        id: Uuid::now_v7(),
        event_type: event_type.to_owned(),
        user_id,
        version: 1,
        trace_id: "t".to_owned(),
        occurred_at: Timestamp::now(),
        data: RawValue::NULL.to_owned(),
        actor: None,
    }
}

/// What the broker does with the events of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Passes,
    Rejected,
    /// The channel closes.
    Forbidden,
    /// Neither confirmed nor rejected.
    Silent,
    /// Silent for every fourth user, as behind an exchange that spreads them over queues.
    PartlySilent,
    PartlyRejected,
    /// This many are confirmed per round.
    Slow(usize),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    Write {
        user: i64,
        event_type: usize,
    },
    /// Deletes and holds what is due, and reads new rows or held ones.
    BeginWork {
        new: bool,
    },
    FinishWork,
    Renew,
    Publish,
    /// One of those in flight is answered.
    Answer(Index),
    /// The connection of a type is lost.
    Lose(usize),
    Decide {
        event_type: usize,
        fate: Fate,
    },
    Wait,
    /// The session ends: what was in memory is read again.
    Restart,
}

pub(crate) struct InFlight {
    pub publish: Publish,
    channel: u32,
}

/// A read as it began.
struct Reading {
    of: Of,
    rows: Vec<OutboxEvent>,
    is_cut: bool,
}

enum Of {
    New,
    Held(usize),
    Followers,
}

pub(crate) struct World {
    pub schedule: Schedule,
    /// New rows.
    pub table: BTreeMap<i64, OutboxEvent>,
    pub held: BTreeMap<i64, OutboxEvent>,
    /// Neither taken nor quarantined yet: positions, and their users.
    waiting: BTreeMap<i64, i64>,
    /// To be deleted by the next work.
    done: Vec<i64>,
    to_quarantine: Vec<OutboxEvent>,
    /// What it quarantines, and reads.
    work: Option<(Vec<OutboxEvent>, Option<Reading>)>,
    pub next_position: i64,
    frontier: i64,
    /// Includes those that were given up.
    pub in_flight: Vec<InFlight>,
    /// By lane: the number of its channel.
    channels: [u32; LANES],
    pub now: Instant,
    began: Instant,
    pub fates: [Fate; 3],
    /// By user: the last position that the broker took.
    published: HashMap<i64, i64>,
    pub quarantined: HashSet<i64>,
    /// Events that were taken, repeats included.
    pub taken: Vec<i64>,
}

impl World {
    pub(crate) fn new() -> Self {
        let began = Instant::now();
        Self {
            schedule: Schedule::default(),
            table: BTreeMap::new(),
            held: BTreeMap::new(),
            waiting: BTreeMap::new(),
            done: Vec::new(),
            to_quarantine: Vec::new(),
            work: None,
            next_position: 1,
            frontier: 0,
            in_flight: Vec::new(),
            channels: [0; LANES],
            now: began,
            began,
            fates: [Fate::Passes; 3],
            published: HashMap::new(),
            quarantined: HashSet::new(),
            taken: Vec::new(),
        }
    }

    pub(crate) fn write(&mut self, user: i64, event_type: &str) {
        self.table.insert(
            self.next_position,
            event(self.next_position, user, event_type),
        );
        self.waiting.insert(self.next_position, user);
        self.next_position += 1;
    }

    /// All rows, held or not.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &OutboxEvent> {
        self.table.values().chain(self.held.values())
    }

    pub(crate) fn begin_work(&mut self, new: bool) {
        if self.work.is_some() {
            return;
        }
        let quarantined = mem::take(&mut self.to_quarantine);
        self.quarantined
            .extend(quarantined.iter().map(|event| event.seq));
        for position in self
            .done
            .drain(..)
            .chain(quarantined.iter().map(|event| event.seq))
        {
            self.waiting.remove(&position);
            assert!(
                self.table
                    .remove(&position)
                    .or(self.held.remove(&position))
                    .is_some(),
                "it was there"
            );
        }
        for position in self.schedule.backlog.take_to_hold() {
            if let Some(row) = self.table.remove(&position) {
                self.held.insert(position, row);
            }
            assert!(
                self.held.contains_key(&position),
                "what is to be held is there"
            );
        }
        let reading = if new {
            Some(self.read_new())
        } else {
            self.read_held()
        };
        self.work = Some((quarantined, reading));
    }

    fn read_new(&mut self) -> Reading {
        if self.schedule.room() < BATCH {
            self.schedule.make_room();
        }
        let known: HashSet<i64> = self
            .schedule
            .backlog
            .known_after(self.frontier)
            .into_iter()
            .collect();
        let holders = self.schedule.backlog.holders();
        let limit = self.schedule.room().min(BATCH);
        let rows = self
            .table
            .range(self.frontier + 1..)
            .filter(|(position, _)| !known.contains(position));
        let mut rows: Vec<OutboxEvent> = rows.take(limit).map(|(_, event)| event.clone()).collect();
        for row in &mut rows {
            let is_behind = self
                .held
                .range(..row.seq)
                .any(|(_, held)| held.user_id == row.user_id);
            row.is_behind = is_behind || holders.contains(&row.user_id);
        }
        Reading {
            of: Of::New,
            is_cut: rows.len() == limit,
            rows,
        }
    }

    fn read_held(&mut self) -> Option<Reading> {
        if let Some((users, of_each)) = self.schedule.backlog.take_followers() {
            let mut rows = Vec::new();
            for user in users {
                let of_user = self.held.values().filter(|row| row.user_id == user);
                rows.extend(of_user.take(of_each).cloned());
            }
            rows.sort_by_key(|row| row.seq);
            return Some(Reading {
                of: Of::Followers,
                rows,
                is_cut: false,
            });
        }
        let (lane, after, room) = self.schedule.wanted()?;
        let limit = room.clamp(2, BATCH);
        let holders = self.schedule.backlog.holders();
        let known: HashSet<i64> = self
            .schedule
            .backlog
            .known_after(after)
            .into_iter()
            .collect();
        let rows = self
            .held
            .range(after + 1..)
            .filter(|(position, _)| !known.contains(position));
        let rows = rows.filter(|(_, row)| lane_of(&row.event_type) == lane);
        let mut rows: Vec<OutboxEvent> = rows.take(limit).map(|(_, event)| event.clone()).collect();
        for row in &mut rows {
            let is_behind = self
                .held
                .range(..row.seq)
                .any(|(_, held)| held.user_id == row.user_id);
            row.is_behind = is_behind || holders.contains(&row.user_id);
        }
        Some(Reading {
            of: Of::Held(lane),
            is_cut: rows.len() == limit,
            rows,
        })
    }

    pub(crate) fn finish_work(&mut self) {
        let Some((quarantined, reading)) = self.work.take() else {
            return;
        };
        for event in quarantined {
            self.schedule.quarantined(&event);
        }
        let Some(Reading { of, rows, is_cut }) = reading else {
            return;
        };
        match of {
            Of::New => {
                for row in rows {
                    self.frontier = row.seq;
                    self.schedule.add(row);
                }
                if !is_cut {
                    self.schedule.backlog.catch_up();
                }
            }
            Of::Held(lane) => {
                let last = rows.last().map(|row| row.seq);
                self.schedule.add_held(lane, rows, last.filter(|_| is_cut));
            }
            Of::Followers => self.schedule.add_followers(rows),
        }
    }

    pub(crate) fn read(&mut self) {
        self.begin_work(true);
        self.finish_work();
    }

    pub(crate) fn read_what_is_held(&mut self) {
        self.begin_work(false);
        self.finish_work();
    }

    pub(crate) fn renew(&mut self) {
        for lane in self.schedule.lanes_without_channel(self.now) {
            self.channels[lane] += 1;
            self.schedule.channel_is_new(lane);
        }
    }

    pub(crate) fn publish(&mut self) {
        while let Some(publish) = self.schedule.next(self.now, [true; LANES]) {
            let event = &publish.event;
            let mut others = self.in_flight.iter().map(|it| &it.publish.event);
            let is_alone =
                others.all(|other| other.user_id != event.user_id || other.seq <= event.seq);
            assert!(
                is_alone,
                "an event overtakes another one of user {}",
                event.user_id
            );
            let channel = self.channels[publish.lane];
            self.in_flight.push(InFlight { publish, channel });
        }
    }

    pub(crate) fn fate(&self, event: &OutboxEvent) -> Fate {
        match self.fates[TYPES
            .iter()
            .position(|name| *name == event.event_type)
            .unwrap()]
        {
            Fate::PartlySilent if event.user_id % 4 == 0 => Fate::Silent,
            Fate::PartlyRejected if event.user_id % 4 == 0 => Fate::Rejected,
            Fate::PartlySilent | Fate::PartlyRejected | Fate::Slow(_) => Fate::Passes,
            fate => fate,
        }
    }

    pub(crate) fn answer(&mut self, index: usize) {
        match self.fate(&self.in_flight[index].publish.event) {
            // It goes to the end, so that a round sees each once.
            Fate::Silent => {
                let silent = self.in_flight.remove(index);
                self.in_flight.push(silent);
            }
            Fate::Forbidden => {
                let culprit = self.in_flight.remove(index);
                self.settle(&culprit.publish, Outcome::ChannelClosed(FORBIDDEN));
                self.close(
                    culprit.publish.lane,
                    culprit.channel,
                    Outcome::ChannelClosed(FORBIDDEN),
                );
            }
            Fate::Rejected => {
                let rejected = self.in_flight.remove(index);
                self.settle(&rejected.publish, Outcome::Rejected);
            }
            _passes => {
                let confirmed = self.in_flight.remove(index);
                self.settle(&confirmed.publish, Outcome::Confirmed);
            }
        }
    }

    /// Ends all publishes on a channel.
    fn close(&mut self, lane: usize, channel: u32, outcome: Outcome) {
        let (ended, others) = self
            .in_flight
            .drain(..)
            .partition(|it| it.publish.lane == lane && it.channel == channel);
        self.in_flight = others;
        let ended: Vec<InFlight> = ended;
        for one in ended {
            self.settle(&one.publish, outcome);
        }
    }

    fn settle(&mut self, publish: &Publish, outcome: Outcome) {
        let event = &publish.event;
        let settled = self.schedule.settle(publish, outcome, self.now);
        if outcome == Outcome::Confirmed {
            let before = self.published.entry(event.user_id).or_default();
            assert!(
                *before < event.seq || self.taken.contains(&event.seq),
                "{} after {before}",
                event.seq
            );
            *before = event.seq.max(*before);
            self.taken.push(event.seq);
            let earlier = self
                .waiting
                .range(..event.seq)
                .find(|(_, user)| **user == event.user_id);
            assert!(
                earlier.is_none(),
                "{earlier:?} is not published and {} is",
                event.seq
            );
            self.waiting.remove(&event.seq);
        }
        assert!(
            settled != Settled::Done || outcome == Outcome::Confirmed,
            "deleted and not confirmed"
        );
        let is_quarantined = settled == Settled::Quarantined;
        assert!(
            !is_quarantined || self.fate(event) == Fate::Forbidden,
            "an innocent event is quarantined"
        );
        match settled {
            Settled::Done => self.done.push(event.seq),
            Settled::Quarantined => self.to_quarantine.push(event.as_ref().clone()),
            Settled::Waits => {}
        }
    }

    /// Starts a new session, which reads again what was not deleted.
    pub(crate) fn restart(&mut self) {
        let undone = self.done.drain(..).map(|position| position - 1);
        let first = undone.chain(self.schedule.backlog.settled()).min();
        self.frontier = first.map_or(self.frontier, |first| first.min(self.frontier));
        self.work = None;
        self.to_quarantine.clear();
        self.in_flight.clear();
        self.schedule = Schedule::default();
    }

    pub(crate) fn act(&mut self, action: Action) {
        match action {
            Action::Write { user, event_type } => self.write(user, TYPES[event_type]),
            Action::BeginWork { new } => self.begin_work(new),
            Action::FinishWork => self.finish_work(),
            Action::Renew => self.renew(),
            Action::Publish => self.publish(),
            Action::Answer(index) if !self.in_flight.is_empty() => {
                self.answer(index.index(self.in_flight.len()));
            }
            Action::Answer(_) => {}
            Action::Lose(lane) => self.close(lane, self.channels[lane], Outcome::Lost),
            Action::Decide { event_type, fate } => self.fates[event_type] = fate,
            Action::Wait => {
                self.now += Duration::from_secs(1);
                self.schedule.give_up(self.now, &[self.began; LANES]);
            }
            Action::Restart => self.restart(),
        }
    }

    /// Runs rounds in which everything that can be done is done.
    pub(crate) fn run(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.read();
            self.read_what_is_held();
            self.renew();
            self.publish();
            let mut slow = [0; LANES];
            for _ in 0..self.in_flight.len() {
                let Some(first) = self.in_flight.first() else {
                    break;
                };
                let lane = first.publish.lane;
                slow[lane] += 1;
                match self.fates.get(lane) {
                    Some(Fate::Slow(most)) if slow[lane] > *most => {
                        let waits = self.in_flight.remove(0);
                        self.in_flight.push(waits);
                    }
                    _ => self.answer(0),
                }
            }
            self.in_flight.sort_by_key(|it| it.publish.number);
            self.now += ROUND;
            self.schedule.give_up(self.now, &[self.began; LANES]);
        }
    }
}
