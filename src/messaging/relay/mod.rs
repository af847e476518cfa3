//! Publishes the outbox in order, and deletes a row only when the broker has confirmed its message.
//! One replica leads at a time.
//!
//! ```text
//!                 lock won                    stop                    nothing in flight
//! ┌─────────┐ ──────────────▶ ┌─────────┐ ──────────▶ ┌──────────┐ ──────────────▶ the end
//! │ standby │                 │ leading │             │ draining │
//! └─────────┘ ◀────────────── └─────────┘             └──────────┘
//!    rests for a   an error, or nothing
//!    while first   confirmed for a minute
//! ```
//!
//! An event, in one session:
//!
//! ```text
//!                                    ┌── rejected, no answer, channel closed ──┐
//!                                    ▼                                         │
//! row ──read──▶ in memory ─▶ first of its user ─published──▶ in flight ────────┤
//!  │                ▲                                                          ├── confirmed ──▶ row deleted
//!  └──no room──▶ held                                                          └── closes its channel, alone
//!                                                                                  on it, three times ──▶ quarantine
//! ```
//!
//! Why nothing is lost: a row is deleted only after its own confirm, on the connection that holds
//! the lock. Whatever a session has not deleted, the next one reads again. The [`watermark`] skips
//! no row, in whatever order transactions commit.
//!
//! Why nothing is invented: only committed rows are read.
//!
//! Why nothing is reordered: a user's rows are committed and read in the order of their positions;
//! the [`backlog`] says how held rows keep that order. A user has one event in flight, and the next
//! one goes when it is confirmed or quarantined. So the first publish of an event always follows
//! its user's earlier events. A leader that lost the lock without noticing can only repeat what it
//! has read, and its successor begins no later than there.
//!
//! Why no type blocks another: the [`schedule`] has a lane for each type. The lane's [`breaker`]
//! limits how many events are in flight, and each lane publishes on its own connection ([`lines`]).
//!
//! [`schedule`]: super::schedule
//! [`backlog`]: super::schedule::backlog
//! [`breaker`]: super::schedule::breaker
//! [`watermark`]: super::watermark

mod election;
mod leader;
mod lines;
mod publisher;
mod reads;
mod store;

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::leader::{Leader, State};
use self::lines::Lines;
use self::publisher::Publisher;
use super::broker::Broker;
use super::session::{SessionError, supervise, with_timeout};
use super::watermark::Watermark;
use crate::monitoring::catalogue;
use crate::monitoring::state::{Link, Status};
use crate::repository::outbox;

/// How long a stopping leader waits for confirms. After this, the next leader publishes their
/// events again.
const ABANDON: Duration = Duration::from_secs(6);
/// How long the connection to PostgreSQL may take to close cleanly.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a leader that was stuck leaves the lead to others, which try about twice a second.
/// Doubles each time in a row.
const REST: Duration = Duration::from_secs(1);
/// How often a standby replica checks its connection to the broker.
const POLL_INTERVAL: Duration = Duration::from_millis(400);

pub(crate) struct Relay {
    broker: Broker,
    /// Connects directly to PostgreSQL, not through a transaction pooler.
    database: PgConnectOptions,
    state: State,
}

/// Checks that the outbox's sequence has no cache, because events are read in its order, and lifts
/// it above waiting events.
async fn require_order(connection: &mut PgConnection) -> Result<(), SessionError> {
    let looking = outbox::sequence_cache(connection);
    let cache = with_timeout(store::TIMEOUT, "look at the sequence", looking).await?;
    if cache != 1 {
        return Err(SessionError::Unordered(cache));
    }
    let lifting = outbox::lift_sequence(connection);
    if let Some(to) = with_timeout(store::TIMEOUT, "lift the sequence", lifting).await? {
        warn!(
            to,
            "The outbox's sequence was below events that wait, and was lifted"
        );
    }
    Ok(())
}

impl Relay {
    pub(crate) fn new(
        broker: Broker,
        database: PgConnectOptions,
        outbox_filled: Arc<Notify>,
        status: Arc<Status>,
    ) -> Self {
        Self {
            broker,
            database,
            state: State {
                outbox_filled,
                status,
                watermark: Watermark::default(),
                stuck: 0,
            },
        }
    }

    /// Leads or stands by until `stop`; then drains for up to three seconds.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let give_up = async {
            stop.cancelled().await;
            sleep(ABANDON).await;
        };
        tokio::select! {
            () = supervise("relay", &stop, &mut self, |relay, stop| Box::pin(relay.session(stop))) => {}
            () = give_up => warn!(
                "Relay gave up waiting for confirms; what was not confirmed stays in the outbox"
            ),
        }
        self.state.status.relay_leads.store(false);
        self.state.status.publisher.store(Link::Down);
    }

    async fn session(&mut self, stop: &CancellationToken) -> Result<(), SessionError> {
        // The last session may have panicked.
        self.state.status.relay_leads.store(false);
        // Connect to the broker first: a replica that cannot publish must not lead.
        let opening = Publisher::open(self.broker.clone(), "relay".to_owned());
        let Some(publisher) = stop.run_until_cancelled(opening).await.transpose()? else {
            return Ok(());
        };
        self.state.status.publisher.store(publisher.link());
        let outcome = self.lead_and_publish(publisher, stop).await;
        self.state.status.relay_leads.store(false);
        self.state.status.publisher.store(Link::Down);
        outcome
    }

    async fn lead_and_publish(
        &mut self,
        publisher: Publisher,
        stop: &CancellationToken,
    ) -> Result<(), SessionError> {
        let winning = async {
            if self.state.stuck > 0 {
                sleep(REST * 2_u32.pow(self.state.stuck)).await;
            }
            election::win(&self.database).await
        };
        let elected = tokio::select! {
            won = winning => won?,
            lost = self.broker_lost(&publisher) => return Err(lost),
            () = stop.cancelled() => {
                publisher.close().await;
                return Ok(());
            }
        };
        let mut lines = Lines::new(publisher, &self.broker, Instant::now());
        let connection = self.lead(elected, &mut lines, stop).await?;
        // Closing releases the lock immediately; dropping would too, a little later.
        if !matches!(timeout(CLOSE_TIMEOUT, connection.close()).await, Ok(Ok(()))) {
            warn!("PostgreSQL did not close the relay's connection cleanly");
        }
        lines.close().await;
        Ok(())
    }

    async fn lead(
        &mut self,
        mut connection: PgConnection,
        lines: &mut Lines,
        stop: &CancellationToken,
    ) -> Result<PgConnection, SessionError> {
        self::require_order(&mut connection).await?;
        let started = outbox::server_started(&mut connection);
        self.state
            .watermark
            .begin_on(with_timeout(store::TIMEOUT, "look at the server", started).await?);
        info!("Relay leads");
        catalogue::relay_leads().increment(1);
        self.state.status.relay_leads.store(true);
        Leader::new(&mut self.state, lines, connection, stop)
            .run()
            .await
    }

    /// Returns once the connection to the broker is lost.
    async fn broker_lost(&self, publisher: &Publisher) -> SessionError {
        loop {
            let link = publisher.link();
            self.state.status.publisher.store(link);
            if link == Link::Down {
                return SessionError::Closed;
            }
            sleep(POLL_INTERVAL).await;
        }
    }
}
