//! What a subscriber declares, as the contract describes it.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};

/// The exchange of the events.
const EXCHANGE: &str = "user_events";
/// Matches every type of event.
pub(crate) const ALL_EVENTS: &str = "user.*";

/// Arguments of a queue of this type.
pub(crate) fn of_type(queue_type: &str) -> FieldTable {
    let mut arguments = FieldTable::default();
    let queue_type = AMQPValue::LongString(queue_type.into());
    arguments.insert("x-queue-type".into(), queue_type);
    arguments
}

pub(crate) async fn declare_queue(
    channel: &Channel,
    queue: &str,
    arguments: FieldTable,
) -> lapin::Result<()> {
    let durable = QueueDeclareOptions {
        durable: true,
        ..Default::default()
    };
    channel
        .queue_declare(queue.into(), durable, arguments)
        .await?;
    Ok(())
}

pub(crate) async fn declare_exchange(channel: &Channel) -> lapin::Result<()> {
    let durable = ExchangeDeclareOptions {
        durable: true,
        ..Default::default()
    };
    let none = FieldTable::default();
    channel
        .exchange_declare(EXCHANGE.into(), ExchangeKind::Topic, durable, none)
        .await
}

pub(crate) async fn bind(channel: &Channel, queue: &str, routing_key: &str) -> lapin::Result<()> {
    let options = QueueBindOptions::default();
    let none = FieldTable::default();
    channel
        .queue_bind(
            queue.into(),
            EXCHANGE.into(),
            routing_key.into(),
            options,
            none,
        )
        .await
}
