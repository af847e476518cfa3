//! The composition root: builds all parts from the configuration.

mod error;
mod lifecycle;
mod memory;
mod startup;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use listener::Limits;
use logline::LogWriter;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

pub(crate) use self::error::AppError;
use self::lifecycle::Parts;
use crate::access::Access;
use crate::access::key_ring::KeyRing;
use crate::batching::user_reads::UserReads;
use crate::batching::user_writes::UserWrites;
use crate::config::{Config, DatabaseConfig};
use crate::database::{Database, TimeLimits};
use crate::http::{self, Dependencies};
use crate::messaging::consumer::Consumer;
use crate::messaging::relay::Relay;
use crate::monitoring::health::HealthService;
use crate::monitoring::metrics::MetricsService;
use crate::monitoring::state::Status;
use crate::password::PasswordHasher;
use crate::service::users::UserService;

/// Connections to PostgreSQL and RabbitMQ outside the requests' pool; a generous estimate.
const OTHER_CONNECTIONS: u32 = 16;

pub(crate) struct App(Parts);

impl App {
    /// Binds the listener and builds the parts. Connects to nothing, so that the service starts
    /// without its dependencies.
    pub(crate) async fn build(
        config: Config,
        collected: PrometheusHandle,
        log: LogWriter,
    ) -> Result<Self, AppError> {
        let Config {
            http,
            database,
            broker,
            hash_wait,
            shutdown_delay,
            log: _,
        } = config;
        let listener = listen(http.address).await?;
        let admin_listener = match http.admin_address {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let of_operators = http
            .admin_address
            .map_or(0, |_| lifecycle::ADMIN_CONNECTIONS);
        let others = database.max_connections + OTHER_CONNECTIONS + of_operators;
        let others = usize::try_from(others).unwrap_or(usize::MAX);
        let max_connections = listener::connections_allowed(http.limits.max_connections, others);
        let limits = Limits {
            max_connections,
            ..http.limits
        };
        if broker.url.is_plain_to_another_machine() {
            warn!(
                "RabbitMQ is on another machine, and RABBITMQ_URL does not encrypt: use amqps://"
            );
        }
        let status = Arc::new(Status::default());
        let outbox_filled = Arc::new(Notify::new());
        let pool = Database::new(
            database.url.options(),
            database.max_connections,
            database.route,
            TimeLimits::REQUESTS,
        );
        let [probe_pool, scrape_pool, key_pool] = std::array::from_fn(|_| pool.beside(1));
        let keys = KeyRing::new(key_pool.clone());
        let hasher = PasswordHasher::new(hash_wait).map_err(AppError::Threads)?;
        let reads = reads(&database, &pool);
        let writes = writes(&database, &pool);
        let tasks = TaskTracker::new();
        let users = UserService {
            database: pool.clone(),
            reads: reads.clone(),
            writes: writes.clone(),
            hasher: hasher.clone(),
            outbox_filled: outbox_filled.clone(),
            tasks: tasks.clone(),
        };
        let health = HealthService::new(probe_pool.clone(), status.clone());
        let metrics = MetricsService {
            collected,
            database: pool.clone(),
            scrapes: scrape_pool.clone(),
            hasher: hasher.clone(),
            health: health.clone(),
            status: status.clone(),
            rendered: Arc::default(),
        };
        let routers = http::routers(Dependencies {
            users,
            health,
            metrics,
            contract: http.contract,
            request_timeout: http.request_timeout,
            body_timeout: http.body_timeout,
            head: http.head,
            has_admin_port: admin_listener.is_some(),
            access: Access::new(keys.clone(), http.contract.allow_anonymous),
            tasks: tasks.clone(),
        })?;
        let relay = Relay::new(
            broker.clone(),
            database.direct_url.options(),
            outbox_filled,
            status.clone(),
        );
        let consumer = Consumer::new(broker, status.clone(), log);
        let pools = [pool, probe_pool, scrape_pool, key_pool];
        Ok(Self(Parts {
            listener,
            admin_listener,
            routers,
            limits,
            pools,
            keys,
            is_closed: !http.contract.allow_anonymous,
            reads,
            writes,
            database,
            relay,
            consumer,
            hasher,
            status,
            shutdown_delay,
            tasks,
        }))
    }

    /// The address that the listener is bound to; with `PORT=0`, the system chooses the port.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.listener.local_addr()
    }

    /// The same of the operators' port, if there is one.
    pub(crate) fn admin_addr(&self) -> Option<SocketAddr> {
        self.0.admin_listener.as_ref()?.local_addr().ok()
    }

    /// Serves until `stop`.
    ///
    /// # Errors
    /// As [`lifecycle::run`].
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), AppError> {
        lifecycle::run(self.0, stop).await
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, AppError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| AppError::Listen { address, source })
}

fn reads(config: &DatabaseConfig, pool: &Database) -> UserReads {
    if config.coalesce_reads {
        UserReads::coalesced(pool)
    } else {
        UserReads::one_by_one(pool.clone())
    }
}

fn writes(config: &DatabaseConfig, pool: &Database) -> UserWrites {
    if config.group_commit {
        UserWrites::grouped(pool)
    } else {
        UserWrites::one_by_one(pool.clone())
    }
}
