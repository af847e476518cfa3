//! The broker: its URL, and connections and channels to it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use lapin::options::ConfirmSelectOptions;
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties, Consumer};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::warn;
use url::Url;

use super::session::{SessionError, with_timeout};
use super::topology::{self, QueueType, Queues, REPLY_SUCCESS};
use super::transport::{self, NO_LIMIT, Returned};
use crate::database::warnings::is_remote;
use crate::server_url;

/// In seconds. lapin gives up on a silent peer after 8 s (twice this), and checks every 2 s (half
/// of this). Short, because a leader that is cut off from the broker stops all events.
const HEARTBEAT: u16 = 4;
/// Time limit for one step with the broker, such as connecting, logging in or declaring the
/// topology.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for the five answers of `topology::maintain`.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest frame on a connection for small messages, in bytes: lapin's buffers hold 64 frames.
const SMALL_FRAME: u32 = 16 << 10;
/// A close never returns while the broker blocks.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the broker is and how to log in; `Debug` does not show the password.
#[derive(Clone)]
pub struct BrokerUrl {
    uri: AMQPUri,
    tls: TlsFiles,
}

/// PEM files, read again for each connection so that certificates can be renewed.
#[derive(Clone, Default)]
struct TlsFiles {
    /// The certificate of the authority that signed the broker's, if the system does not trust that
    /// authority.
    authority: Option<String>,
    /// The client's certificate and key.
    client: Option<(String, String)>,
}

/// Accepted query parameters: those that lapin obeys, and RabbitMQ's for TLS, which lapin ignores
/// and this module handles.
/// <https://www.rabbitmq.com/docs/uri-query-parameters>
const PARAMETERS: [&str; 8] = [
    "heartbeat",
    "frame_max",
    "channel_max",
    "auth_mechanism",
    "cacertfile",
    "certfile",
    "keyfile",
    "verify",
];

impl FromStr for BrokerUrl {
    type Err = String;

    /// The error says what is wrong without repeating the URL: it holds a password.
    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "must be a URL such as amqp://user:password@host:5672/";
        let url = server_url::parse(raw, EXPECTED)?;
        let mut uri =
            AMQPUri::from_str(url.as_str()).map_err(|_details_may_hold_the_password| EXPECTED)?;
        server_url::require_known(&url, &PARAMETERS)?;
        // lapin drops an IPv6 literal, and reads the usual trailing `/` as a virtual host with an
        // empty name.
        let host = url
            .host_str()
            .filter(|host| !host.is_empty())
            .ok_or(EXPECTED)?;
        if host.starts_with('[') {
            host.trim_matches(['[', ']'])
                .clone_into(&mut uri.authority.host);
        }
        if uri.vhost.is_empty() {
            "/".clone_into(&mut uri.vhost);
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        let tls = TlsFiles::of(&url, uri.scheme == AMQPScheme::AMQPS)?;
        Ok(Self { uri, tls })
    }
}

impl TlsFiles {
    fn of(url: &Url, is_encrypted: bool) -> Result<Self, String> {
        let value = |wanted: &str| {
            url.query_pairs()
                .find(|(name, _)| name == wanted)
                .map(|(_, value)| value.into_owned())
        };
        let authority = value("cacertfile");
        let certificate = value("certfile");
        let key = value("keyfile");
        let verify = value("verify");
        if verify
            .as_deref()
            .is_some_and(|verify| verify != "verify_peer")
        {
            return Err(
                "`verify` must be verify_peer: the broker's certificate is always verified"
                    .to_owned(),
            );
        }
        if !is_encrypted
            && (authority.is_some() || certificate.is_some() || key.is_some() || verify.is_some())
        {
            return Err("sets TLS parameters but does not encrypt: use amqps://".to_owned());
        }
        let client = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err("`certfile` and `keyfile` go together".to_owned()),
        };
        Ok(Self { authority, client })
    }

    async fn read(&self) -> Result<OwnedTLSConfig, SessionError> {
        let read = async |path: &String| {
            tokio::fs::read(path)
                .await
                .map_err(|source| SessionError::File {
                    path: path.clone(),
                    source,
                })
        };
        let cert_chain = match &self.authority {
            Some(path) => Some(String::from_utf8_lossy(&read(path).await?).into_owned()),
            None => None,
        };
        let identity = match &self.client {
            Some((certificate, key)) => Some(OwnedIdentity::PKCS8 {
                pem: read(certificate).await?,
                key: read(key).await?,
            }),
            None => None,
        };
        Ok(OwnedTLSConfig {
            identity,
            cert_chain,
        })
    }
}

impl BrokerUrl {
    pub fn user(&self) -> &str {
        &self.uri.authority.userinfo.username
    }

    pub fn vhost(&self) -> &str {
        &self.uri.vhost
    }

    /// Whether the login and the events go to another machine without TLS.
    pub fn is_plain_to_another_machine(&self) -> bool {
        self.uri.scheme == AMQPScheme::AMQP && is_remote(&self.uri.authority.host)
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}/{}",
            self.uri.authority.host, self.uri.authority.port, self.uri.vhost
        )
    }
}

#[derive(Clone, Debug)]
pub struct Broker {
    pub url: BrokerUrl,
    pub queue_type: QueueType,
}

impl Broker {
    /// Opens a connection. The management UI shows its name.
    ///
    /// # Errors
    /// If a TLS file cannot be read, or if the broker refuses a step or is silent for five seconds
    /// at one.
    pub async fn connect(&self, name: &str) -> Result<Connection, SessionError> {
        self.open(name, NO_LIMIT, Returned::default()).await
    }

    /// Like [`Self::connect`], for small messages. Adds the ids of returned messages to `returned`.
    pub async fn connect_publisher(
        &self,
        name: &str,
        returned: Returned,
    ) -> Result<Connection, SessionError> {
        let mut small = self.clone();
        let frame_max = &mut small.url.uri.query.frame_max;
        *frame_max = Some(frame_max.map_or(SMALL_FRAME, |given| given.min(SMALL_FRAME)));
        small.open(name, NO_LIMIT, returned).await
    }

    /// Like [`Self::connect`], but leaves out bodies over `largest` bytes.
    pub async fn connect_limited(
        &self,
        name: &str,
        largest: u64,
    ) -> Result<Connection, SessionError> {
        self.open(name, largest, Returned::default()).await
    }

    async fn open(
        &self,
        name: &str,
        largest: u64,
        returned: Returned,
    ) -> Result<Connection, SessionError> {
        let BrokerUrl { uri, tls } = &self.url;
        // lapin's own connect has no timeout and blocks a thread for as long as a silent peer stays
        // open, so probe first.
        let address = (uri.authority.host.as_str(), uri.authority.port);
        let probe = async {
            TcpStream::connect(address)
                .await
                .map_err(lapin::Error::from)
        };
        with_timeout(ANSWER_TIMEOUT, "connect to RabbitMQ", probe).await?;
        let name = format!("{} {name}", env!("CARGO_PKG_NAME"));
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let tls = tls.read().await?;
        let connecting = transport::connect(uri.clone(), tls, properties, largest, returned);
        with_timeout(ANSWER_TIMEOUT, "log in to RabbitMQ", connecting).await
    }

    /// Opens a channel whose publishes are confirmed.
    pub async fn confirming_channel(
        &self,
        connection: &Connection,
    ) -> Result<Channel, SessionError> {
        let opening = async {
            let channel = connection.create_channel().await?;
            channel
                .confirm_select(ConfirmSelectOptions::default())
                .await
                .map(|()| channel)
        };
        with_timeout(ANSWER_TIMEOUT, "open a channel", opening).await
    }

    /// Runs `topology::declare` with a time limit.
    pub async fn declare_topology(&self, connection: &Connection) -> Result<(), SessionError> {
        with_timeout(
            ANSWER_TIMEOUT,
            "declare the topology",
            topology::declare(connection, self.queue_type),
        )
        .await
    }

    /// Runs `topology::maintain` with a time limit.
    pub async fn maintain_queues(&self, connection: &Connection) -> Result<Queues, SessionError> {
        with_timeout(
            PROBE_TIMEOUT,
            "look after the queues",
            topology::maintain(connection),
        )
        .await
    }

    /// Runs `topology::subscribe` with a time limit.
    pub async fn subscribe(
        &self,
        connection: &Connection,
        prefetch: u16,
    ) -> Result<(Channel, Consumer), SessionError> {
        with_timeout(
            ANSWER_TIMEOUT,
            "subscribe",
            topology::subscribe(connection, prefetch),
        )
        .await
    }
}

/// Closes a channel cleanly.
pub(crate) async fn close_channel(channel: Channel) -> Result<(), SessionError> {
    with_timeout(
        ANSWER_TIMEOUT,
        "close a channel",
        channel.close(REPLY_SUCCESS, "bye".into()),
    )
    .await
}

/// Closes cleanly if the broker allows it. Dropping the connection is just as safe.
pub(crate) async fn close(connection: Connection) {
    match timeout(CLOSE_TIMEOUT, connection.close(REPLY_SUCCESS, "bye".into())).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(%error, "RabbitMQ did not close the connection cleanly"),
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
        assert_eq!(
            shown("amqp://guest:guest@localhost:5672/"),
            "localhost:5672//"
        );
        assert_eq!(shown("amqp://localhost"), "localhost:5672//");
        assert_eq!(shown("amqps://h/%2f"), "h:5671//");
        assert_eq!(shown("amqp://h/team"), "h:5672/team");
    }

    #[test]
    fn only_plain_text_to_another_machine_causes_a_warning() {
        let warns = |url: &str| {
            url.parse::<BrokerUrl>()
                .unwrap()
                .is_plain_to_another_machine()
        };
        assert!(warns("amqp://u:p@rabbitmq") && warns("amqp://192.0.2.1"));
        assert!(
            !warns("amqps://rabbitmq")
                && !warns("amqp://localhost")
                && !warns("amqp://[::1]:5672/")
        );
    }

    #[test]
    fn an_ip_literal_is_the_host() {
        assert_eq!(shown("amqp://127.0.0.1:1/v"), "127.0.0.1:1/v");
        assert_eq!(shown("amqp://[::1]:5672/v"), "::1:5672/v");
    }

    #[test]
    fn every_tls_parameter_is_obeyed_or_refused_by_name() {
        let refusal = |url: &str| url.parse::<BrokerUrl>().map(|_| ()).unwrap_err();
        assert!(
            "amqps://h/?cacertfile=a&certfile=b&keyfile=c&verify=verify_peer"
                .parse::<BrokerUrl>()
                .is_ok()
        );
        assert!(refusal("amqps://h/?verify=verify_none").contains("verify_peer"));
        assert!(refusal("amqps://h/?certfile=b").contains("`keyfile`"));
        assert!(refusal("amqp://h/?cacertfile=b").contains("amqps://"));
        assert!(refusal("amqps://h/?fail_if_no_peer_cert=true").contains("`fail_if_no_peer_cert`"));
    }

    #[test]
    fn a_malformed_broker_url_is_refused_without_being_repeated() {
        for url in [
            "",
            "secret",
            "http://u:secret@h",
            "amqp://u:secret@h:port",
            "amqp:///",
        ] {
            assert!(
                !url.parse::<BrokerUrl>().unwrap_err().contains("secret"),
                "{url}"
            );
        }
    }
}
