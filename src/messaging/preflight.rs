//! Whether a broker lets the service do its work; for the operator's `check`.

use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Connection};

use super::broker::{self, ANSWER_TIMEOUT, Broker};
use super::session::{SessionError, with_timeout};
use super::topology::EXCHANGE;

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
        broker::close_channel(with_timeout(ANSWER_TIMEOUT, "publish", publishing).await?).await?;
    }
    Ok(())
}
