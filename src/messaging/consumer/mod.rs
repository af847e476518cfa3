//! Reads the events back and logs them. Acknowledges after the line is written, so each event is logged at least once; a repeated
//! line says `duplicate`.

mod acks;
mod dead_letter_writer;
mod deduplicator;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::BasicCancelOptions;
use lapin::{Channel, Connection};
use metrics::{counter, gauge};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::acks::Acks;
use self::dead_letter_writer::DeadLetterWriter;
use self::deduplicator::{Deduplicator, Freshness};
use super::broker::{self, ANSWER_TIMEOUT, Broker};
use super::dead_letters;
use super::message::{self, ReceivedEvent};
use super::session::{SessionError, supervise, with_timeout};
use super::topology::CONSUMER_TAG;
use crate::monitoring::state::{Link, Status};

/// Unacknowledged messages that the broker sends ahead.
const PREFETCH: u16 = 1000;
/// How often dead letters are counted.
const COUNT_INTERVAL: Duration = Duration::from_secs(10);

/// A subscription that the broker ends sooner than this counts as a failed session.
const SHORT_LIVED: Duration = Duration::from_millis(100);

/// Why deliveries ended without an error.
enum Ended {
    Stopped,
    /// The broker cancelled the subscription: the queue was deleted.
    Cancelled,
}

pub struct Consumer {
    broker: Broker,
    status: Arc<Status>,
    /// Outlives a session, because messages repeat after a reconnect.
    deduplicator: Deduplicator,
}

impl Consumer {
    pub fn new(broker: Broker, status: Arc<Status>) -> Self {
        Self { broker, status, deduplicator: Deduplicator::default() }
    }

    /// Consumes until `stop`, then acknowledges what it has logged or dead-lettered. The broker delivers the rest again.
    pub async fn run(mut self, stop: CancellationToken) {
        supervise("consumer", &stop, &mut self, |consumer, stop| Box::pin(consumer.session(stop))).await;
        self.status.consumer.store(Link::Down);
    }

    async fn session(&mut self, stop: &CancellationToken) -> Result<(), SessionError> {
        // A connection of its own: the broker blocks connections that publish.
        let Some(connection) = stop.run_until_cancelled(self.broker.connect("consumer")).await.transpose()? else {
            return Ok(());
        };
        let outcome = self.subscribe_until(&connection, stop).await;
        self.status.consumer.store(Link::Down);
        // NaN rather than an outdated value.
        gauge!("dead_letters").set(f64::NAN);
        if outcome.is_ok() {
            broker::close(connection).await;
        }
        outcome
    }

    /// Subscribes, and again each time somebody deletes the queue.
    async fn subscribe_until(&mut self, connection: &Connection, stop: &CancellationToken) -> Result<(), SessionError> {
        loop {
            self.broker.declare_topology(connection).await?;
            let (channel, deliveries) = self.broker.subscribe(connection, PREFETCH).await?;
            let subscribed = Instant::now();
            self.status.consumer.store(Link::Up);
            info!("Consumer subscribed");
            let ended = self.consume(connection, &channel, deliveries, stop).await?;
            // A dropped channel would still be closing when the connection closes, which lapin does not handle.
            broker::close_channel(channel).await?;
            match ended {
                Ended::Stopped => return Ok(()),
                Ended::Cancelled if subscribed.elapsed() < SHORT_LIVED => return Err(SessionError::Closed),
                Ended::Cancelled => warn!("Queue deleted, declaring it again"),
            }
        }
    }

    async fn consume(
        &mut self,
        connection: &Connection,
        channel: &Channel,
        mut deliveries: lapin::Consumer,
        stop: &CancellationToken,
    ) -> Result<Ended, SessionError> {
        let mut dead_letters = DeadLetterWriter::start(self.broker.clone(), self.status.clone());
        let mut acks = Acks::new(channel);
        let mut count_due = interval(COUNT_INTERVAL);
        count_due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = count_due.tick() => match dead_letters::depth(connection).await? {
                    Some(depth) => gauge!("dead_letters").set(depth),
                    None => self.broker.declare_topology(connection).await?,
                },
                delivery = deliveries.next() => {
                    let Some(delivery) = delivery.transpose()? else { return Ok(Ended::Cancelled) };
                    match message::parse(&delivery.data) {
                        Ok(event) => {
                            log(&event, &self.deduplicator.note(&event));
                            acks.add(delivery.delivery_tag).await?;
                        }
                        Err(reason) => {
                            acks.hold(delivery.delivery_tag);
                            dead_letters.put(delivery, reason);
                        }
                    }
                }
                Some(tag) = dead_letters.written() => acks.release(tag).await?,
                () = sleep_until(acks.due), if !acks.waiting.is_empty() => acks.flush().await?,
                () = stop.cancelled() => break,
            }
        }
        let cancelling = channel.basic_cancel(CONSUMER_TAG.into(), BasicCancelOptions::default());
        with_timeout(ANSWER_TIMEOUT, "cancel the subscription", cancelling).await?;
        acks.flush().await?;
        Ok(Ended::Stopped)
    }
}

fn log(event: &ReceivedEvent, freshness: &Freshness) {
    let Freshness { duplicate, stale } = freshness;
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
