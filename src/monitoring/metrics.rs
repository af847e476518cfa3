//! Renders the metrics: those collected continuously, and those measured at each scrape.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::time::timeout;

use super::catalogue;
use super::health::{DatabaseState, HealthService};
use super::single_flight::SingleFlight;
use super::state::{Link, Status};
use crate::database::Database;
use crate::domain::timestamp::Timestamp;
use crate::password::PasswordHasher;
use crate::repository::outbox::{self, Backlog};

/// Time limit of the scrape's query: a scrape must return even if the database hangs.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub(crate) struct MetricsService {
    pub collected: PrometheusHandle,
    /// The requests' pool.
    pub database: Database,
    /// The connection for the scrape's own query.
    pub scrapes: Database,
    pub hasher: PasswordHasher,
    pub health: HealthService,
    pub status: Arc<Status>,
    pub rendered: Arc<SingleFlight<Bytes>>,
}

impl MetricsService {
    /// Prometheus' text format.
    pub(crate) async fn render(&self) -> Bytes {
        self.rendered
            .run(async { self.measure().await.into() }.boxed())
            .await
    }

    async fn measure(&self) -> String {
        let flag = |set: bool| f64::from(u8::from(set));
        let ((), database) = join(self.measure_outbox(), self.health.database()).await;
        catalogue::database_read_only().set(match database {
            DatabaseState::Down => f64::NAN,
            state => flag(state == DatabaseState::ReadOnly),
        });
        catalogue::relay_leader().set(flag(self.status.relay_leads.load()));
        let publisher = self.status.publisher.load();
        let consumer = self.status.consumer_link();
        catalogue::broker_connected("publisher").set(flag(publisher != Link::Down));
        catalogue::broker_connected("consumer").set(flag(consumer != Link::Down));
        catalogue::broker_blocked().set(flag(publisher == Link::Blocked));
        let (idle, in_use) = self.database.connections();
        catalogue::database_connections("idle").set(idle);
        catalogue::database_connections("in_use").set(in_use);
        let (free, busy) = self.hasher.slots();
        catalogue::password_hash_slots("free").set(free);
        catalogue::password_hash_slots("busy").set(busy);
        metrics_process::Collector::default().collect();
        self.collected.render()
    }

    async fn measure_outbox(&self) {
        let backlog = self
            .scrapes
            .read(|connection| Box::pin(outbox::backlog(connection)));
        // While the database is away, NaN rather than an outdated value.
        let unknown = Backlog {
            pending: f64::NAN,
            oldest_age_seconds: f64::NAN,
            held: f64::NAN,
            quarantined: f64::NAN,
        };
        let backlog = timeout(SCRAPE_TIMEOUT, backlog)
            .await
            .ok()
            .and_then(Result::ok)
            .unwrap_or(unknown);
        catalogue::outbox_pending().set(backlog.pending);
        // The leader knows the age even if an old snapshot makes the query slow.
        let oldest = self.status.oldest_event.load().map(Timestamp::age_seconds);
        catalogue::outbox_oldest_age().set(oldest.unwrap_or(backlog.oldest_age_seconds));
        catalogue::outbox_held().set(backlog.held);
        catalogue::outbox_quarantined().set(backlog.quarantined);
    }
}
