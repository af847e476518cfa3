//! The leading replica: reads the outbox, publishes what the schedule says, and deletes what the
//! broker has confirmed.

use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, OptionFuture};
use futures_util::stream::{FuturesUnordered, StreamExt};
use sqlx::PgConnection;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::lines::Lines;
use super::publisher::Answer;
use super::reads::{POLL_INTERVAL, Reads};
use super::store::{self, Done, Read, Work};
use crate::messaging::schedule::{Publish, Schedule, Settled};
use crate::messaging::session::SessionError;
use crate::messaging::watermark::Watermark;
use crate::monitoring::catalogue;
use crate::monitoring::state::{Link, Status};
use crate::repository::outbox_event::OutboxEvent;

/// Shortest time from the start of one unit of work to the next while events are in flight: a
/// larger batch costs less per row.
const PACE: Duration = Duration::from_millis(10);
/// After this long without a statement, for instance while memory is full because the broker is
/// slow, one is sent only to renew the lease. A fifth of the lease.
const KEEP_LEASE_INTERVAL: Duration = Duration::from_secs(2);
/// How long a stopping leader goes on publishing. It waits longer for events in flight, until the
/// relay gives them up.
const DRAIN: Duration = Duration::from_secs(3);

/// A leader that has had nothing confirmed for this long, although events wait, gives up the lead:
/// another replica may have a working login or network.
const STUCK_AFTER: Duration = Duration::from_mins(1);
/// How many times in a row this doubles, and the rest that the leader then takes.
const MOST_STUCK: u32 = 4;

/// What outlives a session.
pub(crate) struct State {
    /// Notified when this process has written to the outbox.
    pub outbox_filled: Arc<Notify>,
    pub status: Arc<Status>,
    /// A first read may take long.
    pub watermark: Watermark,
    /// How many times the relay gave up the lead since it last had an event confirmed.
    pub stuck: u32,
}

impl State {
    /// How long a leader may have nothing confirmed.
    fn stuck_after(&self) -> Duration {
        STUCK_AFTER * 2_u32.pow(self.stuck)
    }
}

/// The connection that holds the leader's lock.
enum Store {
    Idle(PgConnection),
    Working {
        work: BoxFuture<'static, Done>,
        /// The lowest position that it removes.
        lowest: Option<i64>,
        quarantined: Vec<Arc<OutboxEvent>>,
    },
}

/// A publish that waits for its answer.
struct InFlight {
    publish: Publish,
    began: Instant,
    answer: BoxFuture<'static, Answer>,
}

impl Future for InFlight {
    type Output = (Publish, Instant, Answer);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.answer
            .as_mut()
            .poll(context)
            .map(|answer| (self.publish.clone(), self.began, answer))
    }
}

pub(crate) struct Leader<'a> {
    state: &'a mut State,
    lines: &'a mut Lines,
    schedule: Schedule,
    in_flight: FuturesUnordered<InFlight>,
    /// `None` once it has been handed back, or is lost.
    store: Option<Store>,
    work_began: Instant,
    /// For the next work.
    published: Vec<(i64, Uuid)>,
    quarantined: Vec<(Arc<OutboxEvent>, String)>,
    reads: Reads,
    /// When the leader was last known not to be stuck: an event was confirmed, a read stopped
    /// before the end of the table, nothing waited, or the broker blocked us.
    progress_at: Instant,
    stop: &'a CancellationToken,
    drain_ends: Option<Instant>,
}

impl<'a> Leader<'a> {
    pub(crate) fn new(
        state: &'a mut State,
        lines: &'a mut Lines,
        store: PgConnection,
        stop: &'a CancellationToken,
    ) -> Self {
        let now = Instant::now();
        Self {
            state,
            lines,
            schedule: Schedule::default(),
            in_flight: FuturesUnordered::new(),
            store: Some(Store::Idle(store)),
            work_began: now,
            published: Vec::new(),
            quarantined: Vec::new(),
            reads: Reads::starting(now),
            progress_at: now,
            stop,
            drain_ends: None,
        }
    }

    /// Publishes until `stop`, then what is left, for up to three seconds. Returns the connection.
    pub(crate) async fn run(mut self) -> Result<PgConnection, SessionError> {
        let outcome = self.publish_until_stopped().await;
        if self.schedule.confirmed() > 0 {
            self.state.stuck = 0;
        }
        if matches!(outcome, Err(SessionError::Stuck)) {
            self.state.stuck = (self.state.stuck + 1).min(MOST_STUCK);
        }
        outcome
    }

    async fn publish_until_stopped(&mut self) -> Result<PgConnection, SessionError> {
        loop {
            self.watch(Instant::now())?;
            let now = Instant::now();
            self.publish(now);
            self.begin_work(now);
            if self.is_done()
                && let Some(Store::Idle(store)) = self.store.take()
            {
                return Ok(store);
            }
            self.wait(now).await?;
        }
    }

    /// Waits for the next thing to happen, and takes note of it.
    async fn wait(&mut self, now: Instant) -> Result<(), SessionError> {
        let next_look = self.next_look(now);
        let work = match &mut self.store {
            Some(Store::Working { work, .. }) => Some(work),
            _ => None,
        };
        tokio::select! {
            biased;
            // Biased, because under load confirms come without a pause, and the branches before
            // them are rarely ready.
            () = self.stop.cancelled(), if self.drain_ends.is_none() => {
                self.drain_ends = Some(Instant::now() + DRAIN);
                self.reads.are_due = true;
            }
            Some(done) = OptionFuture::from(work) => self.finish_work(done)?,
            Some(lane) = self.lines.opened() => self.schedule.channel_is_new(lane?),
            Some(first) = self.in_flight.next() => self.settle(first),
            () = self.state.outbox_filled.notified(), if !self.reads.are_due => self.reads.are_due = true,
            () = sleep_until(next_look) => {}
        }
        Ok(())
    }

    fn watch(&mut self, now: Instant) -> Result<(), SessionError> {
        let link = self.lines.watch(now);
        self.state.status.publisher.store(link);
        let given_up = self.schedule.give_up(now, &self.lines.blocked_at);
        if given_up > 0 {
            warn!(
                events = given_up,
                "RabbitMQ neither confirmed nor rejected events; they will be published again"
            );
            // Their futures keep the old channels open.
            let kept = mem::take(&mut self.in_flight)
                .into_iter()
                .filter(|it| self.schedule.awaits(&it.publish));
            self.in_flight = kept.collect();
        }
        for lane in self.schedule.lanes_without_channel(now) {
            self.lines.renew(lane);
        }
        if link == Link::Blocked || self.schedule.backlog.is_empty() {
            self.progress_at = now;
        } else if now - self.progress_at >= self.state.stuck_after() {
            return Err(SessionError::Stuck);
        }
        Ok(())
    }

    fn publish(&mut self, now: Instant) {
        let usable = self.lines.usable();
        while !self.time_is_up()
            && let Some(publish) = self.schedule.next(now, usable)
            && let Some(publisher) = self.lines.publisher(publish.lane)
        {
            let answer = Box::pin(publisher.publish(publish.event.clone()));
            self.in_flight.push(InFlight {
                publish,
                began: now,
                answer,
            });
        }
    }

    /// Settles all answers that have arrived.
    fn settle(&mut self, (first, began, answer): (Publish, Instant, Answer)) {
        let now = Instant::now();
        catalogue::events_confirm().record(now - began);
        let mut rejected = (0, String::new());
        let mut closed = (0, String::new());
        let mut next = Some((first, began, answer));
        while let Some((publish, _, answer)) = next {
            let settled = self.schedule.settle(&publish, answer.outcome(), now);
            match (settled, answer) {
                (Settled::Done, _) => self.note_published(&publish.event),
                (Settled::Quarantined, answer) => {
                    self.quarantined.push((publish.event, answer.reason()));
                }
                (Settled::Waits, Answer::Confirmed) => {}
                (Settled::Waits, answer @ (Answer::ChannelClosed(..) | Answer::Lost(_))) => {
                    closed = (closed.0 + 1, answer.reason());
                }
                (Settled::Waits, answer) => rejected = (rejected.0 + 1, answer.reason()),
            }
            next = self.in_flight.next().now_or_never().flatten();
        }
        if let (events @ 1.., reason) = rejected {
            warn!(
                events,
                reason, "RabbitMQ refused events, they stay in the outbox"
            );
        }
        if let (events @ 1.., reason) = closed {
            warn!(
                events,
                reason, "RabbitMQ closed a channel, its events go one by one"
            );
        }
    }

    fn note_published(&mut self, event: &OutboxEvent) {
        catalogue::events_published(event.event_type.clone()).increment(1);
        catalogue::events_lag().record(event.occurred_at.age_seconds());
        info!(
            trace_id = event.trace_id,
            event_type = event.event_type,
            user_id = event.user_id,
            event_id = %event.id,
            "Event published"
        );
        self.progress_at = Instant::now();
        self.published.push((event.seq, event.id));
    }

    fn begin_work(&mut self, now: Instant) {
        let is_paced = self.schedule.in_flight() > 0 && now < self.work_began + PACE;
        if is_paced || !matches!(self.store, Some(Store::Idle(_))) {
            return;
        }
        let read = if self.time_is_up() {
            None
        } else {
            self.reads
                .next(&mut self.schedule, &mut self.state.watermark, now)
        };
        let held = self.schedule.backlog.take_to_hold();
        let is_idle = read.is_none()
            && held.is_empty()
            && self.published.is_empty()
            && self.quarantined.is_empty();
        if is_idle && now < self.work_began + KEEP_LEASE_INTERVAL {
            return;
        }
        let oldest = self.schedule.backlog.oldest();
        let oldest = oldest.map(|event| event.occurred_at);
        self.state.status.oldest_event.store(oldest);
        let Some(Store::Idle(connection)) = self.store.take() else {
            return;
        };
        let work = Work {
            published: mem::take(&mut self.published),
            quarantined: mem::take(&mut self.quarantined),
            held,
            read,
        };
        self.work_began = now;
        let lowest = work.lowest_position();
        let quarantined = work
            .quarantined
            .iter()
            .map(|(event, _)| event.clone())
            .collect();
        self.store = Some(Store::Working {
            work: store::begin(connection, work),
            lowest,
            quarantined,
        });
    }

    fn finish_work(&mut self, done: Done) -> Result<(), SessionError> {
        let (connection, read) = done.inspect_err(|error| {
            if error.is_statement_timeout() {
                self.state.watermark.note_slow_read();
            }
        })?;
        if let Some(Store::Working {
            lowest,
            quarantined,
            ..
        }) = self.store.replace(Store::Idle(connection))
        {
            if let Some(lowest) = lowest {
                self.state.watermark.note_removed(Instant::now(), lowest);
            }
            for event in quarantined {
                self.schedule.quarantined(&event);
            }
        }
        if let Some(done) = read {
            if done.is_cut() && matches!(done.read, Read::New { .. }) {
                self.progress_at = Instant::now();
            }
            for event in self
                .reads
                .finish(done, &mut self.schedule, &mut self.state.watermark)
            {
                let reason = event.fault.unwrap_or_default().to_owned();
                self.quarantined.push((Arc::new(event), reason));
            }
        }
        Ok(())
    }

    fn next_look(&self, now: Instant) -> Instant {
        let is_read_due = self.reads.are_due || self.schedule.has_work();
        let has_work = is_read_due || !self.published.is_empty() || !self.quarantined.is_empty();
        let is_idle = matches!(self.store, Some(Store::Idle(_)));
        let work = (has_work && is_idle).then(|| self.work_began + PACE);
        // Work that is already due waits for something else.
        let due = [work, self.schedule.next_try()]
            .into_iter()
            .flatten()
            .filter(|at| *at > now);
        due.fold(now + POLL_INTERVAL, Instant::min)
    }

    fn time_is_up(&self) -> bool {
        self.drain_ends.is_some_and(|at| at < Instant::now())
    }

    /// Whether it has stopped and nothing is in flight. Does not wait for events whose pause has
    /// not ended.
    fn is_done(&self) -> bool {
        let is_idle = matches!(self.store, Some(Store::Idle(_)));
        let is_quiet = self.schedule.in_flight() == 0 && is_idle && self.published.is_empty();
        let is_read = !self.reads.are_due && !self.schedule.has_work();
        let is_over = is_read && !self.lines.is_opening() || self.time_is_up();
        self.drain_ends.is_some() && is_quiet && self.quarantined.is_empty() && is_over
    }
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        self.state.status.oldest_event.store(None);
        // The next session reads events that are published but not deleted, and publishes them
        // again.
        let published = self.published.iter().map(|(position, _)| *position);
        let unwritten = published.chain(self.quarantined.iter().map(|(event, _)| event.seq));
        let working_on = match &self.store {
            Some(Store::Working { lowest, .. }) => *lowest,
            _ => None,
        };
        let unsettled = unwritten.chain(working_on).map(|position| position - 1);
        self.state
            .watermark
            .rewind(unsettled.chain(self.schedule.backlog.settled()).min());
    }
}
