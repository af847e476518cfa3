//! Exchanges, queues and bindings: the only place that names them, with every option that is not AMQP's default explained.
//! <https://www.rabbitmq.com/docs/queues#optional-arguments>

use std::str::FromStr;

use lapin::options::{
    BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, Consumer, ErrorKind, ExchangeKind};
use metrics::gauge;
use tracing::warn;

/// Topic: a subscriber chooses by event type which events it gets.
pub const EXCHANGE: &str = "user_events";
pub const QUEUE: &str = "user_events_queue";
const BINDING: &str = "user.*";
/// Fanout: whoever wants dead letters binds a queue, whatever their routing keys are.
pub const DEAD_LETTER_EXCHANGE: &str = "user_events.dlx";
pub const DEAD_LETTER_QUEUE: &str = "user_events_queue.dlq";
pub const CONSUMER_TAG: &str = env!("CARGO_PKG_NAME");

/// Deliveries of one message before the broker dead-letters it. The consumer dead-letters at the first delivery what it
/// cannot read, so only a consumer that dies again and again comes here.
/// <https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>
const DELIVERY_LIMIT: i64 = 20;
/// Each look at the dead letters counts as a delivery, and RabbitMQ 4 drops what was delivered 20 times.
const LOOKS_LIMIT: i64 = 1_000_000_000;

/// AMQP's reply code for a clean close.
/// <https://www.rabbitmq.com/amqp-0-9-1-reference#constants>
pub const REPLY_SUCCESS: u16 = 200;

/// How the broker keeps the queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueType {
    /// Replicated where the broker is a cluster, on disk everywhere.
    #[default]
    Quorum,
    /// For brokers that have no quorum queues.
    Classic,
}

impl FromStr for QueueType {
    type Err = String;

    fn from_str(value: &str) -> Result<Self, Self::Err> {
        match value.to_ascii_lowercase().as_str() {
            "quorum" => Ok(Self::Quorum),
            "classic" => Ok(Self::Classic),
            _ => Err(format!("must be quorum or classic, not `{value}`")),
        }
    }
}

impl QueueType {
    fn queue_arguments(self) -> FieldTable {
        let mut arguments = self.arguments(DELIVERY_LIMIT);
        // One of all replicas' consumers reads at a time: two would log one user's events out of order.
        // https://www.rabbitmq.com/docs/consumers#single-active-consumer
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
        // For what the broker itself takes out of the queue.
        arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString(DEAD_LETTER_EXCHANGE.into()));
        arguments
    }

    fn dead_letter_queue_arguments(self) -> FieldTable {
        self.arguments(LOOKS_LIMIT)
    }

    fn arguments(self, delivery_limit: i64) -> FieldTable {
        let mut arguments = FieldTable::default();
        let name = match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
        };
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(name.into()));
        if self == Self::Quorum {
            arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(delivery_limit));
        }
        arguments
    }
}

/// Declares all exchanges, queues and bindings; what is there with other arguments is used as it is.
pub async fn declare(connection: &Connection, queue_type: QueueType) -> lapin::Result<()> {
    declare_one(connection, EXCHANGE, &Entity::Exchange(ExchangeKind::Topic)).await?;
    declare_one(connection, DEAD_LETTER_EXCHANGE, &Entity::Exchange(ExchangeKind::Fanout)).await?;
    declare_one(connection, QUEUE, &Entity::Queue(queue_type.queue_arguments())).await?;
    declare_one(connection, DEAD_LETTER_QUEUE, &Entity::Queue(queue_type.dead_letter_queue_arguments())).await?;
    let channel = connection.create_channel().await?;
    bind(&channel, QUEUE, EXCHANGE, BINDING).await?;
    bind(&channel, DEAD_LETTER_QUEUE, DEAD_LETTER_EXCHANGE, "").await?;
    channel.close(REPLY_SUCCESS, "declared".into()).await
}

/// Subscribes to the service's queue, by a channel of its own; at most `prefetch` messages wait for their acknowledgement.
pub async fn subscribe(connection: &Connection, prefetch: u16) -> lapin::Result<(Channel, Consumer)> {
    let channel = connection.create_channel().await?;
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let (tag, options) = (CONSUMER_TAG.into(), BasicConsumeOptions::default());
    let consumer = channel.basic_consume(QUEUE.into(), tag, options, FieldTable::default()).await?;
    Ok((channel, consumer))
}

async fn bind(channel: &Channel, queue: &str, exchange: &str, key: &str) -> lapin::Result<()> {
    let options = QueueBindOptions::default();
    channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default()).await
}

enum Entity {
    Exchange(ExchangeKind),
    Queue(FieldTable),
}

/// Declares, and where the name is taken with other arguments, contents itself with its being there: an operator's choice
/// is no reason not to run.
async fn declare_one(connection: &Connection, name: &str, entity: &Entity) -> lapin::Result<()> {
    let mismatch = gauge!("topology_mismatch", "name" => name.to_owned());
    mismatch.set(0.0);
    match try_declare(connection, name, entity, false).await {
        Err(error) if is_precondition_failed(&error) => {
            mismatch.set(1.0);
            warn!(name, %error, "Declared by somebody else with other arguments, using it as it is");
            try_declare(connection, name, entity, true).await
        }
        outcome => outcome,
    }
}

/// On a channel of its own: a refusal closes the channel.
async fn try_declare(connection: &Connection, name: &str, entity: &Entity, passive: bool) -> lapin::Result<()> {
    let channel = connection.create_channel().await?;
    // Durable: what is in it outlives the broker's restart. Passive: it must be there, with whatever arguments.
    match entity {
        Entity::Exchange(kind) => {
            let options = ExchangeDeclareOptions { durable: true, passive, ..Default::default() };
            channel.exchange_declare(name.into(), kind.clone(), options, FieldTable::default()).await?;
        }
        Entity::Queue(arguments) => {
            let options = QueueDeclareOptions { durable: true, passive, ..Default::default() };
            channel.queue_declare(name.into(), options, arguments.clone()).await?;
        }
    }
    channel.close(REPLY_SUCCESS, "declared".into()).await
}

fn is_precondition_failed(error: &lapin::Error) -> bool {
    let ErrorKind::ProtocolError(error) = error.kind() else { return false };
    matches!(error.kind(), AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED))
}
