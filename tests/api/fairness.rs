//! One user, one type of events or one transaction holds up nobody else's events.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgConnection;
use tokio::time::interval;

use crate::api::poison::outbox;
use harness::{
    App, Observer, World, assert_delivered_exactly, management, start_audited, start_observed,
    until,
};

/// Rows as the service writes them, for users that nobody needs to know.
async fn insert_events(world: &World, event_type: &str, users: &str, count: i32) {
    let insert = format!(
        "INSERT INTO outbox (event_id, event_type, user_id, user_version, trace_id, occurred_at, payload)
         SELECT gen_random_uuid(), '{event_type}', {users}, n, 'by-hand', clock_timestamp(), 'null'
         FROM generate_series(1, {count}) AS n"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(insert))
        .execute(&world.pool)
        .await
        .unwrap();
}

/// A change of a user by hand, and its event.
async fn change(transaction: &mut PgConnection, user: i64) {
    let change = "UPDATE users SET name = 'Поздно', version = version + 1 WHERE id = $1";
    sqlx::query(change)
        .bind(user)
        .execute(transaction)
        .await
        .unwrap();
}

async fn insert_event(transaction: &mut PgConnection, user: i64) {
    let insert = "INSERT INTO outbox (event_id, event_type, user_id, user_version, trace_id, occurred_at, payload)
                  VALUES (gen_random_uuid(), 'user.updated', $1, 2, 'by-hand', now(), 'null')";
    sqlx::query(insert)
        .bind(user)
        .execute(transaction)
        .await
        .unwrap();
}

/// The next event of the user, and how many others came before it.
async fn until_event_of(observer: &mut Observer, user: i64) -> usize {
    let mut others = 0;
    while observer.next_bodies(1).await[0]["user_id"] != user {
        others += 1;
    }
    others
}

#[tokio::test]
async fn a_full_deletion_queue_delays_no_others_and_gets_one_probe() {
    let (world, mut observer, app) = start_observed().await;
    for n in 0..30 {
        app.create_user(&format!("Имя{n}")).await;
    }
    observer.next_bodies(30).await;
    let policy = observer.refuse_deletions(&world).await;
    for id in 1..=20 {
        assert_eq!(app.delete(&format!("/users/{id}")).await.status, 204);
    }
    let mut deletions = HashMap::<Value, usize>::new();
    let mut tick = interval(Duration::from_millis(20));
    for n in 0..200 {
        tick.tick().await;
        let body = json!({"name": format!("Другое{n}")});
        let began = Instant::now();
        assert_eq!(
            app.put(&format!("/users/{}", 21 + n % 10), &body)
                .await
                .status,
            200
        );
        loop {
            let event = observer.next_bodies(1).await.remove(0);
            if event["event_type"] == "user.updated" {
                break;
            }
            *deletions.entry(event["event_id"].clone()).or_default() += 1;
        }
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
    }
    let sent: usize = deletions.values().sum();
    assert!(sent < 20 + 30, "deletions were published {sent} times");
    assert!(!world.outbox_is_empty().await);
    management(Method::DELETE, &policy).await;
    while deletions.len() < 20 {
        let event = observer.next_bodies(1).await.remove(0);
        deletions.insert(event["event_id"].clone(), 1);
    }
    world.until_outbox_is_empty().await;
}

#[tokio::test]
async fn refused_events_beyond_memory_come_in_order_under_any_leader() {
    let world = World::new().await;
    let mut observer = Observer::new(&world).await;
    let policy = observer.refuse_deletions(&world).await;
    insert_events(&world, "user.deleted", "1000 + n", 5_000).await;
    let app = App::start(&world).await;
    app.log
        .wait_for("RabbitMQ refused events, they stay in the outbox", |_| true)
        .await;
    for n in 0..20 {
        let began = Instant::now();
        let id = app.create_user(&format!("Имя{n}")).await;
        until_event_of(&mut observer, id).await;
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
    }
    // What follows a refused event of its user waits with it.
    insert_events(&world, "user.updated", "1000 + n", 5_000).await;
    let held = async || {
        outbox(&world, &["status"]).await.1["held"]
            .as_i64()
            .unwrap()
    };
    until("updates among the held events", async || {
        held().await >= 5_000
    })
    .await;
    until("the gauge of held events", async || {
        let gauge = format!("\noutbox_held {}\n", held().await);
        app.get("/metrics").await.text.contains(&gauge)
    })
    .await;
    drop(app);
    let app = App::start(&world).await;
    app.log.wait_for("Relay leads", |_| true).await;
    let began = Instant::now();
    let id = app.create_user("Анна").await;
    until_event_of(&mut observer, id).await;
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    management(Method::DELETE, &policy).await;
    let mut deleted = HashSet::new();
    let mut updated = 0;
    while updated < 5_000 {
        let event = &observer.next_bodies(1).await[0];
        let user = event["user_id"].as_i64().unwrap();
        if event["event_type"] == "user.deleted" {
            deleted.insert(user);
        } else if event["trace_id"] == "by-hand" {
            updated += 1;
            assert!(deleted.contains(&user), "user {user} was updated before");
        }
    }
    world.until_outbox_is_empty().await;
    assert_eq!(held().await, 0);
}

#[tokio::test]
async fn three_thousand_forbidden_deletions_delay_and_lose_nothing() {
    let world = World::new().await;
    let mut observer = Observer::new(&world).await;
    world.forbid_deletions().await;
    insert_events(&world, "user.deleted", "1000 + n", 3_000).await;
    let began = Instant::now();
    let app = App::start(&world).await;
    let id = app.create_user("Анна").await;
    until_event_of(&mut observer, id).await;
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    until("a class that is known", async || {
        let began = Instant::now();
        assert_eq!(
            app.put(
                &format!("/users/{id}"),
                &json!({"name": uuid::Uuid::new_v4()})
            )
            .await
            .status,
            200
        );
        until_event_of(&mut observer, id).await;
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
        let (_, state) = outbox(&world, &["status"]).await;
        let pending = state["pending"].as_i64().unwrap();
        let quarantined = state["quarantined"].as_i64().unwrap();
        // And the last updates, confirmed and not deleted yet.
        assert!(
            (3_000..=3_010).contains(&(pending + quarantined)),
            "{state}"
        );
        quarantined > 100
    })
    .await;
    assert!(
        app.log
            .matching("Session lost, starting it again", |line| line["session"]
                == "relay")
            .is_empty()
    );
}

#[tokio::test]
async fn twenty_thousand_events_of_one_user_do_not_delay_the_next() {
    let world = World::new().await;
    let mut observer = Observer::new(&world).await;
    insert_events(&world, "user.updated", "1000", 20_000).await;
    insert_events(&world, "user.updated", "2000", 1).await;
    let _app = App::start(&world).await;
    let before = until_event_of(&mut observer, 2000).await;
    assert!(before < 2_000, "{before} came before");
    for version in before + 1..=before + 500 {
        assert_eq!(observer.next_bodies(1).await[0]["version"], version);
    }
}

#[tokio::test]
async fn a_late_commit_is_published_before_its_users_next_event() {
    let (world, mut observer, app) = start_audited().await;
    let late = app.create_user("Анна").await;
    let other = app.create_user("Яна").await;
    let mut transaction = world.pool.begin().await.unwrap();
    change(&mut transaction, late).await;
    insert_event(&mut transaction, late).await;
    let began = Instant::now();
    let mut tick = interval(Duration::from_millis(50));
    // Longer than the lease.
    for n in 0.. {
        tick.tick().await;
        let body = json!({"name": format!("Другое{n}")});
        assert_eq!(app.put(&format!("/users/{other}"), &body).await.status, 200);
        if began.elapsed() > Duration::from_secs(11) {
            break;
        }
    }
    transaction.commit().await.unwrap();
    assert_eq!(
        app.put(&format!("/users/{late}"), &json!({"name": "Ева"}))
            .await
            .status,
        200
    );
    assert_eq!(assert_delivered_exactly(&world, &mut observer).await, 0);
}

#[tokio::test]
async fn a_lower_position_from_a_later_transaction_is_not_skipped() {
    let (world, mut observer, app) = start_audited().await;
    let quick = app.create_user("Анна").await;
    let slow = app.create_user("Яна").await;
    world.until_outbox_is_empty().await;
    let mut first = world.pool.begin().await.unwrap();
    let mut second = world.pool.begin().await.unwrap();
    change(&mut first, quick).await;
    change(&mut second, slow).await;
    // The second transaction draws the first place, and is not among those that a snapshot names as
    // running.
    insert_event(&mut second, slow).await;
    insert_event(&mut first, quick).await;
    first.commit().await.unwrap();
    until_event_of(&mut observer, quick).await;
    until_event_of(&mut observer, slow).await;
    until_event_of(&mut observer, quick).await;
    let published = app.create_user("Ева").await;
    until_event_of(&mut observer, published).await;
    second.commit().await.unwrap();
    assert_eq!(
        app.put(&format!("/users/{slow}"), &json!({"name": "Ева"}))
            .await
            .status,
        200
    );
    let versions = observer
        .next_bodies(2)
        .await
        .iter()
        .map(|event| event["version"].as_i64())
        .collect::<Vec<_>>();
    assert_eq!(versions, [Some(2), Some(3)]);
}
