//! When to acknowledge logged messages.

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::Channel;
use lapin::options::BasicAckOptions;
use tokio::time::Instant;

use crate::messaging::broker::ANSWER_TIMEOUT;
use crate::messaging::session::{SessionError, with_timeout};

/// Acknowledge after this many messages, or this much time, whichever comes first.
const ACK_EVERY: usize = 100;
const ACK_WITHIN: Duration = Duration::from_millis(50);

/// Acknowledges several deliveries at once: the last tag covers all before it, unless one of them is held.
pub struct Acks<'a> {
    channel: &'a Channel,
    pub waiting: Vec<u64>,
    /// Tags of messages on their way to the dead-letter queue.
    held: BTreeSet<u64>,
    pub due: Instant,
}

impl<'a> Acks<'a> {
    pub fn new(channel: &'a Channel) -> Self {
        Self { channel, waiting: Vec::new(), held: BTreeSet::new(), due: Instant::now() }
    }

    pub async fn add(&mut self, tag: u64) -> Result<(), SessionError> {
        if self.waiting.is_empty() {
            self.due = Instant::now() + ACK_WITHIN;
        }
        self.waiting.push(tag);
        if self.waiting.len() >= ACK_EVERY { self.flush().await } else { Ok(()) }
    }

    pub fn hold(&mut self, tag: u64) {
        self.held.insert(tag);
    }

    pub fn holds_any(&self) -> bool {
        !self.held.is_empty()
    }

    pub async fn release(&mut self, tag: u64) -> Result<(), SessionError> {
        self.held.remove(&tag);
        self.add(tag).await
    }

    pub async fn flush(&mut self) -> Result<(), SessionError> {
        let first_held = self.held.first().copied().unwrap_or(u64::MAX);
        let (before, after): (Vec<u64>, Vec<u64>) = self.waiting.drain(..).partition(|tag| *tag < first_held);
        if let Some(last) = before.into_iter().max() {
            self.ack(last, true).await?;
        }
        for tag in after {
            self.ack(tag, false).await?;
        }
        Ok(())
    }

    async fn ack(&self, tag: u64, multiple: bool) -> Result<(), SessionError> {
        let acknowledging = self.channel.basic_ack(tag, BasicAckOptions { multiple });
        with_timeout(ANSWER_TIMEOUT, "acknowledge messages", acknowledging).await
    }
}
