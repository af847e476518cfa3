//! A connection with one channel in confirm mode. Nothing else publishes on it, because lapin mixes
//! up the confirms of several publishers.

use std::sync::Arc;

use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation, Connection};

use crate::error_chain::Chain;
use crate::messaging::broker::{self, Broker};
use crate::messaging::message;
use crate::messaging::schedule::Outcome;
use crate::messaging::session::SessionError;
use crate::messaging::topology::EXCHANGE;
use crate::messaging::transport::Returned;
use crate::monitoring::catalogue;
use crate::monitoring::state::Link;
use crate::repository::outbox_event::OutboxEvent;

pub(crate) struct Publisher {
    broker: Broker,
    /// Shown in RabbitMQ's management UI.
    name: String,
    connection: Connection,
    channel: Channel,
    returned: Returned,
}

/// What became of a publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Confirmed,
    Nacked,
    /// No queue takes it.
    Returned,
    /// The exchange is missing, which is not the message's fault.
    NoExchange,
    /// The broker closed the channel or the connection: its reply code and text.
    ChannelClosed(u16, String),
    /// The connection was lost.
    Lost(String),
}

impl Answer {
    pub(crate) const fn outcome(&self) -> Outcome {
        match self {
            Self::Confirmed => Outcome::Confirmed,
            Self::Nacked | Self::Returned | Self::NoExchange => Outcome::Rejected,
            Self::ChannelClosed(code, _) => Outcome::ChannelClosed(*code),
            Self::Lost(_) => Outcome::Lost,
        }
    }

    /// Why it is not confirmed, for the log and the quarantine.
    pub(crate) fn reason(self) -> String {
        match self {
            Self::Confirmed => String::new(),
            Self::Nacked => "nacked".to_owned(),
            Self::Returned => "NO_ROUTE".to_owned(),
            Self::NoExchange => "the exchange is missing".to_owned(),
            Self::ChannelClosed(_, reason) | Self::Lost(reason) => reason,
        }
    }
}

impl Publisher {
    /// Connects, and declares the topology.
    ///
    /// # Errors
    /// If RabbitMQ refuses one of the steps, or is silent for five seconds at one of them.
    pub(crate) async fn open(broker: Broker, name: String) -> Result<Self, SessionError> {
        let returned = Returned::default();
        let connection = broker.connect_publisher(&name, returned.clone()).await?;
        broker.declare_topology(&connection).await?;
        let channel = broker.confirming_channel(&connection).await?;
        Ok(Self {
            broker,
            name,
            connection,
            channel,
            returned,
        })
    }

    pub(crate) fn link(&self) -> Link {
        let status = self.connection.status();
        match (status.connected(), status.blocked()) {
            (false, _) => Link::Down,
            (true, true) => Link::Blocked,
            (true, false) => Link::Up,
        }
    }

    /// Declares deleted queues and exchanges again and opens a new channel; if that fails,
    /// reconnects. The old channel closes after the last publish on it.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) async fn renew(mut self) -> Result<Self, SessionError> {
        if self.link() != Link::Down && self.renew_channel().await.is_ok() {
            return Ok(self);
        }
        Self::open(self.broker, self.name).await
    }

    async fn renew_channel(&mut self) -> Result<(), SessionError> {
        self.broker.declare_topology(&self.connection).await?;
        self.channel = self.broker.confirming_channel(&self.connection).await?;
        Ok(())
    }

    /// Publishes an event and waits for the broker's answer. Has no time limit. A dropped future
    /// leaks a little memory until its channel closes.
    pub(crate) fn publish(
        &self,
        event: Arc<OutboxEvent>,
    ) -> impl Future<Output = Answer> + Send + use<> {
        let channel = self.channel.clone();
        let returned = self.returned.clone();
        async move {
            let answer = match confirmation(&channel, &event).await {
                // lapin attaches a returned message to the next confirm, whichever that is, so what
                // it attaches is ignored.
                Ok(confirmation) if confirmation.is_ack() => Answer::Confirmed,
                Ok(_nack) => Answer::Nacked,
                Err(error) => Answer::of(&error),
            };
            let came_back = returned.take(&event.id);
            let answer = if came_back && answer == Answer::Confirmed {
                Answer::Returned
            } else {
                answer
            };
            match answer {
                Answer::Returned => catalogue::events_returned().increment(1),
                Answer::Nacked => catalogue::events_nacked().increment(1),
                _ => {}
            }
            answer
        }
    }

    pub(crate) async fn close(self) {
        // Keep the channel until the connection has closed: dropping it starts another close, and
        // lapin does not handle two.
        broker::close(self.connection).await;
    }
}

async fn confirmation(
    channel: &Channel,
    event: &OutboxEvent,
) -> Result<Confirmation, SessionError> {
    let body = message::body(event)?;
    // Mandatory: the broker returns an event that no queue takes, instead of dropping it.
    let options = BasicPublishOptions {
        mandatory: true,
        ..Default::default()
    };
    let key = event.event_type.as_str().into();
    let confirm = channel
        .basic_publish(
            EXCHANGE.into(),
            key,
            options,
            &body,
            message::properties(event),
        )
        .await?;
    // The caller holds the channel until the confirm: dropping the last handle closes it.
    Ok(confirm.await?)
}

impl Answer {
    fn of(error: &SessionError) -> Self {
        /// An operator closed the connection, or the broker stops.
        /// <https://www.rabbitmq.com/amqp-0-9-1-reference#constants>
        const CONNECTION_FORCED: u16 = 320;
        let text = Chain(error).to_string();
        match error.reply_code() {
            _ if error.is_missing_exchange() => Self::NoExchange,
            // The event's fault, not the connection's.
            code if matches!(error, SessionError::Encode(_)) => Self::ChannelClosed(code, text),
            0 | CONNECTION_FORCED => Self::Lost(text),
            code => Self::ChannelClosed(code, text),
        }
    }
}
