//! One connection and one channel that publish with confirms. A channel has one publisher: lapin mixes up the confirms of
//! several.

use std::collections::HashSet;

use futures_util::future::try_join_all;
use lapin::{BasicProperties, Channel, Connection, options::BasicPublishOptions};
use metrics::counter;
use uuid::Uuid;

use super::{
    broker::{self, Broker, EXCHANGE},
    message,
    supervisor::SessionError,
};
use crate::{domain::event::OutboxEvent, status::Link};

pub struct Publisher {
    connection: Connection,
    channel: Channel,
}

/// What the broker said of a batch.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Events that the broker did not take: returned because no queue wants them, or nacked.
    pub refused: HashSet<Uuid>,
    pub reason: Option<String>,
}

impl Publisher {
    pub async fn open(broker: &Broker, name: &str) -> Result<Self, SessionError> {
        let connection = broker.connect(name).await?;
        broker.declare_topology(&connection).await?;
        let channel = broker.confirming_channel(&connection).await?;
        Ok(Self { connection, channel })
    }

    pub fn link(&self) -> Link {
        let status = self.connection.status();
        match (status.connected() && self.channel.status().connected(), status.blocked()) {
            (false, _) => Link::Down,
            (true, true) => Link::Blocked,
            (true, false) => Link::Up,
        }
    }

    /// After a refusal: whoever deleted a queue or an exchange gets it back, and publishing goes on on another channel.
    /// One that was open when a cluster lost a node may be refused for ever, though the queue has a new leader long since
    /// (seen with RabbitMQ 3.10).
    pub async fn renew(&mut self, broker: &Broker) -> Result<(), SessionError> {
        broker.declare_topology(&self.connection).await?;
        let channel = broker.confirming_channel(&self.connection).await?;
        broker::close_channel(std::mem::replace(&mut self.channel, channel)).await
    }

    /// Publishes all, and waits for every confirm. Has no time limit of its own.
    pub async fn publish(&self, events: &[&OutboxEvent]) -> Result<Verdict, SessionError> {
        let bodies: Vec<_> = events.iter().map(|event| message::body(event)).collect::<Result<_, _>>()?;
        // Mandatory: an event that no queue would take comes back instead of vanishing.
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let publishing = events.iter().zip(&bodies).map(|(event, body)| {
            let (key, properties) = (event.event_type.as_str().into(), message::properties(event));
            self.channel.basic_publish(EXCHANGE.into(), key, options, body, properties)
        });
        // Together: one by one, each would wait until lapin's own thread has written it.
        let confirms = try_join_all(publishing).await?;
        let mut verdict = Verdict::default();
        for (confirmation, event) in try_join_all(confirms).await?.into_iter().zip(events) {
            if confirmation.is_nack() {
                counter!("events_nacked_total").increment(1);
                verdict.refused.insert(event.id);
                verdict.reason = Some("nacked".to_owned());
            }
            // lapin may hand a return to another message's confirm: only the id tells whose it is.
            if let Some(returned) = confirmation.take_message() {
                counter!("events_returned_total").increment(1);
                verdict.refused.extend(message_id(&returned.delivery.properties));
                verdict.reason = Some(returned.reply_text.to_string());
            }
        }
        Ok(verdict)
    }

    pub async fn close(self) {
        // The channel must outlive this: dropping it starts a close of its own, and lapin stumbles over two.
        broker::close(self.connection).await;
    }
}

fn message_id(properties: &BasicProperties) -> Option<Uuid> {
    Uuid::parse_str(properties.message_id().as_ref()?.as_str()).ok()
}
