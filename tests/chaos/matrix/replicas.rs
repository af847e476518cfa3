//! Replicas are killed, and their clocks are wrong.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tokio::time::{Instant, interval, sleep};
use user_management_api::testing::outbox::Election;
use user_management_api::testing::{DatabaseUrl, outbox};

use crate::chaos::trial::Trial;
use harness::{
    App, Control, Proxy, World, as_login, eventually, management, management_put, until,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_surviving_replica_leads_within_a_second_in_20_kills() {
    let mut trial = Trial::start(2).await;
    let load = trial.load(500);
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        sleep(Duration::from_millis(fastrand::u64(100..600))).await;
        let leader = eventually("a leader", async || {
            let (first, second) =
                tokio::join!(trial.replicas[0].leads(), trial.replicas[1].leads());
            first.then_some(0).or(second.then_some(1))
        })
        .await;
        trial.replicas[leader].kill().await;
        let began = Instant::now();
        until("another leader", async || {
            trial.replicas[1 - leader].leads().await
        })
        .await;
        slowest = slowest.max(began.elapsed());
        trial.restart(leader, &[]).await;
    }
    eprintln!("  the slowest succession took {slowest:?}");
    assert!(slowest <= Duration::from_secs(1), "{slowest:?}");
    trial.finish(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_login_may_no_longer_publish_hands_over() {
    let mut trial = Trial::start(0).await;
    let host = trial.world.virtual_host.clone();
    let login = format!("umapi-{host}");
    management_put(
        &format!("/api/users/{login}"),
        &json!({"password": "rotated", "tags": ""}),
    )
    .await;
    let permissions = format!("/api/permissions/{host}/{login}");
    management_put(
        &permissions,
        &json!({"configure": ".*", "write": ".*", "read": ".*"}),
    )
    .await;
    let url = as_login(&trial.world.broker_url, &login, "rotated");
    trial.add(&[("RABBITMQ_URL", &url)]).await;
    until("it leads", async || trial.replicas[0].leads().await).await;
    trial.add(&[]).await;
    let load = trial.load(100);
    until("events", async || trial.collector.count() > 200).await;
    // The queue is declared already, and its own consumer goes on.
    management_put(
        &permissions,
        &json!({"configure": ".*", "write": "^user_events_queue", "read": ".*"}),
    )
    .await;
    let began = Instant::now();
    let mut tick = interval(Duration::from_millis(100));
    while !trial.replicas[1].leads().await {
        tick.tick().await;
        assert!(
            began.elapsed() < Duration::from_secs(75),
            "it keeps the lead"
        );
    }
    let moved = began.elapsed();
    let waiting = trial.pending().await;
    until("an empty outbox", async || trial.pending().await < 50).await;
    eprintln!("  the lead moved after {moved:?}, {waiting} events waited");
    assert!(
        moved > Duration::from_secs(30) && trial.replicas[1].leads().await,
        "{moved:?}"
    );
    trial.finish(load).await;
    management(Method::DELETE, &format!("/api/users/{login}")).await;
}

#[expect(
    clippy::disallowed_methods,
    reason = "the tests' own settings are none of the service's"
)]
fn libfaketime() -> PathBuf {
    std::env::var_os("TEST_FAKETIME")
        .expect("./setup.sh chaos says where libfaketime is")
        .into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_jump_of_an_hour_stalls_nothing_and_keeps_the_order() {
    let clock = harness::scratch().join(format!("clock-{}", fastrand::u64(..)));
    fs::write(&clock, "+0").unwrap();
    let library = libfaketime();
    let settings = [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        // Only the wall clock can be wrong.
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    let trial = Trial::start_with(harness::World::new().await, 1, &settings).await;
    let load = trial.load(200);
    for offset in ["+3600", "+0", "-3600", "+0"] {
        sleep(Duration::from_secs(2)).await;
        fs::write(&clock, offset).unwrap();
        let accepted = load.tally.accepted();
        let collected = trial.collector.count();
        let began = Instant::now();
        until("writes and events go on", async || {
            load.tally.accepted() > accepted + 100 && trial.collector.count() > collected + 100
        })
        .await;
        eprintln!("  {offset} s: 100 events in {:?}", began.elapsed());
        assert!(
            began.elapsed() < Duration::from_secs(3),
            "{:?}",
            began.elapsed()
        );
        let health = trial.replica().health().await;
        assert_eq!(health["status"], "ready", "{health}");
    }
    assert_eq!(trial.finish(load).await, 0, "nothing is repeated");
    fs::remove_file(clock).unwrap();
}

/// Like a DNS name that changes late or a balancer that detects the primary late: no connection is
/// cut.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_moved_from_standby_to_primary_is_followed_quickly() {
    let world = World::new().await;
    let direct = world.database_url.clone();
    let primary = reqwest::Url::parse(&direct).unwrap().port().unwrap();
    let (standby, port) = Control::of_shared_servers().standby().await;
    let proxy = Proxy::before(&direct).await;
    let url = proxy.url(&direct);
    let settings = [
        ("DATABASE_URL", url.as_str()),
        ("DATABASE_DIRECT_URL", &url),
    ];
    let mut trial = Trial::start_with(world, 0, &[]).await;
    proxy.lead_to(port);
    for _ in 0..2 {
        let replica = App::start(&trial.world)
            .with(&settings)
            .digest(&trial.digest)
            .launch()
            .await;
        until("it knows that it leads to a standby", async || {
            replica.health().await["checks"]["database"] == "read_only"
        })
        .await;
        trial
            .addresses
            .write()
            .unwrap()
            .push(replica.address.clone());
        trial.replicas.push(replica);
    }
    let load = trial.load(200);
    sleep(Duration::from_secs(6)).await;
    assert_eq!(load.tally.accepted(), 0);
    proxy.lead_to(primary);
    let began = Instant::now();
    until("writes that succeed", async || load.tally.accepted() > 0).await;
    let written = began.elapsed();
    until("a leader", async || {
        trial.replicas[0].leads().await || trial.replicas[1].leads().await
    })
    .await;
    eprintln!(
        "  written after {written:?}, a leader after {:?}",
        began.elapsed()
    );
    assert!(written < Duration::from_secs(3) && began.elapsed() < Duration::from_secs(6));
    sleep(Duration::from_secs(5)).await;
    assert_eq!(
        load.tally.unanswered.load(Relaxed),
        0,
        "every request is answered"
    );
    assert_eq!(trial.finish(load).await, 0, "nothing is repeated");
    standby.signal("postgres", "INT").await;
}

#[tokio::test]
async fn no_replica_leads_on_a_standby_until_it_is_promoted() {
    let world = World::new().await;
    let (standby, port) = Control::of_shared_servers().standby().await;
    let mut url = reqwest::Url::parse(&world.database_url).unwrap();
    url.set_port(Some(port)).unwrap();
    let options = url.as_str().parse::<DatabaseUrl>().unwrap().options();
    let mut connection = outbox::connect_relay(&options).await.unwrap();
    assert_eq!(
        outbox::try_lead(&mut connection).await.unwrap(),
        Election::ReadOnly
    );
    sqlx::query("SELECT pg_promote()")
        .execute(&mut connection)
        .await
        .unwrap();
    assert_eq!(
        outbox::try_lead(&mut connection).await.unwrap(),
        Election::Won
    );
    standby.signal("postgres", "INT").await;
}
