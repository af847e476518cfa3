//! The order in which the parts start and stop, and how long each may take.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{OptionFuture, join, join_all};
use hyper_util::service::TowerToHyperService;
use listener::Limits;
use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::{info, warn};

use super::error::AppError;
use super::{memory, startup};
use crate::access::key_ring::KeyRing;
use crate::batching::user_reads::UserReads;
use crate::batching::user_writes::UserWrites;
use crate::config::DatabaseConfig;
use crate::database::Database;
use crate::http::{self, Routers};
use crate::messaging::consumer::Consumer;
use crate::messaging::relay::Relay;
use crate::monitoring::connections;
use crate::monitoring::state::Status;
use crate::password::PasswordHasher;

// In all, a stop takes at most 25 s, plus `SHUTDOWN_DELAY_MS`.
/// Time limit for requests in flight to finish.
const FINISH_REQUESTS: Duration = Duration::from_secs(10);
/// Time limit for the connections of coalesced reads and grouped writes to close.
const CLOSE_LANES: Duration = Duration::from_secs(1);
/// Time limit for noting which keys were used.
const FINISH_KEYS: Duration = Duration::from_secs(1);
/// Time limit for the relay to publish what is left.
const FINISH_RELAY: Duration = Duration::from_secs(7);
/// Time limit for the consumer to acknowledge what it has logged.
const FINISH_CONSUMER: Duration = Duration::from_secs(3);
/// Time limit for the pools to close.
const CLOSE_POOLS: Duration = Duration::from_secs(3);

/// Most connections of the operators' port.
pub(crate) const ADMIN_CONNECTIONS: u32 = 64;

/// The parts to run, and to close at the end.
pub(crate) struct Parts {
    pub listener: TcpListener,
    pub admin_listener: Option<TcpListener>,
    pub routers: Routers,
    pub limits: Limits,
    pub pools: [Database; 4],
    pub keys: KeyRing,
    /// Nobody gets in without a key.
    pub is_closed: bool,
    pub reads: UserReads,
    pub writes: UserWrites,
    pub database: DatabaseConfig,
    pub relay: Relay,
    pub consumer: Consumer,
    pub hasher: PasswordHasher,
    pub status: Arc<Status>,
    /// Pause between "not ready" and closing the listener, for load balancers to notice.
    pub shutdown_delay: Duration,
    /// Work of requests that continues after the client has gone.
    pub tasks: TaskTracker,
}

/// Serves until `stop`, then stops in this order: reports "not ready", accepts no more connections,
/// finishes requests in flight, notes which keys were used, stops the relay, stops the consumer,
/// closes the pools.
///
/// # Errors
/// If a migration fails, or a part stops unexpectedly.
pub(crate) async fn run(parts: Parts, stop: CancellationToken) -> Result<(), AppError> {
    let [http_stop, keys_stop, relay_stop, consumer_stop] =
        std::array::from_fn(|_| CancellationToken::new());
    let admin_limits = Limits {
        max_connections: ADMIN_CONNECTIONS as usize,
        max_per_address: Some(ADMIN_CONNECTIONS as usize),
        ..parts.limits.clone()
    };
    let serve = |listener, router, limits| {
        let service = TowerToHyperService::new(http::complete(router));
        listener::serve(
            listener,
            service,
            limits,
            http_stop.clone(),
            connections::record,
        )
    };
    let public = serve(parts.listener, parts.routers.public, parts.limits);
    let operators = parts.admin_listener.zip(parts.routers.operators);
    let operators = operators.map(|(listener, router)| serve(listener, router, admin_limits));
    let mut http = tokio::spawn(join(public, OptionFuture::from(operators)));
    let mut relay = tokio::spawn(startup::relay_once_ready(
        parts.relay,
        parts.database,
        relay_stop.clone(),
    ));
    let mut consumer = tokio::spawn(parts.consumer.run(consumer_stop.clone()));
    let mut keys = tokio::spawn(parts.keys.run(parts.is_closed, keys_stop.clone()));
    let _trimming = AbortOnDropHandle::new(tokio::spawn(memory::give_back(parts.hasher)));

    let outcome = tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = &mut http => Err(ended_early("http", ended.map(|_both| Ok(())))),
        ended = &mut keys => Err(ended_early("keys", ended.map(Ok))),
        ended = &mut relay => Err(ended_early("relay", ended)),
        ended = &mut consumer => Err(ended_early("consumer", ended.map(Ok))),
    };

    parts.status.is_draining.store(true);
    if outcome.is_ok() {
        sleep(parts.shutdown_delay).await;
    }
    http_stop.cancel();
    let end_of_requests = Instant::now() + FINISH_REQUESTS;
    finish("http", http, FINISH_REQUESTS).await;
    keys_stop.cancel();
    finish("keys", keys, FINISH_KEYS).await;
    parts.tasks.close();
    if timeout_at(end_of_requests, parts.tasks.wait())
        .await
        .is_err()
    {
        warn!("Work begun by requests did not finish in time");
    }
    if timeout(CLOSE_LANES, join(parts.reads.close(), parts.writes.close()))
        .await
        .is_err()
    {
        warn!("The connections of coalesced reads and grouped writes did not close in time");
    }
    relay_stop.cancel();
    finish("relay", relay, FINISH_RELAY).await;
    consumer_stop.cancel();
    finish("consumer", consumer, FINISH_CONSUMER).await;
    let closed = join_all(parts.pools.iter().map(Database::close));
    if timeout(CLOSE_POOLS, closed).await.is_err() {
        warn!("Database connections did not close in time");
    }
    info!("Stopped");
    outcome
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
        warn!(task = name, "Did not finish in time, aborted it");
        task.abort();
    }
}
