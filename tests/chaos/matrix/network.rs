//! The network between a replica and a server is cut: closed, reset or silent.

use std::time::Duration;

use tokio::time::Instant;

use crate::chaos::trial::Trial;
use harness::{Proxy, World, until};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Server {
    Postgres,
    RabbitMq,
}

/// Two replicas. The first leads, and reaches one of the servers through a proxy.
async fn trial_with_a_proxy_before(server: Server) -> (Trial, Proxy) {
    let world = World::new().await;
    // The relay's connection to PostgreSQL, even if requests use a pooler.
    let (setting, url) = match server {
        Server::Postgres => (world.direct_setting(), &world.database_url),
        Server::RabbitMq => ("RABBITMQ_URL", &world.broker_url),
    };
    let proxy = Proxy::before(url).await;
    let url = url.clone();
    let by_proxy = proxy.url(&url);
    let mut trial = Trial::start_with(world, 0, &[]).await;
    trial.add(&[(setting, &by_proxy)]).await;
    until("a leader", async || trial.replicas[0].leads().await).await;
    trial.add(&[]).await;
    (trial, proxy)
}

/// Cuts the leader off and waits for the other to lead; reconnects it and waits until it is well;
/// then makes it lead again by stopping the other.
async fn cut_in_each_way(server: Server) {
    let (mut trial, proxy) = trial_with_a_proxy_before(server).await;
    let load = trial.load(100);
    for (how, cut) in [
        ("closed", Proxy::close as fn(&Proxy)),
        ("reset", Proxy::reset),
        ("silent", Proxy::silence),
    ] {
        until("the first leads, and it alone", async || {
            let first = trial.replicas[0].leads().await;
            let second = trial.replicas[1].leads().await;
            first && !second
        })
        .await;
        let accepted = load.tally.accepted();
        cut(&proxy);
        let began = Instant::now();
        until("another leader", async || trial.replicas[1].leads().await).await;
        let moved = began.elapsed();
        until("writes meanwhile", async || {
            load.tally.accepted() >= accepted + 50
        })
        .await;
        proxy.open();
        let began = Instant::now();
        until("a replica that is well", async || {
            trial.replicas[0].is("ready").await
        })
        .await;
        eprintln!(
            "  {server:?} {how}: the lead moved in {moved:?}, well {:?} after the cut",
            began.elapsed()
        );
        assert!(moved <= Duration::from_secs(12), "{how}: {moved:?}");
        assert!(
            began.elapsed() <= Duration::from_secs(10),
            "{how}: {:?}",
            began.elapsed()
        );
        trial.replicas[1].signal("TERM");
        trial.replicas[1].exit_status().await;
        until("the first leads", async || trial.replicas[0].leads().await).await;
        trial.restart(1, &[]).await;
    }
    trial.finish(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_postgresql_is_replaced_in_12_s_and_recovers() {
    cut_in_each_way(Server::Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_rabbitmq_is_replaced_in_12_s_and_recovers() {
    cut_in_each_way(Server::RabbitMq).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_after_an_unreadable_one_is_handled_within_100_ms() {
    let trial = Trial::start(1).await;
    let load = trial.load(50);
    let path = format!(
        "/api/exchanges/{}/amq.default/publish",
        trial.world.virtual_host
    );
    let send = async |payload: &str| {
        let message = serde_json::json!({
            "routing_key": "user_events_queue", "payload": payload, "payload_encoding": "string", "properties": {},
        });
        harness::management_post(&path, &message).await;
    };
    let huge = "x".repeat(1 << 20);
    for foreign in ["", "no event", "{\"event_type\": \"user.eaten\"}", &huge] {
        let id = uuid::Uuid::now_v7();
        let event = format!(
            "{{\"event_type\":\"user.updated\",\"user_id\":0,\"trace_id\":\"t\",\"event_id\":\"{id}\",\"version\":1}}"
        );
        send(foreign).await;
        send(&event).await;
        let began = Instant::now();
        until("the next message", async || {
            trial.digest.received.lock().unwrap().contains_key(&id)
        })
        .await;
        assert!(
            began.elapsed() <= Duration::from_millis(100),
            "{:?}",
            began.elapsed()
        );
    }
    // Written after the broker has the letter, and perhaps after the next message is handled.
    until("four dead letters", async || {
        trial.troubles("Message cannot be read, it is in the dead-letter queue") == 4
    })
    .await;
    let accepted = load.tally.accepted();
    until("as many writes as in 3 s", async || {
        load.tally.accepted() >= accepted + 150
    })
    .await;
    trial.finish(load).await;
}
