//! Moves unreadable messages to the dead-letter queue while the consumer goes on. Uses its own
//! connection, because a broker short of memory or disk blocks connections that publish. Retries
//! until the broker confirms.

use std::sync::Arc;
use std::time::Duration;

use lapin::Connection;
use lapin::message::Delivery;
use lapin::types::ShortString;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, warn};

use crate::backoff::Backoff;
use crate::error_chain::Chain;
use crate::messaging::broker::Broker;
use crate::messaging::dead_letters::{CONFIRM_TIMEOUT, DeadLetters, Keep};
use crate::messaging::session::SessionError;
use crate::monitoring::catalogue;
use crate::monitoring::state::Status;

/// How often to check whether the broker blocks us. Blocked time does not count towards the confirm
/// timeout.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Its queues hold at most the consumer's prefetch.
pub(crate) struct DeadLetterWriter {
    unread: UnboundedSender<(Delivery, String)>,
    written: UnboundedReceiver<u64>,
    _task: AbortOnDropHandle<()>,
}

impl DeadLetterWriter {
    pub(crate) fn start(broker: Broker, status: Arc<Status>) -> Self {
        let (unread, letters) = unbounded_channel();
        let (done, written) = unbounded_channel();
        let writing = Writing {
            broker,
            status,
            open: None,
        };
        let task = AbortOnDropHandle::new(tokio::spawn(writing.run(letters, done)));
        Self {
            unread,
            written,
            _task: task,
        }
    }

    /// Takes a message, and the reason why it cannot be read.
    pub(crate) fn put(&self, delivery: Delivery, reason: String) {
        // The task does not end before this handle does.
        _ = self.unread.send((delivery, reason));
    }

    /// The delivery tag of the next message that has reached the dead-letter queue and can be
    /// acknowledged. Cancel safe.
    pub(crate) async fn written(&mut self) -> Option<u64> {
        self.written.recv().await
    }
}

struct Writing {
    broker: Broker,
    status: Arc<Status>,
    /// Opened for the first dead letter.
    open: Option<(Connection, DeadLetters)>,
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.status.dead_letters_blocked.store(false);
    }
}

impl Writing {
    async fn run(
        mut self,
        mut letters: UnboundedReceiver<(Delivery, String)>,
        done: UnboundedSender<u64>,
    ) {
        while let Some((delivery, reason)) = letters.recv().await {
            self.write(&delivery, &reason).await;
            catalogue::events_consumed("dead_letter").increment(1);
            let message_id = delivery
                .properties
                .message_id()
                .as_ref()
                .map(ShortString::as_str);
            error!(
                message_id,
                reason, "Message cannot be read, it is in the dead-letter queue"
            );
            if done.send(delivery.delivery_tag).is_err() {
                return;
            }
        }
    }

    async fn write(&mut self, delivery: &Delivery, reason: &str) {
        let mut backoff = Backoff::default();
        let mut keep = Keep::Properties;
        while let Err(error) = self.try_to_write(delivery, reason, keep).await {
            // A new channel each time: publishes on the old one may still be rejected after a full
            // queue has room again (seen with RabbitMQ 3.10).
            self.open = None;
            if error.blames_the_message() {
                keep = Keep::BodyAlone;
            }
            let pause = backoff.next_pause();
            let retry_in_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            warn!(
                error = %Chain(&error),
                retry_in_ms,
                "A message that cannot be read waits: the dead-letter queue does not take it"
            );
            sleep(pause).await;
        }
    }

    async fn try_to_write(
        &mut self,
        delivery: &Delivery,
        reason: &str,
        keep: Keep,
    ) -> Result<(), SessionError> {
        if self
            .open
            .as_ref()
            .is_none_or(|(connection, _)| !connection.status().connected())
        {
            let connection = self.broker.connect("dead letters").await?;
            self.broker.declare_topology(&connection).await?;
            let letters = DeadLetters::open(&self.broker, &connection).await?;
            self.open = Some((connection, letters));
        }
        let Some((connection, letters)) = &self.open else {
            return Err(SessionError::Closed);
        };
        let watching = async {
            let mut tick = interval(POLL_INTERVAL);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut waited = Duration::ZERO;
            while waited < CONFIRM_TIMEOUT {
                tick.tick().await;
                let is_blocked = connection.status().blocked();
                self.status.dead_letters_blocked.store(is_blocked);
                if !is_blocked {
                    waited += POLL_INTERVAL;
                }
            }
            Err(SessionError::Timeout("confirm a dead letter"))
        };
        let outcome = tokio::select! {
            outcome = letters.put(delivery, reason, keep) => outcome,
            silent = watching => silent,
        };
        self.status.dead_letters_blocked.store(false);
        outcome
    }
}
