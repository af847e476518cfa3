//! Compares coalesced reads with sequential reads: under any concurrency, a caller cannot tell
//! which of the two answered.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering::SeqCst;

use futures_util::future::join_all;
use proptest::collection::vec;
use proptest::prelude::*;
use sqlx::Connection;
use user_management_api::testing::{DatabaseError, Route, User, UserReads};

use harness::library::{add_users, check, database, id, key, runtime};
use harness::{World, start_with, until};

const USERS: usize = 6;
const CASES: u32 = 40;

/// A world with users 1 to [`USERS`], each named `0`.
async fn world() -> World {
    let world = World::new().await;
    add_users(&world, USERS).await;
    world
}

type Outcome = Result<Option<User>, DatabaseError>;

/// Everything that a caller can see of an answer.
fn seen(outcome: &Outcome) -> String {
    match outcome {
        Ok(None) => "no such user".to_owned(),
        Ok(Some(User {
            id,
            name,
            surname,
            version,
            created_at,
            updated_at,
        })) => {
            format!(
                "{id} {} {} {version} {created_at} {updated_at}",
                name.as_str(),
                surname.as_str()
            )
        }
        Err(error) => error.to_string(),
    }
}

#[test]
fn concurrent_reads_answer_as_sequential_reads_do() {
    let runtime = runtime();
    let world = runtime.block_on(world());
    for route in [Route::Direct, Route::TransactionPooler] {
        let _entered = runtime.enter();
        let database = database(&world, route);
        let coalesced = UserReads::coalesced(&database);
        let one_by_one = UserReads::one_by_one(database.clone());
        let expected: HashMap<usize, String> = (1..=USERS + 3)
            .map(|user| (user, seen(&runtime.block_on(one_by_one.get(id(user))))))
            .collect();
        // More than a batch holds, with repetitions and missing users.
        check(CASES, &vec(1..=USERS + 3, 1..400), |users| {
            let answers =
                runtime.block_on(join_all(users.iter().map(|user| coalesced.get(id(*user)))));
            for (user, answer) in users.iter().zip(&answers) {
                assert_eq!(seen(answer), expected[user], "user {user}");
            }
        });
        runtime.block_on(coalesced.close());
    }
}

/// What each of several tasks does, one step after the other. Task `n` alone writes user `n`.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write,
    Read(usize),
}

#[test]
fn a_read_sees_all_earlier_answered_writes_and_never_goes_back() {
    let runtime = runtime();
    let world = runtime.block_on(world());
    let coalesced =
        runtime.block_on(async { UserReads::coalesced(&database(&world, Route::Direct)) });
    // Each user's name counts its writes.
    let counters = || Arc::new((0..=USERS).map(|_| AtomicI64::new(0)).collect::<Vec<_>>());
    let begun = counters();
    let answered = counters();
    let step = prop_oneof![1 => Just(Step::Write), 3 => (1..=USERS).prop_map(Step::Read)];
    check(CASES, &vec(vec(step, 1..20), USERS), |scripts| {
        let tasks = (1..=USERS).zip(scripts).map(|(own, script)| {
            let coalesced = coalesced.clone();
            let pool = world.pool.clone();
            let begun = begun.clone();
            let answered = answered.clone();
            runtime.spawn(async move {
                let mut last_seen = vec![0; begun.len()];
                for step in script {
                    match step {
                        Step::Write => {
                            let name = begun[own].fetch_add(1, SeqCst) + 1;
                            let write = sqlx::query("UPDATE users SET name = $2 WHERE id = $1");
                            write
                                .bind(key(own))
                                .bind(name.to_string())
                                .execute(&pool)
                                .await
                                .unwrap();
                            answered[own].store(name, SeqCst);
                        }
                        Step::Read(user) => {
                            let least = answered[user].load(SeqCst).max(last_seen[user]);
                            let name = coalesced
                                .get(id(user))
                                .await
                                .unwrap()
                                .unwrap()
                                .name
                                .as_str()
                                .parse()
                                .unwrap();
                            let most = begun[user].load(SeqCst);
                            assert!(
                                (least..=most).contains(&name),
                                "user {user}: {name}, not {least} to {most}"
                            );
                            last_seen[user] = name;
                        }
                    }
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            runtime.block_on(task).unwrap();
        }
    });
}

#[test]
fn a_read_abandoned_by_its_caller_cancels_no_other() {
    let runtime = runtime();
    let world = runtime.block_on(world());
    let coalesced =
        runtime.block_on(async { UserReads::coalesced(&database(&world, Route::Direct)) });
    check(
        CASES,
        &vec((1..=USERS, any::<bool>(), 0..3_u8), 1..200),
        |callers| {
            runtime.block_on(async {
                let tasks = callers.into_iter().map(|(user, goes_away, turns)| {
                    let coalesced = coalesced.clone();
                    let task = tokio::spawn(async move { coalesced.get(id(user)).await });
                    (user, task, goes_away.then_some(turns))
                });
                for (user, task, goes_away_after) in tasks.collect::<Vec<_>>() {
                    if let Some(turns) = goes_away_after {
                        for _ in 0..turns {
                            tokio::task::yield_now().await;
                        }
                        task.abort();
                    } else {
                        assert_eq!(task.await.unwrap().unwrap().unwrap().id, id(user));
                    }
                }
            });
        },
    );
}

#[test]
fn an_unreadable_row_fails_only_the_reads_of_that_row() {
    let runtime = runtime();
    let world = runtime.block_on(world());
    let poison = "ALTER TABLE users RENAME TO people;
                  CREATE FUNCTION readable(id bigint, name text) RETURNS text LANGUAGE plpgsql AS $$
                  BEGIN IF id = 2 THEN RAISE 'unreadable'; END IF; RETURN name; END $$;
                  CREATE VIEW users AS SELECT id, readable(id, name) AS name, surname, version, created_at,
                      updated_at FROM people";
    let poison = sqlx::raw_sql(poison).execute(&world.pool);
    runtime.block_on(poison).unwrap();
    let coalesced =
        runtime.block_on(async { UserReads::coalesced(&database(&world, Route::Direct)) });
    check(8, &vec(1..=USERS, 1..50), |users| {
        let answers = runtime.block_on(join_all(users.iter().map(|user| coalesced.get(id(*user)))));
        for (user, answer) in users.iter().zip(answers) {
            match answer {
                Err(DatabaseError::Statement(_)) => assert_eq!(*user, 2),
                answer => assert_eq!(answer.unwrap().unwrap().id, id(*user)),
            }
        }
    });
}

#[tokio::test]
async fn reads_beyond_the_queue_limit_are_refused_and_others_answered() {
    const CAPACITY: usize = 8;
    let world = world().await;
    let coalesced = UserReads::with_capacity(&database(&world, Route::Direct), CAPACITY);
    coalesced.get(id(1)).await.unwrap();
    let mut holder = sqlx::PgConnection::connect(&world.database_url)
        .await
        .unwrap();
    let mut lock = holder.begin().await.unwrap();
    sqlx::query("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *lock)
        .await
        .unwrap();
    // More than the queue and a batch for each lane hold.
    let reads: Vec<_> = (0..400)
        .map(|_| {
            let coalesced = coalesced.clone();
            tokio::spawn(async move { coalesced.get(id(1)).await })
        })
        .collect();
    until("refusals", async || {
        reads.iter().any(tokio::task::JoinHandle::is_finished)
    })
    .await;
    lock.rollback().await.unwrap();
    let mut refused = 0;
    let mut answered = 0;
    for read in reads {
        match read.await.unwrap() {
            Err(DatabaseError::Overloaded) => refused += 1,
            answer => answered += usize::from(answer.unwrap().is_some()),
        }
    }
    assert!(
        refused > 0 && answered >= CAPACITY,
        "{refused} refused, {answered} answered"
    );
}

#[tokio::test]
async fn many_concurrent_requests_need_few_queries() {
    let (_world, app) = start_with(&[("COALESCE_READS", "true")]).await;
    let path = format!("/users/{}", app.create_user("Анна").await);
    let answers = join_all((0..200).map(|_| app.get(&path)));
    assert!(
        answers
            .await
            .iter()
            .all(|answer| answer.status == 200 && answer.body["name"] == "Анна")
    );
    assert_eq!(app.metric("coalesced_reads_total").await, 200);
    let statements = app.metric("coalesced_queries_total").await;
    assert!(statements < 200, "{statements}");
}
