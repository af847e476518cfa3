//! The operators' commands: what they print, what they leave alone, and how they exit.

use serde_json::{Value, json};

use crate::api::commands::run;
use harness::{App, Observer, Proxy, World, eventually, start};

async fn dlq(world: &World, arguments: &[&str]) -> (Option<i32>, String) {
    let (output, text) = run(
        &[&["dlq"], arguments].concat(),
        &[("RABBITMQ_URL", &world.broker_url)],
    )
    .await;
    (output.status.code(), text)
}

async fn dlq_json(world: &World, arguments: &[&str]) -> Value {
    let (code, text) = dlq(world, &[arguments, &["--format", "json"]].concat()).await;
    assert_eq!(code, Some(0), "{text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

/// Returns the first listing that counts `count` messages: those of the previous listing may still
/// be on their way back to the queue.
async fn until_dead_letters(world: &World, count: u64, arguments: &[&str]) -> Value {
    eventually(format!("{count} dead letters"), async || {
        Some(dlq_json(world, &[&["list"], arguments].concat()).await)
            .filter(|listing| listing["total"] == count)
    })
    .await
}

#[tokio::test]
async fn outbox_status_shows_waiting_events_and_the_leader() {
    let world = World::new().await;
    let proxy = Proxy::before(&world.broker_url).await;
    let app = App::start(&world)
        .with(&[("RABBITMQ_URL", &proxy.url(&world.broker_url))])
        .await;
    app.log.wait_for("Relay leads", |_| true).await;
    let settings = [("DATABASE_URL", world.database_url.as_str())];
    let status = async || {
        let (output, text) = run(&["outbox", "status", "--format", "json"], &settings).await;
        assert!(output.status.success(), "{text}");
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let idle = status().await;
    assert!(
        ["pending", "held", "quarantined"]
            .iter()
            .all(|count| idle[count] == 0),
        "{idle}"
    );
    assert!(
        idle["leader_pid"].is_u64() && idle["leader_address"] == "127.0.0.1",
        "{idle}"
    );
    proxy.close();
    app.until_ready("degraded").await;
    app.create_user("Анна").await;
    let waiting = eventually("no leader", async || {
        Some(status().await).filter(|now| now["leader_pid"].is_null())
    })
    .await;
    assert_eq!(waiting["pending"], 1);
    assert!(
        waiting["oldest_age_seconds"].as_f64() > Some(0.0)
            && waiting["table_bytes"].as_i64() > Some(0)
    );
    let (output, text) = run(&["outbox", "status"], &settings).await;
    assert!(
        output.status.success() && text.contains("pending             1\n"),
        "{text}"
    );
}

#[tokio::test]
async fn dead_letters_are_listed_with_the_reason_and_stay_in_place() {
    let world = World::new().await;
    let observer = Observer::new(&world).await;
    let _app = App::start(&world).await;
    for body in ["first", "second", "third"] {
        observer.publish("user.created", body.as_bytes()).await;
    }
    for _ in 0..3 {
        let listing = until_dead_letters(&world, 3, &[]).await;
        let bytes: Vec<_> = listing["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|letter| &letter["bytes"])
            .collect();
        assert_eq!(bytes, [5, 6, 5], "in their order: {listing}");
        assert!(
            listing["messages"][0]["reason"]
                .as_str()
                .unwrap()
                .starts_with("not JSON"),
            "{listing}"
        );
    }
    let listing = until_dead_letters(&world, 3, &["--max", "1"]).await;
    assert_eq!(listing["messages"].as_array().unwrap().len(), 1);
    let table = eventually("a table of them", async || {
        Some(dlq(&world, &["list"]).await.1).filter(|table| table.starts_with("total     3\n"))
    })
    .await;
    assert!(
        table.starts_with("total     3\nMESSAGE_ID") && !table.contains("second"),
        "{table}"
    );
}

#[tokio::test]
async fn redrive_reaches_only_the_consumer_and_unreadable_ones_return() {
    let (world, app) = start().await;
    let mut observer = Observer::new(&world).await;
    app.create_user("Анна").await;
    let event = observer.next_message().await;
    // As if a consumer of an older version had not understood it.
    observer
        .publish_to("user_events.dlx", "", &event.data)
        .await;
    observer
        .publish_to("user_events.dlx", "", b"unreadable")
        .await;
    assert_eq!(
        dlq_json(&world, &["redrive", "--max", "1"]).await,
        json!({"moved": 1, "left": 1, "failure": null})
    );
    let event_id = serde_json::from_slice::<Value>(&event.data).unwrap()["event_id"].clone();
    app.log
        .wait_for("Event received", |line| {
            line["event_id"] == event_id && line["duplicate"] == true
        })
        .await;
    assert_eq!(
        dlq_json(&world, &["redrive", "--max", "10"]).await["moved"],
        1
    );
    until_dead_letters(&world, 1, &[]).await;
    app.create_user("Яна").await;
    assert_eq!(
        observer.next_bodies(1).await[0]["user_id"],
        2,
        "the observer saw nothing of the redrive"
    );
}

#[tokio::test]
async fn dead_letters_are_dropped_oldest_first() {
    let world = World::new().await;
    let observer = Observer::new(&world).await;
    let _app = App::start(&world).await;
    for body in ["first", "second", "third"] {
        observer.publish("user.created", body.as_bytes()).await;
    }
    until_dead_letters(&world, 3, &[]).await;
    assert_eq!(
        dlq_json(&world, &["drop", "--max", "2"]).await,
        json!({"deleted": 2, "left": 1, "failure": null})
    );
    let listing = until_dead_letters(&world, 1, &[]).await;
    assert_eq!(
        listing["messages"][0]["bytes"], 5,
        "the third is left: {listing}"
    );
    assert_eq!(
        run(&["dlq", "drop"], &[]).await.0.status.code(),
        Some(2),
        "how many is for the operator to say"
    );
}

#[tokio::test]
async fn a_command_that_fails_says_why_and_exits_with_1() {
    let empty = World::empty().await;
    let (code, text) = dlq(&empty, &["redrive", "--max", "5"]).await;
    assert!(
        code == Some(1) && text.contains("user_events_queue.dlq"),
        "{text}"
    );
    let (output, text) = run(
        &["outbox", "status"],
        &[("DATABASE_URL", &empty.database_url)],
    )
    .await;
    assert!(
        output.status.code() == Some(1) && text.contains("run `user-management-api migrate`"),
        "{text}"
    );
    let away = "postgresql://u:hunter22@127.0.0.1:1/d";
    let (output, text) = run(&["outbox", "dead", "list"], &[("DATABASE_URL", away)]).await;
    assert!(
        output.status.code() == Some(1)
            && text.contains("PostgreSQL")
            && !text.contains("hunter22"),
        "{text}"
    );
    let (output, text) = run(
        &["dlq", "list"],
        &[("RABBITMQ_URL", "amqp://u:hunter22@127.0.0.1:1/")],
    )
    .await;
    assert!(
        output.status.code() == Some(1) && text.contains("RabbitMQ") && !text.contains("hunter22"),
        "{text}"
    );
    for bad in [
        &["outbox", "quarantine", "retry", "7"][..],
        &["dlq", "redrive"],
        &["dlq", "redrive", "--max", "0"],
    ] {
        assert_eq!(run(bad, &[]).await.0.status.code(), Some(2), "{bad:?}");
    }
}
