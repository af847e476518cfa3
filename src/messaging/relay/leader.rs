//! The leading replica: reads the outbox, publishes what the schedule says, and deletes what the broker has confirmed.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, OptionFuture};
use metrics::{counter, histogram};
use sqlx::PgConnection;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::flights::{Flights, Landing};
use super::horizon::Horizon;
use super::publisher::Publisher;
use super::reads::{POLL_INTERVAL, Reads};
use super::schedule::{Outcome, Schedule};
use super::store::{self, Done, Work};
use crate::domain::event::OutboxEvent;
use crate::messaging::session::{SessionError, with_timeout};
use crate::monitoring::state::{Link, Status};

/// Shortest time from the start of one work to the next while events are in flight: more rows at once cost less.
const PACE: Duration = Duration::from_millis(10);
/// The lease is renewed by a statement of its own after this long without another, for instance when memory is full because the
/// broker is slow; a fifth of the lease.
const KEEP_LEASE_INTERVAL: Duration = Duration::from_secs(2);
/// If a type has events in flight on the main channel and none of them ends, in whatever way, for this long, the session ends.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);
/// For declaring and reopening. Nothing else is done meanwhile, and the lease is not renewed.
const RENEW_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a stopping leader goes on publishing. It waits longer for events in flight, until the relay gives them up.
const DRAIN: Duration = Duration::from_secs(3);

/// Result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Goes,
    /// Stopped, and nothing is in flight.
    Done,
}

pub struct Leader<'a> {
    horizon: &'a mut Horizon,
    outbox_filled: &'a Notify,
    status: &'a Status,
    publisher: &'a mut Publisher,
    schedule: Schedule,
    flights: Flights,
    /// The connection that holds the leader's lock; `None` while `work` has it.
    store: Option<PgConnection>,
    work: Option<BoxFuture<'static, Done>>,
    work_began: Instant,
    /// The lowest place that the current work deletes.
    working_on: Option<i64>,
    /// For the next work.
    published: Vec<i64>,
    quarantined: Vec<(Arc<OutboxEvent>, String)>,
    reads: Reads,
    blocked_at: Instant,
    /// Channels must be renewed before the next trial.
    refused: bool,
    stop: &'a CancellationToken,
    drain_ends: Option<Instant>,
}

impl<'a> Leader<'a> {
    pub fn new(
        horizon: &'a mut Horizon,
        outbox_filled: &'a Notify,
        status: &'a Status,
        publisher: &'a mut Publisher,
        store: PgConnection,
        stop: &'a CancellationToken,
    ) -> Self {
        let now = Instant::now();
        Self {
            horizon,
            outbox_filled,
            status,
            publisher,
            schedule: Schedule::default(),
            flights: Flights::default(),
            store: Some(store),
            work: None,
            work_began: now,
            working_on: None,
            published: Vec::new(),
            quarantined: Vec::new(),
            reads: Reads::starting(now),
            blocked_at: now,
            refused: false,
            stop,
            drain_ends: None,
        }
    }

    /// Publishes until `stop`, then what is left, for up to three seconds. Returns the connection.
    pub async fn run(mut self) -> Result<PgConnection, SessionError> {
        loop {
            if self.step().await? == Step::Done
                && let Some(store) = self.store.take()
            {
                return Ok(store);
            }
        }
    }

    /// Publishes what may go now, then waits for the next thing to happen.
    pub async fn step(&mut self) -> Result<Step, SessionError> {
        // Confirms that came while channels were opened count as signs of life.
        if !self.flights.is_empty()
            && let Some(landed) = self.flights.landed().now_or_never()
        {
            self.settle(landed);
        }
        self.watch(Instant::now())?;
        if self.may_publish() {
            with_timeout(RENEW_TIMEOUT, "open channels", self.open_channels()).await?;
        }
        let now = Instant::now();
        self.publish(now);
        self.begin_work(now);
        if self.is_done() {
            return Ok(Step::Done);
        }
        let next_look = self.next_look(now);
        tokio::select! {
            biased;
            // Under load, confirms come without a pause; the others are rare.
            () = self.stop.cancelled(), if self.drain_ends.is_none() => {
                self.drain_ends = Some(Instant::now() + DRAIN);
                self.reads.are_due = true;
            }
            Some(done) = OptionFuture::from(self.work.as_mut()) => self.finish_work(done)?,
            landed = self.flights.landed(), if !self.flights.is_empty() => self.settle(landed),
            () = self.outbox_filled.notified(), if !self.reads.are_due => self.reads.are_due = true,
            () = sleep_until(next_look) => {}
        }
        Ok(Step::Goes)
    }

    fn watch(&mut self, now: Instant) -> Result<(), SessionError> {
        let link = self.publisher.link();
        self.status.publisher.store(link);
        if link == Link::Down {
            return Err(SessionError::Closed);
        }
        if link == Link::Blocked {
            self.blocked_at = now;
        }
        // Blocked time does not count.
        let silent_since = self.schedule.silent_since().map(|since| since.max(self.blocked_at));
        if silent_since.is_some_and(|since| now - since > CONFIRM_TIMEOUT) {
            return Err(SessionError::Timeout("confirm events"));
        }
        Ok(())
    }

    fn may_publish(&self) -> bool {
        !self.time_is_up() && self.status.publisher.load() != Link::Blocked
    }

    async fn open_channels(&mut self) -> Result<(), SessionError> {
        let now = Instant::now();
        if self.refused && self.schedule.next_try().is_none_or(|at| at <= now) {
            self.publisher.renew().await?;
            self.refused = false;
        }
        if self.schedule.set_aside(now, self.blocked_at) {
            warn!("RabbitMQ neither confirms nor refuses an event; those of other types do not wait for it");
            self.publisher.renew_trial().await?;
        }
        self.publisher.reopen().await
    }

    fn publish(&mut self, now: Instant) {
        while self.may_publish()
            && let Some(flight) = self.schedule.next(now)
        {
            self.flights.begin(self.publisher, flight);
        }
    }

    fn settle(&mut self, landings: Vec<Landing>) {
        let now = Instant::now();
        let (mut refused, mut closed) = ((0, String::new()), (0, String::new()));
        for Landing { flight, outcome, reason } in landings {
            let is_culprit = self.schedule.settle(&flight, outcome, now);
            match outcome {
                Outcome::Confirmed => self.note_published(&flight.event),
                Outcome::Refused => refused = (refused.0 + 1, reason),
                Outcome::ChannelClosed(_) if is_culprit => self.quarantined.push((flight.event, reason)),
                Outcome::ChannelClosed(_) => closed = (closed.0 + 1, reason),
            }
        }
        if let (events @ 1.., reason) = refused {
            self.refused = true;
            warn!(events, reason, "RabbitMQ refused events, they stay in the outbox");
        }
        if let (events @ 1.., reason) = closed
            && self.publisher.link() != Link::Down
        {
            warn!(events, reason, "RabbitMQ closed a channel, its events go one by one");
        }
    }

    fn note_published(&mut self, event: &OutboxEvent) {
        counter!("events_published_total", "type" => event.event_type.clone()).increment(1);
        histogram!("events_lag_seconds").record(event.occurred_at.age_seconds());
        info!(
            trace_id = event.trace_id,
            event_type = event.event_type,
            user_id = event.user_id,
            event_id = %event.id,
            "Event published"
        );
        self.published.push(event.seq);
    }

    fn begin_work(&mut self, now: Instant) {
        let is_paced = self.schedule.in_flight() > 0 && now < self.work_began + PACE;
        if is_paced || self.work.is_some() {
            return;
        }
        let read = if self.time_is_up() { None } else { self.reads.next(&self.schedule, self.horizon, now) };
        let is_idle = read.is_none() && self.published.is_empty() && self.quarantined.is_empty();
        if is_idle && now < self.work_began + KEEP_LEASE_INTERVAL {
            return;
        }
        let Some(store) = self.store.take() else { return };
        let work = Work {
            published: std::mem::take(&mut self.published),
            quarantined: std::mem::take(&mut self.quarantined),
            read,
        };
        self.work_began = now;
        self.working_on = work.lowest_place();
        self.work = Some(store::begin(store, work));
    }

    fn finish_work(&mut self, done: Done) -> Result<(), SessionError> {
        let (store, read) = done.inspect_err(|error| {
            if error.is_statement_timeout() {
                self.horizon.note_slow_read();
            }
        })?;
        (self.store, self.work) = (Some(store), None);
        if let Some(lowest) = self.working_on.take() {
            self.horizon.note_removed(Instant::now(), lowest);
        }
        if let Some(done) = read {
            for event in self.reads.finish(done, &mut self.schedule, self.horizon) {
                let reason = event.fault.unwrap_or_default().to_owned();
                self.quarantined.push((Arc::new(event), reason));
            }
        }
        Ok(())
    }

    fn next_look(&self, now: Instant) -> Instant {
        let is_read_due = self.reads.are_due || self.schedule.readable_left().is_some();
        let has_work = is_read_due || !self.published.is_empty() || !self.quarantined.is_empty();
        let work = (has_work && self.work.is_none()).then(|| self.work_began + PACE);
        // Work that is already due waits for something else.
        let due = [work, self.schedule.next_try()].into_iter().flatten().filter(|at| *at > now);
        due.fold(now + POLL_INTERVAL, Instant::min)
    }

    fn time_is_up(&self) -> bool {
        self.drain_ends.is_some_and(|at| at < Instant::now())
    }

    /// Stopped, and nothing is in flight. Does not wait for events that wait for a pause.
    fn is_done(&self) -> bool {
        let is_quiet = self.flights.is_empty() && self.store.is_some() && self.published.is_empty();
        let is_read = !self.reads.are_due && self.schedule.readable_left().is_none();
        self.drain_ends.is_some() && is_quiet && self.quarantined.is_empty() && (is_read || self.time_is_up())
    }
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        // The next session reads events that are published but not deleted, and publishes them again.
        let unwritten = self.published.iter().copied().chain(self.quarantined.iter().map(|(event, _)| event.seq));
        let unsettled = unwritten.chain(self.working_on).map(|place| place - 1);
        self.horizon.rewind(unsettled.chain(self.schedule.settled()).min());
    }
}
