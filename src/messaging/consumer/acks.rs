//! When to acknowledge logged messages.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use lapin::Channel;
use lapin::options::BasicAckOptions;
use logline::LogWriter;
use tokio::time::{Instant, sleep};

use crate::messaging::broker::ANSWER_TIMEOUT;
use crate::messaging::session::{SessionError, with_timeout};

/// Acknowledge once this many messages are waiting.
const ACK_EVERY: usize = 100;
/// Acknowledge after this long, however few messages are waiting.
const ACK_WITHIN: Duration = Duration::from_millis(50);
/// How soon to check again for lines that are not written yet.
const RETRY_AFTER: Duration = Duration::from_millis(2);

/// Acknowledges several deliveries with one `basic.ack`: the last tag covers all earlier ones,
/// unless one of them is held or its line is not written. A message is acknowledged only after its
/// line has left the process, so a crash loses no line.
pub(crate) struct Acks<'a> {
    channel: &'a Channel,
    log: &'a LogWriter,
    /// Tags, and where each one's line ends in the log.
    waiting: VecDeque<(u64, u64)>,
    /// Tags of messages on their way to the dead-letter queue.
    held: BTreeSet<u64>,
    due: Instant,
}

impl<'a> Acks<'a> {
    pub(crate) fn new(channel: &'a Channel, log: &'a LogWriter) -> Self {
        Self {
            channel,
            log,
            waiting: VecDeque::new(),
            held: BTreeSet::new(),
            due: Instant::now(),
        }
    }

    /// Adds the tag of a message whose line is logged, but perhaps not written yet.
    pub(crate) fn add(&mut self, tag: u64) {
        let now = Instant::now();
        if self.waiting.is_empty() {
            self.due = now + ACK_WITHIN;
        }
        self.waiting.push_back((tag, self.log.end()));
        if self.waiting.len() == ACK_EVERY {
            self.due = now;
        }
    }

    pub(crate) fn hold(&mut self, tag: u64) {
        self.held.insert(tag);
    }

    pub(crate) fn holds_any(&self) -> bool {
        !self.held.is_empty()
    }

    pub(crate) fn release(&mut self, tag: u64) {
        self.held.remove(&tag);
        self.add(tag);
    }

    /// When to flush; `None` if nothing waits.
    pub(crate) fn due(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.due)
    }

    /// Acknowledges what is written.
    pub(crate) async fn flush(&mut self) -> Result<(), SessionError> {
        let written = self.log.written();
        let written = self.waiting.partition_point(|(_, end)| *end <= written);
        // A message that was held has a lower tag than others, but a later line.
        let unwritten = self.waiting.iter().skip(written).map(|(tag, _)| *tag);
        let first_open = self
            .held
            .first()
            .copied()
            .into_iter()
            .chain(unwritten)
            .min()
            .unwrap_or(u64::MAX);
        let tags = self.waiting.drain(..written).map(|(tag, _)| tag);
        let (before, after): (Vec<u64>, Vec<u64>) = tags.partition(|tag| *tag < first_open);
        self.due = Instant::now() + RETRY_AFTER;
        if let Some(last) = before.into_iter().max() {
            self.ack(last, true).await?;
        }
        for tag in after {
            self.ack(tag, false).await?;
        }
        Ok(())
    }

    /// Acknowledges all messages, or those whose lines are written by `end`.
    pub(crate) async fn finish(&mut self, end: Instant) -> Result<(), SessionError> {
        loop {
            self.flush().await?;
            if self.waiting.is_empty() || Instant::now() >= end {
                return Ok(());
            }
            sleep(RETRY_AFTER).await;
        }
    }

    async fn ack(&self, tag: u64, multiple: bool) -> Result<(), SessionError> {
        let acknowledging = self.channel.basic_ack(tag, BasicAckOptions { multiple });
        with_timeout(ANSWER_TIMEOUT, "acknowledge messages", acknowledging).await
    }
}
