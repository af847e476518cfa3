//! What the replica does that leads: read the outbox in order, publish, and delete what the broker has confirmed.

use std::{collections::HashSet, time::Duration};

use metrics::{counter, histogram};
use sqlx::PgConnection;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    publisher::{Publisher, Verdict},
    relay::{Relay, STORE_TIMEOUT},
    supervisor::{Backoff, SessionError, within},
    suspects::Suspects,
    watermark::Watermark,
    waves::{Wave, waves},
};
use crate::{
    domain::event::OutboxEvent,
    repository::{outbox, outbox_dead},
    status::Link,
};

/// Events read at once. A batch takes as many waves as its busiest user has events in it: the larger it is, the fuller they
/// are. The largest event has about 3 kB.
const BATCH: u16 = 2_000;
/// How often a leader with nothing to do looks for what other replicas wrote; what this process wrote wakes it at once. A
/// look at an empty outbox costs the database about 50 µs.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How often the lease is kept while the broker is slow; a fifth of the lease.
const KEEP_LEASE_INTERVAL: Duration = Duration::from_secs(2);
/// Longest wait for a wave's confirms; time in which the broker blocks us does not count.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a stopping leader goes on with what is left; it always finishes the wave it is in.
const DRAIN: Duration = Duration::from_secs(3);

pub struct Leader<'a> {
    relay: &'a Relay,
    publisher: &'a mut Publisher,
    /// Holds the leader's lock.
    store: &'a mut PgConnection,
    suspects: &'a mut Suspects,
    watermark: Watermark,
    /// Places of events that the broker has and whose rows are still there.
    confirmed: Vec<i64>,
    stop: &'a CancellationToken,
    drain_ends: Option<Instant>,
}

enum Step {
    /// Nothing was there.
    Empty,
    /// As many events as a batch holds: more may wait.
    PublishedBatch,
    /// Fewer: what came meanwhile will tell.
    PublishedAll,
    Refused,
}

impl<'a> Leader<'a> {
    pub fn new(
        relay: &'a Relay,
        publisher: &'a mut Publisher,
        store: &'a mut PgConnection,
        suspects: &'a mut Suspects,
        stop: &'a CancellationToken,
    ) -> Self {
        let (watermark, confirmed) = (Watermark::default(), Vec::new());
        Self { relay, publisher, store, suspects, watermark, confirmed, stop, drain_ends: None }
    }

    /// Publishes what comes until `stop`, then what is left, for up to three seconds.
    pub async fn run(&mut self) -> Result<(), SessionError> {
        let mut refusals = Backoff::default();
        while !self.time_is_up() {
            match self.step().await? {
                Step::PublishedBatch => refusals = Backoff::default(),
                Step::PublishedAll => {
                    refusals = Backoff::default();
                    self.wait_for_events().await?;
                }
                Step::Refused => {
                    // A stop ends the pause, and with it the work: what is refused now is so in a moment too.
                    if self.stop.run_until_cancelled(sleep(refusals.next_pause())).await.is_none() {
                        break;
                    }
                }
                Step::Empty if self.stop.is_cancelled() => break,
                Step::Empty => self.wait_for_events().await?,
            }
        }
        Ok(())
    }

    /// Not at all when stopping.
    async fn wait_for_events(&self) -> Result<(), SessionError> {
        self.relay.check(self.publisher)?;
        tokio::select! {
            () = self.relay.outbox_filled.notified() => {}
            () = sleep(POLL_INTERVAL) => {}
            () = self.stop.cancelled() => {}
        }
        Ok(())
    }

    fn time_is_up(&mut self) -> bool {
        self.stop.is_cancelled() && Instant::now() > *self.drain_ends.get_or_insert_with(|| Instant::now() + DRAIN)
    }

    /// One batch.
    async fn step(&mut self) -> Result<Step, SessionError> {
        let events = self.read().await?;
        let Some(last) = events.last() else {
            // Another leader may have dealt with them.
            *self.suspects = Suspects::default();
            return Ok(Step::Empty);
        };
        let mut on_hold = HashSet::new();
        for mut wave in self.suspects.arrange(waves(&events)) {
            // A busy user's batch may have as many waves as events.
            if self.time_is_up() {
                delete(self.store, &mut self.confirmed).await?;
                return Ok(Step::PublishedBatch);
            }
            // What follows a refused event of the same user waits with it, else the user's order would turn round.
            wave.retain(|event| !on_hold.contains(&event.user_id));
            if wave.is_empty() {
                continue;
            }
            let verdict = match self.publish(&wave).await {
                Err(error) if error.is_closed_channel() => return Err(self.suspect(&wave, error).await?),
                verdict => verdict?,
            };
            let (refused, confirmed): (Wave<'_>, Wave<'_>) =
                wave.into_iter().partition(|event| verdict.refused.contains(&event.id));
            self.note_confirmed(&confirmed);
            on_hold.extend(refused.iter().map(|event| event.user_id));
            if !refused.is_empty() {
                let (events, reason) = (refused.len(), verdict.reason);
                warn!(events, reason, "RabbitMQ refused events, they stay in the outbox");
                // Nothing passes: to go on would only repeat events in the queues that do take them.
                if confirmed.is_empty() {
                    break;
                }
            }
        }
        delete(self.store, &mut self.confirmed).await?;
        if on_hold.is_empty() {
            self.watermark.note_deleted(last.seq, std::time::Instant::now());
            return Ok(if events.len() < BATCH.into() { Step::PublishedAll } else { Step::PublishedBatch });
        }
        self.publisher.renew(&self.relay.broker).await?;
        Ok(Step::Refused)
    }

    async fn read(&mut self) -> Result<Vec<OutboxEvent>, SessionError> {
        let began = std::time::Instant::now();
        let start = self.watermark.start(began);
        let events = within(STORE_TIMEOUT, "read the outbox", outbox::oldest(self.store, start, BATCH.into())).await?;
        let took = began.elapsed();
        histogram!("outbox_read_seconds").record(took);
        self.watermark.note_read(start, began, took);
        Ok(events)
    }

    /// The broker has these; their rows are deleted while the next wave is on its way, or at the end of the batch.
    fn note_confirmed(&mut self, confirmed: &Wave<'_>) {
        let lag = histogram!("events_lag_seconds");
        for event in confirmed {
            counter!("events_published_total", "type" => event.event_type.clone()).increment(1);
            lag.record(event.occurred_at.age_seconds());
            info!(
                trace_id = event.trace_id,
                event_type = event.event_type,
                user_id = event.user_id,
                event_id = %event.id,
                "Event published"
            );
        }
        self.suspects.passed(confirmed);
        self.confirmed.extend(confirmed.iter().map(|event| event.seq));
    }

    /// Takes the event that closed the channel out of the way, if it is known. Hands back why the session ends.
    async fn suspect(&mut self, wave: &Wave<'_>, closed: SessionError) -> Result<SessionError, SessionError> {
        delete(self.store, &mut self.confirmed).await?;
        if let Some(event) = self.suspects.channel_closed(wave) {
            let reason = closed.to_string();
            within(STORE_TIMEOUT, "give an event up", outbox_dead::bury(self.store, event.seq, &reason)).await?;
            self.suspects.forget(event);
            counter!("events_dead_total").increment(1);
            let (trace_id, event_id) = (&event.trace_id, &event.id);
            error!(trace_id, %event_id, reason, "Event given up, it is in outbox_dead: see `outbox dead list`");
        }
        Ok(closed)
    }

    /// Publishes a wave and waits for its confirms; meanwhile deletes what was confirmed before, and keeps the lease.
    async fn publish(&mut self, wave: &Wave<'_>) -> Result<Verdict, SessionError> {
        let Self { relay, publisher, store, confirmed, .. } = self;
        let answered = CancellationToken::new();
        let publishing = async {
            let began = Instant::now();
            let verdict = publisher.publish(wave).await?;
            histogram!("events_confirm_seconds").record(began.elapsed());
            answered.cancel();
            Ok(verdict)
        };
        let keeping = async {
            delete(store, confirmed).await?;
            keep_lease(store, publisher, relay, &answered).await
        };
        let (verdict, ()) = tokio::try_join!(publishing, keeping)?;
        relay.status.set_publisher(publisher.link());
        Ok(verdict)
    }
}

async fn delete(store: &mut PgConnection, confirmed: &mut Vec<i64>) -> Result<(), SessionError> {
    if !confirmed.is_empty() {
        within(STORE_TIMEOUT, "delete from the outbox", outbox::delete(store, confirmed)).await?;
        confirmed.clear();
    }
    Ok(())
}

/// Until the broker has answered.
async fn keep_lease(
    store: &mut PgConnection,
    publisher: &Publisher,
    relay: &Relay,
    answered: &CancellationToken,
) -> Result<(), SessionError> {
    let mut tick = interval(KEEP_LEASE_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.reset();
    let mut waited = Duration::ZERO;
    while answered.run_until_cancelled(tick.tick()).await.is_some() {
        within(STORE_TIMEOUT, "keep the lease", outbox::keep_lease(store)).await?;
        let link = publisher.link();
        relay.status.set_publisher(link);
        if link != Link::Blocked {
            waited += KEEP_LEASE_INTERVAL;
        }
        if waited >= CONFIRM_TIMEOUT {
            return Err(SessionError::Timeout("confirm events"));
        }
    }
    Ok(())
}
