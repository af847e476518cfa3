//! The schedule before a table and a broker that behave in any way: what it must never do, and what it must do in the end.

mod world;

use std::collections::HashSet;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use self::world::{Action, FORBIDDEN, Fate, TYPES, World, event};
use super::flow::Track;
use super::schedule::{Flight, Outcome, Schedule};

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
