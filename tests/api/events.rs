//! What is published, in which form, and that the consumer reads it.

use std::time::{Duration, Instant};

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::interval;

use harness::{
    App, Observer, PASSWORD, QUEUE_TYPE, World, eventually, management, management_json, new_user,
    start, start_observed, start_with, until,
};

/// A header's text.
fn text(value: &AMQPValue) -> String {
    match value {
        AMQPValue::LongString(text) => text.to_string(),
        other => panic!("{other:?} is no string"),
    }
}

#[tokio::test]
async fn each_change_has_the_agreed_body_headers_and_properties() {
    let (_world, mut observer, app) = start_observed().await;
    let created = app.post("/users", &new_user("Иван")).await;
    let updated = app.put("/users/1", &json!({"name": "Петр"})).await;
    let deleted = app.delete("/users/1").await;

    let data = |name: &str| json!({"name": name, "surname": "Тестов"});
    let expected = [
        (
            "user.created",
            1,
            data("Иван"),
            Some(&created.body["created_at"]),
            &created,
        ),
        (
            "user.updated",
            2,
            data("Петр"),
            Some(&updated.body["updated_at"]),
            &updated,
        ),
        ("user.deleted", 3, Value::Null, None, &deleted),
    ];
    for (event_type, version, data, timestamp, answer) in expected {
        let message = observer.next_message().await;
        let body: Value = serde_json::from_slice(&message.data).unwrap();
        let trace_id = answer.header("x-trace-id");
        let event_id = uuid::Uuid::parse_str(body["event_id"].as_str().unwrap()).unwrap();
        assert_eq!(event_id.get_version_num(), 7);
        assert_eq!(
            body,
            json!({
                "event_type": event_type, "user_id": 1, "trace_id": trace_id, "timestamp": body["timestamp"],
                "data": data, "event_id": event_id.to_string(), "version": version,
            })
        );
        assert_eq!(
            body["timestamp"].as_str().unwrap().len(),
            "2024-12-04T10:30:00.123Z".len()
        );
        assert!(
            timestamp.is_none_or(|timestamp| body["timestamp"] == *timestamp),
            "{body}"
        );

        let properties = &message.properties;
        let short =
            |value: &Option<ShortString>| value.as_ref().map(|value| value.as_str().to_owned());
        assert_eq!(message.routing_key.as_str(), event_type);
        assert_eq!(properties.delivery_mode(), &Some(2));
        assert_eq!(
            short(properties.content_type()).as_deref(),
            Some("application/json")
        );
        assert_eq!(short(properties.message_id()), Some(event_id.to_string()));
        assert_eq!(
            short(properties.correlation_id()).as_deref(),
            Some(trace_id)
        );
        assert_eq!(short(properties.kind()).as_deref(), Some(event_type));
        assert_eq!(
            short(properties.app_id()).as_deref(),
            Some("user-management-api")
        );
        assert_eq!(
            text(&properties.headers().as_ref().unwrap().inner()["trace_id"]),
            trace_id
        );
        assert!(!String::from_utf8_lossy(&message.data).contains(PASSWORD));
        app.log
            .wait_for("Event published", |line| {
                line["event_id"] == event_id.to_string()
            })
            .await;
        app.log
            .wait_for("Event received", |line| {
                line["event_id"] == event_id.to_string()
            })
            .await;
    }
}

#[tokio::test]
async fn a_request_that_changes_nothing_publishes_nothing() {
    let (_world, mut observer, app) = start_observed().await;
    app.post("/users", &json!({"name": "Анна"})).await;
    app.delete("/users/1").await;
    app.put("/users/1", &json!({"name": "Анна"})).await;
    let id = app.create_user("Анна").await;
    app.put(&format!("/users/{id}"), &json!({"name": "Анна"}))
        .await;
    app.delete(&format!("/users/{id}")).await;
    let types: Vec<_> = observer
        .next_bodies(2)
        .await
        .iter()
        .map(|body| body["event_type"].clone())
        .collect();
    assert_eq!(types, ["user.created", "user.deleted"]);
}

#[tokio::test]
async fn the_topology_has_the_names_and_kinds_of_the_contract() {
    let world = World::new().await;
    let _app = App::start(&world).await;
    let host = &world.virtual_host;
    for (exchange, kind) in [("user_events", "topic"), ("user_events.dlx", "fanout")] {
        let found = management_json(&format!("/api/exchanges/{host}/{exchange}")).await;
        assert_eq!(
            (&found["type"], &found["durable"]),
            (&json!(kind), &json!(true))
        );
    }
    let queue = management_json(&format!("/api/queues/{host}/user_events_queue")).await;
    assert_eq!(
        (&queue["durable"], &queue["type"]),
        (&json!(true), &json!(*QUEUE_TYPE))
    );
    assert_eq!(
        queue["arguments"]["x-dead-letter-exchange"],
        "user_events.dlx"
    );
    assert_eq!(queue["arguments"]["x-single-active-consumer"], true);
    let dead = management_json(&format!("/api/queues/{host}/user_events_queue.dlq")).await;
    assert_eq!(dead["durable"], true);
    let bindings = management_json(&format!(
        "/api/bindings/{host}/e/user_events/q/user_events_queue"
    ))
    .await;
    assert_eq!(bindings[0]["routing_key"], "user.*");
}

#[tokio::test]
async fn the_service_uses_classic_queues_without_quorum_support() {
    let (world, app) = start_with(&[("AMQP_QUEUE_TYPE", "classic")]).await;
    let queue = management_json(&format!(
        "/api/queues/{}/user_events_queue",
        world.virtual_host
    ))
    .await;
    assert_eq!(queue["type"], "classic");
    app.create_user("Анна").await;
    app.log
        .wait_for("Event received", |line| line["user_id"] == 1)
        .await;
}

#[tokio::test]
async fn a_queue_with_other_arguments_is_used_with_a_warning() {
    let world = World::new().await;
    let observer = Observer::new(&world).await;
    let durable = QueueDeclareOptions {
        durable: true,
        ..Default::default()
    };
    observer
        .channel
        .queue_declare("user_events_queue".into(), durable, FieldTable::default())
        .await
        .unwrap();
    let app = App::start(&world).await;
    app.create_user("Анна").await;
    app.log
        .wait_for("Event received", |line| line["user_id"] == 1)
        .await;
    assert!(
        app.log
            .lines()
            .iter()
            .any(|line| line["level"] == "warning" && line["name"] == "user_events_queue")
    );
    let metrics = app.get("/metrics").await.text;
    assert!(
        metrics.contains("\ntopology_mismatch{name=\"user_events_queue\"} 1\n"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_non_event_is_dead_lettered_and_the_next_message_handled() {
    let (_world, observer, app) = start_observed().await;
    let unknown = json!({
        "event_type": "user.married", "user_id": 1, "trace_id": "t", "version": 1,
        "event_id": uuid::Uuid::now_v7().to_string(),
    });
    for body in [
        "not json".to_owned(),
        "{}".to_owned(),
        "x".repeat(1 << 20),
        unknown.to_string(),
    ] {
        observer.publish("user.created", body.as_bytes()).await;
        let dead = eventually("a dead letter", || observer.take("user_events_queue.dlq")).await;
        assert_eq!(dead.data, body.as_bytes());
        let reason = text(&dead.properties.headers().as_ref().unwrap().inner()["x-reason"]);
        assert!(!reason.is_empty());
        app.log
            .wait_for(
                "Message cannot be read, it is in the dead-letter queue",
                |line| line["reason"] == reason,
            )
            .await;
    }
    app.create_user("Анна").await;
    app.log
        .wait_for("Event received", |line| line["user_id"] == 1)
        .await;
}

#[tokio::test]
async fn an_event_delivered_twice_is_logged_as_a_duplicate() {
    let (_world, mut observer, app) = start_observed().await;
    app.create_user("Анна").await;
    let message = observer.next_message().await;
    observer.publish("user.created", &message.data).await;
    let repeated = app
        .log
        .wait_for("Event received", |line| line["duplicate"] == true)
        .await;
    assert_eq!(
        (&repeated["user_id"], &repeated["stale"]),
        (&json!(1), &json!(true))
    );
    assert_eq!(
        app.log
            .matching("Event received", |line| line["duplicate"].is_null())
            .len(),
        1
    );
}

#[tokio::test]
async fn a_queue_deleted_while_running_is_redeclared_losing_no_event() {
    let (world, app) = start().await;
    app.create_user("Анна").await;
    app.log
        .wait_for("Event received", |line| line["user_id"] == 1)
        .await;
    management(
        Method::DELETE,
        &format!("/api/queues/{}/user_events_queue", world.virtual_host),
    )
    .await;
    let deleted = Instant::now();
    // What the queue still takes while it is being deleted goes with it.
    until("a second subscription", async || {
        app.log.matching("Consumer subscribed", |_| true).len() == 2
    })
    .await;
    assert_eq!(
        app.put("/users/1", &json!({"name": "Яна"})).await.status,
        200
    );
    app.log
        .wait_for("Event received", |line| {
            line["event_type"] == "user.updated"
        })
        .await;
    assert!(
        deleted.elapsed() < Duration::from_secs(2),
        "{:?}",
        deleted.elapsed()
    );
    world.until_outbox_is_empty().await;
}

#[tokio::test]
async fn a_removed_binding_returns_while_another_queue_gets_events() {
    let (world, mut observer, app) = start_observed().await;
    let queue = "user_events_queue".into();
    let exchange = "user_events".into();
    let key = "user.*".into();
    observer
        .channel
        .queue_unbind(queue, exchange, key, FieldTable::default())
        .await
        .unwrap();
    let mut tick = interval(Duration::from_millis(200));
    let unbound = Instant::now();
    while app.log.matching("Event received", |_| true).is_empty() {
        tick.tick().await;
        app.create_user("Анна").await;
        observer.next_bodies(1).await;
        assert!(
            unbound.elapsed() < Duration::from_secs(15),
            "{}",
            app.log.text()
        );
    }
    drop(world);
}

#[tokio::test]
async fn an_unroutable_event_is_counted_and_published_again() {
    let (world, app) = start().await;
    app.create_user("Анна").await;
    app.log
        .wait_for("Event received", |line| line["user_id"] == 1)
        .await;
    let binding = "e/user_events/q/user_events_queue/user.%2A";
    management(
        Method::DELETE,
        &format!("/api/bindings/{}/{binding}", world.virtual_host),
    )
    .await;
    assert_eq!(
        app.put("/users/1", &json!({"name": "Яна"})).await.status,
        200
    );
    app.log
        .wait_for("RabbitMQ refused events, they stay in the outbox", |line| {
            line["reason"] == "NO_ROUTE"
        })
        .await;
    app.log
        .wait_for("Event received", |line| {
            line["event_type"] == "user.updated"
        })
        .await;
    let metrics = app.get("/metrics").await.text;
    assert!(metrics.contains("\nevents_returned_total 1\n"), "{metrics}");
}
