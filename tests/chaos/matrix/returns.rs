//! Unroutable messages, mixed with routable ones.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use user_management_api::testing::{Broker, QueueType, Returned};

use harness::World;

const MESSAGES: usize = 1_000_000;
const IN_FLIGHT: usize = 2_000;

/// How often each side was wrong.
#[derive(Debug, Default)]
struct Wrong {
    ours: usize,
    /// lapin attaches a return to whichever confirm it resolves next.
    of_lapin: usize,
}

#[tokio::test(flavor = "multi_thread")]
async fn each_return_is_matched_when_half_of_a_million_come_back() {
    let world = World::new().await;
    let broker = Broker {
        url: world.broker_url.parse().unwrap(),
        queue_type: QueueType::Quorum,
    };
    let returned = Returned::default();
    let connection = broker
        .connect_publisher("returns", returned.clone())
        .await
        .unwrap();
    let channel = broker.confirming_channel(&connection).await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    channel
        .queue_declare("taken".into(), QueueDeclareOptions::default(), arguments)
        .await
        .unwrap();
    let publish = async |number: usize, comes_back: bool| {
        let properties = BasicProperties::default().with_message_id(number.to_string().into());
        let options = BasicPublishOptions {
            mandatory: true,
            ..Default::default()
        };
        let key = if comes_back { "nowhere" } else { "taken" };
        let confirm = channel
            .basic_publish("".into(), key.into(), options, b"", properties)
            .await
            .unwrap();
        let confirmation = confirm.await.unwrap();
        assert!(confirmation.is_ack());
        let by_lapin = confirmation.take_message().is_some();
        (returned.take(&number) != comes_back, by_lapin != comes_back)
    };
    let mut in_flight = FuturesUnordered::new();
    let mut wrong = Wrong::default();
    let mut answered = 0;
    for number in 0..MESSAGES {
        in_flight.push(publish(number, fastrand::bool()));
        while in_flight.len() >= IN_FLIGHT || number + 1 == MESSAGES && !in_flight.is_empty() {
            let (ours, of_lapin) = in_flight.next().await.unwrap();
            wrong.ours += usize::from(ours);
            wrong.of_lapin += usize::from(of_lapin);
            answered += 1;
        }
    }
    eprintln!("  {wrong:?} of {answered}");
    assert_eq!((answered, wrong.ours), (MESSAGES, 0));
    assert!(wrong.of_lapin > 0, "else this shows nothing");
}
