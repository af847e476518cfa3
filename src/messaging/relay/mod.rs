//! Publishes the outbox in order, and deletes a row only when the broker has confirmed its message. One replica leads at a time.

mod election;
mod flights;
mod flow;
mod horizon;
mod leader;
mod publisher;
mod reads;
mod schedule;
#[cfg(test)]
mod simulation;
mod store;

use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::horizon::Horizon;
use self::leader::Leader;
use self::publisher::Publisher;
use super::broker::Broker;
use super::session::{SessionError, supervise, with_timeout};
use crate::monitoring::state::{Link, Status};
use crate::repository::outbox;

/// How long a stopping leader waits for confirms. After this, the next leader publishes their events again.
const ABANDON: Duration = Duration::from_secs(6);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a standby replica checks its connection to the broker.
const LOOK_INTERVAL: Duration = Duration::from_millis(400);

pub struct Relay {
    broker: Broker,
    /// Connects directly to PostgreSQL, not through a transaction pooler.
    database: PgConnectOptions,
    /// Notified when this process has written to the outbox.
    outbox_filled: Arc<Notify>,
    status: Arc<Status>,
    /// Outlives a session, because a first read may take long.
    horizon: Horizon,
}

/// Events are read in the order of the outbox's sequence.
async fn require_order(connection: &mut PgConnection) -> Result<(), SessionError> {
    let cache = with_timeout(store::TIMEOUT, "look at the sequence", outbox::sequence_cache(connection)).await?;
    if cache != 1 {
        return Err(SessionError::Unordered(cache));
    }
    let lifting = outbox::lift_sequence(connection);
    if let Some(to) = with_timeout(store::TIMEOUT, "lift the sequence", lifting).await? {
        warn!(to, "The outbox's sequence was below events that wait, and was lifted");
    }
    Ok(())
}

impl Relay {
    pub fn new(broker: Broker, database: PgConnectOptions, outbox_filled: Arc<Notify>, status: Arc<Status>) -> Self {
        Self { broker, database, outbox_filled, status, horizon: Horizon::default() }
    }

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
        self.status.relay_leads.store(false);
        self.status.publisher.store(Link::Down);
    }

    async fn session(&mut self, stop: &CancellationToken) -> Result<(), SessionError> {
        // The last session may have panicked.
        self.status.relay_leads.store(false);
        // Connect to the broker first: a replica that cannot publish must not lead.
        let Some(mut publisher) = stop.run_until_cancelled(Publisher::open(&self.broker, "relay")).await.transpose()?
        else {
            return Ok(());
        };
        self.status.publisher.store(publisher.link());
        let outcome = self.lead_and_publish(&mut publisher, stop).await;
        self.status.relay_leads.store(false);
        self.status.publisher.store(Link::Down);
        if outcome.is_ok() {
            publisher.close().await;
        }
        outcome
    }

    async fn lead_and_publish(
        &mut self,
        publisher: &mut Publisher,
        stop: &CancellationToken,
    ) -> Result<(), SessionError> {
        let elected = tokio::select! {
            won = election::win(&self.database) => won?,
            lost = self.broker_lost(publisher) => return Err(lost),
            () = stop.cancelled() => return Ok(()),
        };
        let connection = self.lead(elected, publisher, stop).await?;
        // Closing releases the lock at once; dropping would too, a little later.
        if !matches!(timeout(CLOSE_TIMEOUT, connection.close()).await, Ok(Ok(()))) {
            warn!("PostgreSQL did not close the relay's connection cleanly");
        }
        Ok(())
    }

    async fn lead(
        &mut self,
        mut connection: PgConnection,
        publisher: &mut Publisher,
        stop: &CancellationToken,
    ) -> Result<PgConnection, SessionError> {
        self::require_order(&mut connection).await?;
        let started = outbox::server_started(&mut connection);
        self.horizon.begin_on(with_timeout(store::TIMEOUT, "look at the server", started).await?);
        info!("Relay leads");
        counter!("relay_leads_total").increment(1);
        self.status.relay_leads.store(true);
        let Self { horizon, outbox_filled, status, .. } = self;
        Leader::new(horizon, outbox_filled, status, publisher, connection, stop).run().await
    }

    /// Ends once the connection to the broker is gone.
    async fn broker_lost(&self, publisher: &Publisher) -> SessionError {
        loop {
            let link = publisher.link();
            self.status.publisher.store(link);
            if link == Link::Down {
                return SessionError::Closed;
            }
            sleep(LOOK_INTERVAL).await;
        }
    }
}
