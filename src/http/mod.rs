//! HTTP: the only place that knows axum, status codes and headers. Parses requests into domain
//! types, calls the service, and responds. Knows nothing of SQL or RabbitMQ.

mod docs;
mod drain;
mod durations;
mod extract;
mod head;
mod health;
mod openapi;
mod problem;
mod state;
mod trace;
mod users;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use tokio_util::task::TaskTracker;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use self::durations::RequestDurations;
use self::extract::raw_body::BodyLimits;
pub use self::head::HeadRules;
pub use self::state::AppState;
use self::state::Shared;
use self::trace::Trace;
use crate::domain::password::PasswordPolicy;
use crate::monitoring::health::HealthService;
use crate::monitoring::metrics::MetricsService;
use crate::service::users::UserService;

/// The routes that the OpenAPI document describes.
fn api() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(openapi::ApiDoc::openapi())
        .merge(users::router())
        .merge(health::router())
}

/// The OpenAPI document of a service with this password policy, as JSON.
pub fn openapi_document(policy: PasswordPolicy) -> serde_json::Result<String> {
    openapi::render(&api().into_openapi(), policy)
}

/// All routes, under one stack of layers.
pub fn router(
    users: UserService,
    health: HealthService,
    metrics: MetricsService,
    password_policy: PasswordPolicy,
    [request_timeout, body_timeout]: [Duration; 2],
    head: HeadRules,
    tasks: TaskTracker,
) -> serde_json::Result<Router> {
    let openapi = openapi_document(password_policy)?;
    let state = Arc::new(Shared {
        users,
        health,
        metrics,
        password_policy,
        bodies: BodyLimits::new(body_timeout),
        head: head.clone(),
    });
    let (api, _document) = api().split_for_parts();
    let trace = Trace {
        time_limit: request_timeout,
        head,
        durations: RequestDurations::default(),
        tasks,
    };
    Ok(layered(api.merge(docs::router(openapi)), trace).with_state(state))
}

/// `trace` is outermost: it sees every response, including those to panics and timeouts, and writes
/// the body of every error.
fn layered<S: Clone + Send + Sync + 'static>(routes: Router<S>, trace: Trace) -> Router<S> {
    routes
        .layer(CatchPanicLayer::custom(trace::on_panic))
        .layer(from_fn_with_state(Arc::new(trace), trace::trace))
}

#[cfg(test)]
mod tests;
