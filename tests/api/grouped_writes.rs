//! Compares grouped writes with sequential writes: under any concurrency, a caller cannot tell
//! which of the two wrote.

mod bounds;

use futures_util::future::join_all;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;
use sqlx::{Connection, PgConnection};
use user_management_api::testing::{
    Change, Context, DatabaseError, Deletion, EventHeader, Name, Outcome, PasswordHash,
    Precondition, Route, TraceId, Update, User, UserWrites, Version, Versions,
};
use uuid::Uuid;

use harness::library::{add_users, check, database, id, key, runtime};
use harness::{App, World, until};

const USERS: usize = 5;
const CASES: u32 = 30;

/// What a client asks for. Few values, so that some change nothing.
#[derive(Clone, Copy, Debug)]
enum Ask {
    Update {
        name: Option<u8>,
        surname: Option<u8>,
        password: bool,
    },
    Delete,
}

fn asks() -> impl Strategy<Value = Ask> {
    let value = || prop::option::of(0..3_u8);
    let update = (value(), value(), prop::bool::weighted(0.1));
    prop_oneof![
        9 => update.prop_map(|(name, surname, password)| Ask::Update { name, surname, password }),
        1 => Just(Ask::Delete),
    ]
}

fn event(trace_id: TraceId) -> EventHeader {
    EventHeader::new(Context {
        trace_id,
        actor: None,
    })
}

/// `number` distinguishes the writes of a case; it is in their trace ids.
fn change(user: usize, ask: Ask, number: usize) -> Change {
    let trace_id = TraceId::parse(format!("write-{number}").as_bytes()).unwrap();
    let name = |value: u8| Name::parse(&value.to_string()).unwrap();
    let id = id(user);
    let event = event(trace_id);
    let precondition = Precondition::default();
    let Ask::Update {
        name: first,
        surname,
        password,
    } = ask
    else {
        return Change::Deletion(Deletion {
            id,
            precondition,
            event,
        });
    };
    let update = Update {
        id,
        name: first.map(name),
        surname: surname.map(name),
        precondition,
        event,
    };
    if password {
        Change::UpdateWithPassword(update, PasswordHash::from_phc("$argon2id$new"))
    } else {
        Change::Update(update)
    }
}

/// Few versions, so that some hold and some do not.
fn preconditions() -> impl Strategy<Value = Precondition> {
    let some = || {
        let these = vec((1..5_i64).prop_map(Version::stored), 0..3);
        prop_oneof![
            1 => Just(Versions::All),
            9 => these.prop_map(Versions::These),
        ]
    };
    let one_of = prop::option::weighted(0.3, some());
    let none_of = prop::option::weighted(0.1, some());
    (one_of, none_of).prop_map(|(one_of, none_of)| Precondition { one_of, none_of })
}

fn on(mut change: Change, precondition: &Precondition) -> Change {
    match &mut change {
        Change::Update(update) | Change::UpdateWithPassword(update, _) => {
            update.precondition = precondition.clone();
        }
        Change::Deletion(deletion) => deletion.precondition = precondition.clone(),
    }
    change
}

fn renamed(user: usize, name: Option<Name>, surname: Option<Name>) -> Change {
    Change::Update(Update {
        id: id(user),
        name,
        surname,
        precondition: Precondition::default(),
        event: event(TraceId::generate()),
    })
}

fn rename(user: usize, name: &str) -> Change {
    renamed(user, Some(Name::parse(name).unwrap()), None)
}

fn event_of(change: &Change) -> Uuid {
    match change {
        Change::Update(update) | Change::UpdateWithPassword(update, _) => update.event.id,
        Change::Deletion(deletion) => deletion.event.id,
    }
}

/// The user after the change, or before the deletion.
fn changed(outcome: Outcome) -> User {
    match outcome {
        Outcome::Changed(user) => user,
        outcome => panic!("{outcome:?}"),
    }
}

/// Everything that a caller can see of an answer, except times.
fn seen(answer: &Result<Outcome, DatabaseError>) -> String {
    let (user, changed) = match answer {
        Ok(Outcome::NotFound) => return "no such user".to_owned(),
        Ok(Outcome::Stale(version)) => return format!("stale: {version}"),
        Ok(Outcome::Changed(user)) => (user, true),
        Ok(Outcome::Unchanged(user)) => (user, false),
        Err(error) => return error.to_string(),
    };
    let User {
        id,
        name,
        surname,
        version,
        ..
    } = user;
    format!(
        "{id} {} {} {version} {changed}",
        name.as_str(),
        surname.as_str()
    )
}

/// Everything that is stored, except times and event ids; each user's events in order.
async fn stored(world: &World) -> Vec<String> {
    let users =
        "SELECT concat_ws(' ', id, name, surname, password, version) FROM users ORDER BY id";
    let events =
        "SELECT concat_ws(' ', event_type, user_id, user_version, trace_id, payload) FROM outbox
                  ORDER BY user_id, seq";
    let mut stored: Vec<String> = sqlx::query_scalar(users)
        .fetch_all(&world.pool)
        .await
        .unwrap();
    stored.extend(
        sqlx::query_scalar::<_, String>(events)
            .fetch_all(&world.pool)
            .await
            .unwrap(),
    );
    stored
}

async fn start_over(world: &World) {
    sqlx::query("TRUNCATE users, outbox RESTART IDENTITY")
        .execute(&world.pool)
        .await
        .unwrap();
    add_users(world, USERS).await;
}

async fn world() -> World {
    let world = World::new().await;
    add_users(&world, USERS).await;
    world
}

/// The users who do not have exactly one event per version after the first, in order.
async fn users_with_wrong_events(world: &World) -> Vec<i64> {
    let query = "SELECT id FROM users LEFT JOIN outbox ON user_id = id GROUP BY id
                 HAVING coalesce(array_agg(user_version ORDER BY seq) FILTER (WHERE seq IS NOT NULL), '{}')
                        <> ARRAY(SELECT generate_series(2, version))";
    sqlx::query_scalar(query)
        .fetch_all(&world.pool)
        .await
        .unwrap()
}

#[test]
fn concurrent_writes_have_the_effect_of_sequential_ones() {
    let runtime = runtime();
    let (world, other_world) = runtime.block_on(async { (World::new().await, World::new().await) });
    for route in [Route::Direct, Route::TransactionPooler] {
        let _entered = runtime.enter();
        let grouped = UserWrites::grouped(&database(&world, route));
        let one_by_one = UserWrites::one_by_one(database(&other_world, route));
        // More than a group holds, with missing users.
        let writes = vec((1..=USERS + 2, asks(), preconditions()), 1..300);
        check(CASES, &writes, |writes| {
            let changes = || {
                writes
                    .iter()
                    .enumerate()
                    .map(|(number, (user, ask, precondition))| {
                        on(change(*user, *ask, number), precondition)
                    })
            };
            let (at_once, in_turn) = runtime.block_on(async {
                tokio::join!(start_over(&world), start_over(&other_world));
                let at_once = join_all(changes().map(|change| grouped.write(change))).await;
                let mut in_turn = Vec::new();
                for change in changes() {
                    in_turn.push(one_by_one.write(change).await);
                }
                (at_once, in_turn)
            });
            for (number, (at_once, in_turn)) in at_once.iter().zip(&in_turn).enumerate() {
                assert_eq!(
                    seen(at_once),
                    seen(in_turn),
                    "write {number}: {:?}",
                    writes[number]
                );
            }
            assert_eq!(
                runtime.block_on(stored(&world)),
                runtime.block_on(stored(&other_world))
            );
        });
        runtime.block_on(grouped.close());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_racing_partial_updates_both_survive_a_thousand_times() {
    let world = world().await;
    let grouped = UserWrites::grouped(&database(&world, Route::Direct));
    for round in 0..1000_u16 {
        let value = Name::parse(&round.to_string()).unwrap();
        let write = |name: Option<Name>, surname: Option<Name>| {
            let grouped = grouped.clone();
            let change = renamed(1, name, surname);
            tokio::spawn(async move {
                match grouped.write(change).await.unwrap() {
                    Outcome::Changed(user) | Outcome::Unchanged(user) => user,
                    outcome => panic!("{outcome:?}"),
                }
            })
        };
        let first = write(Some(value.clone()), None);
        let second = write(None, Some(value.clone()));
        let first = first.await.unwrap();
        let second = second.await.unwrap();
        let saw_both = |user: &User| user.name == value && user.surname == value;
        assert!(
            saw_both(&first) || saw_both(&second),
            "round {round}: {first:?}, {second:?}"
        );
    }
    let version: i64 = world.value("SELECT version FROM users WHERE id = 1").await;
    // In round 0 the name is what it was.
    assert_eq!(version, 2000);
    assert_eq!(users_with_wrong_events(&world).await, [] as [i64; 0]);
}

#[test]
fn abandoned_writes_are_whole_and_undo_no_others() {
    let runtime = runtime();
    let world = runtime.block_on(world());
    let grouped = runtime.block_on(async { UserWrites::grouped(&database(&world, Route::Direct)) });
    check(
        CASES,
        &vec((1..=USERS, asks(), any::<bool>(), 0..3_u8), 1..200),
        |callers| {
            runtime.block_on(async {
                start_over(&world).await;
                let tasks = callers.into_iter().enumerate().map(
                    |(number, (user, ask, goes_away, turns))| {
                        let grouped = grouped.clone();
                        let change = change(user, ask, number);
                        let event_id = event_of(&change);
                        (
                            event_id,
                            tokio::spawn(async move { grouped.write(change).await }),
                            goes_away.then_some(turns),
                        )
                    },
                );
                let mut answered = Vec::new();
                for (event_id, task, goes_away_after) in tasks.collect::<Vec<_>>() {
                    for _ in 0..goes_away_after.unwrap_or_default() {
                        tokio::task::yield_now().await;
                    }
                    if goes_away_after.is_some() {
                        task.abort();
                    } else if let Outcome::Changed(_) = task.await.unwrap().unwrap() {
                        answered.push(event_id);
                    }
                }
                // A write of a user whose callers have all gone may be on its way: another one
                // comes after it.
                join_all((1..=USERS).map(|user| grouped.write(rename(user, "last")))).await;
                let stored = "SELECT count(*) FROM outbox WHERE event_id = ANY($1)";
                let stored: i64 = sqlx::query_scalar(stored)
                    .bind(&answered)
                    .fetch_one(&world.pool)
                    .await
                    .unwrap();
                assert_eq!(stored, key(answered.len()));
                assert_eq!(users_with_wrong_events(&world).await, [] as [i64; 0]);
            });
        },
    );
}

/// Makes the database refuse the service's writes of user 2.
const REFUSE: &str = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                          $$ BEGIN RAISE EXCEPTION 'refused by the test'; END $$;
                      CREATE TRIGGER refuse BEFORE INSERT ON outbox FOR EACH ROW
                          WHEN (NEW.user_id = 2) EXECUTE FUNCTION refuse()";

#[tokio::test(flavor = "multi_thread")]
async fn a_write_refused_by_the_database_fails_alone() {
    let world = world().await;
    sqlx::raw_sql(REFUSE).execute(&world.pool).await.unwrap();
    let grouped = UserWrites::grouped(&database(&world, Route::Direct));
    for round in 1..=20 {
        let name = round.to_string();
        let answers = join_all((1..=USERS).map(|user| grouped.write(rename(user, &name)))).await;
        for (user, answer) in (1..=USERS).zip(answers) {
            match answer {
                Err(DatabaseError::Statement(_)) => assert_eq!(user, 2),
                answer => assert_eq!(changed(answer.unwrap()).name.as_str(), name),
            }
        }
    }
    let versions: Vec<i64> = world
        .value("SELECT array_agg(version ORDER BY id) FROM users")
        .await;
    assert_eq!(versions, [21, 1, 21, 21, 21]);
    assert_eq!(users_with_wrong_events(&world).await, [] as [i64; 0]);
}
