//! The broker: how to reach it, and the topology. The only place that names an exchange or a queue.

use std::{fmt, str::FromStr, time::Duration};

use lapin::{
    Channel, Connection, ConnectionProperties, Consumer, ErrorKind, ExchangeKind,
    options::{
        BasicConsumeOptions, BasicQosOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
        QueueDeclareOptions,
    },
    protocol::{AMQPErrorKind, AMQPSoftError},
    types::{AMQPValue, FieldTable, ShortString},
    uri::AMQPUri,
};
use metrics::gauge;
use tokio::{net::TcpStream, time::timeout};
use tracing::warn;

use super::session::{SessionError, within};

pub const EXCHANGE: &str = "user_events";
pub const QUEUE: &str = "user_events_queue";
pub const BINDING: &str = "user.*";
pub const DEAD_LETTER_EXCHANGE: &str = "user_events.dlx";
pub const CONSUMER_TAG: &str = env!("CARGO_PKG_NAME");
pub const DEAD_LETTER_QUEUE: &str = "user_events_queue.dlq";

/// Deliveries of one message before the broker gives it up to the dead-letter exchange. The consumer dead-letters what it
/// cannot read at the first sight, so only a consumer that dies again and again comes here.
const DELIVERY_LIMIT: i64 = 20;
/// Each look at the dead letters counts as a delivery, and RabbitMQ 4 drops what was delivered 20 times.
const LOOKS_LIMIT: i64 = 1_000_000_000;
/// Seconds; lapin gives a silent peer up after twice this, and looks every half of it: after 8 to 10 s. A leader that is cut off
/// from the broker holds everybody up.
const HEARTBEAT: u16 = 4;
/// For TCP, TLS, login and each declaration.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// A close waits for ever while the broker blocks.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the broker is and how to log in; `Debug` does not show the password.
#[derive(Clone)]
pub struct BrokerUrl(AMQPUri);

impl FromStr for BrokerUrl {
    type Err = &'static str;

    /// The error says what is wrong without repeating the URL: it holds a password.
    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "must be a URL such as amqp://user:password@host:5672/";
        let mut uri = AMQPUri::from_str(raw).map_err(|_details_may_hold_the_password| EXPECTED)?;
        // lapin leaves an IPv6 literal out, and takes the `/` at the end, which everyone writes, for a virtual host
        // with an empty name.
        let url = url::Url::parse(raw).map_err(|_| EXPECTED)?;
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(EXPECTED)?;
        if host.starts_with('[') {
            host.trim_matches(['[', ']']).clone_into(&mut uri.authority.host);
        }
        if uri.vhost.is_empty() {
            "/".clone_into(&mut uri.vhost);
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        Ok(Self(uri))
    }
}

impl BrokerUrl {
    pub fn user(&self) -> &str {
        &self.0.authority.userinfo.username
    }

    pub fn vhost(&self) -> &str {
        &self.0.vhost
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.0.authority.host, self.0.authority.port, self.0.vhost)
    }
}

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

#[derive(Clone, Debug)]
pub struct Broker {
    pub url: BrokerUrl,
    pub queue_type: QueueType,
}

impl Broker {
    /// Opens a connection, named so that an operator finds it in the management UI.
    ///
    /// # Errors
    /// When the broker refuses it, or is silent for five seconds.
    pub async fn connect(&self, name: &str) -> Result<Connection, SessionError> {
        let uri = &self.url.0;
        // lapin's own connect has no timeout, and a thread that waits for a silent peer is lost until that peer closes:
        // knock first.
        let address = (uri.authority.host.as_str(), uri.authority.port);
        let knock = async { TcpStream::connect(address).await.map_err(lapin::Error::from) };
        within(ANSWER_TIMEOUT, "connect to RabbitMQ", knock).await?;
        let name = format!("{} {name}", env!("CARGO_PKG_NAME"));
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        within(ANSWER_TIMEOUT, "log in to RabbitMQ", Connection::connect_uri(uri.clone(), properties)).await
    }

    /// Declares all exchanges, queues and bindings; what is there with other arguments is used as it is.
    ///
    /// # Errors
    /// When the broker refuses it, or is silent for five seconds.
    pub async fn declare_topology(&self, connection: &Connection) -> Result<(), SessionError> {
        let declaring = async {
            declare(connection, EXCHANGE, &Entity::Exchange(ExchangeKind::Topic)).await?;
            declare(connection, DEAD_LETTER_EXCHANGE, &Entity::Exchange(ExchangeKind::Fanout)).await?;
            declare(connection, QUEUE, &Entity::Queue(self.queue_arguments())).await?;
            declare(connection, DEAD_LETTER_QUEUE, &Entity::Queue(self.dead_letter_queue_arguments())).await?;
            let channel = connection.create_channel().await?;
            bind(&channel, QUEUE, EXCHANGE, BINDING).await?;
            bind(&channel, DEAD_LETTER_QUEUE, DEAD_LETTER_EXCHANGE, "").await?;
            channel.close(REPLY_SUCCESS, "declared".into()).await
        };
        within(ANSWER_TIMEOUT, "declare the topology", declaring).await
    }

    /// Opens a channel whose publishes are confirmed.
    pub async fn confirming_channel(&self, connection: &Connection) -> Result<Channel, SessionError> {
        let opening = async {
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await.map(|()| channel)
        };
        within(ANSWER_TIMEOUT, "open a channel", opening).await
    }

    /// Subscribes to the service's queue.
    pub async fn subscribe(&self, connection: &Connection, prefetch: u16) -> Result<(Channel, Consumer), SessionError> {
        let subscribing = async {
            let channel = connection.create_channel().await?;
            channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
            let tag = CONSUMER_TAG.into();
            let consumer =
                channel.basic_consume(QUEUE.into(), tag, BasicConsumeOptions::default(), FieldTable::default());
            consumer.await.map(|consumer| (channel, consumer))
        };
        within(ANSWER_TIMEOUT, "subscribe", subscribing).await
    }

    fn queue_arguments(&self) -> FieldTable {
        let mut arguments = self.type_argument();
        // One of all replicas' consumers reads at a time: two would log one user's events out of order.
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
        arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString(DEAD_LETTER_EXCHANGE.into()));
        if self.queue_type == QueueType::Quorum {
            arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERY_LIMIT));
        }
        arguments
    }

    fn dead_letter_queue_arguments(&self) -> FieldTable {
        let mut arguments = self.type_argument();
        if self.queue_type == QueueType::Quorum {
            arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(LOOKS_LIMIT));
        }
        arguments
    }

    fn type_argument(&self) -> FieldTable {
        let queue_type = match self.queue_type {
            QueueType::Quorum => "quorum",
            QueueType::Classic => "classic",
        };
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(queue_type.into()));
        arguments
    }
}

/// AMQP's reply code for an orderly close.
const REPLY_SUCCESS: u16 = 200;

async fn bind(channel: &Channel, queue: &str, exchange: &str, key: &str) -> lapin::Result<()> {
    let key = ShortString::from(key);
    channel.queue_bind(queue.into(), exchange.into(), key, QueueBindOptions::default(), FieldTable::default()).await
}

enum Entity {
    Exchange(ExchangeKind),
    Queue(FieldTable),
}

/// Declares, and where the name is taken with other arguments, contents itself with its being there: an operator's choice
/// is no reason not to run.
async fn declare(connection: &Connection, name: &str, entity: &Entity) -> lapin::Result<()> {
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

/// Closes a channel in good order.
pub async fn close_channel(channel: Channel) -> Result<(), SessionError> {
    within(ANSWER_TIMEOUT, "close a channel", channel.close(REPLY_SUCCESS, "bye".into())).await
}

/// Closes in good order if the broker lets us; dropping it is just as safe.
pub async fn close(connection: Connection) {
    match timeout(CLOSE_TIMEOUT, connection.close(REPLY_SUCCESS, "bye".into())).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(%error, "RabbitMQ did not close the connection in good order"),
        Err(_elapsed) => warn!("RabbitMQ did not close the connection in time"),
    }
}

#[cfg(test)]
mod tests {
    use super::BrokerUrl;

    fn shown(url: &str) -> String {
        format!("{:?}", url.parse::<BrokerUrl>().unwrap())
    }

    #[test]
    fn a_url_with_or_without_a_slash_means_the_default_virtual_host() {
        assert_eq!(shown("amqp://guest:guest@localhost:5672/"), "localhost:5672//");
        assert_eq!(shown("amqp://localhost"), "localhost:5672//");
        assert_eq!(shown("amqps://h/%2f"), "h:5671//");
        assert_eq!(shown("amqp://h/team"), "h:5672/team");
    }

    #[test]
    fn an_ip_literal_is_the_host() {
        assert_eq!(shown("amqp://127.0.0.1:1/v"), "127.0.0.1:1/v");
        assert_eq!(shown("amqp://[::1]:5672/v"), "::1:5672/v");
    }

    #[test]
    fn what_is_no_broker_url_is_refused_without_being_repeated() {
        for url in ["", "secret", "http://u:secret@h", "amqp://u:secret@h:port", "amqp:///"] {
            assert!(!url.parse::<BrokerUrl>().unwrap_err().contains("secret"), "{url}");
        }
    }
}
