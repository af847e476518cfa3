//! Checks whether the broker grants what the service needs, for the `check` command.

use std::fmt;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, Event};
use tokio::time::timeout;

use super::broker::{self, ANSWER_TIMEOUT, Broker};
use super::session::{SessionError, with_timeout};
use super::topology::{DEAD_LETTER_EXCHANGE, DEAD_LETTER_QUEUE, EXCHANGE, QUEUE};

/// What the login may not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Something is missing, and the login may not declare it.
    Declare,
    Write(&'static str),
    /// Publish with this routing key.
    Topic(String),
    Read(&'static str),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Declare => {
                f.write_str("an exchange or queue is missing, and the login may not declare it")
            }
            Self::Write(exchange) => write!(f, "may not write to {exchange}"),
            Self::Topic(key) => write!(f, "may not publish {key}"),
            Self::Read(queue) => write!(f, "may not read {queue}"),
        }
    }
}

/// Declares the topology as the service does at its start, and checks each permission that it uses.
/// Publishes no message to a queue, and takes none from one.
///
/// # Errors
/// Any failure other than a refused permission.
pub(crate) async fn permissions(
    broker: &Broker,
    connection: &Connection,
    routing_keys: &[&str],
) -> Result<Vec<Refused>, SessionError> {
    match broker.declare_topology(connection).await {
        Ok(()) => {}
        Err(error) if error.is_missing_exchange() || error.is_refused() => {
            return Ok(vec![Refused::Declare]);
        }
        Err(error) => return Err(error),
    }
    let mut refused = Vec::new();
    for key in routing_keys {
        if let Err(error) = try_to_publish(broker, EXCHANGE, key).await {
            // The broker's text tells a refused topic from a refused exchange.
            let is_topic = error.refusal()?.contains("topic");
            refused.push(if is_topic {
                Refused::Topic((*key).to_owned())
            } else {
                Refused::Write(EXCHANGE)
            });
        }
    }
    for (exchange, name) in [
        (DEAD_LETTER_EXCHANGE, DEAD_LETTER_EXCHANGE),
        ("", "amq.default"),
    ] {
        if let Err(error) = try_to_publish(broker, exchange, "").await {
            error.refusal()?;
            refused.push(Refused::Write(name));
        }
    }
    for queue in [QUEUE, DEAD_LETTER_QUEUE] {
        if !may_read(connection, queue).await? {
            refused.push(Refused::Read(queue));
        }
    }
    refused.dedup();
    Ok(refused)
}

/// Publishes in a transaction and rolls it back. Uses its own connection: the broker reports a
/// refusal by closing the channel, and anything sent after that may end the connection.
async fn try_to_publish(broker: &Broker, exchange: &str, key: &str) -> Result<(), SessionError> {
    let connection = broker.connect("check").await?;
    let mut events = connection.events_listener();
    let publishing = async {
        let channel = connection.create_channel().await?;
        channel.tx_select().await?;
        let options = BasicPublishOptions::default();
        let properties = BasicProperties::default();
        channel
            .basic_publish(exchange.into(), key.into(), options, b"", properties)
            .await?;
        channel.tx_rollback().await
    };
    let outcome = with_timeout(ANSWER_TIMEOUT, "publish", publishing).await;
    if outcome.is_err() {
        // The publish may fail with another error. Only the connection's event is sure to be the
        // broker's.
        while let Ok(Some(event)) = timeout(ANSWER_TIMEOUT, events.next()).await {
            if let Event::Error(error) = event {
                return Err(error.into());
            }
        }
    }
    broker::close(connection).await;
    outcome
}

/// Subscribes with an argument that the broker rejects only after it has checked the permission. So
/// nothing is delivered: each delivery counts towards the queue's limit.
async fn may_read(connection: &Connection, queue: &str) -> Result<bool, SessionError> {
    let subscribing = async {
        let channel = connection.create_channel().await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-priority".into(), AMQPValue::LongString("none".into()));
        channel
            .basic_consume(
                queue.into(),
                "".into(),
                BasicConsumeOptions::default(),
                arguments,
            )
            .await
            .map(|_| channel)
    };
    match with_timeout(ANSWER_TIMEOUT, "look for a permission", subscribing).await {
        Ok(channel) => broker::close_channel(channel).await.map(|()| true),
        Err(error) if error.is_refused() => Ok(false),
        Err(error) if error.blames_the_message() => Ok(true),
        Err(error) => Err(error),
    }
}
