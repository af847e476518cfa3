//! The schedule before a table and a broker that behave in any way: what it must never do, and what it must do in the end.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use proptest::prelude::*;
use serde_json::value::RawValue;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    flow::Track,
    schedule::{Flight, Outcome, Schedule},
};
use crate::domain::{event::OutboxEvent, timestamp::Timestamp};

const TYPES: [&str; 3] = ["user.created", "user.updated", "user.deleted"];
const FORBIDDEN: u16 = 403;
const BATCH: usize = 8;
const ROUND: Duration = Duration::from_millis(500);
/// The leader gives up what is silent for this long.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);

fn event(seq: i64, user_id: i64, event_type: &str) -> OutboxEvent {
    OutboxEvent {
        seq,
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
enum Fate {
    Passes,
    Refused,
    Forbidden,
    /// Neither confirmed nor refused.
    Silent,
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Write {
        user: i64,
        event_type: usize,
    },
    Read,
    ReadLeft,
    Publish,
    /// One of the flights lands.
    Land(prop::sample::Index),
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

fn action() -> impl Strategy<Value = Action> {
    let fate = prop_oneof![
        3 => Just(Fate::Passes),
        1 => Just(Fate::Refused),
        1 => Just(Fate::Forbidden),
        1 => Just(Fate::Silent),
    ];
    prop_oneof![
        8 => (0..6_i64, 0..3_usize).prop_map(|(user, event_type)| Action::Write { user, event_type }),
        6 => Just(Action::Read),
        3 => Just(Action::ReadLeft),
        6 => Just(Action::Publish),
        8 => any::<prop::sample::Index>().prop_map(Action::Land),
        1 => Just(Action::Close),
        1 => (0..3_usize, fate).prop_map(|(event_type, fate)| Action::Decide { event_type, fate }),
        2 => Just(Action::Wait),
        1 => Just(Action::Restart),
    ]
}

struct World {
    schedule: Schedule,
    table: BTreeMap<i64, OutboxEvent>,
    next_place: i64,
    frontier: i64,
    flights: Vec<(Flight, Instant)>,
    now: Instant,
    fates: [Fate; 3],
    /// Of each user the last place that the broker took.
    published: HashMap<i64, i64>,
    quarantined: HashSet<i64>,
    /// Events that were taken, repeats included.
    taken: Vec<i64>,
}

impl World {
    fn new() -> Self {
        Self {
            schedule: Schedule::default(),
            table: BTreeMap::new(),
            next_place: 1,
            frontier: 0,
            flights: Vec::new(),
            now: Instant::now(),
            fates: [Fate::Passes; 3],
            published: HashMap::new(),
            quarantined: HashSet::new(),
            taken: Vec::new(),
        }
    }

    fn write(&mut self, user: i64, event_type: &str) {
        self.table.insert(self.next_place, event(self.next_place, user, event_type));
        self.next_place += 1;
    }

    fn rows(&self, after: i64, up_to: i64, limit: usize) -> Vec<OutboxEvent> {
        let known: HashSet<i64> = self.schedule.known_after(after).into_iter().collect();
        let rows = self.table.range(after + 1..).take_while(|(place, _)| **place <= up_to);
        let rows = rows.filter(|(place, _)| !known.contains(place));
        rows.take(limit).map(|(_, event)| event.clone()).collect()
    }

    fn read(&mut self) {
        let rows = self.rows(self.frontier, i64::MAX, self.schedule.room().min(BATCH));
        for row in rows {
            self.frontier = row.seq;
            self.schedule.add(row);
        }
    }

    fn read_left(&mut self) {
        if let Some((name, after, limit)) = self.schedule.readable_left() {
            let name = name.to_owned();
            let rows = self.rows(after, self.frontier, limit);
            let all = rows.len() < limit;
            self.schedule.add_left(&name, rows, all);
        }
    }

    fn publish(&mut self) {
        let is_aside = self.schedule.set_aside(self.now);
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

    fn fate(&self, event: &OutboxEvent) -> Fate {
        self.fates[TYPES.iter().position(|name| *name == event.event_type).unwrap()]
    }

    fn land(&mut self, place: usize) {
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

    fn close(&mut self) {
        let (main, trial) = self.flights.drain(..).partition(|(flight, _)| flight.track == Track::Main);
        self.flights = trial;
        let main: Vec<_> = main;
        for (flight, _) in main {
            self.settle(&flight, Outcome::ChannelClosed(FORBIDDEN));
        }
    }

    fn settle(&mut self, flight: &Flight, outcome: Outcome) {
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

    fn restart(&mut self) {
        self.frontier = self.schedule.settled().map_or(self.frontier, |settled| settled.min(self.frontier));
        self.flights.clear();
        self.schedule = Schedule::default();
    }

    fn act(&mut self, action: Action) {
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
    fn run(&mut self, rounds: usize) {
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

proptest! {
    #[test]
    fn whatever_happens_a_users_order_holds_and_in_the_end_nothing_is_left(
        actions in prop::collection::vec(action(), 0..300)
    ) {
        let mut world = World::new();
        for action in actions {
            world.act(action);
        }
        world.fates = [Fate::Passes; 3];
        world.run(400);
        prop_assert!(world.table.is_empty(), "{} left: {:?}", world.table.len(), world.schedule);
        let places: HashSet<i64> = world.taken.iter().copied().chain(world.quarantined.iter().copied()).collect();
        prop_assert_eq!(places.len(), usize::try_from(world.next_place - 1).unwrap());
    }

    #[test]
    fn events_of_a_type_that_is_refused_forbidden_or_silent_hold_no_others_up(
        fate in prop_oneof![Just(Fate::Refused), Just(Fate::Forbidden), Just(Fate::Silent)],
        before in 0..40_i64,
        others in prop::collection::vec(0..2_usize, 1..60),
    ) {
        let mut world = World::new();
        world.fates[2] = fate;
        for user in 0..before {
            world.write(1_000 + user, TYPES[2]);
        }
        for (user, event_type) in (0..).zip(&others) {
            world.write(user, TYPES[*event_type]);
        }
        // Each round lasts a moment in which what is in flight lands; all of them less than a silent one is waited for.
        world.run(19);
        prop_assert!(world.table.values().all(|event| event.event_type == TYPES[2]), "{:?}", world.schedule);
        prop_assert!(fate == Fate::Forbidden || world.table.len() == usize::try_from(before).unwrap());
    }
}

#[test]
fn a_type_begins_with_one_event_and_a_refused_one_is_tried_once_a_pause() {
    let mut world = World::new();
    (0..20).for_each(|user| world.write(user, TYPES[2]));
    world.read();
    // On trial, and then on the main channel.
    for in_flight in [1, 1, 2, 4] {
        world.publish();
        assert_eq!(world.flights.len(), in_flight);
        if in_flight == 4 {
            world.fates[2] = Fate::Refused;
        }
        while !world.flights.is_empty() {
            world.land(0);
        }
        world.read();
    }
    world.publish();
    assert!(world.flights.is_empty(), "a pause");
    for _ in 0..3 {
        world.now = world.schedule.next_try().unwrap();
        world.publish();
        assert_eq!(world.flights.len(), 1);
        world.land(0);
    }
}

#[test]
fn an_event_is_quarantined_after_three_strikes_and_its_class_at_once() {
    let mut world = World::new();
    world.fates[2] = Fate::Forbidden;
    (0..5).for_each(|user| world.write(user, TYPES[2]));
    world.run(50);
    assert!(world.quarantined.is_empty(), "perhaps the broker takes nothing at all");
    world.write(9, TYPES[1]);
    world.run(20);
    assert_eq!(world.quarantined.len(), 5);
    // The class is known.
    world.write(6, TYPES[2]);
    world.read();
    world.publish();
    world.land(0);
    assert_eq!(world.quarantined.len(), 6);
}

#[test]
fn one_bad_event_among_good_ones_of_its_type_is_found_and_the_others_pass() {
    let mut schedule = Schedule::default();
    (1..=50).for_each(|n| schedule.add(event(n, n, TYPES[1])));
    let (mut now, mut passed, mut quarantined) = (Instant::now(), 0, Vec::new());
    for _ in 0..200 {
        let flights: Vec<Flight> = std::iter::from_fn(|| schedule.next(now)).collect();
        for track in [Track::Main, Track::Trial] {
            let on_track: Vec<_> = flights.iter().filter(|flight| flight.track == track).collect();
            let is_closed = on_track.iter().any(|flight| flight.event.seq == 20);
            for flight in on_track {
                let outcome = if is_closed { Outcome::ChannelClosed(FORBIDDEN) } else { Outcome::Confirmed };
                passed += usize::from(!is_closed);
                if schedule.settle(flight, outcome, now) {
                    quarantined.push(flight.event.seq);
                }
            }
        }
        now += Duration::from_millis(500);
    }
    assert_eq!((passed, quarantined), (49, vec![20]));
}
