//! Whether the broker grants what the service needs; for the `check` command.

use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Connection};

use super::broker::{self, ANSWER_TIMEOUT, Broker};
use super::session::{SessionError, with_timeout};
use super::topology::EXCHANGE;

/// Declares the topology as the service does at its start, and publishes a message with each routing key in a transaction that it
/// rolls back. The broker checks the login's permissions, and no queue gets a message.
///
/// # Errors
/// The broker's first refusal.
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
