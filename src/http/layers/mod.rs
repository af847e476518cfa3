//! What happens to every request before and after its handler: one job per file, called in order by
//! [`handle`]. It is one function because each tower layer costs a request an allocation or two.

mod access_log;
pub(crate) mod credential;
pub(crate) mod deadline;
mod drain;
mod durations;
pub(crate) mod head;
pub(crate) mod problems;
pub(crate) mod request_id;
pub(crate) mod response_headers;
mod shared;
pub(crate) mod slashes;

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::Instrument;

use self::access_log::RequestLog;
pub(crate) use self::shared::Layers;
use super::problem::Problem;
use super::routes::{self, Traits};

/// The outermost layer: sees every response, including those after panics and timeouts.
pub(crate) async fn handle(
    State(layers): State<Arc<Layers>>,
    mut request: Request,
    next: Next,
) -> Response {
    let assigned = request_id::assign(&mut request);
    let span = assigned.span();
    async move {
        let matched = request.extensions().get::<MatchedPath>().cloned();
        let of_route = routes::traits(matched.as_ref().map(MatchedPath::as_str));
        // A route that declares nothing is closed.
        let is_declared = |traits: &Traits| matched.is_none() || *traits != routes::NO_ROUTE;
        let here = of_route.at(layers.entrance).filter(is_declared);
        let traits = here.unwrap_or(routes::NO_ROUTE);
        let mut log = RequestLog::start(&request, matched, traits, &layers);
        assigned.warn_if_refused();
        let mut request = drain::on_drop(request, &layers.tasks);
        let admitted = admit(&mut request, traits, &layers).await;
        log.actor = request.extensions().get().cloned();
        let is_shown = admitted.is_ok() && here.is_some();
        let mut response = match admitted {
            Ok(()) if !is_shown => Problem::no_route().into_response(),
            Ok(()) => deadline::limit(layers.time_limit, next.run(request)).await,
            Err(problem) => problem.into_response(),
        };
        let problem = problems::write(&mut response, &log.path(), &assigned.trace_id);
        response_headers::add(&mut response, traits, is_shown);
        assigned.name(&mut response);
        log.end(response, problem)
    }
    .instrument(span)
    .await
}

/// Lets a request in, by its head alone.
async fn admit(request: &mut Request, traits: Traits, layers: &Layers) -> Result<(), Problem> {
    layers.head.check(request)?;
    credential::check(request, traits, &layers.access).await
}
