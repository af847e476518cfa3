//! Publishes what the outbox holds, in order, and deletes a row only when the broker has its message. Of all replicas one
//! leads at a time: it holds a session lock in PostgreSQL, on the connection that deletes, so that who has lost the lock
//! cannot delete.

use std::{sync::Arc, time::Duration};

use metrics::counter;
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio::{
    sync::{Mutex, Notify},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    broker::Broker,
    leader::Leader,
    publisher::Publisher,
    supervisor::{SessionError, supervise, within},
    suspects::Suspects,
};
use crate::{
    repository::outbox,
    status::{Link, Status},
};

/// How often a replica that does not lead tries to; jittered by as much again.
const ELECTION_INTERVAL: Duration = Duration::from_millis(400);
/// After this, a wave that the broker does not confirm is given up: its events are published again by the next leader.
const ABANDON: Duration = Duration::from_secs(6);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// For one statement on the outbox: as long as the lease, for a leader that PostgreSQL cannot hear has lost it by then.
pub const STORE_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Relay {
    pub broker: Broker,
    /// Leads straight to PostgreSQL, not through a transaction pooler.
    pub database: PgConnectOptions,
    /// Told when this process has filled the outbox.
    pub outbox_filled: Arc<Notify>,
    pub status: Arc<Status>,
    /// Outlives a session: it is a lost session that makes an event suspect.
    pub suspects: Mutex<Suspects>,
}

impl Relay {
    /// Leads or stands by until `stop`; then drains for up to three seconds.
    pub async fn run(mut self, stop: CancellationToken) {
        let give_up = async {
            stop.cancelled().await;
            sleep(ABANDON).await;
        };
        tokio::select! {
            () = supervise("relay", &stop, &mut self, |relay, stop| Box::pin(relay.session(stop))) => {}
            () = give_up => warn!("Relay gave up waiting for confirms; what was not confirmed stays in the outbox"),
        }
        self.status.set_relay_leads(false);
        self.status.set_publisher(Link::Down);
    }

    async fn session(&self, stop: &CancellationToken) -> Result<(), SessionError> {
        // The broker first: a replica that cannot publish must not lead.
        let Some(mut publisher) = stop.run_until_cancelled(Publisher::open(&self.broker, "relay")).await.transpose()?
        else {
            return Ok(());
        };
        self.status.set_publisher(Link::Up);
        let outcome = self.lead_and_publish(&mut publisher, stop).await;
        self.status.set_relay_leads(false);
        self.status.set_publisher(Link::Down);
        if outcome.is_ok() {
            publisher.close().await;
        }
        outcome
    }

    async fn lead_and_publish(&self, publisher: &mut Publisher, stop: &CancellationToken) -> Result<(), SessionError> {
        let mut store = outbox::connect_relay(&self.database).await?;
        if !within(STORE_TIMEOUT, "look at the settings", outbox::has_its_settings(&mut store)).await? {
            warn!(
                "The relay's session has not the settings that it asked for: a pooler in between? Set DATABASE_DIRECT_URL"
            );
        }
        if self.elected(&mut store, publisher, stop).await? {
            info!("Relay leads");
            counter!("relay_leads_total").increment(1);
            self.status.set_relay_leads(true);
            let mut suspects = self.suspects.lock().await;
            Leader::new(self, publisher, &mut store, &mut suspects, stop).run().await?;
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

    /// An error once the connection is gone.
    pub(super) fn check(&self, publisher: &Publisher) -> Result<(), SessionError> {
        let link = publisher.link();
        self.status.set_publisher(link);
        if link == Link::Down { Err(SessionError::Closed) } else { Ok(()) }
    }
}
