//! A subscriber that survives the broker: records every published event, in the order of its queue.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::topology::{ALL_EVENTS, bind, declare_exchange, declare_queue, of_type};
use super::until;

const QUEUE: &str = "collector";

/// A message of the collector's queue.
pub struct Collected {
    pub at: SystemTime,
    pub event_id: Uuid,
    pub user_id: i64,
    pub version: i64,
    pub event_type: String,
    pub trace_id: String,
    /// As it was written.
    pub data: String,
    /// Delivered before, to a connection that broke; so not repeated by the publisher.
    pub redelivered: bool,
}

#[derive(Deserialize)]
struct Body<'a> {
    event_id: Uuid,
    user_id: i64,
    version: i64,
    event_type: String,
    trace_id: String,
    #[serde(borrow)]
    data: &'a RawValue,
}

pub struct Collector {
    pub messages: Arc<Mutex<Vec<Collected>>>,
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Collector {
    /// Bound to `user_events` with `user.*` before this returns.
    pub async fn start(broker_url: &str, queue_type: &str) -> Self {
        let messages = Arc::<Mutex<Vec<Collected>>>::default();
        let stop = CancellationToken::new();
        let task = tokio::spawn({
            let url = broker_url.to_owned();
            let queue_type = queue_type.to_owned();
            let messages = messages.clone();
            let stop = stop.clone();
            async move {
                while !stop.is_cancelled() {
                    // The broker is away: expected in these tests.
                    _ = collect(&url, &queue_type, &messages, &stop).await;
                    sleep(Duration::from_millis(100)).await;
                }
            }
        });
        let collector = Self {
            messages,
            stop,
            task: AbortOnDropHandle::new(task),
        };
        until("the collector's queue", async || {
            is_declared(broker_url).await
        })
        .await;
        collector
    }

    pub fn count(&self) -> usize {
        self.messages.lock().unwrap().len()
    }

    pub async fn stop(self) -> Vec<Collected> {
        self.stop.cancel();
        self.task.await.unwrap();
        std::mem::take(&mut self.messages.lock().unwrap())
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Unacknowledged messages, and messages per acknowledgement.
const PREFETCH: u16 = 1_000;
const ACK_EVERY: u64 = 200;
/// After this much silence, acknowledge, and bind again in case somebody has deleted the exchange.
const IDLE: Duration = Duration::from_millis(100);

async fn connect(url: &str) -> lapin::Result<Connection> {
    match timeout(
        CONNECT_TIMEOUT,
        Connection::connect(url, ConnectionProperties::default()),
    )
    .await
    {
        Ok(connection) => connection,
        Err(_elapsed) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}

async fn is_declared(url: &str) -> bool {
    let Ok(connection) = connect(url).await else {
        return false;
    };
    let Ok(channel) = connection.create_channel().await else {
        return false;
    };
    let options = QueueDeclareOptions {
        passive: true,
        ..Default::default()
    };
    let queue = channel
        .queue_declare(QUEUE.into(), options, FieldTable::default())
        .await;
    queue.is_ok_and(|queue| queue.consumer_count() > 0)
}

async fn collect(
    url: &str,
    queue_type: &str,
    messages: &Mutex<Vec<Collected>>,
    stop: &CancellationToken,
) -> lapin::Result<()> {
    let connection = connect(url).await?;
    let channel = connection.create_channel().await?;
    let mut arguments = of_type(queue_type);
    // A broken connection may hold messages for a while, and no other consumer may overtake them.
    arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    declare_queue(&channel, QUEUE, arguments).await?;
    declare_exchange(&channel).await?;
    bind(&channel, QUEUE, ALL_EVENTS).await?;
    channel
        .basic_qos(PREFETCH, BasicQosOptions::default())
        .await?;
    let options = BasicConsumeOptions::default();
    let mut consumer = channel
        .basic_consume(QUEUE.into(), QUEUE.into(), options, FieldTable::default())
        .await?;
    let mut unacknowledged = None;
    while !stop.is_cancelled() {
        let Ok(delivery) = timeout(IDLE, consumer.next()).await else {
            acknowledge(&channel, &mut unacknowledged).await?;
            declare_exchange(&channel).await?;
            bind(&channel, QUEUE, ALL_EVENTS).await?;
            continue;
        };
        let Some(delivery) = delivery.transpose()? else {
            return Ok(());
        };
        let tag = delivery.delivery_tag;
        let body = serde_json::from_slice::<Body<'_>>(&delivery.data).unwrap();
        messages.lock().unwrap().push(Collected {
            at: SystemTime::now(),
            event_id: body.event_id,
            user_id: body.user_id,
            version: body.version,
            event_type: body.event_type,
            trace_id: body.trace_id,
            data: body.data.get().to_owned(),
            redelivered: delivery.redelivered,
        });
        unacknowledged = Some(tag);
        if tag % ACK_EVERY == 0 {
            acknowledge(&channel, &mut unacknowledged).await?;
        }
    }
    acknowledge(&channel, &mut unacknowledged).await
}

async fn acknowledge(channel: &lapin::Channel, last: &mut Option<u64>) -> lapin::Result<()> {
    match last.take() {
        Some(tag) => {
            channel
                .basic_ack(tag, BasicAckOptions { multiple: true })
                .await
        }
        None => Ok(()),
    }
}
