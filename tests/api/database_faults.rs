//! Faults of a reachable database: it ends connections, or a lock is held.

use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::Connection;

use harness::{App, Proxy, World, start, until};

#[tokio::test]
async fn connections_the_database_ends_fail_only_requests_in_flight() {
    let (world, app) = start().await;
    let id = app.create_user("Анна").await;
    world.until_outbox_is_empty().await;
    for round in 0..3 {
        // The requests' pool, the probe's, and the leader's connection with its lock.
        world.terminate_connections().await;
        assert_eq!(
            app.get(&format!("/users/{id}")).await.status,
            200,
            "a read is tried again"
        );
        until("a write", async || {
            let body = json!({"name": format!("Имя{round}")});
            app.put(&format!("/users/{id}"), &body).await.status == 200
        })
        .await;
        world.until_outbox_is_empty().await;
    }
    app.until_ready("ready").await;
}

#[tokio::test]
async fn a_locked_table_is_503_while_probes_and_events_continue() {
    let (world, app) = start().await;
    app.create_user("Анна").await;
    world.until_outbox_is_empty().await;
    let mut holder = sqlx::PgConnection::connect(&world.database_url)
        .await
        .unwrap();
    let mut lock = holder.begin().await.unwrap();
    sqlx::query("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *lock)
        .await
        .unwrap();
    // More than the pool holds: some wait for the lock, some for a connection.
    let body = json!({"name": "Яна"});
    let began = Instant::now();
    let answers = futures_util::future::join_all((0..30).map(|_| app.put("/users/1", &body))).await;
    for answer in answers {
        answer.assert_problem(503, "database_unavailable");
    }
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(app.get("/health/ready").await.status, 200);
    // The relay has a connection of its own.
    let event = "INSERT INTO outbox (event_id, event_type, user_id, user_version, trace_id, occurred_at, payload)
                 VALUES (gen_random_uuid(), 'user.updated', 1, 9, 'by-hand', now(), 'null')";
    sqlx::query(event).execute(&world.pool).await.unwrap();
    app.log
        .wait_for("Event received", |line| line["trace_id"] == "by-hand")
        .await;
    lock.rollback().await.unwrap();
    assert_eq!(app.put("/users/1", &body).await.status, 200);
}

#[tokio::test]
async fn a_slow_database_is_503_in_time_and_used_again_once_fast() {
    let world = World::new().await;
    let proxy = Proxy::before(&world.database_url).await;
    let app = App::start(&world)
        .with(&[("DATABASE_URL", &proxy.url(&world.database_url))])
        .await;
    app.create_user("Анна").await;
    proxy.slow(Duration::from_secs(1));
    let began = Instant::now();
    let body = json!({"name": "Яна"});
    let answers = futures_util::future::join_all((0..30).map(|_| app.put("/users/1", &body))).await;
    for answer in answers {
        answer.assert_problem(503, "database_unavailable");
    }
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(app.get("/health/live").await.status, 200);
    proxy.open();
    let opened = Instant::now();
    until("a write", async || {
        app.put("/users/1", &body).await.status == 200
    })
    .await;
    assert!(
        opened.elapsed() < Duration::from_secs(10),
        "{:?}",
        opened.elapsed()
    );
}

#[tokio::test]
async fn reset_connections_fail_only_requests_in_flight_and_reopen() {
    let world = World::new().await;
    let database = Proxy::before(&world.database_url).await;
    let broker = Proxy::before(&world.broker_url).await;
    let settings = [
        ("DATABASE_URL", database.url(&world.database_url)),
        ("RABBITMQ_URL", broker.url(&world.broker_url)),
    ];
    let app = App::start(&world)
        .with(&settings.each_ref().map(|(name, url)| (*name, url.as_str())))
        .await;
    app.create_user("Анна").await;
    for n in 0..3 {
        database.reset();
        broker.reset();
        app.put("/users/1", &json!({"name": format!("Имя{n}")}))
            .await
            .assert_problem(503, "database_unavailable");
        database.open();
        broker.open();
        until("a write", async || {
            let body = json!({"name": format!("Другое{n}")});
            app.put("/users/1", &body).await.status == 200
        })
        .await;
        world.until_outbox_is_empty().await;
    }
    app.until_ready("ready").await;
}
