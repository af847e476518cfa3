//! Whether a broker lets the service do its work; for the operator's `check`.

use std::time::Duration;

use lapin::{
    BasicProperties, Connection, ErrorKind,
    options::BasicPublishOptions,
    protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError},
};

use super::{
    broker::{self, Broker, EXCHANGE},
    supervisor::{SessionError, within},
};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Declares the topology as the service does at its start, and publishes a message of each routing key in a transaction that is
/// rolled back: the broker checks the login's permissions, and no queue gets anything.
///
/// # Errors
/// What the broker refuses first.
pub async fn permissions(broker: &Broker, connection: &Connection, routing_keys: &[&str]) -> Result<(), SessionError> {
    broker.declare_topology(connection).await?;
    for key in routing_keys {
        let publishing = async {
            let channel = connection.create_channel().await?;
            channel.tx_select().await?;
            let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
            channel.basic_publish(EXCHANGE.into(), (*key).into(), options, b"", properties).await?;
            channel.tx_rollback().await.map(|()| channel)
        };
        broker::close_channel(within(ANSWER_TIMEOUT, "publish", publishing).await?).await?;
    }
    Ok(())
}

/// Whether the broker knows us and does not let us: login, virtual host or permission.
pub fn is_refused(error: &SessionError) -> bool {
    let SessionError::Broker(error) = error else { return false };
    let ErrorKind::ProtocolError(error) = error.kind() else { return false };
    matches!(
        error.kind(),
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) | AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED)
    )
}
