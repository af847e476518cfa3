//! The composition root: builds all parts from the configuration, and owns their tasks from start
//! to stop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::future::join;
use hyper_util::service::TowerToHyperService;
use listener::Limits;
use logline::LogWriter;
use metrics_exporter_prometheus::PrometheusHandle;
use rustix::time::{ClockId, clock_gettime};
use sqlx::postgres::PgConnectOptions;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::{Instant, interval, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tower::util::MapRequest;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::batching::user_reads::UserReads;
use crate::batching::user_writes::UserWrites;
use crate::config::{Config, DatabaseConfig};
use crate::database::schema::{self, SchemaError};
use crate::database::{Database, dangers, identity};
use crate::error_chain::Chain;
use crate::http;
use crate::messaging::consumer::Consumer;
use crate::messaging::relay::Relay;
use crate::monitoring::connections;
use crate::monitoring::health::HealthService;
use crate::monitoring::metrics::MetricsService;
use crate::monitoring::state::Status;
use crate::password::PasswordHasher;
use crate::service::users::UserService;

/// Connections to PostgreSQL and RabbitMQ besides the requests' pool; a generous estimate.
const OTHER_CONNECTIONS: u32 = 16;

// In all, a stop takes 25 s at most, plus `SHUTDOWN_DELAY_MS`.
/// Longest time for requests in flight to finish.
const FINISH_REQUESTS: Duration = Duration::from_secs(11);
/// For the lanes of reads and writes to close.
const CLOSE_LANES: Duration = Duration::from_secs(1);
/// For the relay to publish what is left.
const FINISH_RELAY: Duration = Duration::from_secs(7);
/// For the consumer to acknowledge what it has logged.
const FINISH_CONSUMER: Duration = Duration::from_secs(3);
/// For each of the three pools to close.
const CLOSE_POOL: Duration = Duration::from_secs(1);

/// How often free memory is given back to the system, if there is little to do.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(5);
/// There is little to do while the service uses less than one part in this many of a core.
const QUIET: u32 = 5;

#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error("cannot listen on {address} (set PORT for another port)")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("cannot start the threads that hash passwords")]
    Threads(#[source] io::Error),
    #[error("cannot write the OpenAPI document")]
    OpenApi(#[from] serde_json::Error),
    #[error("cannot bring the schema up to date")]
    Schema(#[from] SchemaError),
    #[error("the {0} ended by itself, which it never should")]
    TaskEnded(&'static str),
    #[error("the {0} failed")]
    TaskFailed(&'static str, #[source] JoinError),
}

pub struct App {
    listener: TcpListener,
    router: Router,
    limits: Limits,
    pools: [Database; 3],
    reads: UserReads,
    writes: UserWrites,
    database: DatabaseConfig,
    relay: Relay,
    consumer: Consumer,
    hasher: PasswordHasher,
    status: Arc<Status>,
    shutdown_delay: Duration,
    /// Work of requests that goes on when the client has gone away.
    tasks: TaskTracker,
}

impl App {
    /// Binds the listener and builds the parts. Connects to nothing, so that the service starts
    /// without its dependencies.
    pub async fn build(
        config: Config,
        collected: PrometheusHandle,
        log: LogWriter,
    ) -> Result<Self, AppError> {
        let Config {
            http,
            database,
            broker,
            passwords,
            shutdown_delay,
            log: _,
        } = config;
        let listen = |source| AppError::Listen {
            address: http.address,
            source,
        };
        let listener = TcpListener::bind(http.address).await.map_err(listen)?;
        let others =
            usize::try_from(database.max_connections + OTHER_CONNECTIONS).unwrap_or(usize::MAX);
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
        );
        let [probe_pool, scrape_pool] = std::array::from_fn(|_| pool.beside(1));
        let hasher = PasswordHasher::new(passwords.hash_wait).map_err(AppError::Threads)?;
        let reads = if database.coalesce_reads {
            UserReads::coalesced(&pool)
        } else {
            UserReads::one_by_one(pool.clone())
        };
        let writes = if database.group_commit {
            UserWrites::grouped(&pool)
        } else {
            UserWrites::one_by_one(pool.clone())
        };
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
        let timeouts = [http.request_timeout, http.body_timeout];
        let router = http::router(
            users,
            health,
            metrics,
            passwords.policy,
            timeouts,
            http.head,
            tasks.clone(),
        )?;
        let relay = Relay::new(
            broker.clone(),
            database.direct_url.options(),
            outbox_filled,
            status.clone(),
        );
        let consumer = Consumer::new(broker, status.clone(), log);
        let pools = [pool, probe_pool, scrape_pool];
        Ok(Self {
            listener,
            router,
            limits,
            pools,
            reads,
            writes,
            database,
            relay,
            consumer,
            hasher,
            status,
            shutdown_delay,
            tasks,
        })
    }

    /// The address it listens on; with `PORT=0` the system chose the port.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`, then stops in order: not ready, no new connections, requests in flight,
    /// outbox, consumer.
    ///
    /// # Errors
    /// If a migration fails, or a part ends that never should.
    pub async fn run(self, stop: CancellationToken) -> Result<(), AppError> {
        let [http_stop, relay_stop, consumer_stop] =
            std::array::from_fn(|_| CancellationToken::new());
        let service = TowerToHyperService::new(MapRequest::new(self.router, http::trim_slash));
        let mut http = tokio::spawn(listener::serve(
            self.listener,
            service,
            self.limits,
            http_stop.clone(),
            connections::record,
        ));
        let mut relay = tokio::spawn(relay_once_ready(
            self.relay,
            self.database,
            relay_stop.clone(),
        ));
        let mut consumer = tokio::spawn(self.consumer.run(consumer_stop.clone()));
        let _trimming = AbortOnDropHandle::new(tokio::spawn(give_memory_back(self.hasher)));

        let outcome = tokio::select! {
            () = stop.cancelled() => Ok(()),
            ended = &mut http => Err(ended_early("http", ended.map(Ok))),
            ended = &mut relay => Err(ended_early("relay", ended)),
            ended = &mut consumer => Err(ended_early("consumer", ended.map(Ok))),
        };

        self.status.is_draining.store(true);
        if outcome.is_ok() {
            sleep(self.shutdown_delay).await;
        }
        http_stop.cancel();
        let end_of_requests = Instant::now() + FINISH_REQUESTS;
        finish("http", http, FINISH_REQUESTS).await;
        self.tasks.close();
        if timeout_at(end_of_requests, self.tasks.wait())
            .await
            .is_err()
        {
            warn!("What requests had begun did not finish in time");
        }
        if timeout(CLOSE_LANES, join(self.reads.close(), self.writes.close()))
            .await
            .is_err()
        {
            warn!("The connections of coalesced reads and grouped writes did not close in time");
        }
        relay_stop.cancel();
        finish("relay", relay, FINISH_RELAY).await;
        consumer_stop.cancel();
        finish("consumer", consumer, FINISH_CONSUMER).await;
        for pool in self.pools {
            if timeout(CLOSE_POOL, pool.close()).await.is_err() {
                warn!("Database connections did not close in time");
            }
        }
        info!("Stopped");
        outcome
    }
}

async fn relay_once_ready(
    relay: Relay,
    database: DatabaseConfig,
    stop: CancellationToken,
) -> Result<(), AppError> {
    if let Some(outcome) = stop.run_until_cancelled(schema_ready(&database)).await {
        outcome?;
        relay.run(stop).await;
    }
    Ok(())
}

/// Waits until the schema is current: applies the migrations, or waits for somebody else to.
async fn schema_ready(database: &DatabaseConfig) -> Result<(), SchemaError> {
    let options = database.direct_url.options();
    let mut backoff = Backoff::default();
    loop {
        match bring_up_to_date(&options, database.migrate_on_start).await {
            Ok(true) => {
                warn_of_another_server(&options).await;
                warn_of_dangers(database).await;
                return Ok(());
            }
            Ok(false) => warn!("Migrations are pending: run `user-management-api migrate`"),
            Err(error) if error.is_transient() => {
                warn!(error = %Chain(&error), "The database is unavailable, trying again");
            }
            Err(error) => return Err(error),
        }
        sleep(backoff.next_pause()).await;
    }
}

/// Whether the schema is current, perhaps after migrating.
async fn bring_up_to_date(options: &PgConnectOptions, migrate: bool) -> Result<bool, SchemaError> {
    if !migrate {
        return schema::is_current_at(options).await;
    }
    match schema::migrate(options).await {
        Ok(()) => Ok(true),
        // A login that owns nothing may not even look for what to do, and a standby does not let
        // anybody.
        Err(error) if error.is_not_allowed() => match schema::is_current_at(options).await {
            Ok(true) => Ok(true),
            _pending_or_unknown => Err(error),
        },
        Err(error) => Err(error),
    }
}

async fn warn_of_another_server(options: &PgConnectOptions) {
    match identity::has_changed(options).await {
        Ok(false) => {}
        Ok(true) => warn!(
            "The database's server is another one than at the last start, or was promoted or \
             recovered: if changes may have been lost, stop the service and run \
             `user-management-api after-restore`"
        ),
        Err(error) => {
            warn!(error = %Chain(&error), "Whether the database was restored is not known");
        }
    }
}

async fn warn_of_dangers(database: &DatabaseConfig) {
    for found in dangers::look(
        &database.direct_url.options(),
        &database.url.options(),
        database.route,
    )
    .await
    {
        match found {
            Ok(None) => {}
            Ok(Some(danger)) => warn!("{danger}"),
            Err(error) => {
                warn!(
                    error = %Chain(&error),
                    "Whether PostgreSQL encrypts, or keeps what it commits, is not known"
                );
            }
        }
    }
}

/// After a flood, glibc's allocator would keep what it took. While there is much to do, it is
/// needed again at once.
async fn give_memory_back(hasher: PasswordHasher) {
    let mut tick = interval(GIVE_BACK_EVERY);
    let mut used_before = processor_time();
    loop {
        tick.tick().await;
        hasher.free_idle_memory();
        let used = processor_time();
        if used.saturating_sub(used_before) < GIVE_BACK_EVERY / QUIET {
            // It takes a few milliseconds. A panic there costs one turn.
            _ = spawn_blocking(trim::give_memory_back).await;
        }
        used_before = used;
    }
}

/// That of all threads since the start.
fn processor_time() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        used.tv_sec.try_into().unwrap_or_default(),
        used.tv_nsec.try_into().unwrap_or_default(),
    )
}

fn ended_early(task: &'static str, ended: Result<Result<(), AppError>, JoinError>) -> AppError {
    match ended {
        Ok(Ok(())) => AppError::TaskEnded(task),
        Ok(Err(error)) => error,
        Err(failure) => AppError::TaskFailed(task, failure),
    }
}

async fn finish<T>(name: &'static str, mut task: JoinHandle<T>, limit: Duration) {
    if !task.is_finished() && timeout(limit, &mut task).await.is_err() {
        warn!(task = name, "Did not finish in time, gave it up");
        task.abort();
    }
}
