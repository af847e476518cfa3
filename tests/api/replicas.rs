//! Several processes share one database: one publishes, and any that stops or freezes is replaced.

use std::sync::RwLock;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use user_management_api::testing::outbox::Election;
use user_management_api::testing::{DatabaseUrl, outbox};
use uuid::Uuid;

use harness::{App, Observer, Proxy, World, assert_delivered_exactly, audit, committed, until};

#[tokio::test]
async fn a_frozen_leader_is_replaced_and_does_no_harm_when_it_wakes() {
    let world = World::new().await;
    audit(&world).await;
    let mut observer = Observer::new(&world).await;
    let frozen = App::start(&world).await;
    frozen.log.wait_for("Relay leads", |_| true).await;
    let other = App::start(&world).await;
    let id = other.create_user("Анна").await;
    frozen.signal("STOP");
    for n in 0..20 {
        assert_eq!(
            other
                .put(&format!("/users/{id}"), &json!({"name": format!("Имя{n}")}))
                .await
                .status,
            200
        );
    }
    // Its lease runs out after ten seconds.
    other.log.wait_for("Relay leads", |_| true).await;
    frozen.signal("CONT");
    for n in 0..20 {
        assert_eq!(
            frozen
                .put(
                    &format!("/users/{id}"),
                    &json!({"surname": format!("Фамилия{n}")})
                )
                .await
                .status,
            200
        );
    }
    assert_delivered_exactly(&world, &mut observer).await;
    world.until_outbox_is_empty().await;
    assert!(other.leads().await && !frozen.leads().await);
}

#[tokio::test]
async fn a_session_without_the_relays_settings_is_detected() {
    let world = World::new().await;
    let options = world.database_url.parse::<DatabaseUrl>().unwrap().options();
    let mut with = outbox::connect_relay(&options).await.unwrap();
    assert!(outbox::keeps_relay_settings(&mut with).await.unwrap());
    // As a pooler would pass the session on.
    let mut without = world.pool.acquire().await.unwrap();
    assert!(!outbox::keeps_relay_settings(&mut without).await.unwrap());
}

#[tokio::test]
async fn a_global_transaction_timeout_does_not_end_a_long_first_read() {
    let world = World::new().await;
    // Before version 17, PostgreSQL treats this as a custom setting without effect.
    let limit = format!(
        "ALTER DATABASE {} SET transaction_timeout = '100ms'",
        world.database()
    );
    if world
        .value("SELECT current_setting('server_version_num')::int >= 170000")
        .await
    {
        sqlx::query(sqlx::AssertSqlSafe(limit))
            .execute(&world.pool)
            .await
            .unwrap();
    }
    let options = world.database_url.parse::<DatabaseUrl>().unwrap().options();
    let mut relay = outbox::connect_relay(&options).await.unwrap();
    sqlx::query("SELECT pg_sleep(0.3)")
        .execute(&mut relay)
        .await
        .expect("longer than the limit");
}

#[tokio::test]
async fn a_leader_cut_off_in_a_large_read_loses_its_lock_within_12_s() {
    let world = World::new().await;
    let fill = "INSERT INTO outbox (event_id, event_type, user_id, user_version, trace_id, occurred_at, payload)
                SELECT gen_random_uuid(), 'user.created', n, 1, 't', now(), to_json(repeat('x', 60000))
                FROM generate_series(1, 10000) AS n";
    sqlx::query(fill).execute(&world.pool).await.unwrap();
    let proxy = Proxy::before(&world.database_url).await;
    let options = |url: &str| url.parse::<DatabaseUrl>().unwrap().options();
    let mut leader = outbox::connect_relay(&options(&proxy.url(&world.database_url)))
        .await
        .unwrap();
    let mut other = outbox::connect_relay(&options(&world.database_url))
        .await
        .unwrap();
    assert_eq!(outbox::try_lead(&mut leader).await.unwrap(), Election::Won);
    assert_eq!(outbox::try_lead(&mut other).await.unwrap(), Election::Lost);
    // The server can send a few of the 600 MB and then blocks.
    let start = outbox::ReadFrom::position(0);
    let mut reading = std::pin::pin!(outbox::read(&mut leader, &start, &[], &[], 10_000));
    assert!(
        timeout(Duration::from_millis(20), &mut reading)
            .await
            .is_err(),
        "it was read at once"
    );
    proxy.silence();
    let began = Instant::now();
    until("the lock", async || {
        outbox::try_lead(&mut other).await.unwrap() == Election::Won
    })
    .await;
    assert!(
        began.elapsed() < Duration::from_secs(12),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn replicas_stopped_in_turn_fail_no_write_and_repeat_no_event() {
    let world = World::new().await;
    audit(&world).await;
    let mut observer = Observer::new(&world).await;
    let steady = App::start(&world).await;
    let id = steady.create_user("Анна").await;
    let mut writes = 0;
    for _ in 0..3 {
        let mut replica = App::start(&world).await;
        for n in 0..30 {
            let app = if n % 2 == 0 { &steady } else { &replica };
            writes += 1;
            assert_eq!(
                app.put(
                    &format!("/users/{id}"),
                    &json!({"name": format!("Имя{writes}")})
                )
                .await
                .status,
                200
            );
        }
        replica.signal("TERM");
        assert_eq!(
            steady
                .put(
                    &format!("/users/{id}"),
                    &json!({"surname": format!("Фамилия{writes}")})
                )
                .await
                .status,
            200
        );
        assert_eq!(replica.exit_status().await.code(), Some(0));
    }
    let committed = committed(&world).await;
    assert_eq!(committed.len(), 1 + 90 + 3);
    assert_eq!(assert_delivered_exactly(&world, &mut observer).await, 0);
    until("a leader", async || steady.leads().await).await;
}

#[tokio::test]
async fn one_of_three_racing_replicas_leads_and_none_repeats_an_event() {
    let world = World::new().await;
    audit(&world).await;
    let mut observer = Observer::new(&world).await;
    let (first, second, third) =
        tokio::join!(App::start(&world), App::start(&world), App::start(&world));
    let replicas = [first, second, third];
    let id = replicas[0].create_user("Анна").await;
    for n in 0..150 {
        let answer = replicas[n % 3]
            .put(&format!("/users/{id}"), &json!({"name": format!("Имя{n}")}))
            .await;
        assert_eq!(answer.status, 200);
        let leaders = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
                       WHERE locktype = 'advisory' AND granted AND datname = current_database()";
        assert_eq!(world.value::<i64>(leaders).await, 1);
        // Only one can hold the lock, so ask each replica whether it thinks that it leads.
        let say =
            futures_util::future::join_all(replicas.iter().map(|app| app.get("/health/ready")))
                .await;
        let leading = say
            .iter()
            .filter(|answer| answer.body["checks"]["relay"] == "leading")
            .count();
        assert!(leading <= 1, "{leading} lead");
    }
    assert_eq!(assert_delivered_exactly(&world, &mut observer).await, 0);
    world.until_outbox_is_empty().await;
}

#[tokio::test]
async fn another_replica_reads_a_killed_consumers_messages_in_order() {
    let world = World::new().await;
    let observer = Observer::new(&world).await;
    let mut first = App::start(&world).await;
    // The queue has one active consumer, the first that subscribed.
    first.log.wait_for("Consumer subscribed", |_| true).await;
    let second = App::start(&world).await;
    first.signal("STOP");
    for version in 1..=100 {
        let event = json!({"event_type": "user.updated", "user_id": 7, "trace_id": format!("held-{version}"),
                           "event_id": Uuid::now_v7(), "version": version});
        observer
            .publish("user.updated", event.to_string().as_bytes())
            .await;
    }
    first.kill().await;
    second
        .log
        .wait_for("Event received", |line| line["trace_id"] == "held-100")
        .await;
    let received = second
        .log
        .matching("Event received", |line| line["user_id"] == 7);
    let order: Vec<_> = received
        .iter()
        .map(|line| line["trace_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        order,
        (1..=100)
            .map(|version| format!("held-{version}"))
            .collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn a_rolling_restart_behind_a_load_balancer_fails_no_request() {
    let world = World::new().await;
    audit(&world).await;
    let mut observer = Observer::new(&world).await;
    // Time for the balancer to notice.
    let settings = [("SHUTDOWN_DELAY_MS", "300")];
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(App::start(&world).with(&settings).await);
    }
    let id = replicas[0].create_user("Анна").await;
    let rotation = RwLock::new(
        replicas
            .iter()
            .map(|replica| replica.address.clone())
            .collect::<Vec<_>>(),
    );
    let stop = CancellationToken::new();
    let sent = AtomicUsize::new(0);
    // Like a balancer with one connection per request that retries on another replica.
    let client = reqwest::Client::builder()
        .pool_max_idle_per_host(0)
        .build()
        .unwrap();
    let writer = async || {
        while !stop.is_cancelled() {
            let number = sent.fetch_add(1, Relaxed);
            let address = {
                let rotation = rotation.read().unwrap();
                rotation[number % rotation.len()].clone()
            };
            let body = json!({"name": format!("Имя{number}")});
            match client
                .put(format!("http://{address}/users/{id}"))
                .json(&body)
                .send()
                .await
            {
                Err(error) if error.is_connect() => {}
                answer => assert_eq!(answer.unwrap().status(), 200),
            }
        }
    };
    let rolling = async {
        for replica in &mut replicas {
            replica.signal("TERM");
            rotation
                .write()
                .unwrap()
                .retain(|one| *one != replica.address);
            assert_eq!(replica.exit_status().await.code(), Some(0));
            *replica = App::start(&world).with(&settings).await;
            rotation.write().unwrap().push(replica.address.clone());
        }
        stop.cancel();
    };
    tokio::join!(rolling, writer(), writer(), writer(), writer());
    assert!(sent.load(Relaxed) > 100);
    world.until_outbox_is_empty().await;
    assert_eq!(assert_delivered_exactly(&world, &mut observer).await, 0);
}
