//! What happens when a process, the broker or the database is lost: nothing is lost, nothing is
//! invented, and each user's events stay in order.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use harness::{
    App, Observer, Proxy, World, assert_delivered_exactly, audit, committed, new_user,
    start_audited, until,
};

#[tokio::test]
async fn a_broker_down_at_the_start_costs_no_event_and_no_response() {
    let world = World::new().await;
    let proxy = Proxy::before(&world.broker_url).await;
    proxy.close();
    let app = App::start(&world)
        .with(&[("RABBITMQ_URL", &proxy.url(&world.broker_url))])
        .launch()
        .await;
    app.until_ready("degraded").await;
    assert_eq!(app.get("/health/ready").await.status, 200);
    for n in 1..=3 {
        let id = app.create_user(&format!("Имя{n}")).await;
        assert_eq!(
            app.put(&format!("/users/{id}"), &json!({"name": "Другое"}))
                .await
                .status,
            200
        );
    }
    // The queue is there before the service connects, so that it sees every event.
    let mut observer = Observer::new(&world).await;
    proxy.open();
    let versions: Vec<_> = observer
        .next_bodies(6)
        .await
        .iter()
        .map(|body| (body["user_id"].clone(), body["version"].clone()))
        .collect();
    for user in 1..=3 {
        let of_user: Vec<_> = versions
            .iter()
            .filter(|(id, _)| *id == user)
            .map(|(_, version)| version.clone())
            .collect();
        assert_eq!(of_user, [1, 2]);
    }
    app.until_ready("ready").await;
}

#[tokio::test]
async fn a_broker_lost_under_load_costs_no_event_and_slows_no_write() {
    let world = World::new().await;
    audit(&world).await;
    let mut observer = Observer::new(&world).await;
    let proxy = Proxy::before(&world.broker_url).await;
    let app = App::start(&world)
        .with(&[("RABBITMQ_URL", &proxy.url(&world.broker_url))])
        .await;
    app.create_user("Анна").await;
    app.create_user("Яна").await;
    for round in 0..5 {
        if round % 2 == 0 {
            proxy.close();
        } else {
            proxy.open();
        }
        for n in 0..40 {
            let began = Instant::now();
            let body = json!({"name": format!("Имя{round}-{n}")});
            assert_eq!(
                app.put(&format!("/users/{}", 1 + n % 2), &body)
                    .await
                    .status,
                200
            );
            assert!(
                began.elapsed() < Duration::from_secs(1),
                "a write took {:?}",
                began.elapsed()
            );
        }
    }
    app.until_ready("degraded").await;
    proxy.open();
    let committed = committed(&world).await;
    assert_eq!(committed.len(), 202);
    assert_delivered_exactly(&world, &mut observer).await;
    world.until_outbox_is_empty().await;
    app.until_ready("ready").await;
}

#[tokio::test]
async fn a_kill_during_writes_leaves_exactly_one_event_per_change() {
    let (world, mut observer, mut app) = start_audited().await;
    for n in 0..10 {
        app.create_user(&format!("Имя{n}")).await;
    }
    let mut answered = 0;
    for kill_after in [150, 350, 500] {
        let base = format!("http://{}", app.address);
        let client = reqwest::Client::new();
        let write = |n: usize| {
            let client = &client;
            let path = format!("{base}/users/{}", 1 + n % 10);
            async move {
                let request = match n % 50 {
                    49 => client.post(format!("{path}/..")).json(&new_user("Новая")),
                    _ => client
                        .put(path)
                        .json(&json!({"surname": format!("Фамилия{n}-{kill_after}")})),
                };
                request
                    .send()
                    .await
                    .is_ok_and(|answer| answer.status().is_success())
            }
        };
        let mut writes = futures_util::stream::iter(0..1000)
            .map(write)
            .buffer_unordered(16);
        let mut succeeded = 0;
        while let Some(success) = writes.next().await {
            succeeded += usize::from(success);
            if succeeded == kill_after {
                app.kill().await;
                break;
            }
        }
        // The writes in flight end, one way or the other.
        while let Some(success) = writes.next().await {
            succeeded += usize::from(success);
        }
        answered += succeeded;
        app = App::start(&world).await;
    }
    let committed = committed(&world).await;
    assert!(
        committed.len() >= answered,
        "{answered} were answered with success and {} committed",
        committed.len()
    );
    assert_delivered_exactly(&world, &mut observer).await;
    world.until_outbox_is_empty().await;
}

#[tokio::test]
async fn database_down_is_503_within_3_s_even_with_passwords_queued() {
    let world = World::new().await;
    let proxy = Proxy::before(&world.database_url).await;
    let app = App::start(&world)
        .with(&[("DATABASE_URL", &proxy.url(&world.database_url))])
        .await;
    app.create_user("Анна").await;
    proxy.silence();
    let user = new_user("Яна");
    let password = json!({"password": "another-secret"});
    let answers = futures_util::future::join_all((0..60).map(|n| {
        let app = &app;
        let user = &user;
        let password = &password;
        async move {
            let began = Instant::now();
            let answer = if n % 2 == 0 {
                app.post("/users", user).await
            } else {
                app.put("/users/1", password).await
            };
            (answer, began.elapsed())
        }
    }));
    for (answer, took) in answers.await {
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
}

#[tokio::test]
async fn database_down_is_503_within_3_s_and_recovers_without_restart() {
    let world = World::new().await;
    let proxy = Proxy::before(&world.database_url).await;
    let app = App::start(&world)
        .with(&[("DATABASE_URL", &proxy.url(&world.database_url))])
        .await;
    app.create_user("Анна").await;
    for silent in [false, true] {
        if silent {
            proxy.silence();
        } else {
            proxy.close();
        }
        let began = Instant::now();
        let user = new_user("Яна");
        let name = json!({"name": "Яна"});
        let (get, list, post, put, delete) = tokio::join!(
            app.get("/users/1"),
            app.get("/users"),
            app.post("/users", &user),
            app.put("/users/1", &name),
            app.delete("/users/2"),
        );
        for answer in [get, list, post, put, delete] {
            answer.assert_problem(503, "database_unavailable");
        }
        assert!(
            began.elapsed() < Duration::from_secs(3),
            "silent {silent}: {:?}",
            began.elapsed()
        );
        let ready = app.get("/health/ready").await;
        ready.assert_problem(503, "not_ready");
        let checks = &ready.body["checks"];
        assert_eq!(
            (&checks["database"], &checks["schema"]),
            (&json!("down"), &json!("unknown"))
        );
        assert_eq!(app.get("/health/live").await.status, 200);
        proxy.open();
        until("an answer from the database", async || {
            app.get("/users/1").await.status == 200
        })
        .await;
        app.until_ready("ready").await;
    }
    app.create_user("Ева").await;
    app.log
        .wait_for("Event received", |line| {
            line["event_type"] == "user.created" && line["user_id"] != 1
        })
        .await;
}

#[tokio::test]
async fn a_service_started_first_waits_for_its_database_and_broker() {
    let world = World::empty().await;
    let database = Proxy::before(&world.database_url).await;
    let broker = Proxy::before(&world.broker_url).await;
    database.close();
    broker.close();
    let database_url = database.url(&world.database_url);
    let broker_url = broker.url(&world.broker_url);
    let app = App::start(&world)
        .with(&[
            ("DATABASE_URL", &database_url),
            ("RABBITMQ_URL", &broker_url),
        ])
        .launch()
        .await;
    app.get("/users")
        .await
        .assert_problem(503, "database_unavailable");
    database.open();
    app.until_ready("degraded").await;
    app.create_user("Анна").await;
    broker.open();
    app.log
        .wait_for("Event received", |line| line["user_id"] == 1)
        .await;
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_both_user_and_event_or_neither() {
    let (world, mut observer, app) = start_audited().await;
    let id = app.create_user("Анна").await;
    for n in 0..2000 {
        let body = format!("{{\"name\":\"Имя{n}\"}}");
        let request = format!(
            "PUT /users/{id} HTTP/1.1\r\nhost: h\r\ncontent-type: \
             application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = tokio::net::TcpStream::connect(&app.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        // Dropped here, the answer unread.
    }
    assert_eq!(
        app.put(&format!("/users/{id}"), &json!({"name": "Последнее"}))
            .await
            .status,
        200
    );
    assert_eq!(assert_delivered_exactly(&world, &mut observer).await, 0);
    until("a pool at rest", async || {
        let metrics = app.get("/metrics").await.text;
        metrics.contains("\ndatabase_connections{state=\"in_use\"} 0\n")
    })
    .await;
}

#[tokio::test]
async fn a_confirmed_event_not_yet_deleted_is_repeated_with_its_id() {
    let world = World::new().await;
    let mut observer = Observer::new(&world).await;
    let proxy = Proxy::before(&world.broker_url).await;
    let mut app = App::start(&world)
        .with(&[("RABBITMQ_URL", &proxy.url(&world.broker_url))])
        .await;
    proxy.close();
    app.until_ready("degraded").await;
    app.create_user("Анна").await;
    // Locked rows can be read and published, not deleted.
    let mut lock = world.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM outbox FOR UPDATE")
        .execute(&mut *lock)
        .await
        .unwrap();
    proxy.open();
    let first = observer.next_message().await;
    app.log
        .wait_for("Event published", |line| line["user_id"] == 1)
        .await;
    // The leader loses its session at that moment, and then its life.
    world.terminate_leader().await;
    let second = observer.next_message().await;
    app.log
        .wait_for("Event received", |line| {
            line["user_id"] == 1 && line["duplicate"] == true
        })
        .await;
    app.kill().await;
    // PostgreSQL would go on with the statement of a client that died, until it looks for it.
    world.terminate_leader().await;
    lock.rollback().await.unwrap();
    let app = App::start(&world).await;
    let third = observer.next_message().await;
    for message in [&second, &third] {
        assert_eq!(
            message.properties.message_id(),
            first.properties.message_id()
        );
        assert_eq!(message.data, first.data);
    }
    world.until_outbox_is_empty().await;
    app.until_ready("ready").await;
}

#[tokio::test]
async fn a_replica_takes_over_when_the_leader_is_killed() {
    let world = World::new().await;
    let mut observer = Observer::new(&world).await;
    let mut first = App::start(&world).await;
    first.log.wait_for("Relay leads", |_| true).await;
    let second = App::start(&world).await;
    assert_eq!(
        second.get("/health/ready").await.body["checks"]["relay"],
        "standby"
    );
    second.create_user("Анна").await;
    assert_eq!(observer.next_bodies(1).await[0]["user_id"], 1);
    // A leader killed before it deletes what it published leaves a duplicate; that is not what this
    // is about.
    world.until_outbox_is_empty().await;
    first.kill().await;
    second.create_user("Яна").await;
    assert_eq!(observer.next_bodies(1).await[0]["user_id"], 2);
    second
        .log
        .wait_for("Event received", |line| line["user_id"] == 2)
        .await;
    assert_eq!(
        second.get("/health/ready").await.body["checks"]["relay"],
        "leading"
    );
}
