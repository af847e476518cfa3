//! `/metrics`, as the person on call reads it.

use serde_json::json;

use harness::{Answer, App, Observer, Proxy, World, start, until};

/// The value of one line, matched with its labels verbatim.
fn value(metrics: &str, line: &str) -> Option<f64> {
    metrics
        .lines()
        .find_map(|candidate| candidate.strip_prefix(line)?.trim().parse().ok())
}

async fn until_metric(app: &App, line: &str, wanted: f64) {
    until(format!("{line} {wanted}"), async || {
        let metrics = app.get("/metrics").await.text;
        value(&metrics, line) == Some(wanted)
    })
    .await;
}

#[tokio::test]
async fn requests_are_counted_by_method_route_template_and_status() {
    let (_world, app) = start().await;
    app.create_user("Анна").await;
    app.get("/users/1").await;
    app.get("/users/1/").await;
    app.get("/users/7").await;
    app.get("/nowhere").await;
    Answer::of(app.request(reqwest::Method::TRACE, "/users")).await;
    let answer = app.get("/metrics").await;
    assert!(answer.header("content-type").starts_with("text/plain"));
    for (labels, count) in [
        (r#"method="GET",route="/users/{id}",status="200""#, 2.0),
        (r#"method="GET",route="/users/{id}",status="404""#, 1.0),
        (r#"method="GET",route="none",status="404""#, 1.0),
        (r#"method="POST",route="/users",status="201""#, 1.0),
        (r#"method="other",route="/users",status="405""#, 1.0),
    ] {
        let line = format!("http_request_duration_seconds_count{{{labels}}}");
        assert_eq!(
            value(&answer.text, &line),
            Some(count),
            "{line} in\n{}",
            answer.text
        );
    }
}

#[tokio::test]
async fn every_counter_is_exported_from_the_start() {
    let (_world, app) = start().await;
    let metrics = app.get("/metrics").await.text;
    for line in [
        r#"events_published_total{type="user.created"}"#,
        r#"events_published_total{type="user.updated"}"#,
        r#"events_published_total{type="user.deleted"}"#,
        "events_nacked_total",
        "events_returned_total",
        "events_quarantined_total",
        r#"events_consumed_total{result="new"}"#,
        r#"events_consumed_total{result="duplicate"}"#,
        r#"events_consumed_total{result="stale"}"#,
        r#"events_consumed_total{result="dead_letter"}"#,
        "http_connections_refused_total",
        r#"http_connections_closed_total{reason="displaced"}"#,
        "http_accept_errors_total",
        "coalesced_reads_total",
        "grouped_writes_total",
        "log_lines_dropped_total",
        r#"sessions_lost_total{session="relay",cause="database"}"#,
        r#"topology_mismatch{name="user_events_queue"}"#,
    ] {
        assert_eq!(value(&metrics, line), Some(0.0), "{line} in\n{metrics}");
    }
    for described in metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
    {
        let name = described.split(' ').next().unwrap();
        assert!(
            metrics.lines().any(|line| line.starts_with(name)),
            "{name} has no value"
        );
    }
}

#[tokio::test]
async fn every_metric_named_in_an_alert_or_the_runbook_exists() {
    let (_world, app) = start().await;
    app.log.wait_for("Consumer subscribed", |_| true).await;
    let alerts = include_str!("../../docs/alerts.yml");
    let expressions = alerts
        .split("expr:")
        .skip(1)
        .map(|rule| rule.split("annotations:").next().unwrap());
    let runbook = include_str!("../../docs/operations.md")
        .split("## Runbook")
        .nth(1)
        .unwrap();
    let quoted = runbook.split('`').skip(1).step_by(2).filter(|word| {
        ["events_", "outbox_", "broker_", "relay_"]
            .iter()
            .any(|prefix| word.starts_with(prefix))
            && *word != "outbox_quarantine"
    });
    let words = expressions.flat_map(|text| {
        text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
    });
    let names: std::collections::BTreeSet<_> = words
        .filter(|word| word.contains('_'))
        .chain(quoted)
        .collect();
    assert!(names.len() > 8, "{names:?}");
    // The gauge comes with the first count.
    until("dead_letters", async || {
        app.get("/metrics").await.text.contains("\ndead_letters ")
    })
    .await;
    let metrics = app.get("/metrics").await.text;
    for name in names {
        assert!(
            metrics.lines().any(|line| line.starts_with(name)),
            "{name} in\n{metrics}"
        );
    }
}

#[tokio::test]
async fn a_crowd_of_scrapes_is_served_and_the_service_stays_ready() {
    let (world, app) = start().await;
    // Behind an exclusive lock, every scrape and every probe takes its whole time.
    let mut lock = world.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE outbox, outbox_quarantine")
        .execute(&mut *lock)
        .await
        .unwrap();
    let scrapes = futures_util::future::join_all((0..100).map(|_| app.get("/metrics")));
    let probes = async {
        for _ in 0..20 {
            let answer = app.get("/health/ready").await;
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    };
    let began = std::time::Instant::now();
    let (scrapes, ()) = tokio::join!(scrapes, probes);
    assert!(
        scrapes
            .iter()
            .all(|scrape| scrape.status == 200 && scrape.text.contains("outbox_pending NaN"))
    );
    assert!(began.elapsed().as_secs() < 6, "{:?}", began.elapsed());
    lock.rollback().await.unwrap();
}

#[tokio::test]
async fn a_long_backlog_is_counted_up_to_the_limit() {
    let world = World::new().await;
    let proxy = Proxy::before(&world.broker_url).await;
    proxy.close();
    let app = App::start(&world)
        .with(&[("RABBITMQ_URL", &proxy.url(&world.broker_url))])
        .launch()
        .await;
    app.until_ready("degraded").await;
    let fill = "INSERT INTO outbox (event_id, event_type, user_id, user_version, trace_id, occurred_at, payload)
                SELECT gen_random_uuid(), 'user.created', n, 1, 't', now() - interval '1 hour', 'null'
                FROM generate_series(1, 150000) AS n";
    sqlx::query(fill).execute(&world.pool).await.unwrap();
    until_metric(&app, "outbox_pending", 100_000.0).await;
    assert!(value(&app.get("/metrics").await.text, "outbox_oldest_age_seconds").unwrap() >= 3600.0);
}

#[tokio::test]
async fn metrics_count_events_and_show_the_outbox_fill_and_drain() {
    let world = World::new().await;
    let mut observer = Observer::new(&world).await;
    let proxy = Proxy::before(&world.broker_url).await;
    let app = App::start(&world)
        .with(&[("RABBITMQ_URL", &proxy.url(&world.broker_url))])
        .await;
    until_metric(&app, "relay_leader", 1.0).await;
    until_metric(&app, r#"broker_connected{connection="publisher"}"#, 1.0).await;
    proxy.close();
    app.until_ready("degraded").await;
    let id = app.create_user("Анна").await;
    app.put(&format!("/users/{id}"), &json!({"name": "Яна"}))
        .await;
    until_metric(&app, "outbox_pending", 2.0).await;
    assert!(value(&app.get("/metrics").await.text, "outbox_oldest_age_seconds").unwrap() > 0.0);
    until_metric(&app, "relay_leader", 0.0).await;
    until_metric(&app, r#"broker_connected{connection="consumer"}"#, 0.0).await;
    proxy.open();
    until_metric(&app, "outbox_pending", 0.0).await;
    until_metric(&app, r#"events_published_total{type="user.created"}"#, 1.0).await;
    until_metric(&app, r#"events_published_total{type="user.updated"}"#, 1.0).await;
    until_metric(&app, r#"events_consumed_total{result="new"}"#, 2.0).await;
    until_metric(&app, "events_lag_seconds_count", 2.0).await;
    until_metric(&app, "relay_leads_total", 2.0).await;
    let message = observer.next_message().await;
    observer.publish("user.created", &message.data).await;
    observer.publish("user.created", b"not json").await;
    until_metric(&app, r#"events_consumed_total{result="duplicate"}"#, 1.0).await;
    until_metric(&app, r#"events_consumed_total{result="dead_letter"}"#, 1.0).await;
}

#[tokio::test]
async fn a_scrape_is_answered_while_the_database_is_down() {
    let world = World::new().await;
    let proxy = Proxy::before(&world.database_url).await;
    let app = App::start(&world)
        .with(&[("DATABASE_URL", &proxy.url(&world.database_url))])
        .await;
    proxy.silence();
    let answer = app.get("/metrics").await;
    assert_eq!(answer.status, 200);
    assert!(
        value(&answer.text, "outbox_pending").unwrap().is_nan(),
        "{}",
        answer.text
    );
    for name in [
        "database_connections{state=\"idle\"}",
        "password_hash_slots{state=\"free\"}",
        "process_resident_memory_bytes",
    ] {
        assert!(
            value(&answer.text, name).is_some(),
            "no {name} in\n{}",
            answer.text
        );
    }
}
