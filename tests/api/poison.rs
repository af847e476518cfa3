//! An event that the broker rejects is identified, quarantined and reported. The other events
//! continue, and an operator decides.

use reqwest::Method;
use serde_json::{Value, json};

use crate::api::commands::run;
use harness::{App, Observer, World, eventually, management, start, start_observed, until};

pub async fn outbox(world: &World, arguments: &[&str]) -> (Option<i32>, Value) {
    let settings = [
        ("DATABASE_URL", world.database_url.as_str()),
        ("RABBITMQ_URL", &world.broker_url),
    ];
    let (output, text) = run(
        &[&["outbox"], arguments, &["--format", "json"]].concat(),
        &settings,
    )
    .await;
    let report = text
        .lines()
        .next()
        .and_then(|line| serde_json::from_str(line).ok());
    (
        output.status.code(),
        report.unwrap_or_else(|| panic!("no report in {text}")),
    )
}

#[tokio::test]
async fn a_channel_closing_event_is_quarantined_retried_or_dropped() {
    let (world, mut observer, app) = start_observed().await;
    for n in 1..=4 {
        assert_eq!(app.create_user(&format!("Имя{n}")).await, n);
    }
    observer.next_bodies(4).await;
    let permissions = world.forbid_deletions().await;
    assert_eq!(app.delete("/users/1").await.status, 204);
    assert_eq!(app.delete("/users/2").await.status, 204);
    // Other events pass, both before and after the bad ones are identified.
    let quarantined = eventually("two quarantined events", async || {
        let body = json!({"name": uuid::Uuid::new_v4().to_string()});
        assert_eq!(app.put("/users/3", &body).await.status, 200);
        assert_eq!(observer.next_bodies(1).await[0]["user_id"], 3);
        let (_, quarantined) = outbox(&world, &["quarantine", "list"]).await;
        (quarantined["count"] == 2).then_some(quarantined)
    })
    .await;
    world.until_outbox_is_empty().await;
    let first = &quarantined["events"][0];
    let second = &quarantined["events"][1];
    for event in [first, second] {
        assert_eq!(event["event_type"], "user.deleted");
        assert!(
            event["reason"].as_str().unwrap().contains("ACCESS_REFUSED"),
            "{event}"
        );
        app.log
            .wait_for("Event quarantined: see `outbox quarantine list`", |line| {
                line["level"] == "error"
                    && line["event_id"] == event["event_id"]
                    && line["trace_id"] == event["trace_id"]
            })
            .await;
    }
    let metrics = app.get("/metrics").await.text;
    assert!(
        metrics.contains("\nevents_quarantined_total 2\n")
            && metrics.contains("\noutbox_quarantined 2\n"),
        "{metrics}"
    );

    management(Method::DELETE, &permissions).await;
    let [first, second] = [first, second].map(|event| event["event_id"].as_str().unwrap());
    assert_eq!(
        outbox(&world, &["quarantine", "retry", first]).await,
        (Some(0), json!({"done": 1, "not_found": []}))
    );
    let message = &observer.next_bodies(1).await[0];
    assert_eq!(
        (message["event_id"].as_str(), &message["event_type"]),
        (Some(first), &json!("user.deleted"))
    );
    let both = json!({"done": 1, "not_found": [first]});
    assert_eq!(
        outbox(&world, &["quarantine", "drop", first, second]).await,
        (Some(1), both)
    );
    assert_eq!(
        outbox(&world, &["quarantine", "list"]).await,
        (Some(0), json!({"count": 0, "events": []}))
    );
}

#[tokio::test]
async fn all_events_of_a_type_are_retried_in_order_or_dropped() {
    let world = World::new().await;
    let mut observer = Observer::new(&world).await;
    let fill =
        "INSERT INTO outbox_quarantine (event_id, event_type, user_id, user_version, trace_id, occurred_at, payload, reason)
                SELECT gen_random_uuid(), 'user.updated', 1, n, 't', now() + n * interval '1 ms',
                       '{\"name\": \"А\", \"surname\": \"Б\"}'::json, 'refused' FROM generate_series(2, 50) AS n
                UNION ALL SELECT gen_random_uuid(), 'user.deleted', 1, 51, 't', now(), 'null', 'refused'";
    sqlx::query(fill).execute(&world.pool).await.unwrap();
    let _app = App::start(&world).await;
    let done = |count: u32| (Some(0), json!({"done": count, "not_found": []}));
    assert_eq!(
        outbox(&world, &["quarantine", "retry", "--type", "user.updated"]).await,
        done(49)
    );
    let versions: Vec<_> = observer
        .next_bodies(49)
        .await
        .iter()
        .map(|event| event["version"].as_i64().unwrap())
        .collect();
    assert_eq!(versions, (2..=50).collect::<Vec<_>>());
    assert_eq!(
        outbox(&world, &["quarantine", "drop", "--all"]).await,
        done(1)
    );
    assert_eq!(outbox(&world, &["quarantine", "list"]).await.1["count"], 0);
    for bad in [&["retry"][..], &["drop", "--all", "--type", "user.deleted"]] {
        assert_eq!(
            run(&[&["outbox", "quarantine"], bad].concat(), &[])
                .await
                .0
                .status
                .code(),
            Some(2),
            "{bad:?}"
        );
    }
}

#[tokio::test]
async fn an_event_is_quarantined_only_after_another_has_passed() {
    let (world, app) = start().await;
    app.create_user("Анна").await;
    world.until_outbox_is_empty().await;
    world.forbid_deletions().await;
    assert_eq!(app.delete("/users/1").await.status, 204);
    // Far more often than would quarantine the event if another one had passed.
    until("five closed channels", async || {
        let closed = app.log.matching(
            "RabbitMQ closed a channel, its events go one by one",
            |_| true,
        );
        closed.len() >= 5
    })
    .await;
    let (_, state) = outbox(&world, &["status"]).await;
    assert_eq!(
        (&state["pending"], &state["quarantined"]),
        (&json!(1), &json!(0))
    );
}
