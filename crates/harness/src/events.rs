//! A subscriber independent of the service: it has its own queue and sees what other subscribers
//! would. It also does by hand what any client of the broker could. It ends with its connection;
//! [`Collector`](super::Collector) survives the broker.

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions,
    ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::PATIENCE;
use super::servers::{World, management_put};
use super::topology::{ALL_EVENTS, bind, declare_exchange, declare_queue, of_type};

pub struct Observer {
    pub channel: Channel,
    _connection: Connection,
    consumer: Consumer,
}

impl Observer {
    /// Bound to `user_events` with `user.*`; declares the exchange as the contract describes it.
    pub async fn new(world: &World) -> Self {
        Self::at(&world.broker_url).await
    }

    /// Like [`Self::new`], with another login.
    pub async fn at(broker_url: &str) -> Self {
        let connection = Connection::connect(broker_url, ConnectionProperties::default())
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        declare_queue(&channel, "observer", FieldTable::default())
            .await
            .unwrap();
        declare_exchange(&channel).await.unwrap();
        bind(&channel, "observer", ALL_EVENTS).await.unwrap();
        let options = BasicConsumeOptions {
            no_ack: true,
            ..Default::default()
        };
        let consumer = channel
            .basic_consume(
                "observer".into(),
                "observer".into(),
                options,
                FieldTable::default(),
            )
            .await
            .unwrap();
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .unwrap();
        Self {
            channel,
            _connection: connection,
            consumer,
        }
    }

    /// Waits for the next message.
    #[track_caller]
    pub fn next_message(&mut self) -> impl Future<Output = Delivery> {
        let caller = std::panic::Location::caller();
        async move {
            let delivery = timeout(PATIENCE, self.consumer.next()).await;
            delivery
                .unwrap_or_else(|_| panic!("{caller}: no message within {PATIENCE:?}"))
                .unwrap()
                .unwrap()
        }
    }

    /// Waits for the next messages, and returns their bodies.
    pub async fn next_bodies(&mut self, count: usize) -> Vec<Value> {
        let mut bodies = Vec::new();
        while bodies.len() < count {
            bodies.push(serde_json::from_slice(&self.next_message().await.data).unwrap());
        }
        bodies
    }

    /// Publishes by hand, as any other client could.
    pub async fn publish(&self, routing_key: &str, body: &[u8]) {
        self.publish_to("user_events", routing_key, body).await;
    }

    pub async fn publish_to(&self, exchange: &str, routing_key: &str, body: &[u8]) {
        self.publish_with(exchange, routing_key, body, BasicProperties::default())
            .await;
    }

    pub async fn publish_with(
        &self,
        exchange: &str,
        routing_key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) {
        let options = BasicPublishOptions::default();
        let confirm = self.channel.basic_publish(
            exchange.into(),
            routing_key.into(),
            options,
            body,
            properties,
        );
        assert!(confirm.await.unwrap().await.unwrap().is_ack());
    }

    /// Takes one message out of a queue, if there is one.
    pub async fn take(&self, queue: &str) -> Option<Delivery> {
        let message = self
            .channel
            .basic_get(queue.into(), BasicGetOptions::default())
            .await
            .unwrap()?;
        message
            .delivery
            .ack(BasicAckOptions::default())
            .await
            .unwrap();
        Some(message.delivery)
    }

    /// The number of messages in a queue that are ready, not in delivery.
    pub async fn waiting(&self, queue: &str) -> u32 {
        let options = QueueDeclareOptions {
            passive: true,
            ..Default::default()
        };
        self.channel
            .queue_declare(queue.into(), options, FieldTable::default())
            .await
            .unwrap()
            .message_count()
    }

    /// Declares a third party's queue, bound to deletions only, that refuses all. Returns the path
    /// of its policy, for deletion.
    pub async fn refuse_deletions(&self, world: &World) -> String {
        let policy = format!("/api/policies/{}/full", world.virtual_host);
        let full = json!({"pattern": "^deletions$", "definition": {"max-length": 0, "overflow": "reject-publish"}});
        management_put(&policy, &full).await;
        self.bind_deletions().await;
        policy
    }

    /// Declares a third party's queue, `deletions`, bound to deletions only.
    pub async fn bind_deletions(&self) {
        self.bind("deletions", "user.deleted", "classic").await;
    }

    /// Declares a third party's queue, bound to one type of events only.
    pub async fn bind(&self, queue: &str, event_type: &str, queue_type: &str) {
        declare_queue(&self.channel, queue, of_type(queue_type))
            .await
            .unwrap();
        bind(&self.channel, queue, event_type).await.unwrap();
    }
}
