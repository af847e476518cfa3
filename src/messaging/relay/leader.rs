//! What the replica does that leads: read the outbox, publish what the schedule says, and delete what the broker has.

use std::{sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, OptionFuture};
use metrics::{counter, histogram};
use sqlx::PgConnection;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    flights::{CONFIRM_TIMEOUT, Flights, Landing},
    horizon::Horizon,
    publisher::Publisher,
    schedule::{Outcome, Schedule},
    store::{self, Done, Read, ReadDone, Rows, Work},
};
use crate::{
    domain::event::OutboxEvent,
    messaging::session::{SessionError, with_timeout},
    monitoring::state::{Link, Status},
    repository::outbox::ReadFrom,
};

/// Rows read at once.
const BATCH: usize = 2_000;
/// How often a leader with nothing to do looks for what other replicas wrote; what this process wrote wakes it at once. A
/// look at an empty outbox costs the database about 50 µs.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// While events are in flight, PostgreSQL is not asked more often: more rows at once cost less.
const PACE: Duration = Duration::from_millis(10);
/// How often the lease is kept when there is nothing to read or delete; a fifth of the lease.
const KEEP_LEASE_INTERVAL: Duration = Duration::from_secs(2);
/// For all that is declared and opened anew after a refusal: meanwhile nothing else is done.
const RENEW_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a stopping leader goes on with what is left; it always waits for what is in flight.
const DRAIN: Duration = Duration::from_secs(3);

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Goes,
    /// The stop has come, and nothing is on its way.
    Done,
}

pub struct Leader<'a> {
    horizon: &'a mut Horizon,
    outbox_filled: &'a Notify,
    status: &'a Status,
    publisher: &'a mut Publisher,
    schedule: Schedule,
    flights: Flights,
    /// The connection that holds the leader's lock: here, or at work.
    store: Option<PgConnection>,
    work: Option<BoxFuture<'static, Done>>,
    work_began: Instant,
    /// The lowest place that the work deletes.
    working_on: Option<i64>,
    /// For the next work.
    published: Vec<i64>,
    quarantined: Vec<(Arc<OutboxEvent>, String)>,
    read_is_due: bool,
    read_began: Instant,
    /// The last read was one of left rows.
    has_read_left: bool,
    blocked_at: Instant,
    /// Channels are to be renewed before the next trial.
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
            read_is_due: true,
            read_began: now,
            has_read_left: false,
            blocked_at: now,
            refused: false,
            stop,
            drain_ends: None,
        }
    }

    /// Publishes what comes until `stop`, then what is left, for up to three seconds. Hands the connection back.
    pub async fn run(mut self) -> Result<PgConnection, SessionError> {
        loop {
            if self.step().await? == Step::Done
                && let Some(store) = self.store.take()
            {
                return Ok(store);
            }
        }
    }

    /// Publishes what may go, and waits for the next thing to happen.
    pub async fn step(&mut self) -> Result<Step, SessionError> {
        let now = Instant::now();
        self.watch(now)?;
        self.publish(now).await?;
        self.begin_work(now);
        if self.is_done() {
            return Ok(Step::Done);
        }
        let next_look = self.next_look(now);
        tokio::select! {
            biased;
            // Flights land without end under load; the others are rare.
            () = self.stop.cancelled(), if self.drain_ends.is_none() => {
                self.drain_ends = Some(Instant::now() + DRAIN);
                self.read_is_due = true;
            }
            Some(done) = OptionFuture::from(self.work.as_mut()) => self.finish_work(done?),
            landed = self.flights.landed(), if !self.flights.is_empty() => self.settle(landed),
            () = self.outbox_filled.notified(), if !self.read_is_due => self.read_is_due = true,
            () = sleep_until(next_look) => {}
        }
        Ok(Step::Goes)
    }

    fn watch(&mut self, now: Instant) -> Result<(), SessionError> {
        let link = self.publisher.link();
        self.status.set_publisher(link);
        if link == Link::Down {
            return Err(SessionError::Closed);
        }
        if link == Link::Blocked {
            self.blocked_at = now;
        }
        // Time in which the broker blocks us does not count.
        let silent_since = self.schedule.silent_since().map(|since| since.max(self.blocked_at));
        if silent_since.is_some_and(|since| now - since > CONFIRM_TIMEOUT) {
            return Err(SessionError::Timeout("confirm events"));
        }
        Ok(())
    }

    async fn publish(&mut self, now: Instant) -> Result<(), SessionError> {
        if self.time_is_up() || self.status.publisher() == Link::Blocked {
            return Ok(());
        }
        if self.refused && self.schedule.next_try().is_none_or(|at| at <= now) {
            with_timeout(RENEW_TIMEOUT, "renew the channels", self.publisher.renew()).await?;
            self.refused = false;
        }
        if self.schedule.set_aside(now) {
            warn!("RabbitMQ neither confirms nor refuses an event; those of other types do not wait for it");
            self.publisher.renew_trial().await?;
        }
        self.publisher.reopen().await?;
        while let Some(flight) = self.schedule.next(now) {
            self.flights.begin(self.publisher, flight);
        }
        Ok(())
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
        let read = self.next_read(now);
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

    /// New rows and left ones in turns.
    fn next_read(&mut self, now: Instant) -> Option<Read> {
        if self.time_is_up() {
            return None;
        }
        let read = if self.has_read_left {
            self.next_new(now).or_else(|| self.next_left())
        } else {
            self.next_left().or_else(|| self.next_new(now))
        };
        self.has_read_left = matches!(&read, Some(Read { rows: Rows::Left(_), .. }));
        read
    }

    fn next_left(&self) -> Option<Read> {
        let (event_type, after, limit) = self.schedule.readable_left()?;
        Some(Read {
            rows: Rows::Left(event_type.to_owned()),
            from: ReadFrom::place(after),
            up_to: self.horizon.frontier(),
            known: self.schedule.known_after(after),
            limit,
            is_patient: false,
        })
    }

    fn next_new(&mut self, now: Instant) -> Option<Read> {
        let limit = self.schedule.room().min(BATCH);
        let is_due = self.read_is_due || now >= self.read_began + POLL_INTERVAL;
        if !is_due || limit == 0 || limit < BATCH / 2 && self.schedule.in_flight() > 0 {
            return None;
        }
        self.read_is_due = false;
        self.read_began = now;
        let is_whole = self.schedule.settled().is_none() && self.horizon.whole_read_is_due(now);
        let is_patient = self.horizon.begin_read();
        let (rows, from, known) = if is_whole {
            if !is_patient {
                // Until it is known better; it may end the session.
                self.horizon.note_whole_read(now, store::TIMEOUT);
            }
            (Rows::Whole, ReadFrom::place(0), Vec::new())
        } else {
            let known = self.schedule.known_after(self.horizon.lowest_start());
            (Rows::New, self.horizon.start(), known)
        };
        Some(Read { rows, from, up_to: i64::MAX, known, limit, is_patient })
    }

    fn finish_work(&mut self, (store, read): (PgConnection, Option<ReadDone>)) {
        (self.store, self.work) = (Some(store), None);
        if let Some(lowest) = self.working_on.take() {
            self.horizon.note_removed(Instant::now(), lowest);
        }
        let Some(ReadDone { read, events, snapshot, took }) = read else { return };
        let is_cut = events.len() == read.limit;
        if let Rows::Left(event_type) = read.rows {
            self.schedule.add_left(&event_type, events, !is_cut);
            return;
        }
        if let Rows::Whole = read.rows {
            self.horizon.note_whole_read(self.read_began, took);
        }
        self.horizon.note_read(&snapshot, events.last().map(|event| event.seq), is_cut);
        self.read_is_due |= is_cut;
        for event in events {
            self.schedule.add(event);
        }
    }

    fn next_look(&self, now: Instant) -> Instant {
        let is_read_due = self.read_is_due || self.schedule.readable_left().is_some();
        let has_work = is_read_due || !self.published.is_empty() || !self.quarantined.is_empty();
        let work = (has_work && self.work.is_none()).then(|| self.work_began + PACE);
        // What is due already waits for something else.
        let due = [work, self.schedule.next_try()].into_iter().flatten().filter(|at| *at > now);
        due.fold(now + POLL_INTERVAL, Instant::min)
    }

    fn time_is_up(&self) -> bool {
        self.drain_ends.is_some_and(|at| at < Instant::now())
    }

    /// After the stop, once nothing is on its way: nothing that waits for a pause is waited for.
    fn is_done(&self) -> bool {
        let is_quiet = self.flights.is_empty() && self.store.is_some() && self.published.is_empty();
        let is_read = !self.read_is_due && self.schedule.readable_left().is_none();
        self.drain_ends.is_some() && is_quiet && self.quarantined.is_empty() && (is_read || self.time_is_up())
    }
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        // What is published and still in the table is read by the next session, and published again.
        let unwritten = self.published.iter().copied().chain(self.quarantined.iter().map(|(event, _)| event.seq));
        let unsettled = unwritten.chain(self.working_on).map(|place| place - 1);
        self.horizon.rewind(unsettled.chain(self.schedule.settled()).min());
    }
}
