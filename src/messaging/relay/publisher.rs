//! One connection and two channels in confirm mode. Each channel has one publisher, because lapin mixes up the confirms of several.

use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation, Connection, ConnectionStatus};

use super::flow::Track;
use super::schedule::Flight;
use crate::messaging::broker::{self, Broker};
use crate::messaging::message;
use crate::messaging::session::SessionError;
use crate::messaging::topology::EXCHANGE;
use crate::monitoring::state::Link;

pub struct Publisher {
    broker: Broker,
    connection: Connection,
    main: Channel,
    trial: Channel,
}

impl Publisher {
    /// Connects, and declares the topology.
    pub async fn open(broker: &Broker, name: &str) -> Result<Self, SessionError> {
        let connection = broker.connect(name).await?;
        broker.declare_topology(&connection).await?;
        let main = broker.confirming_channel(&connection).await?;
        let trial = broker.confirming_channel(&connection).await?;
        Ok(Self { broker: broker.clone(), connection, main, trial })
    }

    pub fn status(&self) -> ConnectionStatus {
        self.connection.status().clone()
    }

    pub fn link(&self) -> Link {
        let status = self.connection.status();
        match (status.connected(), status.blocked()) {
            (false, _) => Link::Down,
            (true, true) => Link::Blocked,
            (true, false) => Link::Up,
        }
    }

    /// Reopens a channel that the broker has closed.
    pub async fn reopen(&mut self) -> Result<(), SessionError> {
        for channel in [&mut self.main, &mut self.trial] {
            if !channel.status().connected() {
                *channel = self.broker.confirming_channel(&self.connection).await?;
            }
        }
        Ok(())
    }

    /// After a refusal: declares deleted queues and exchanges again, and opens new channels. On a channel that was open when a
    /// cluster lost a node, publishes may be refused forever, though the queue has a new leader (seen with RabbitMQ 3.10). The
    /// old channels close after their last flight.
    pub async fn renew(&mut self) -> Result<(), SessionError> {
        self.broker.declare_topology(&self.connection).await?;
        self.main = self.broker.confirming_channel(&self.connection).await?;
        self.renew_trial().await
    }

    /// The old channel closes after its flight.
    pub async fn renew_trial(&mut self) -> Result<(), SessionError> {
        self.trial = self.broker.confirming_channel(&self.connection).await?;
        Ok(())
    }

    /// Publishes an event and waits for its confirm. Has no time limit.
    pub fn publish(&self, flight: &Flight) -> impl Future<Output = Result<Confirmation, SessionError>> + Send + use<> {
        let channel = match flight.track {
            Track::Main => self.main.clone(),
            Track::Trial => self.trial.clone(),
        };
        let event = flight.event.clone();
        async move {
            let (key, properties, body) =
                (event.event_type.as_str().into(), message::properties(&event), message::body(&event)?);
            // Mandatory: the broker returns an event that no queue takes, instead of dropping it.
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let confirm = channel.basic_publish(EXCHANGE.into(), key, options, &body, properties).await?;
            // Hold the channel until the confirm: dropping the last handle closes it.
            Ok(confirm.await?)
        }
    }

    pub async fn close(self) {
        // Keep the channels until the connection has closed: dropping one starts another close, and lapin does not handle two.
        broker::close(self.connection).await;
    }
}
