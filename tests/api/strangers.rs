//! Messages that no client library writes but any client can: none stops the consumer or a command,
//! and each becomes a dead letter.

use std::time::{Duration, Instant};

use serde_json::Value;

use harness::{
    App, Stranger, World, command, eventually, headers, long, management_json, nested, short,
    start_with,
};

const QUEUE_TYPES: [&str; 2] = ["quorum", "classic"];
const LETTER: &str = "Message cannot be read, it is in the dead-letter queue";
const LOST: &str = "Session lost, starting it again";

async fn dlq(world: &World, arguments: &[&str]) -> Value {
    let output = command(&world.settings())
        .arg("dlq")
        .args(arguments)
        .args(["--format", "json"])
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn is_rabbitmq_4() -> bool {
    let version = management_json("/api/overview").await["rabbitmq_version"]
        .as_str()
        .unwrap()
        .to_owned();
    version.starts_with("4.")
}

async fn dead_letters(world: &World, count: u64) {
    let what = format!("{count} dead letters");
    eventually(what, async || {
        (dlq(world, &["list"]).await["total"] == count).then_some(())
    })
    .await;
}

/// Publishes an event after everything else. Returns how long it takes until the event is logged.
///
/// Not by an [`Observer`], whose lapin has no screen.
async fn next_is_logged(app: &App, stranger: &mut Stranger) -> Duration {
    let id = uuid::Uuid::now_v7();
    let event = format!(
        r#"{{"event_type":"user.created","user_id":1,"trace_id":"t","event_id":"{id}","version":1}}"#
    );
    let began = Instant::now();
    stranger
        .publish("user_events", b"user.created", &[0, 0], event.as_bytes())
        .await;
    app.log
        .wait_for("Event received", |line| line["event_id"] == id.to_string())
        .await;
    began.elapsed()
}

/// Publishes message headers that break lapin's parser. Returns how many.
async fn publish_heads(stranger: &mut Stranger) -> u64 {
    let id = |flag: u16, text: &[u8]| [&(1_u16 << flag).to_be_bytes()[..], &short(text)].concat();
    let bad_name = headers(&[&short(b"\xff")[..], b"t\x01"].concat());
    let wide = headers(&[&short(b"wide")[..], b"A", &long(&[b't', 1].repeat(60_000))].concat());
    let heads = [
        headers(&nested(3_000, b'F')),
        headers(&nested(18_720, b'F')),
        headers(&nested(26_000, b'A')),
        id(7, b"\xff"),
        id(5, b"\xff"),
        bad_name,
        wide,
    ];
    let mut count = 0;
    for properties in heads {
        stranger
            .publish("user_events", b"user.created", &properties, b"{}")
            .await;
        count += 1;
    }
    stranger
        .publish("user_events", b"user.\xff", &[0, 0], b"{}")
        .await;
    count + 1
}

#[tokio::test]
async fn no_header_stops_consumer_or_commands_on_either_queue_type() {
    for queue_type in QUEUE_TYPES {
        let (world, app) = start_with(&[("AMQP_QUEUE_TYPE", queue_type)]).await;
        let mut stranger = Stranger::at(&world).await;
        let mut reader = Stranger::at(&world).await;
        reader.subscribe().await;
        let count = publish_heads(&mut stranger).await;
        let began = Instant::now();
        let received = async {
            reader.receive(count + 1).await;
            began.elapsed()
        };
        let (took, by_reader) = tokio::join!(next_is_logged(&app, &mut stranger), received);
        // RabbitMQ 4 itself takes seconds for deep tables.
        assert!(
            took < by_reader + Duration::from_secs(2),
            "{took:?}, and a bare reader {by_reader:?}"
        );
        assert!(
            is_rabbitmq_4().await || took < Duration::from_secs(2),
            "{took:?}"
        );
        dead_letters(&world, count).await;
        assert_eq!(app.log.matching(LOST, |_| true), [] as [Value; 0]);
        let listed = dlq(&world, &["list"]).await;
        for letter in listed["messages"].as_array().unwrap() {
            assert!(
                letter["reason"]
                    .as_str()
                    .is_some_and(|reason| !reason.is_empty()),
                "{letter}"
            );
        }
        // Returned without the unreadable properties; `{}` is not an event either.
        assert_eq!(dlq(&world, &["redrive", "--max", "2"]).await["moved"], 2);
        dead_letters(&world, count).await;
        assert_eq!(
            dlq(&world, &["drop", "--max", "100"]).await["deleted"],
            count
        );
        assert_eq!(app.log.matching(LOST, |_| true), [] as [Value; 0]);
    }
}

#[tokio::test]
async fn a_dead_letter_from_the_broker_does_not_hide_those_behind_it() {
    let (world, _app) = start_with(&[]).await;
    let mut stranger = Stranger::at(&world).await;
    stranger
        .publish(
            "user_events.dlx",
            b"",
            &headers(&nested(18_720, b'F')),
            b"first",
        )
        .await;
    stranger
        .publish("user_events.dlx", b"\xff", &[0, 0], b"second")
        .await;
    stranger
        .publish("user_events.dlx", b"", &[0, 0], b"third")
        .await;
    let listed = dlq(&world, &["list"]).await;
    assert_eq!(
        (
            &listed["total"],
            listed["messages"].as_array().unwrap().len()
        ),
        (&3.into(), 3)
    );
    assert_eq!(dlq(&world, &["drop", "--max", "2"]).await["left"], 1);
    assert_eq!(dlq(&world, &["redrive", "--max", "1"]).await["moved"], 1);
}

#[tokio::test]
async fn an_invalid_trace_id_is_dead_lettered_and_kept_out_of_the_log() {
    let (world, app) = start_with(&[]).await;
    let mut stranger = Stranger::at(&world).await;
    for length in [129, 7 << 20] {
        let trace_id = "x".repeat(length);
        let id = uuid::Uuid::now_v7();
        let event = format!(
            r#"{{"event_type":"user.created","user_id":1,"trace_id":"{trace_id}","event_id":"{id}","version":1}}"#
        );
        stranger
            .publish("user_events", b"user.created", &[0, 0], event.as_bytes())
            .await;
    }
    dead_letters(&world, 2).await;
    next_is_logged(&app, &mut stranger).await;
    let longest = app.log.text().lines().map(str::len).max();
    assert!(longest < Some(10_000), "{longest:?}");
}

#[tokio::test]
async fn a_large_message_does_not_repeat_dead_letters_being_written() {
    let (world, app) = start_with(&[]).await;
    let mut stranger = Stranger::at(&world).await;
    // Opens the connection of the dead letters.
    stranger
        .publish("user_events", b"user.created", &[0, 0], b"none")
        .await;
    dead_letters(&world, 1).await;
    for _ in 0..50 {
        stranger
            .send("user_events", b"user.created", &[0, 0], b"none")
            .await;
    }
    stranger
        .send(
            "user_events",
            b"user.created",
            &[0, 0],
            &vec![b'y'; 2 << 20],
        )
        .await;
    next_is_logged(&app, &mut stranger).await;
    // The last one to come, if not the last one to be written.
    stranger
        .send("user_events", b"user.created", &[0, 0], b"]")
        .await;
    app.log
        .wait_for(LETTER, |line| {
            line["reason"].as_str().unwrap().ends_with("column 1")
        })
        .await;
    assert_eq!(dlq(&world, &["list"]).await["total"], 53);
}

#[tokio::test]
async fn large_messages_are_dead_lettered_whole_with_few_in_memory() {
    for queue_type in QUEUE_TYPES {
        let settings = [("AMQP_QUEUE_TYPE", queue_type)];
        let (world, mut app) = start_with(&settings).await;
        app.kill().await;
        // They wait when the consumer comes.
        let mut stranger = Stranger::at(&world).await;
        let body = vec![b'x'; 1 << 20];
        for _ in 0..150 {
            stranger
                .publish("user_events", b"user.created", &[0, 0], &body)
                .await;
        }
        stranger
            .publish(
                "user_events",
                b"user.created",
                &[0, 0],
                &vec![b'y'; 8 << 20],
            )
            .await;
        let app = App::start(&world).with(&settings).await;
        next_is_logged(&app, &mut stranger).await;
        dead_letters(&world, 151).await;
        let peak = app.peak_resident();
        assert!(peak < 110 << 20, "{peak}");
        let letters = dlq(&world, &["list", "--max", "1000"]).await;
        let sizes: Vec<_> = letters["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|letter| &letter["bytes"])
            .collect();
        assert_eq!(
            sizes.iter().filter(|bytes| ***bytes == 1 << 20).count(),
            150,
            "{sizes:?}"
        );
        assert!(sizes.contains(&&(8 << 20).into()), "{sizes:?}");
        assert_eq!(app.log.matching(LOST, |_| true), [] as [Value; 0]);
    }
}
