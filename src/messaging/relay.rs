//! Publishes what the outbox holds, in order, and deletes a row only when the broker has its message. Of all replicas one
//! leads at a time: it holds a session lock in PostgreSQL, on the connection that deletes, so that who has lost the lock
//! cannot delete.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use metrics::{counter, histogram};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    broker::Broker,
    publisher::{Publisher, Verdict},
    supervisor::{Backoff, SessionError, supervise, within},
};
use crate::{
    domain::event::OutboxEvent,
    repository::outbox,
    status::{Link, Status},
};

/// Events read at once.
const BATCH: i64 = 500;
/// How often an idle leader looks for what other replicas wrote; what this process wrote wakes it at once. A look at an
/// empty outbox costs the database about 50 µs.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How often a replica that does not lead tries to; jittered by as much again.
const ELECTION_INTERVAL: Duration = Duration::from_millis(400);
/// How often the lease is kept while the broker is slow; a fifth of the lease.
const KEEP_LEASE_INTERVAL: Duration = Duration::from_secs(2);
/// Longest wait for a batch's confirms; time in which the broker blocks us does not count.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a stopping leader goes on with what is left; it always finishes the wave it is in.
const DRAIN: Duration = Duration::from_secs(3);
/// After this, a wave that the broker does not confirm is given up: its events are published again by the next leader.
const ABANDON: Duration = Duration::from_secs(6);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// For one statement on the outbox: as long as the lease, for a leader that PostgreSQL cannot hear has lost it by then.
const STORE_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Relay {
    pub broker: Broker,
    /// Leads straight to PostgreSQL, not through a transaction pooler.
    pub database: PgConnectOptions,
    /// Told when this process has filled the outbox.
    pub outbox_filled: Arc<Notify>,
    pub status: Arc<Status>,
}

impl Relay {
    /// Leads or stands by until `stop`; then drains for up to three seconds.
    pub async fn run(self, stop: CancellationToken) {
        let give_up = async {
            stop.cancelled().await;
            sleep(ABANDON).await;
        };
        tokio::select! {
            () = supervise("relay", &stop, || self.session(&stop)) => {}
            () = give_up => warn!("Relay gave up waiting for confirms; what was not confirmed stays in the outbox"),
        }
        self.status.set_relay_leads(false);
        self.status.set_publisher(Link::Down);
    }

    async fn session(&self, stop: &CancellationToken) -> Result<(), SessionError> {
        // The broker first: a replica that cannot publish must not lead.
        let Some(publisher) = stop.run_until_cancelled(Publisher::open(&self.broker, "relay")).await.transpose()?
        else {
            return Ok(());
        };
        self.status.set_publisher(Link::Up);
        let outcome = self.lead_and_publish(&publisher, stop).await;
        self.status.set_relay_leads(false);
        self.status.set_publisher(Link::Down);
        if outcome.is_ok() {
            publisher.close().await;
        }
        outcome
    }

    async fn lead_and_publish(&self, publisher: &Publisher, stop: &CancellationToken) -> Result<(), SessionError> {
        let mut store = outbox::connect_relay(&self.database).await?;
        if self.elected(&mut store, publisher, stop).await? {
            info!("Relay leads");
            self.status.set_relay_leads(true);
            self.drain_until(&mut store, publisher, stop).await?;
        }
        // Closing gives the lock back at once; dropping it would too, a little later.
        if !matches!(timeout(CLOSE_TIMEOUT, store.close()).await, Ok(Ok(()))) {
            warn!("PostgreSQL did not close the relay's connection in good order");
        }
        Ok(())
    }

    /// Waits for the lock; `false` when `stop` came first.
    async fn elected(
        &self,
        store: &mut PgConnection,
        publisher: &Publisher,
        stop: &CancellationToken,
    ) -> Result<bool, SessionError> {
        while !within(STORE_TIMEOUT, "try to lead", outbox::try_lead(store)).await? {
            tokio::select! {
                () = sleep(ELECTION_INTERVAL.mul_f64(0.5 + fastrand::f64())) => self.check(publisher)?,
                () = stop.cancelled() => return Ok(false),
            }
        }
        Ok(true)
    }

    async fn drain_until(
        &self,
        store: &mut PgConnection,
        publisher: &Publisher,
        stop: &CancellationToken,
    ) -> Result<(), SessionError> {
        let mut refusals = Backoff::default();
        let mut drain_ends = None;
        loop {
            if stop.is_cancelled() && Instant::now() > *drain_ends.get_or_insert_with(|| Instant::now() + DRAIN) {
                return Ok(());
            }
            match self.step(store, publisher).await? {
                Step::Published => refusals = Backoff::default(),
                Step::Refused => sleep(refusals.next_pause()).await,
                Step::Empty if stop.is_cancelled() => return Ok(()),
                Step::Empty => {
                    self.check(publisher)?;
                    tokio::select! {
                        () = self.outbox_filled.notified() => {}
                        () = sleep(POLL_INTERVAL) => {}
                        () = stop.cancelled() => {}
                    }
                }
            }
        }
    }

    /// One batch.
    async fn step(&self, store: &mut PgConnection, publisher: &Publisher) -> Result<Step, SessionError> {
        let events = within(STORE_TIMEOUT, "read the outbox", outbox::oldest(store, BATCH)).await?;
        if events.is_empty() {
            return Ok(Step::Empty);
        }
        let mut on_hold = HashSet::new();
        for mut wave in waves(&events) {
            // What follows a refused event of the same user waits with it, else the user's order would turn round.
            wave.retain(|event| !on_hold.contains(&event.user_id));
            let verdict = self.publish(store, publisher, &wave).await?;
            let (refused, confirmed): (Vec<_>, Vec<_>) =
                wave.into_iter().partition(|event| verdict.refused.contains(&event.id));
            for event in &confirmed {
                note(event);
            }
            if !confirmed.is_empty() {
                let seqs: Vec<i64> = confirmed.iter().map(|event| event.seq).collect();
                within(STORE_TIMEOUT, "delete from the outbox", outbox::delete(store, &seqs)).await?;
            }
            on_hold.extend(refused.iter().map(|event| event.user_id));
            if !refused.is_empty() {
                warn!(
                    events = refused.len(),
                    reason = verdict.reason,
                    "RabbitMQ refused events, they stay in the outbox"
                );
            }
        }
        if on_hold.is_empty() {
            return Ok(Step::Published);
        }
        // Whoever deleted a queue or an exchange gets it back.
        publisher.declare_topology(&self.broker).await?;
        Ok(Step::Refused)
    }

    /// Publishes a wave and waits for its confirms, keeping the lease meanwhile.
    async fn publish(
        &self,
        store: &mut PgConnection,
        publisher: &Publisher,
        wave: &[&OutboxEvent],
    ) -> Result<Verdict, SessionError> {
        let mut publishing = Box::pin(publisher.publish(wave));
        let mut tick = interval(KEEP_LEASE_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.reset();
        let (started, mut waited) = (Instant::now(), Duration::ZERO);
        loop {
            tokio::select! {
                verdict = &mut publishing => {
                    self.status.set_publisher(publisher.link());
                    histogram!("events_confirm_seconds").record(started.elapsed());
                    return verdict;
                }
                _ = tick.tick() => {
                    within(STORE_TIMEOUT, "keep the lease", outbox::keep_lease(store)).await?;
                    let link = publisher.link();
                    self.status.set_publisher(link);
                    if link != Link::Blocked {
                        waited += KEEP_LEASE_INTERVAL;
                    }
                    if waited >= CONFIRM_TIMEOUT {
                        return Err(SessionError::Timeout("confirm events"));
                    }
                }
            }
        }
    }

    fn check(&self, publisher: &Publisher) -> Result<(), SessionError> {
        let link = publisher.link();
        self.status.set_publisher(link);
        if link == Link::Down { Err(SessionError::Closed) } else { Ok(()) }
    }
}

enum Step {
    Empty,
    Published,
    Refused,
}

fn note(event: &OutboxEvent) {
    counter!("events_published_total", "type" => event.event_type.clone()).increment(1);
    info!(
        trace_id = event.trace_id,
        event_type = event.event_type,
        user_id = event.user_id,
        event_id = %event.id,
        "Event published"
    );
}

/// Splits a batch so that a wave holds at most one event of a user: with one unconfirmed event a user, no refusal and no
/// reset can turn one user's events round. Wave n holds each user's n-th event.
fn waves(events: &[OutboxEvent]) -> Vec<Vec<&OutboxEvent>> {
    let mut waves: Vec<Vec<&OutboxEvent>> = Vec::new();
    let mut seen: HashMap<i64, usize> = HashMap::new();
    for event in events {
        let nth = seen.entry(event.user_id).or_default();
        if *nth == waves.len() {
            waves.push(Vec::new());
        }
        waves[*nth].push(event);
        *nth += 1;
    }
    waves
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;
    use uuid::Uuid;

    use super::waves;
    use crate::domain::{event::OutboxEvent, timestamp::Timestamp};

    fn batch(users: &[i64]) -> Vec<OutboxEvent> {
        let event = |(seq, user_id)| OutboxEvent {
            seq,
            id: Uuid::now_v7(),
            event_type: "user.updated".to_owned(),
            user_id,
            version: 1,
            trace_id: "t".to_owned(),
            occurred_at: Timestamp::now(),
            data: RawValue::NULL.to_owned(),
        };
        (1..).zip(users.iter().copied()).map(event).collect()
    }

    #[test]
    fn a_wave_holds_one_event_of_a_user_and_waves_keep_each_users_order() {
        let events = batch(&[7, 7, 8, 7, 9, 8]);
        let places: Vec<Vec<i64>> =
            waves(&events).iter().map(|wave| wave.iter().map(|event| event.seq).collect()).collect();
        assert_eq!(places, [vec![1, 3, 5], vec![2, 6], vec![4]]);
    }

    #[test]
    fn nothing_makes_no_wave() {
        assert!(waves(&[]).is_empty());
    }
}
