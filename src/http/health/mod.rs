//! Liveness, readiness and metrics.

pub(crate) mod checks;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::checks::Checks;
use super::layers::credential::Scoped;
use super::layers::deadline::Deadline;
use super::layers::head::HeadRules;
use super::problem::Problem;
use super::problem::body::Members;
use super::problem::responses::{Fallible, Problems};
use super::problem::types::NOT_READY;
use super::state::AppState;
use crate::monitoring::health::{self, Health};
use crate::monitoring::state;

pub(crate) fn router() -> OpenApiRouter<AppState> {
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
    responses((status = 200, description = "The process is alive", body = Alive), LiveProblems)
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
    responses((status = 200, description = "The process can serve", body = HealthReport), ReadyProblems)
)]
async fn ready(State(state): State<AppState>) -> Result<Json<HealthReport>, Problem> {
    let health = state.health.probe().await;
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

fn not_ready(health: Health) -> Problem {
    let detail = "The database is away, its schema is not current, or the process is stopping.";
    let checks = health.into();
    Problem::new(&NOT_READY, detail).with_members(Members::NotReady { checks })
}

/// The problem of a process that cannot serve.
struct Unready;

impl Fallible for Unready {
    fn problems() -> Vec<Problem> {
        let without_database = Health {
            database: health::DatabaseState::Down,
            publisher: state::Link::Down,
            consumer: state::Link::Up,
            relay_leads: false,
            is_draining: false,
        };
        vec![not_ready(without_database)]
    }
}

type LiveProblems = Problems<HeadRules>;
type ReadyProblems = Problems<(Unready, Deadline, HeadRules)>;
type MetricsProblems = Problems<(Deadline, Scoped, HeadRules)>;

/// Metrics
///
/// Requests, outbox, broker, pools and process, in Prometheus' text format.
#[utoipa::path(
    get, path = "/metrics", tag = "health", operation_id = "metrics",
    responses((status = 200, description = "All metrics", body = String, content_type = "text/plain"), MetricsProblems)
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
