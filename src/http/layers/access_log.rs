//! The two log lines of a request, at its start and its end, and its duration in the metrics.

use std::borrow::Cow;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request};
use axum::http::{Method, StatusCode, Uri};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tokio::time::Instant;
use tracing::field::display;
use tracing::{Span, debug, error, info, warn};

use super::shared::Layers;
use super::slashes;
use crate::domain::actor::Actor;
use crate::http::problem::Problem;
use crate::http::routes::Traits;

/// Log target of successful probes and scrapes: they come every few seconds, so they are logged at
/// DEBUG. `LOG_LEVEL=debug` or `LOG_LEVEL=info,probes=debug` shows them.
const PROBES: &str = "probes";
/// Longest path in a log line or an error's `instance`, in bytes.
const MAX_PATH_SHOWN: usize = 256;

/// A streamed response body. Its end writes the second log line; if it is dropped earlier, that
/// line says so.
struct LoggedBody {
    body: Body,
    log: Option<(RequestLog, StatusCode)>,
    span: Span,
}

impl HttpBody for LoggedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none()
            && let Some((log, status)) = self.log.take()
        {
            self.span.in_scope(|| log.note_end(status, None));
        }
        Poll::Ready(frame)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for LoggedBody {
    fn drop(&mut self) {
        let _entered = self.span.enter();
        drop(self.log.take());
    }
}

/// Writes the two log lines of a request. If the request is dropped before its end, the second line
/// says so.
pub(crate) struct RequestLog {
    method: Method,
    uri: Uri,
    client_address: Option<IpAddr>,
    /// Once its credential is checked.
    pub actor: Option<Actor>,
    matched: Option<MatchedPath>,
    of_route: Traits,
    layers: Arc<Layers>,
    started: Instant,
    ended: bool,
}

impl RequestLog {
    pub(crate) fn start(
        request: &Request,
        matched: Option<MatchedPath>,
        of_route: Traits,
        layers: &Arc<Layers>,
    ) -> Self {
        let client_address = layers
            .head
            .client_address(request.extensions(), request.headers());
        let log = Self {
            method: request.method().clone(),
            uri: slashes::sent(request).clone(),
            client_address,
            actor: None,
            matched,
            of_route,
            layers: layers.clone(),
            started: Instant::now(),
            ended: false,
        };
        let method = log.method.as_str();
        let path = log.path();
        let client_address = client_address.map(display);
        if of_route.is_probe {
            debug!(target: PROBES, method, path = path.as_ref(), client_address, "Request started");
        } else {
            info!(
                method,
                path = path.as_ref(),
                client_address,
                "Request started"
            );
        }
        log
    }

    /// Shortened if long: it appears in two log lines and in an error's body.
    pub(crate) fn path(&self) -> Cow<'_, str> {
        let path = self.uri.path();
        if path.len() <= MAX_PATH_SHOWN {
            return path.into();
        }
        format!("{}...", &path[..path.floor_char_boundary(MAX_PATH_SHOWN)]).into()
    }

    fn count(&self, status: StatusCode, took: Duration) {
        let route = self.matched.as_ref().map_or("none", MatchedPath::as_str);
        // The route `/docs/` ends in a slash.
        let route = if route.len() > 1 {
            route.trim_end_matches('/')
        } else {
            route
        };
        self.layers
            .durations
            .record(&self.method, route, status, took);
    }

    /// Logs the end of the request: now if the response's body is complete, otherwise at
    /// its end.
    pub(crate) fn end(self, response: Response, problem: Option<Problem>) -> Response {
        let status = response.status();
        if response.body().size_hint().exact().is_some() {
            self.note_end(status, problem);
            return response;
        }
        response.map(|body| {
            Body::new(LoggedBody {
                body,
                log: Some((self, status)),
                span: Span::current(),
            })
        })
    }

    fn note_end(mut self, status: StatusCode, problem: Option<Problem>) {
        self.ended = true;
        let took = self.started.elapsed();
        self.count(status, took);
        let method = self.method.as_str();
        let path = self.path();
        let duration_ms = milliseconds(took);
        let path = path.as_ref();
        let status_code = status.as_u16();
        let client_address = self.client_address.map(display);
        let actor = self.actor.as_ref().map(Actor::as_str);
        let (code, cause) = problem.map_or((None, None), |problem| {
            (Some(problem.kind.code), problem.cause)
        });
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            error!(
                method,
                path,
                status_code,
                duration_ms,
                client_address,
                actor,
                code,
                cause,
                "Request failed"
            );
        } else if status.is_server_error() {
            warn!(
                method,
                path,
                status_code,
                duration_ms,
                client_address,
                actor,
                code,
                cause,
                "Request failed"
            );
        } else if self.of_route.is_probe {
            debug!(
                target: PROBES,
                method,
                path,
                status_code,
                duration_ms,
                client_address,
                actor,
                "Request completed"
            );
        } else {
            info!(
                method,
                path, status_code, duration_ms, client_address, actor, code, "Request completed"
            );
        }
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        if !self.ended {
            let duration_ms = milliseconds(self.started.elapsed());
            let method = self.method.as_str();
            let path = self.path();
            let client_address = self.client_address.map(display);
            let actor = self.actor.as_ref().map(Actor::as_str);
            warn!(
                method,
                path = path.as_ref(),
                duration_ms,
                client_address,
                actor,
                cause = "the connection ended",
                "Request failed"
            );
        }
    }
}

/// Rounded to the microsecond.
fn milliseconds(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e6).round() / 1e3
}
