//! Faults of a reachable broker: it loses an exchange or refuses a message.

use std::time::{Duration, Instant};

use lapin::options::ExchangeDeleteOptions;
use reqwest::Method;
use serde_json::json;

use harness::{
    App, Proxy, World, assert_delivered_exactly, eventually, management, management_put, start,
    start_audited, start_observed, until,
};

/// Makes the observer's queue refuse all messages: the broker nacks everything that is routed to
/// it. Returns the path of the policy, for deletion.
async fn refuse_all(world: &World) -> String {
    let policy = format!("/api/policies/{}/full", world.virtual_host);
    let full = json!({"pattern": "^observer$", "definition": {"max-length": 0, "overflow": "reject-publish"}});
    management_put(&policy, &full).await;
    policy
}

#[tokio::test]
async fn an_exchange_deleted_while_running_is_declared_again() {
    let (world, observer, app) = start_observed().await;
    observer
        .channel
        .exchange_delete("user_events".into(), ExchangeDeleteOptions::default())
        .await
        .unwrap();
    let id = app.create_user("Анна").await;
    app.log
        .wait_for("Event received", |line| line["user_id"] == id)
        .await;
    world.until_outbox_is_empty().await;
}

#[tokio::test]
async fn events_wait_in_order_in_the_outbox_while_a_queue_is_full() {
    let (world, mut observer, app) = start_audited().await;
    let id = app.create_user("Анна").await;
    world.until_outbox_is_empty().await;
    let policy = refuse_all(&world).await;
    for n in 0..10 {
        assert_eq!(
            app.put(&format!("/users/{id}"), &json!({"name": format!("Имя{n}")}))
                .await
                .status,
            200
        );
    }
    app.log
        .wait_for("RabbitMQ refused events, they stay in the outbox", |line| {
            line["reason"] == "nacked"
        })
        .await;
    assert!(!world.outbox_is_empty().await);
    management(Method::DELETE, &policy).await;
    assert_delivered_exactly(&world, &mut observer).await;
    world.until_outbox_is_empty().await;
}

#[tokio::test]
async fn a_stop_during_refusals_skips_pauses_and_quarantines_nothing() {
    let (world, mut observer, mut app) = start_observed().await;
    let id = app.create_user("Анна").await;
    world.until_outbox_is_empty().await;
    let policy = refuse_all(&world).await;
    assert_eq!(
        app.put(&format!("/users/{id}"), &json!({"name": "Яна"}))
            .await
            .status,
        200
    );
    // After this many refusals, the pauses have grown to seconds.
    until("pauses of seconds", async || {
        let refusals = app
            .log
            .matching("RabbitMQ refused events, they stay in the outbox", |_| true);
        refusals.len() >= 7
    })
    .await;
    let began = Instant::now();
    app.signal("TERM");
    assert_eq!(app.exit_status().await.code(), Some(0));
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    let gave_up = "Relay gave up waiting for confirms; what was not confirmed stays in the outbox";
    assert!(app.log.matching(gave_up, |_| true).is_empty());
    assert!(!world.outbox_is_empty().await);
    management(Method::DELETE, &policy).await;
    let _next = App::start(&world).await;
    while observer.next_bodies(1).await[0]["event_type"] != "user.updated" {}
    world.until_outbox_is_empty().await;
}

#[tokio::test]
async fn connections_that_the_broker_closes_are_opened_again() {
    let (world, app) = start().await;
    app.create_user("Анна").await;
    let path = format!("/api/vhosts/{}/connections", world.virtual_host);
    let connections = eventually("the service's connections", async || {
        let connections = harness::management_json(&path).await;
        let names: Vec<String> = connections
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|one| Some(one["name"].as_str()?.to_owned()))
            .collect();
        (names.len() == 5).then_some(names)
    })
    .await;
    for name in connections {
        let name: String = url::form_urlencoded::byte_serialize(name.as_bytes()).collect();
        management(
            Method::DELETE,
            &format!("/api/connections/{}", name.replace('+', "%20")),
        )
        .await;
    }
    let id = app.create_user("Яна").await;
    app.log
        .wait_for("Event received", |line| line["user_id"] == id)
        .await;
    app.until_ready("ready").await;
}

#[tokio::test]
async fn a_subscription_that_never_gets_a_delivery_is_renewed() {
    let world = World::new().await;
    let proxy = Proxy::before(&world.broker_url).await;
    proxy.withhold_deliveries();
    let app = App::start(&world)
        .with(&[("RABBITMQ_URL", &proxy.url(&world.broker_url))])
        .await;
    let id = app.create_user("Анна").await;
    // More than are in flight at a time.
    for n in 0..250 {
        assert_eq!(
            app.put(&format!("/users/{id}"), &json!({"name": format!("Имя{n}")}))
                .await
                .status,
            200
        );
    }
    world.until_outbox_is_empty().await;
    proxy.open();
    app.log
        .wait_for("Event received", |line| {
            line["event_type"] == "user.created"
        })
        .await;
}
