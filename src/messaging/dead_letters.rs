//! The dead-letter queue: writes unreadable messages to it, whole and with the reason, and lets an
//! operator list, redrive and delete them.

use std::time::Duration;

use lapin::message::{BasicGetMessage, Delivery};
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use serde::Serialize;

use super::broker::{self, Broker};
use super::message::{PERSISTENT, TRACE_ID_HEADER};
use super::session::{SessionError, with_timeout};
use super::topology::{DEAD_LETTER_EXCHANGE, DEAD_LETTER_QUEUE, QUEUE};
use super::transport::MARK;
use crate::error_chain::Chain;

/// Why the message is a dead letter.
pub(crate) const REASON_HEADER: &str = "x-reason";
/// Headers that describe a dead letter: ours, and those that the broker's own dead-lettering adds.
const DEATH_HEADERS: [&str; 5] = [
    REASON_HEADER,
    MARK,
    "x-death",
    "x-first-death-",
    "x-last-death-",
];
/// The default exchange: delivers to the queue named by the routing key.
const DEFAULT_EXCHANGE: &str = "";
/// How long the broker may take to confirm, count or hand out dead letters.
pub(crate) const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);

async fn count(channel: &Channel) -> Result<u32, SessionError> {
    let options = QueueDeclareOptions {
        passive: true,
        ..Default::default()
    };
    let asking = channel.queue_declare(DEAD_LETTER_QUEUE.into(), options, FieldTable::default());
    with_timeout(CONFIRM_TIMEOUT, "count the dead letters", asking)
        .await
        .map(|queue| queue.message_count())
}

/// What a dead letter keeps of its message.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keep {
    Properties,
    /// Used if its properties make the broker close the channel.
    BodyAlone,
}

/// A channel in confirm mode. The broker's own dead-lettering may lose a message; a confirmed
/// publish does not.
pub(crate) struct DeadLetters(Channel);

impl DeadLetters {
    pub(crate) async fn open(
        broker: &Broker,
        connection: &Connection,
    ) -> Result<Self, SessionError> {
        broker.confirming_channel(connection).await.map(Self)
    }

    /// Publishes the original body, with the reason in the header `x-reason`. Has no time limit.
    pub(crate) async fn put(
        &self,
        delivery: &Delivery,
        reason: &str,
        keep: Keep,
    ) -> Result<(), SessionError> {
        let properties = match keep {
            Keep::Properties => copy(&delivery.properties),
            Keep::BodyAlone => BasicProperties::default().with_delivery_mode(PERSISTENT),
        };
        let mut headers = properties.headers().clone().unwrap_or_default();
        headers.insert(REASON_HEADER.into(), AMQPValue::LongString(reason.into()));
        let key = delivery.routing_key.clone();
        let properties = properties.with_headers(headers);
        self.publish(DEAD_LETTER_EXCHANGE, key, properties, &delivery.data)
            .await
    }

    /// Publishes a message to the service's queue only, not to other subscribers.
    async fn hand_back(&self, delivery: &Delivery) -> Result<(), SessionError> {
        let properties = copy(&delivery.properties);
        let mut headers = FieldTable::default();
        for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
            if !DEATH_HEADERS
                .iter()
                .any(|death| name.as_str().starts_with(death))
            {
                headers.insert(name.clone(), value.clone());
            }
        }
        let properties = properties.with_headers(headers);
        let publishing = self.publish(DEFAULT_EXCHANGE, QUEUE.into(), properties, &delivery.data);
        with_timeout(CONFIRM_TIMEOUT, "confirm a message", publishing).await
    }

    async fn publish(
        &self,
        exchange: &str,
        key: ShortString,
        properties: BasicProperties,
        body: &[u8],
    ) -> Result<(), SessionError> {
        let options = BasicPublishOptions {
            mandatory: true,
            ..Default::default()
        };
        let confirm = self
            .0
            .basic_publish(exchange.into(), key, options, body, properties)
            .await?;
        match confirm.await? {
            Confirmation::Ack(None) => Ok(()),
            _returned_or_nacked => Err(SessionError::Refused),
        }
    }

    async fn take(&self) -> Result<Option<Delivery>, SessionError> {
        let getting = self
            .0
            .basic_get(DEAD_LETTER_QUEUE.into(), BasicGetOptions::default());
        let message = with_timeout(CONFIRM_TIMEOUT, "read a dead letter", getting).await?;
        Ok(message.map(|BasicGetMessage { delivery, .. }| delivery))
    }
}

/// The properties that a copy of a foreign message keeps. Dropped are `user_id`, which must be the
/// publisher's login or the broker closes the channel; `expiration`, which would delete the copy;
/// `CC` and `BCC`, which would send it to other queues; and `reply_to`.
fn copy(original: &BasicProperties) -> BasicProperties {
    let mut copy = BasicProperties::default().with_delivery_mode(PERSISTENT);
    if let Some(headers) = original.headers() {
        let mut kept = FieldTable::default();
        for (name, value) in headers.inner() {
            if !["CC", "BCC"].contains(&name.as_str()) {
                kept.insert(name.clone(), value.clone());
            }
        }
        copy = copy.with_headers(kept);
    }
    if let Some(text) = original.content_type().clone() {
        copy = copy.with_content_type(text);
    }
    if let Some(text) = original.content_encoding().clone() {
        copy = copy.with_content_encoding(text);
    }
    if let Some(text) = original.correlation_id().clone() {
        copy = copy.with_correlation_id(text);
    }
    if let Some(text) = original.message_id().clone() {
        copy = copy.with_message_id(text);
    }
    if let Some(seconds) = *original.timestamp() {
        copy = copy.with_timestamp(seconds);
    }
    if let Some(text) = original.kind().clone() {
        copy = copy.with_type(text);
    }
    if let Some(text) = original.app_id().clone() {
        copy = copy.with_app_id(text);
    }
    copy
}

/// A dead letter as an operator sees it: its identity and reason, without its content.
#[derive(Debug, Serialize)]
pub(crate) struct DeadLetter {
    message_id: Option<String>,
    r#type: Option<String>,
    trace_id: Option<String>,
    routing_key: String,
    reason: Option<String>,
    bytes: usize,
}

impl From<&Delivery> for DeadLetter {
    fn from(delivery: &Delivery) -> Self {
        let properties = &delivery.properties;
        let header = |name: &str| match properties.headers().as_ref()?.inner().get(name)? {
            AMQPValue::LongString(text) => Some(text.to_string()),
            _ => None,
        };
        Self {
            message_id: properties.message_id().as_ref().map(ToString::to_string),
            r#type: properties.kind().as_ref().map(ToString::to_string),
            trace_id: header(TRACE_ID_HEADER),
            routing_key: delivery.routing_key.to_string(),
            // The broker's own dead-lettering uses another header. If the headers were unreadable,
            // only the screen's mark is there.
            reason: [REASON_HEADER, "x-first-death-reason", MARK]
                .into_iter()
                .find_map(header),
            bytes: delivery.data.len(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Listing {
    /// All messages in the queue, shown or not.
    total: u32,
    messages: Vec<DeadLetter>,
}

/// Lists the oldest `max` messages. They stay in the queue, in order.
pub(crate) async fn list(broker: &Broker, max: u32) -> Result<Listing, SessionError> {
    let connection = broker.connect("dlq list").await?;
    let letters = DeadLetters::open(broker, &connection).await?;
    let total = count(&letters.0).await?;
    let mut messages = Vec::new();
    while messages.len() < total.min(max) as usize
        && let Some(delivery) = letters.take().await?
    {
        messages.push(DeadLetter::from(&delivery));
    }
    // Unacknowledged messages return to their places; rejected ones would go to the end.
    broker::close(connection).await;
    Ok(Listing { total, messages })
}

/// Result of a command on the oldest messages.
pub(crate) struct Taken {
    /// Messages redriven or deleted.
    pub count: u32,
    pub left: u32,
    /// Why it stopped early. The message it stopped at is still in the queue.
    pub failure: Option<String>,
}

/// Moves the oldest `max` messages back to the service's queue. Those that are still unreadable
/// come back.
pub(crate) async fn redrive(broker: &Broker, max: u32) -> Result<Taken, SessionError> {
    // Each message is acknowledged only after it is published again: an interruption may duplicate
    // it, but never loses it.
    take_out(broker, "dlq redrive", max, async |letters, delivery| {
        letters.hand_back(delivery).await
    })
    .await
}

/// Deletes the oldest `max` messages.
pub(crate) async fn drop(broker: &Broker, max: u32) -> Result<Taken, SessionError> {
    take_out(broker, "dlq drop", max, async |_, _| Ok(())).await
}

/// Runs `each` on the oldest `max` messages, one by one, and removes them from the queue.
async fn take_out(
    broker: &Broker,
    name: &str,
    max: u32,
    each: impl AsyncFn(&DeadLetters, &Delivery) -> Result<(), SessionError>,
) -> Result<Taken, SessionError> {
    let connection = broker.connect(name).await?;
    let letters = DeadLetters::open(broker, &connection).await?;
    // Counted first, so that messages that come back meanwhile are not taken again.
    let total = count(&letters.0).await?;
    let mut count = 0;
    let mut taking = async || -> Result<(), SessionError> {
        while count < total.min(max)
            && let Some(delivery) = letters.take().await?
        {
            each(&letters, &delivery).await?;
            delivery.ack(BasicAckOptions::default()).await?;
            count += 1;
        }
        Ok(())
    };
    let failure = taking().await.err().map(|error| Chain(&error).to_string());
    broker::close(connection).await;
    Ok(Taken {
        count,
        left: total - count,
        failure,
    })
}
