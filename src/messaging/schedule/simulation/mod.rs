//! Tests the schedule with a table and a broker that behave in any way: what it must never do, and
//! what it must do in the end.

mod world;

use std::collections::HashSet;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use self::world::{Action, FORBIDDEN, Fate, TYPES, World, event};
use super::lane::LANES;
use super::{Outcome, Publish, Schedule, Settled};

fn action() -> impl Strategy<Value = Action> {
    let fate = prop_oneof![
        3 => Just(Fate::Passes),
        1 => Just(Fate::Rejected),
        1 => Just(Fate::Forbidden),
        1 => Just(Fate::Silent),
        1 => Just(Fate::PartlySilent),
        1 => Just(Fate::PartlyRejected),
    ];
    prop_oneof![
        8 => (0..6_i64, 0..3_usize).prop_map(|(user, event_type)| Action::Write { user, event_type }),
        12 => any::<bool>().prop_map(|new| Action::BeginWork { new }),
        12 => Just(Action::FinishWork),
        3 => Just(Action::Renew),
        6 => Just(Action::Publish),
        8 => any::<prop::sample::Index>().prop_map(Action::Answer),
        1 => (0..3_usize).prop_map(Action::Lose),
        1 => (0..3_usize, fate).prop_map(|(event_type, fate)| Action::Decide { event_type, fate }),
        2 => Just(Action::Wait),
        1 => Just(Action::Restart),
    ]
}

proptest! {
    #[test]
    fn each_users_events_stay_in_order_and_none_is_left_over(
        actions in prop::collection::vec(action(), 0..300)
    ) {
        let mut world = World::new();
        for action in actions {
            world.act(action);
        }
        world.fates = [Fate::Passes; 3];
        world.run(400);
        prop_assert!(world.rows().count() == 0, "{} left: {:?}", world.rows().count(), world.schedule);
        let positions: HashSet<i64> = world.taken.iter().copied().chain(world.quarantined.iter().copied()).collect();
        prop_assert_eq!(positions.len(), usize::try_from(world.next_position - 1).unwrap());
        prop_assert!(world.schedule.backlog.is_empty(), "{:?}", world.schedule);
    }

    #[test]
    fn a_failing_event_type_delays_no_other_type(
        fate in prop_oneof![Just(Fate::Rejected), Just(Fate::Forbidden), Just(Fate::Silent), Just(Fate::Slow(1))],
        before in 0..70_i64,
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
        // All rounds together are shorter than the answer timeout.
        world.run(19);
        prop_assert!(world.rows().all(|event| event.event_type == TYPES[2]), "{:?}", world.schedule);
        let waits = world.rows().count() == usize::try_from(before).unwrap();
        prop_assert!(waits || matches!(fate, Fate::Forbidden | Fate::Slow(_)));
    }

    #[test]
    fn a_queue_that_refuses_part_of_a_type_delays_only_that_part(
        fate in prop_oneof![Just(Fate::PartlySilent), Just(Fate::PartlyRejected)],
        users in 1..128_i64,
    ) {
        let mut world = World::new();
        world.fates[1] = fate;
        (1..=users).for_each(|user| world.write(user, TYPES[1]));
        world.run(1_000);
        let mut left: Vec<i64> = world.rows().map(|event| event.user_id).collect();
        left.sort_unstable();
        prop_assert_eq!(left, (1..=users).filter(|user| user % 4 == 0).collect::<Vec<_>>());
        world.fates[1] = Fate::Passes;
        world.run(100);
        prop_assert!(world.rows().count() == 0, "{} left: {:?}", world.rows().count(), world.schedule);
    }
}

#[test]
fn followers_of_rejected_events_leave_room_for_passing_ones() {
    let mut world = World::new();
    world.fates[1] = Fate::PartlyRejected;
    for _ in 0..20 {
        (1..=80).for_each(|user| world.write(user, TYPES[1]));
        world.run(20);
    }
    world.run(200);
    assert!(
        world.rows().all(|event| event.user_id % 4 == 0),
        "{} left",
        world.rows().count()
    );
    world.fates[1] = Fate::Passes;
    world.run(600);
    assert_eq!(world.rows().count(), 0, "{:?}", world.schedule);
}

#[test]
fn held_events_are_read_after_those_the_last_session_had_loaded() {
    let mut schedule = Schedule::default();
    schedule.quarantined(&event(1, 7, TYPES[1]));
    assert!(
        schedule.wanted().is_none()
            && schedule.backlog.take_followers().is_none()
            && !schedule.has_work()
    );
    schedule.backlog.catch_up();
    assert!(schedule.wanted().is_some() && schedule.backlog.take_followers().is_some());
}

#[test]
fn a_users_held_events_are_read_after_its_late_event() {
    let mut schedule = Schedule::default();
    schedule.backlog.catch_up();
    schedule.backlog.follow(7);
    schedule.add(event(1, 7, TYPES[1]));
    assert!(
        schedule.backlog.take_followers().is_none(),
        "it is in memory"
    );
    let now = Instant::now();
    schedule.channel_is_new(1);
    let publish = schedule.next(now, [true; LANES]).unwrap();
    assert_eq!(
        schedule.settle(&publish, Outcome::Confirmed, now),
        Settled::Done
    );
    assert_eq!(schedule.backlog.take_followers().unwrap().0, [7]);
}

#[test]
fn a_type_starts_with_one_probe_and_retries_once_per_pause() {
    let mut world = World::new();
    (0..20).for_each(|user| world.write(user, TYPES[2]));
    world.read();
    // A probe, and then the ramp.
    for in_flight in [1, 1, 2, 4] {
        world.publish();
        assert_eq!(world.in_flight.len(), in_flight);
        if in_flight == 4 {
            world.fates[2] = Fate::Rejected;
        }
        while !world.in_flight.is_empty() {
            world.answer(0);
        }
        world.read();
    }
    world.renew();
    world.publish();
    assert!(world.in_flight.is_empty(), "a pause");
    for _ in 0..3 {
        world.now = world.schedule.next_try().unwrap();
        world.renew();
        world.publish();
        assert_eq!(world.in_flight.len(), 1);
        world.answer(0);
    }
}

#[test]
fn a_user_with_many_events_leaves_memory_for_others() {
    let mut world = World::new();
    for _ in 0..500 {
        world.write(1, TYPES[1]);
    }
    world.write(2, TYPES[1]);
    // At most one event of each user passes per round.
    world.run(500 / 8 + 2);
    assert!(
        world.rows().all(|event| event.user_id == 1),
        "{:?}",
        world.schedule
    );
    world.run(501);
    assert!(
        world.rows().count() == 0 && world.schedule.backlog.is_empty(),
        "{} left: {:?}",
        world.rows().count(),
        world.schedule
    );
}

#[test]
fn a_created_user_with_many_updates_waits_for_no_other_type() {
    let mut world = World::new();
    world.write(1, TYPES[0]);
    (0..100).for_each(|_| world.write(1, TYPES[1]));
    world.run(10);
    world.fates[0] = Fate::Rejected;
    (0..20).for_each(|user| world.write(1_000 + user, TYPES[0]));
    world.run(200);
    assert!(
        world.rows().all(|event| event.event_type == TYPES[0]),
        "{:?}",
        world.schedule
    );
}

#[test]
fn users_whose_next_events_are_refused_use_bounded_memory() {
    let mut world = World::new();
    world.fates[1] = Fate::Rejected;
    for user in 0..1_000 {
        world.write(user, TYPES[0]);
        world.write(user, TYPES[1]);
    }
    world.run(400);
    assert_eq!(world.rows().count(), 1_000);
    let in_memory = world.schedule.backlog.known_after(0).len();
    assert!(in_memory < 200, "{in_memory}");
}

#[test]
fn a_slow_queue_gets_all_it_can_confirm_and_no_event_twice() {
    let mut world = World::new();
    world.fates[1] = Fate::Slow(1);
    (0..300).for_each(|user| world.write(user, TYPES[1]));
    world.run(700);
    assert_eq!((world.rows().count(), world.taken.len()), (0, 300));
}

#[test]
fn quarantine_takes_three_failures_or_one_in_a_known_bad_class() {
    let mut world = World::new();
    world.fates[2] = Fate::Forbidden;
    (0..5).for_each(|user| world.write(user, TYPES[2]));
    world.run(50);
    assert!(
        world.quarantined.is_empty(),
        "perhaps the broker takes nothing at all"
    );
    // One that passes while another deletion fails for the first time proves nothing.
    for user in 10..20 {
        world.write(user, TYPES[1]);
        world.run(20);
    }
    assert_eq!(world.quarantined.len(), 5);
    // The class is known.
    world.write(6, TYPES[2]);
    world.read();
    world.renew();
    world.publish();
    world.answer(0);
    world.read();
    assert_eq!(world.quarantined.len(), 6);
}

#[test]
fn one_bad_event_of_a_type_is_isolated_and_the_others_pass() {
    let mut schedule = Schedule::default();
    (1..=50).for_each(|n| schedule.add(event(n, n, TYPES[1])));
    let mut now = Instant::now();
    let mut passed = 0;
    let mut quarantined = Vec::new();
    for _ in 0..200 {
        for lane in schedule.lanes_without_channel(now) {
            schedule.channel_is_new(lane);
        }
        let in_flight: Vec<Publish> =
            std::iter::from_fn(|| schedule.next(now, [true; LANES])).collect();
        let closes = in_flight.iter().any(|publish| publish.event.seq == 20);
        for publish in in_flight {
            let outcome = if closes {
                Outcome::ChannelClosed(FORBIDDEN)
            } else {
                Outcome::Confirmed
            };
            match schedule.settle(&publish, outcome, now) {
                Settled::Done => passed += 1,
                Settled::Quarantined => quarantined.push(publish.event.seq),
                Settled::Waits => {}
            }
        }
        now += Duration::from_millis(500);
    }
    assert_eq!((passed, quarantined), (49, vec![20]));
}
