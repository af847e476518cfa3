//! An unreadable message costs the events behind it nothing, even if its dead letter fails.

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, LongString};
use reqwest::Method;
use serde_json::json;

use harness::{
    App, Observer, World, as_login, eventually, management, management_put, start, until,
};

const WAITS: &str = "A message that cannot be read waits: the dead-letter queue does not take it";

/// Another publisher, with its own login: the broker validates its `user_id` property.
async fn stranger(world: &World) -> (String, Observer) {
    let name = format!("bob-{}", uuid::Uuid::new_v4().simple());
    management_put(
        &format!("/api/users/{name}"),
        &json!({"password": "bob", "tags": ""}),
    )
    .await;
    let all = json!({"configure": ".*", "write": ".*", "read": ".*"});
    management_put(
        &format!("/api/permissions/{}/{name}", world.virtual_host),
        &all,
    )
    .await;
    let url = as_login(&world.broker_url, &name, "bob");
    let observer = Observer::at(&url).await;
    (name, observer)
}

async fn dead_letter(observer: &Observer) -> Delivery {
    eventually("a dead letter", || observer.take("user_events_queue.dlq")).await
}

/// Inserts `events` rows into the outbox and waits until the consumer logs each one.
async fn assert_logged(world: &World, app: &App, events: i64) {
    let fill = "INSERT INTO outbox (event_id, event_type, user_id, user_version, trace_id, occurred_at, payload)
                SELECT gen_random_uuid(), 'user.created', n, 1, 't', now(), '{\"name\": \"А\", \"surname\": \"Б\"}'
                FROM generate_series(1, $1) AS n";
    sqlx::query(fill)
        .bind(events)
        .execute(&world.pool)
        .await
        .unwrap();
    for id in 1..=events {
        app.log
            .wait_for("Event received", |line| line["user_id"] == id)
            .await;
    }
}

fn assert_no_session_lost(app: &App) {
    assert_eq!(
        app.log
            .matching("Session lost, starting it again", |_| true),
        [] as [serde_json::Value; 0]
    );
}

#[tokio::test]
async fn a_foreign_message_before_300_events_is_only_one_dead_letter() {
    let (world, app) = start().await;
    let (name, bob) = stranger(&world).await;
    let mut headers = FieldTable::default();
    let copies = vec![AMQPValue::LongString("observer".into())];
    headers.insert("CC".into(), AMQPValue::FieldArray(copies.into()));
    headers.insert("x-kept".into(), AMQPValue::LongString("as it came".into()));
    let properties = BasicProperties::default()
        .with_user_id(name.as_str().into())
        .with_expiration("60000".into())
        .with_reply_to("bobs-answers".into())
        .with_message_id("m-1".into())
        .with_headers(headers);
    bob.publish_with("", "user_events_queue", b"not json", properties)
        .await;
    assert_logged(&world, &app, 300).await;
    let letter = dead_letter(&bob).await;
    assert_eq!(letter.data, b"not json");
    let properties = &letter.properties;
    assert_eq!(
        (
            properties.user_id(),
            properties.expiration(),
            properties.reply_to()
        ),
        (&None, &None, &None)
    );
    assert_eq!(properties.message_id().as_ref().unwrap().as_str(), "m-1");
    let headers = properties.headers().as_ref().unwrap().inner();
    assert_eq!(
        headers["x-kept"],
        AMQPValue::LongString(LongString::from("as it came"))
    );
    assert!(
        headers.contains_key("x-reason") && !headers.contains_key("CC"),
        "{headers:?}"
    );
    assert!(bob.take("user_events_queue.dlq").await.is_none());
    assert_no_session_lost(&app);
    management(Method::DELETE, &format!("/api/users/{name}")).await;
}

#[tokio::test]
async fn dead_letters_are_counted_and_their_lost_queue_is_redeclared() {
    let (world, app) = start().await;
    let observer = Observer::new(&world).await;
    let counted = async |wanted: &str| {
        let metrics = app.get("/metrics").await.text;
        metrics.contains(&format!("\ndead_letters {wanted}\n"))
    };
    until("none", async || counted("0").await).await;
    management(
        Method::DELETE,
        &format!("/api/queues/{}/user_events_queue.dlq", world.virtual_host),
    )
    .await;
    observer.publish("user.created", b"not json").await;
    until("one", async || counted("1").await).await;
    assert_eq!(dead_letter(&observer).await.data, b"not json");
    assert_no_session_lost(&app);
}

#[tokio::test]
async fn a_dead_letter_with_refused_properties_keeps_body_and_reason() {
    let (world, app) = start().await;
    let observer = Observer::new(&world).await;
    // With the reason in it, the headers no longer fit into a frame.
    let mut headers = FieldTable::default();
    headers.insert(
        "x-long".into(),
        AMQPValue::LongString("x".repeat(131_072 - 60).as_str().into()),
    );
    let properties = BasicProperties::default().with_headers(headers);
    observer
        .publish_with("", "user_events_queue", b"not json", properties)
        .await;
    let letter = dead_letter(&observer).await;
    assert_eq!(letter.data, b"not json");
    assert!(
        letter
            .properties
            .headers()
            .as_ref()
            .unwrap()
            .inner()
            .contains_key("x-reason")
    );
    assert_logged(&world, &app, 3).await;
    assert_no_session_lost(&app);
}

#[tokio::test]
async fn events_pass_a_full_dead_letter_queue_and_dead_letters_wait() {
    let (world, app) = start().await;
    let observer = Observer::new(&world).await;
    let policy = format!("/api/policies/{}/full", world.virtual_host);
    let full = json!({"max-length": 1, "overflow": "reject-publish"});
    management_put(
        &policy,
        &json!({"pattern": "\\.dlq$", "definition": full, "apply-to": "queues"}),
    )
    .await;
    observer
        .publish_to("user_events.dlx", "", b"fills it")
        .await;
    for body in ["first", "second"] {
        observer.publish("user.created", body.as_bytes()).await;
    }
    app.log
        .wait_for(WAITS, |line| line["level"] == "warning")
        .await;
    assert_logged(&world, &app, 20).await;
    management(Method::DELETE, &policy).await;
    for expected in ["fills it", "first", "second"] {
        assert_eq!(dead_letter(&observer).await.data, expected.as_bytes());
    }
    assert_no_session_lost(&app);
}
