//! Liveness, readiness and metrics.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::problem::Problem;
use super::problem::types::{NOT_READY, TIME_LIMIT_EXCEEDED, codes};
use super::state::AppState;
use crate::monitoring::health::{self, Health};
use crate::monitoring::state;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(live))
        .routes(routes!(ready))
        .routes(routes!(metrics))
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Readiness {
    Ready,
    /// Reads work. Writes too, unless the database is read-only; their events wait in the outbox
    /// until the broker is back
    Degraded,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum DatabaseState {
    Up,
    /// It takes no writes: a standby, or set to read-only
    ReadOnly,
    Down,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum SchemaState {
    Current,
    /// Migrations wait to be applied
    Pending,
    /// The database is away
    Unknown,
}

/// The state of one connection to the broker.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Link {
    /// Not connected; tried again with growing pauses, for ever.
    Down,
    Up,
    /// Connected, and told by the broker to wait: it is short of memory or disk.
    Blocked,
}

impl From<state::Link> for Link {
    fn from(link: state::Link) -> Self {
        match link {
            state::Link::Down => Self::Down,
            state::Link::Up => Self::Up,
            state::Link::Blocked => Self::Blocked,
        }
    }
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum RelayState {
    Leading,
    /// Another replica publishes, or this one is not connected
    Standby,
}

/// The state of each dependency
#[derive(Serialize, ToSchema)]
struct Checks {
    database: DatabaseState,
    schema: SchemaState,
    /// The connection that publishes
    publisher: Link,
    /// The connection that consumes
    consumer: Link,
    relay: RelayState,
    /// The process is about to stop
    draining: bool,
}

impl From<Health> for Checks {
    fn from(health: Health) -> Self {
        let (database, schema) = match health.database {
            health::DatabaseState::Current => (DatabaseState::Up, SchemaState::Current),
            health::DatabaseState::ReadOnly => (DatabaseState::ReadOnly, SchemaState::Current),
            health::DatabaseState::MigrationsPending => (DatabaseState::Up, SchemaState::Pending),
            health::DatabaseState::Down => (DatabaseState::Down, SchemaState::Unknown),
        };
        Self {
            database,
            schema,
            publisher: health.publisher.into(),
            consumer: health.consumer.into(),
            relay: if health.relay_leads {
                RelayState::Leading
            } else {
                RelayState::Standby
            },
            draining: health.is_draining,
        }
    }
}

#[derive(Serialize, ToSchema)]
struct HealthReport {
    status: Readiness,
    checks: Checks,
}

#[derive(Serialize, ToSchema)]
struct Alive {
    #[schema(example = "alive")]
    status: &'static str,
}

/// Liveness
///
/// Looks at nothing but the process itself: a restart would not bring back a dependency.
#[utoipa::path(
    get, path = "/health/live", tag = "health", operation_id = "live",
    extensions(("x-problems" = json!(codes(&[])))),
    responses((status = 200, description = "The process is alive", body = Alive))
)]
async fn live() -> Json<Alive> {
    Json(Alive { status: "alive" })
}

/// Readiness
///
/// Without RabbitMQ it is `degraded` and still ready: writes work, and their events wait in the
/// outbox. With a database that takes no writes it is `degraded` too: reads work.
#[utoipa::path(
    get, path = "/health/ready", tag = "health", operation_id = "ready",
    extensions(("x-problems" = json!(codes(&[&NOT_READY, &TIME_LIMIT_EXCEEDED])))),
    responses((status = 200, description = "The process can serve", body = HealthReport))
)]
async fn ready(State(state): State<AppState>) -> Result<Json<HealthReport>, Problem> {
    let health = state.health.look().await;
    let status = match health.readiness() {
        health::Readiness::Ready => Readiness::Ready,
        health::Readiness::Degraded => Readiness::Degraded,
        health::Readiness::Unavailable => return Err(not_ready(health)),
    };
    Ok(Json(HealthReport {
        status,
        checks: health.into(),
    }))
}

pub fn not_ready(health: Health) -> Problem {
    let mut problem = Problem::new(
        &NOT_READY,
        "The database is away, its schema is not current, or the process stops.",
    );
    if let Ok(checks) = serde_json::to_value(Checks::from(health)) {
        problem.extensions.insert("checks".to_owned(), checks);
    }
    problem
}

/// Metrics
///
/// Requests, outbox, broker, pools and process, in Prometheus' text format.
#[utoipa::path(
    get, path = "/metrics", tag = "health", operation_id = "metrics",
    extensions(("x-problems" = json!(codes(&[&TIME_LIMIT_EXCEEDED])))),
    responses((status = 200, description = "All metrics", body = String, content_type = "text/plain"))
)]
async fn metrics(State(state): State<AppState>) -> impl IntoResponse {
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        state.metrics.render().await,
    )
}
