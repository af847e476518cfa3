//! Reads the events back and logs them. Acknowledges by hand, after the line is written: an event is logged at least once,
//! and a repeated line says `duplicate`.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use lapin::{
    Channel, Connection,
    message::Delivery,
    options::{BasicAckOptions, BasicCancelOptions},
    types::ShortString,
};
use metrics::counter;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    broker::{self, Broker, CONSUMER_TAG},
    dead_letter::DeadLetters,
    message::{self, ReceivedEvent},
    seen::{Novelty, Seen},
    supervisor::{SessionError, supervise},
};
use crate::status::{Link, Status};

/// Messages that the broker sends ahead of their acknowledgement.
const PREFETCH: u16 = 1000;
/// Acknowledge after this many messages, or this much time, whichever comes first.
const ACK_EVERY: u32 = 250;
const ACK_WITHIN: Duration = Duration::from_millis(50);

/// A subscription that the broker ends sooner is not tried again at once.
const SHORT_LIVED: Duration = Duration::from_millis(100);

/// Why deliveries end, other than by an error.
enum Ended {
    Stopped,
    /// By the broker: the queue is gone.
    Cancelled,
}

pub struct Consumer {
    broker: Broker,
    status: Arc<Status>,
    /// Outlives a session: a reconnect is just when messages repeat.
    seen: tokio::sync::Mutex<Seen>,
}

impl Consumer {
    #[must_use]
    pub fn new(broker: Broker, status: Arc<Status>) -> Self {
        Self { broker, status, seen: tokio::sync::Mutex::default() }
    }

    /// Consumes until `stop`; then finishes what it holds.
    pub async fn run(self, stop: CancellationToken) {
        supervise("consumer", &stop, || self.session(&stop)).await;
        self.status.set_consumer(Link::Down);
    }

    async fn session(&self, stop: &CancellationToken) -> Result<(), SessionError> {
        // A connection of its own: the broker blocks connections that publish.
        let Some(connection) = stop.run_until_cancelled(self.broker.connect("consumer")).await.transpose()? else {
            return Ok(());
        };
        let outcome = self.subscribe_until(&connection, stop).await;
        self.status.set_consumer(Link::Down);
        if outcome.is_ok() {
            broker::close(connection).await;
        }
        outcome
    }

    /// Subscribes, and does so again each time that somebody deletes the queue: what is published meanwhile may find no
    /// queue of ours.
    async fn subscribe_until(&self, connection: &Connection, stop: &CancellationToken) -> Result<(), SessionError> {
        loop {
            self.broker.declare_topology(connection).await?;
            let dead_letters = DeadLetters::open(&self.broker, connection).await?;
            let (channel, deliveries) = self.broker.subscribe(connection, PREFETCH).await?;
            let subscribed = Instant::now();
            self.status.set_consumer(Link::Up);
            info!("Consumer subscribed");
            let ended = self.consume(&channel, deliveries, &dead_letters, stop).await?;
            // Dropped, they would still be closing when the connection is, and lapin stumbles over that.
            broker::close_channel(channel).await?;
            dead_letters.close().await?;
            match ended {
                Ended::Stopped => return Ok(()),
                Ended::Cancelled if subscribed.elapsed() < SHORT_LIVED => return Err(SessionError::Closed),
                Ended::Cancelled => warn!("Queue deleted, declaring it again"),
            }
        }
    }

    async fn consume(
        &self,
        channel: &Channel,
        mut deliveries: lapin::Consumer,
        dead_letters: &DeadLetters,
        stop: &CancellationToken,
    ) -> Result<Ended, SessionError> {
        let mut seen = self.seen.lock().await;
        let mut acks = Acks::new(channel);
        loop {
            tokio::select! {
                delivery = deliveries.next() => match delivery {
                    Some(delivery) => {
                        let delivery = delivery?;
                        receive(&delivery, &mut seen, dead_letters).await?;
                        acks.add(&delivery).await?;
                    }
                    None => return Ok(Ended::Cancelled),
                },
                () = sleep_until(acks.due), if acks.waiting > 0 => acks.flush().await?,
                () = stop.cancelled() => break,
            }
        }
        channel.basic_cancel(CONSUMER_TAG.into(), BasicCancelOptions::default()).await?;
        acks.flush().await?;
        Ok(Ended::Stopped)
    }
}

async fn receive(delivery: &Delivery, seen: &mut Seen, dead_letters: &DeadLetters) -> Result<(), SessionError> {
    match message::parse(&delivery.data) {
        Ok(event) => {
            let novelty = seen.note(&event);
            log(&event, &novelty);
            Ok(())
        }
        Err(reason) => {
            dead_letters.put(delivery, &reason).await?;
            counter!("events_consumed_total", "result" => "dead_letter").increment(1);
            let message_id = delivery.properties.message_id().as_ref().map(ShortString::as_str);
            error!(message_id, reason, "Message cannot be read, it is in the dead-letter queue");
            Ok(())
        }
    }
}

fn log(event: &ReceivedEvent, novelty: &Novelty) {
    let Novelty { duplicate, stale } = novelty;
    let result = match (duplicate, stale) {
        (true, _) => "duplicate",
        (false, true) => "stale",
        (false, false) => "new",
    };
    counter!("events_consumed_total", "result" => result).increment(1);
    info!(
        trace_id = event.trace_id,
        event_type = event.event_type,
        user_id = event.user_id,
        event_id = %event.event_id,
        duplicate = duplicate.then_some(true),
        stale = stale.then_some(true),
        "Event received"
    );
}

/// Acknowledges several deliveries at once: the last one's tag stands for all before it.
struct Acks<'a> {
    channel: &'a Channel,
    last_tag: u64,
    waiting: u32,
    due: Instant,
}

impl<'a> Acks<'a> {
    fn new(channel: &'a Channel) -> Self {
        Self { channel, last_tag: 0, waiting: 0, due: Instant::now() }
    }

    async fn add(&mut self, delivery: &Delivery) -> Result<(), SessionError> {
        if self.waiting == 0 {
            self.due = Instant::now() + ACK_WITHIN;
        }
        self.last_tag = delivery.delivery_tag;
        self.waiting += 1;
        if self.waiting >= ACK_EVERY { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), SessionError> {
        if self.waiting > 0 {
            self.waiting = 0;
            self.channel.basic_ack(self.last_tag, BasicAckOptions { multiple: true }).await?;
        }
        Ok(())
    }
}
