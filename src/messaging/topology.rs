//! Exchanges, queues and bindings. The only place that names them; explains every option that is
//! not AMQP's default.
//! <https://www.rabbitmq.com/docs/queues#optional-arguments>

use std::str::FromStr;

use lapin::options::{
    BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, Consumer, ErrorKind, ExchangeKind};
use tracing::warn;

use crate::monitoring::catalogue;

/// A topic exchange, so that subscribers can choose event types.
pub(crate) const EXCHANGE: &str = "user_events";
/// The service's own queue.
pub(crate) const QUEUE: &str = "user_events_queue";
/// The routing keys that it takes: all event types.
const BINDING: &str = "user.*";
/// A fanout exchange, so that every bound queue gets all dead letters, whatever their routing keys.
pub(crate) const DEAD_LETTER_EXCHANGE: &str = "user_events.dlx";
/// Messages that the consumer cannot read, and those that the broker itself dead-letters.
pub(crate) const DEAD_LETTER_QUEUE: &str = "user_events_queue.dlq";
/// Names the service's subscription.
pub(crate) const CONSUMER_TAG: &str = env!("CARGO_PKG_NAME");

/// Deliveries of one message before the broker dead-letters it. The consumer itself dead-letters
/// unreadable messages at the first delivery, so only a consumer that keeps crashing reaches this
/// limit.
/// <https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>
const DELIVERY_LIMIT: i64 = 20;
/// Listing dead letters counts as a delivery, and RabbitMQ 4 drops messages after 20 deliveries.
const DEAD_LETTER_DELIVERY_LIMIT: i64 = 1_000_000_000;

/// AMQP's reply code for a clean close.
/// <https://www.rabbitmq.com/amqp-0-9-1-reference#constants>
pub(crate) const REPLY_SUCCESS: u16 = 200;

/// The type of the service's queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueType {
    /// On disk; replicated if the broker is a cluster.
    #[default]
    Quorum,
    /// For brokers without quorum queues.
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
        // Only one replica's consumer reads at a time: two would log a user's events out of order.
        // https://www.rabbitmq.com/docs/consumers#single-active-consumer
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
        // For messages that the broker itself dead-letters.
        arguments.insert(
            "x-dead-letter-exchange".into(),
            AMQPValue::LongString(DEAD_LETTER_EXCHANGE.into()),
        );
        arguments
    }

    fn dead_letter_queue_arguments(self) -> FieldTable {
        self.arguments(DEAD_LETTER_DELIVERY_LIMIT)
    }

    fn arguments(self, delivery_limit: i64) -> FieldTable {
        let mut arguments = FieldTable::default();
        let name = match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
        };
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(name.into()));
        if self == Self::Quorum {
            arguments.insert(
                "x-delivery-limit".into(),
                AMQPValue::LongLongInt(delivery_limit),
            );
        }
        arguments
    }
}

/// Declares all exchanges, queues and bindings. Those that exist with other arguments, or that the
/// login may not declare, are used as they are.
pub(crate) async fn declare(connection: &Connection, queue_type: QueueType) -> lapin::Result<()> {
    declare_one(connection, EXCHANGE, &Entity::Exchange(ExchangeKind::Topic)).await?;
    declare_one(
        connection,
        DEAD_LETTER_EXCHANGE,
        &Entity::Exchange(ExchangeKind::Fanout),
    )
    .await?;
    declare_one(
        connection,
        QUEUE,
        &Entity::Queue(queue_type.queue_arguments()),
    )
    .await?;
    bind(connection, QUEUE, EXCHANGE, BINDING).await?;
    match declare_dead_letter_queue(connection, queue_type).await {
        // A classic queue whose node is down. Events do not wait for it.
        Err(error) if is(&error, &AMQPSoftError::NOTFOUND) => {
            warn!(%error, "The dead-letter queue is not available");
            Ok(())
        }
        outcome => outcome,
    }
}

async fn declare_dead_letter_queue(
    connection: &Connection,
    queue_type: QueueType,
) -> lapin::Result<()> {
    let queue = Entity::Queue(queue_type.dead_letter_queue_arguments());
    declare_one(connection, DEAD_LETTER_QUEUE, &queue).await?;
    bind(connection, DEAD_LETTER_QUEUE, DEAD_LETTER_EXCHANGE, "").await
}

/// The queues, as the broker sees them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Queues {
    /// Messages in the service's queue that are ready, not delivered to a consumer.
    pub waiting: u32,
    /// Consumers of the service's queue; 0 if the queue is missing.
    pub consumers: u32,
    /// `None` if one of the queues is missing.
    pub dead_letters: Option<u32>,
}

/// Counts messages and consumers, and binds the service's queue again, in case someone has removed
/// the binding.
pub(crate) async fn maintain(connection: &Connection) -> lapin::Result<Queues> {
    // A channel of its own, because asking about a missing queue closes it.
    let channel = connection.create_channel().await?;
    let ask = async |queue: &str| {
        let options = QueueDeclareOptions {
            passive: true,
            ..Default::default()
        };
        match channel
            .queue_declare(queue.into(), options, FieldTable::default())
            .await
        {
            Err(error) if is(&error, &AMQPSoftError::NOTFOUND) => Ok(None),
            queue => queue.map(Some),
        }
    };
    let mut queues = Queues::default();
    let Some(queue) = ask(QUEUE).await? else {
        return Ok(queues);
    };
    queues.waiting = queue.message_count();
    queues.consumers = queue.consumer_count();
    let Some(dead_letters) = ask(DEAD_LETTER_QUEUE).await? else {
        return Ok(queues);
    };
    queues.dead_letters = Some(dead_letters.message_count());
    let options = QueueBindOptions::default();
    let none = FieldTable::default();
    match channel
        .queue_bind(QUEUE.into(), EXCHANGE.into(), BINDING.into(), options, none)
        .await
    {
        // The queue was deleted just now, which the subscription reports; or the login may not
        // bind, which [`declare`] has logged.
        Err(error)
            if is(&error, &AMQPSoftError::NOTFOUND)
                || is(&error, &AMQPSoftError::ACCESSREFUSED) =>
        {
            Ok(queues)
        }
        outcome => {
            outcome?;
            channel
                .close(REPLY_SUCCESS, "looked".into())
                .await
                .map(|()| queues)
        }
    }
}

/// Subscribes to the service's queue on a new channel, with at most `prefetch` unacknowledged
/// messages.
pub(crate) async fn subscribe(
    connection: &Connection,
    prefetch: u16,
) -> lapin::Result<(Channel, Consumer)> {
    let channel = connection.create_channel().await?;
    channel
        .basic_qos(prefetch, BasicQosOptions::default())
        .await?;
    let tag = CONSUMER_TAG.into();
    let options = BasicConsumeOptions::default();
    let consumer = channel
        .basic_consume(QUEUE.into(), tag, options, FieldTable::default())
        .await?;
    Ok((channel, consumer))
}

/// Uses its own channel, because a refusal closes it.
async fn bind(
    connection: &Connection,
    queue: &str,
    exchange: &str,
    key: &str,
) -> lapin::Result<()> {
    let channel = connection.create_channel().await?;
    let options = QueueBindOptions::default();
    match channel
        .queue_bind(
            queue.into(),
            exchange.into(),
            key.into(),
            options,
            FieldTable::default(),
        )
        .await
    {
        Err(error) if is(&error, &AMQPSoftError::ACCESSREFUSED) => {
            warn!(
                queue,
                exchange, "This login may not bind the queue, assuming that it is bound"
            );
            Ok(())
        }
        outcome => {
            outcome?;
            channel.close(REPLY_SUCCESS, "bound".into()).await
        }
    }
}

enum Entity {
    Exchange(ExchangeKind),
    Queue(FieldTable),
}

/// Declares an exchange or queue. If it exists with other arguments, or the login may not declare
/// it, uses it as it is: an operator's choice is no reason to stop.
async fn declare_one(connection: &Connection, name: &str, entity: &Entity) -> lapin::Result<()> {
    let mismatch = catalogue::topology_mismatch(name.to_owned());
    mismatch.set(0.0);
    match try_declare(connection, name, entity, false).await {
        Err(error) if is(&error, &AMQPSoftError::ACCESSREFUSED) => {
            warn!(name, "This login may not declare it, using it as it is");
            try_declare(connection, name, entity, true).await
        }
        Err(error) if is(&error, &AMQPSoftError::PRECONDITIONFAILED) => {
            mismatch.set(1.0);
            warn!(
                name,
                %error,
                "Already declared with other arguments, using it as it is"
            );
            try_declare(connection, name, entity, true).await
        }
        outcome => outcome,
    }
}

/// Uses its own channel, because a refusal closes it.
async fn try_declare(
    connection: &Connection,
    name: &str,
    entity: &Entity,
    passive: bool,
) -> lapin::Result<()> {
    let channel = connection.create_channel().await?;
    // Durable: it survives a restart of the broker. Passive: it must exist, with any arguments.
    match entity {
        Entity::Exchange(kind) => {
            let options = ExchangeDeclareOptions {
                durable: true,
                passive,
                ..Default::default()
            };
            channel
                .exchange_declare(name.into(), kind.clone(), options, FieldTable::default())
                .await?;
        }
        Entity::Queue(arguments) => {
            let options = QueueDeclareOptions {
                durable: true,
                passive,
                ..Default::default()
            };
            channel
                .queue_declare(name.into(), options, arguments.clone())
                .await?;
        }
    }
    channel.close(REPLY_SUCCESS, "declared".into()).await
}

/// Whether the broker closed the channel for this reason.
fn is(error: &lapin::Error, reason: &AMQPSoftError) -> bool {
    let ErrorKind::ProtocolError(error) = error.kind() else {
        return false;
    };
    matches!(error.kind(), AMQPErrorKind::Soft(given) if given == reason)
}
