//! HTTP: status codes, headers, routes. Parses requests into domain types, calls the service, and
//! responds. Knows nothing of SQL or RabbitMQ.

mod contract;
mod docs;
mod entity_tag;
mod extract;
mod health;
mod layers;
mod openapi;
mod problem;
mod routes;
mod state;
mod users;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use axum::middleware::from_fn_with_state;
use axum::response::Response;
use tokio_util::task::TaskTracker;
use tower::util::{MapRequest, MapResponse};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

pub(crate) use self::contract::Contract;
use self::extract::raw_body::BodyLimits;
#[cfg(test)]
pub(crate) use self::extract::raw_body::DEFAULT_TIMEOUT as DEFAULT_BODY_TIMEOUT;
use self::layers::Layers;
#[cfg(test)]
pub(crate) use self::layers::deadline::DEFAULT_LIMIT as DEFAULT_REQUEST_TIMEOUT;
pub(crate) use self::layers::head::HeadRules;
use self::layers::{response_headers, slashes};
use self::routes::Entrance;
pub(crate) use self::state::AppState;
use self::state::Shared;
use crate::access::Access;
use crate::monitoring::health::HealthService;
use crate::monitoring::metrics::MetricsService;
use crate::service::users::UserService;

/// The routes that the OpenAPI document describes.
fn api() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(openapi::ApiDoc::openapi())
        .merge(users::router())
        .merge(health::router())
}

/// The OpenAPI document of a service with this contract, as JSON.
pub(crate) fn openapi_document(contract: Contract) -> serde_json::Result<String> {
    openapi::render(&api().into_openapi(), contract)
}

/// What the routes and layers need.
pub(crate) struct Dependencies {
    pub users: UserService,
    pub health: HealthService,
    pub metrics: MetricsService,
    pub contract: Contract,
    pub request_timeout: Duration,
    pub body_timeout: Duration,
    pub head: HeadRules,
    pub access: Access,
    pub has_admin_port: bool,
    /// Work that outlives its request.
    pub tasks: TaskTracker,
}

/// What each port serves.
pub(crate) struct Routers {
    pub public: Router,
    pub operators: Option<Router>,
}

/// All routes, under one stack of layers. A connection calls it by [`complete`].
pub(crate) fn routers(needed: Dependencies) -> serde_json::Result<Routers> {
    let Dependencies {
        users,
        health,
        metrics,
        contract,
        request_timeout,
        body_timeout,
        head,
        access,
        has_admin_port,
        tasks,
    } = needed;
    let openapi = openapi_document(contract)?;
    let state = Arc::new(Shared {
        users,
        health,
        metrics,
        contract,
        bodies: BodyLimits::new(body_timeout),
        head: head.clone(),
    });
    let (api, _document) = api().split_for_parts();
    let routes = api.merge(docs::router(openapi)).with_state(state);
    let layered_at = |entrance| {
        let mut head = head.clone();
        if entrance == Entrance::Operators {
            // The metrics need no key there, so a web page must not reach them by another name.
            head.allowed_hosts.get_or_insert_default();
        }
        let layers = Layers::new(
            request_timeout,
            entrance,
            head,
            access.clone(),
            tasks.clone(),
        );
        layered(routes.clone(), layers)
    };
    Ok(if has_admin_port {
        Routers {
            public: layered_at(Entrance::Public),
            operators: Some(layered_at(Entrance::Operators)),
        }
    } else {
        Routers {
            public: layered_at(Entrance::Only),
            operators: None,
        }
    })
}

fn layered(routes: Router, layers: Layers) -> Router {
    routes
        .layer(CatchPanicLayer::custom(layers::problems::on_panic))
        .layer(from_fn_with_state(Arc::new(layers), layers::handle))
}

/// A router with what must run before it and after it.
pub(crate) type Complete<B> =
    MapResponse<MapRequest<Router, fn(Request<B>) -> Request<B>>, fn(Response) -> Response>;

pub(crate) fn complete<B>(router: Router) -> Complete<B> {
    let router = MapRequest::new(router, slashes::trim as fn(_) -> _);
    MapResponse::new(router, response_headers::prune)
}

#[cfg(test)]
mod tests;
