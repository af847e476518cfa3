//! Puts a message that no consumer can read where an operator finds it, whole and with the reason.

use std::time::Duration;

use lapin::{
    BasicProperties, Channel, Confirmation, Connection, message::Delivery, options::BasicPublishOptions,
    types::AMQPValue,
};

use super::{
    broker::{Broker, DEAD_LETTER_EXCHANGE},
    supervisor::{SessionError, within},
};

pub const REASON_HEADER: &str = "x-reason";
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);

/// A channel in confirm mode: the broker's own dead-lettering may lose a message, a confirmed publish does not.
pub struct DeadLetters(Channel);

impl DeadLetters {
    pub async fn open(broker: &Broker, connection: &Connection) -> Result<Self, SessionError> {
        broker.confirming_channel(connection).await.map(Self)
    }

    /// Publishes the original body and properties with the reason as header `x-reason`.
    pub async fn put(&self, delivery: &Delivery, reason: &str) -> Result<(), SessionError> {
        let properties: BasicProperties = delivery.properties.clone();
        let mut headers = properties.headers().clone().unwrap_or_default();
        headers.insert(REASON_HEADER.into(), AMQPValue::LongString(reason.into()));
        let publishing = async {
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let (key, properties) = (delivery.routing_key.clone(), properties.with_headers(headers));
            self.0.basic_publish(DEAD_LETTER_EXCHANGE.into(), key, options, &delivery.data, properties).await?.await
        };
        match within(CONFIRM_TIMEOUT, "confirm a dead letter", publishing).await? {
            Confirmation::Ack(None) => Ok(()),
            _returned_or_nacked => Err(SessionError::Refused),
        }
    }
}
