//! For whoever watches the process: liveness, readiness, metrics.

use axum::{Json, extract::State, http::header, response::IntoResponse};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    problem::{Problem, types::NOT_READY},
    state::AppState,
};
use crate::monitoring::health::{Checks, HealthReport, Readiness};

pub fn router() -> OpenApiRouter<AppState> {
    let (live, ready, metrics) = (routes!(live), routes!(ready), routes!(metrics));
    // With a slash at the end too, as the users'; the document names one.
    OpenApiRouter::new()
        .route("/health/live/", live.2.clone())
        .route("/health/ready/", ready.2.clone())
        .route("/metrics/", metrics.2.clone())
        .routes(live)
        .routes(ready)
        .routes(metrics)
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
    responses((status = 200, description = "The process is alive", body = Alive))
)]
async fn live() -> Json<Alive> {
    Json(Alive { status: "alive" })
}

/// Readiness
///
/// Without RabbitMQ it is `degraded` and still ready: writes work, and their events wait in the outbox.
#[utoipa::path(
    get, path = "/health/ready", tag = "health", operation_id = "ready",
    responses((status = 200, description = "The process can serve", body = HealthReport))
)]
async fn ready(State(state): State<AppState>) -> Result<Json<HealthReport>, Problem> {
    let report = state.health.report().await;
    if report.status != Readiness::Unavailable {
        return Ok(Json(report));
    }
    Err(not_ready(&report.checks))
}

pub fn not_ready(checks: &Checks) -> Problem {
    let mut problem =
        Problem::new(&NOT_READY, "The database is away, its schema is not current, or the process stops.");
    if let Ok(checks) = serde_json::to_value(checks) {
        problem.extensions.insert("checks".to_owned(), checks);
    }
    problem
}

/// Metrics
///
/// Requests, outbox, broker, pools and process, in Prometheus' text format.
#[utoipa::path(
    get, path = "/metrics", tag = "health", operation_id = "metrics",
    responses((status = 200, description = "All metrics", body = String, content_type = "text/plain"))
)]
async fn metrics(State(state): State<AppState>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], state.metrics.render().await)
}
