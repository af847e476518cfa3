//! Reads the events back and logs them. Acknowledges after the line is written to stdout, so each
//! event is logged at least once; a repeated line says `duplicate`. While the log's reader is
//! stalled, events wait in the queue.

mod acks;
mod dead_letter_writer;
mod deduplicator;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicRejectOptions};
use lapin::{Channel, Connection};
use logline::LogWriter;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::acks::Acks;
use self::dead_letter_writer::DeadLetterWriter;
use self::deduplicator::{Deduplicator, Freshness};
use super::broker::{self, ANSWER_TIMEOUT, Broker};
use super::message::{self, ReceivedEvent};
use super::session::{SessionError, supervise, with_timeout};
use super::topology::CONSUMER_TAG;
use super::transport::{self, Mark};
use crate::monitoring::catalogue;
use crate::monitoring::state::{Link, Status};

/// How much the broker sends ahead of acknowledgements. Anyone may publish messages of any size; at
/// most 16 MiB of them are in memory at a time.
struct Intake {
    /// Most unacknowledged messages.
    prefetch: u16,
    /// Largest body, in bytes; an event has a few kilobytes at most. Beside it, a message has at
    /// most 32 KiB of properties.
    largest: u64,
}
/// For messages of the size of events.
const USUAL: Intake = Intake {
    prefetch: 200,
    largest: 32 << 10,
};
/// For some time after a message that is too large for the usual intake.
const CAREFUL: Intake = Intake {
    prefetch: 12,
    largest: 1 << 20,
};
/// The usual intake returns after this long without such a message.
const CAREFUL_FOR: Duration = Duration::from_secs(30);
/// How long an ending subscription waits for the dead letters that it is writing, which may have to
/// open a connection first.
const FINISH_LETTERS: Duration = Duration::from_secs(5);
/// How long a stopping service waits for them.
const FINISH_AT_STOP: Duration = Duration::from_secs(1);

/// How often to count dead letters, bind the queue, and check that deliveries arrive if messages
/// wait.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);
/// The first count waits until the queue knows its new consumer.
const FIRST_COUNT: Duration = Duration::from_secs(1);

/// How often to check whether the log's reader has caught up.
const CHECK_LOG_EVERY: Duration = Duration::from_millis(20);

/// A subscription that the broker ends sooner than this counts as a failed session.
const SHORT_LIVED: Duration = Duration::from_millis(100);

/// Why deliveries ended without an error.
enum Ended {
    Stopped,
    /// The broker cancelled the subscription: the queue was deleted, or messages waited too long
    /// for their acknowledgement.
    Cancelled,
    /// A message is too large for the usual intake.
    TooLarge,
    /// No such message has come for a while.
    Calm,
}

pub(crate) struct Consumer {
    broker: Broker,
    status: Arc<Status>,
    log: LogWriter,
    /// Outlives a session, because messages repeat after a reconnect.
    deduplicator: Deduplicator,
    /// When the usual intake returns.
    careful_until: Option<Instant>,
}

impl Consumer {
    pub(crate) fn new(broker: Broker, status: Arc<Status>, log: LogWriter) -> Self {
        Self {
            broker,
            status,
            log,
            deduplicator: Deduplicator::default(),
            careful_until: None,
        }
    }

    /// Consumes until `stop`, then acknowledges what it has logged or dead-lettered. The broker
    /// delivers the rest again.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        supervise("consumer", &stop, &mut self, |consumer, stop| {
            Box::pin(consumer.session(stop))
        })
        .await;
        self.status.consumer.store(Link::Down);
    }

    async fn session(&mut self, stop: &CancellationToken) -> Result<(), SessionError> {
        loop {
            let intake = if self.careful_until.is_some() {
                CAREFUL
            } else {
                USUAL
            };
            // A connection of its own: the broker blocks connections that publish.
            let connecting = self.broker.connect_limited("consumer", intake.largest);
            let Some(connection) = stop.run_until_cancelled(connecting).await.transpose()? else {
                return Ok(());
            };
            let outcome = self.subscribe_until(&connection, &intake, stop).await;
            self.status.consumer.store(Link::Down);
            // NaN rather than an outdated value.
            catalogue::dead_letters().set(f64::NAN);
            match outcome? {
                // Not closed cleanly: the answer would come after everything that the broker has
                // sent ahead, which may be gigabytes.
                Ended::TooLarge => {
                    warn!(
                        bytes = USUAL.largest,
                        "A message is larger than any event: taking fewer messages at a time"
                    );
                }
                Ended::Calm => broker::close(connection).await,
                Ended::Stopped | Ended::Cancelled => {
                    broker::close(connection).await;
                    return Ok(());
                }
            }
        }
    }

    /// Subscribes, and resubscribes each time the broker cancels the subscription.
    async fn subscribe_until(
        &mut self,
        connection: &Connection,
        intake: &Intake,
        stop: &CancellationToken,
    ) -> Result<Ended, SessionError> {
        loop {
            self.broker.declare_topology(connection).await?;
            let (channel, deliveries) = self.broker.subscribe(connection, intake.prefetch).await?;
            let subscribed = Instant::now();
            self.status.consumer.store(Link::Up);
            info!("Consumer subscribed");
            let ended = self.consume(connection, &channel, deliveries, stop).await?;
            if matches!(ended, Ended::TooLarge) {
                return Ok(ended);
            }
            // A dropped channel would still be closing when the connection closes, which lapin does
            // not handle.
            broker::close_channel(channel).await?;
            match ended {
                Ended::Cancelled if subscribed.elapsed() < SHORT_LIVED => {
                    return Err(SessionError::Closed);
                }
                Ended::Cancelled => {
                    warn!(
                        "RabbitMQ ended the subscription, perhaps because the queue was deleted: \
                         subscribing again"
                    );
                }
                ended => return Ok(ended),
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
        let writer = self.log.clone();
        let mut acks = Acks::new(channel, &writer);
        let mut count_due = interval_at(Instant::now() + FIRST_COUNT, COUNT_INTERVAL);
        count_due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut deliveries_now = 0_u64;
        let mut deliveries_before = 0;
        let mut waited = false;
        let ended = loop {
            let calm = self.careful_until;
            let is_stalled = writer.is_half_full();
            tokio::select! {
                _ = count_due.tick() => {
                    let queues = self.broker.maintain_queues(connection).await?;
                    // When a queue is deleted under load, RabbitMQ 3.10 may drop a subscription
                    // without saying so, or stop delivering.
                    if queues.consumers == 0 {
                        return Ok(Ended::Cancelled);
                    }
                    match queues.dead_letters {
                        Some(depth) => catalogue::dead_letters().set(depth),
                        None => self.broker.declare_topology(connection).await?,
                    }
                    // The queue serves one subscription: this one if it was served before, or if
                    // there is no other.
                    let is_served = deliveries_before > 0 || queues.consumers == 1;
                    // Messages on their way to the dead-letter queue may use up the whole prefetch.
                    let is_waiting = acks.due().is_none() && !acks.holds_any() && !is_stalled;
                    let waits = queues.waiting > 0 && is_served && is_waiting;
                    if waits && waited && deliveries_now == deliveries_before {
                        return Err(SessionError::Timeout("deliver messages"));
                    }
                    waited = waits;
                    deliveries_before = deliveries_now;
                }
                delivery = deliveries.next(), if !is_stalled => {
                    let Some(delivery) = delivery.transpose()? else { return Ok(Ended::Cancelled) };
                    deliveries_now += 1;
                    let event = match transport::mark(&delivery.properties) {
                        None => message::parse(&delivery.data),
                        Some(Mark::Unreadable(reason)) => Err(reason),
                        Some(Mark::TooLarge(_)) if calm.is_none() => {
                            self.careful_until = Some(Instant::now() + CAREFUL_FOR);
                            break Ended::TooLarge;
                        }
                        Some(Mark::TooLarge(bytes)) => {
                            self.careful_until = Some(Instant::now() + CAREFUL_FOR);
                            reject(&delivery, bytes).await?;
                            continue;
                        }
                    };
                    if delivery.data.len() as u64 > USUAL.largest {
                        self.careful_until = Some(Instant::now() + CAREFUL_FOR);
                    }
                    match event {
                        Ok(event) => {
                            self.log(&event).await;
                            acks.add(delivery.delivery_tag);
                        }
                        Err(reason) => {
                            acks.hold(delivery.delivery_tag);
                            dead_letters.put(delivery, reason);
                        }
                    }
                }
                Some(tag) = dead_letters.written() => acks.release(tag),
                () = sleep_until(acks.due().unwrap_or_else(Instant::now)), if acks.due().is_some() => acks.flush().await?,
                () = sleep(CHECK_LOG_EVERY), if is_stalled => {}
                // Not while a large message waits to be dead-lettered: it would be delivered again.
                () = sleep_until(calm.unwrap_or_else(Instant::now)), if calm.is_some() && !acks.holds_any() => {
                    self.careful_until = None;
                    break Ended::Calm;
                }
                () = stop.cancelled() => break Ended::Stopped,
            }
        };
        // Not after `TooLarge`: the answer would come after everything that the broker has sent
        // ahead.
        if !matches!(ended, Ended::TooLarge) {
            let cancelling =
                channel.basic_cancel(CONSUMER_TAG.into(), BasicCancelOptions::default());
            with_timeout(ANSWER_TIMEOUT, "cancel the subscription", cancelling).await?;
        }
        // A message that is dead-lettered but not acknowledged would be dead-lettered again.
        let end = Instant::now()
            + if matches!(ended, Ended::Stopped) {
                FINISH_AT_STOP
            } else {
                FINISH_LETTERS
            };
        while acks.holds_any()
            && let Ok(Some(tag)) = timeout_at(end, dead_letters.written()).await
        {
            acks.release(tag);
        }
        acks.finish(end).await?;
        Ok(ended)
    }

    async fn log(&mut self, event: &ReceivedEvent) {
        let Freshness { duplicate, stale } = self.deduplicator.note(event);
        let result = match (duplicate, stale) {
            (true, _) => "duplicate",
            (false, true) => "stale",
            (false, false) => "new",
        };
        catalogue::events_consumed(result).increment(1);
        loop {
            let dropped = self.log.dropped();
            info!(
                trace_id = event.trace_id,
                event_type = event.event_type,
                user_id = event.user_id,
                event_id = %event.event_id,
                duplicate = duplicate.then_some(true),
                stale = stale.then_some(true),
                "Event received"
            );
            if self.log.dropped() == dropped {
                return;
            }
            // Perhaps this line was dropped: the other half of the buffer has just filled up.
            sleep(CHECK_LOG_EVERY).await;
        }
    }
}

/// Lets the broker dead-letter the whole message, because the screen has left out its body.
async fn reject(delivery: &Delivery, bytes: u64) -> Result<(), SessionError> {
    let rejecting = delivery.reject(BasicRejectOptions { requeue: false });
    with_timeout(ANSWER_TIMEOUT, "reject a message", rejecting).await?;
    catalogue::events_consumed("dead_letter").increment(1);
    error!(
        bytes,
        "Message is too large to be read, the broker moves it to the dead-letter queue"
    );
    Ok(())
}
