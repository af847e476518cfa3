//! Start and stop.

use std::cell::Cell;
use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use reqwest::{Body, Method};
use serde_json::json;
use uuid::Uuid;

use harness::{Answer, App, World, eventually, new_user, start, start_observed, start_with, until};

#[tokio::test]
async fn sigterm_answers_requests_in_flight_and_exits_with_0() {
    let (world, mut app) = start().await;
    until("it leads", async || app.leads().await).await;
    // A request that is half sent when the signal comes.
    let (rest, body) = tokio::sync::oneshot::channel::<String>();
    let chunks = futures_util::stream::once(body);
    let request = app
        .request(Method::POST, "/users")
        .header("content-type", "application/json");
    let in_flight = tokio::spawn(Answer::of(request.body(Body::wrap_stream(chunks))));
    app.log
        .wait_for("Request started", |line| line["method"] == "POST")
        .await;
    let began = Instant::now();
    app.signal("TERM");
    app.log
        .wait_for("Stopping; a second signal stops at once", |_| true)
        .await;
    rest.send(new_user("Анна").to_string()).unwrap();
    assert_eq!(in_flight.await.unwrap().status, 201);
    assert_eq!(app.exit_status().await.code(), Some(0));
    assert!(
        began.elapsed() < Duration::from_secs(25),
        "{:?}",
        began.elapsed()
    );
    app.log.wait_for("Stopped", |_| true).await;
    app.log
        .wait_for("Event published", |line| line["user_id"] == 1)
        .await;
    assert!(world.outbox_is_empty().await);
    let troubles = app
        .log
        .lines()
        .into_iter()
        .filter(|line| line["level"] == "warning" || line["level"] == "error");
    assert_eq!(troubles.count(), 0, "{}", app.log.text());
}

#[tokio::test]
async fn a_stopping_service_is_unready_before_it_stops_listening() {
    let (_world, mut app) = start_with(&[("SHUTDOWN_DELAY_MS", "3000")]).await;
    app.signal("INT");
    let answer = eventually("a 503", async || {
        Some(app.get("/health/ready").await).filter(|answer| answer.status == 503)
    })
    .await;
    answer.assert_problem(503, "not_ready");
    assert_eq!(answer.body["checks"]["draining"], true);
    assert_eq!(app.get("/users").await.status, 200);
    assert_eq!(app.exit_status().await.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_the_service_immediately() {
    let (_world, mut app) = start_with(&[("SHUTDOWN_DELAY_MS", "600000")]).await;
    app.signal("TERM");
    app.log
        .wait_for("Stopping; a second signal stops at once", |_| true)
        .await;
    app.signal("TERM");
    assert_eq!(app.exit_status().await.code(), Some(130));
    app.log.wait_for("Stopped at once", |_| true).await;
}

#[tokio::test]
async fn two_instances_started_on_an_empty_database_elect_one_leader() {
    let world = World::empty().await;
    let (first, second) = tokio::join!(App::start(&world).launch(), App::start(&world).launch());
    tokio::join!(first.until_ready("ready"), second.until_ready("ready"));
    first.create_user("Анна").await;
    second.create_user("Яна").await;
    until("a leader", async || {
        first.leads().await || second.leads().await
    })
    .await;
    assert!(!(first.leads().await && second.leads().await));
    world.until_outbox_is_empty().await;
}

#[tokio::test]
async fn a_stalled_log_reader_is_reported_and_costs_only_lines() {
    let (_world, app) = start_with(&[("LOG_LEVEL", "info,probes=debug")]).await;
    app.log.pause(true);
    let began = Instant::now();
    let answers = futures_util::stream::iter(0..30_000)
        .map(|_| app.get("/health/live"))
        .buffer_unordered(64);
    assert_eq!(
        answers
            .filter(|answer| std::future::ready(answer.status == 200))
            .count()
            .await,
        30_000
    );
    assert!(
        began.elapsed() < Duration::from_mins(1),
        "{:?}",
        began.elapsed()
    );
    app.log.pause(false);
    let report = app
        .log
        .wait_for(
            "Log lines dropped: the reader of stdout is too slow",
            |_| true,
        )
        .await;
    assert!(
        report["dropped"]
            .as_u64()
            .is_some_and(|dropped| dropped > 0),
        "{report}"
    );
}

#[tokio::test]
async fn a_stalled_log_reader_costs_no_line_of_a_received_event() {
    const EVENTS: usize = 20_000;
    let (_world, observer, app) = start_observed().await;
    app.log.pause(true);
    let trace_id = "t".repeat(128);
    for n in 1..=EVENTS {
        let event = json!({
            "event_type": "user.created", "user_id": n, "trace_id": trace_id, "version": 1, "event_id": Uuid::now_v7(),
        });
        let exchange = "user_events".into();
        let key = "user.created".into();
        let body = event.to_string();
        let options = BasicPublishOptions::default();
        let properties = BasicProperties::default();
        drop(
            observer
                .channel
                .basic_publish(exchange, key, options, body.as_bytes(), properties)
                .await
                .unwrap(),
        );
    }
    // The consumer takes no more messages than it can log.
    let waiting = Cell::new(0);
    until("a queue that does not shrink", async || {
        let before = waiting.replace(observer.waiting("user_events_queue").await);
        waiting.get() > 1_000 && waiting.get() == before
    })
    .await;
    app.log.pause(false);
    until("an empty queue", async || {
        observer.waiting("user_events_queue").await == 0
    })
    .await;
    until("all of them in the log", async || {
        let received = app
            .log
            .matching("Event received", |line| line["trace_id"] == trace_id);
        received
            .iter()
            .map(|line| line["user_id"].as_u64())
            .collect::<HashSet<_>>()
            .len()
            == EVENTS
    })
    .await;
}

#[tokio::test]
async fn a_stalled_log_reader_costs_little_memory_for_any_path_length() {
    let (_world, app) = start().await;
    app.log.pause(true);
    let before = app.resident();
    let path = format!("/{}", "x".repeat(7_000));
    let answers = futures_util::stream::iter(0..20_000)
        .map(|_| app.get(&path))
        .buffer_unordered(64);
    assert_eq!(
        answers
            .filter(|answer| std::future::ready(answer.status == 404))
            .count()
            .await,
        20_000
    );
    let grown = app.resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
    app.log.pause(false);
}

#[tokio::test]
async fn a_database_that_may_lose_commits_causes_a_warning() {
    const WARNING: &str = "PostgreSQL may lose what it has committed, users and events alike: \
                           synchronous_commit is off for this database or login";
    let world = World::new().await;
    for value in ["on", "off"] {
        let name = world.database_url.rsplit('/').next().unwrap();
        let set = sqlx::AssertSqlSafe(format!(
            "ALTER DATABASE {name} SET synchronous_commit = {value}"
        ));
        sqlx::query(set).execute(&world.pool).await.unwrap();
        let app = App::start(&world).await;
        app.create_user("Анна").await;
        app.log.wait_for("Event published", |_| true).await;
        assert_eq!(
            app.log
                .matching(WARNING, |line| line["level"] == "warning")
                .len(),
            usize::from(value == "off")
        );
    }
}

#[tokio::test]
async fn an_unencrypted_remote_database_is_warned_about_unless_chosen() {
    const WARNING: &str = "PostgreSQL is on another machine and does not encrypt; add \
                           ?sslmode=require, or disable if that is meant";
    let world = World::new().await;
    // It resolves to this machine, but the service treats it like any other name.
    let remote = world.database_url.replace("127.0.0.1", "127.1");
    assert_ne!(remote, world.database_url);
    let settings = |url: &str| {
        [
            ("DATABASE_URL", url.to_owned()),
            ("DATABASE_DIRECT_URL", url.to_owned()),
        ]
    };
    let start = async |url: &str| {
        let settings = settings(url);
        App::start(&world)
            .with(
                &settings
                    .each_ref()
                    .map(|(name, value)| (*name, value.as_str())),
            )
            .await
    };
    start(&format!("{remote}?sslmode=prefer"))
        .await
        .log
        .wait_for(WARNING, |line| line["level"] == "warning")
        .await;
    for meant in [
        format!("{remote}?sslmode=disable"),
        world.database_url.clone(),
    ] {
        let app = start(&meant).await;
        app.create_user("Анна").await;
        app.log.wait_for("Event published", |_| true).await;
        assert!(app.log.matching(WARNING, |_| true).is_empty());
    }
}
