//! The outermost layer: assigns the trace id, logs the request's start and end, limits its time,
//! and writes the body of every error, wherever it came from.

use std::borrow::Cow;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use tracing::field::display;
use tracing::{Instrument, Span, debug, error, error_span, info, warn};

use super::drain;
use super::durations::RequestDurations;
use super::head::HeadRules;
use super::problem::{PROBLEM_JSON, Problem};
use crate::trace_id::TraceId;

/// The client's own trace id, in a request.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The trace id, in every response.
pub const TRACE_ID: HeaderName = HeaderName::from_static("x-trace-id");
/// Keeps other sites from embedding responses, and from measuring them.
/// <https://fetch.spec.whatwg.org/#cross-origin-resource-policy-header>
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// Log target of successful probes and scrapes, which come every few seconds and say nothing new.
/// Shown by `LOG_LEVEL=debug` or `LOG_LEVEL=info,probes=debug`.
const PROBES: &str = "probes";
/// Longest path in a log line or an error's `instance`, in bytes.
const MAX_PATH_SHOWN: usize = 256;

/// Shared by all requests.
pub struct Trace {
    /// For the whole request, its body included.
    pub time_limit: Duration,
    pub head: HeadRules,
    pub durations: RequestDurations,
    /// Work that outlives its request.
    pub tasks: TaskTracker,
}

pub async fn trace(State(trace): State<Arc<Trace>>, mut request: Request, next: Next) -> Response {
    let mut given = request.headers().get_all(REQUEST_ID).iter();
    let first = given.next();
    let second = given.next();
    let accepted = first
        .filter(|_| second.is_none())
        .and_then(|value| TraceId::parse(value.as_bytes()));
    let refused = first.is_some() && accepted.is_none();
    let trace_id = accepted.unwrap_or_else(TraceId::generate);
    request.extensions_mut().insert(trace_id.clone());
    // At ERROR, so that lines have the trace id at every log level.
    let span = error_span!("request", trace_id = trace_id.as_str());
    async move {
        let log = RequestLog::start(&request, &trace);
        if refused {
            warn!(
                "X-Request-Id is not 1 to 128 characters of A-Z a-z 0-9 . _ : / @ + = -, made a new \
                 trace id"
            );
        }
        let request = drain::on_drop(request, &trace.tasks);
        let mut response = match trace.head.check(&request) {
            Ok(()) => timeout(trace.time_limit, next.run(request))
                .await
                .unwrap_or_else(|_elapsed| Problem::too_slow(trace.time_limit).into_response()),
            Err(problem) => problem.into_response(),
        };
        let problem = write_problem(&mut response, &log.path(), &trace_id);
        let is_of_users = log.matched.as_ref().is_some_and(|route| route.as_str().starts_with("/users"));
        let mut response = logged(response, log, problem);
        let headers = response.headers_mut();
        if let Ok(value) = HeaderValue::from_str(trace_id.as_str()) {
            headers.insert(TRACE_ID, value);
        }
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
        if is_of_users {
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        } else if !headers.contains_key(header::CACHE_CONTROL) {
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        response
    }
    .instrument(span)
    .await
}

/// Has the request's end logged: now, if the body is there already, else with the body's end.
fn logged(response: Response, log: RequestLog, problem: Option<Problem>) -> Response {
    if response.body().size_hint().exact().is_some() {
        log.end(response.status(), problem);
        return response;
    }
    let status = response.status();
    response.map(|body| {
        Body::new(LoggedBody {
            body,
            log: Some((log, status)),
            span: Span::current(),
        })
    })
}

/// A body that comes in time. If it is dropped before its end, the log's line says so.
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
            self.span.in_scope(|| log.end(status, None));
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

/// Turns an error response into a problem document; keeps headers such as `Allow`.
fn write_problem(response: &mut Response, path: &str, trace_id: &TraceId) -> Option<Problem> {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return None;
    }
    let problem = response
        .extensions_mut()
        .remove::<Problem>()
        .unwrap_or_else(|| Problem::from_status(status));
    let body = serde_json::to_vec(&problem.body(path, trace_id.as_str())).unwrap_or_default();
    *response.body_mut() = Body::from(body);
    response.headers_mut().remove(header::CONTENT_LENGTH);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    Some(problem)
}

/// Responds to a panic. The panic hook has logged its message and location.
pub fn on_panic(_message: Box<dyn std::any::Any + Send>) -> Response {
    Problem::internal().into_response()
}

/// Writes the two log lines of a request. If the request is dropped before its end, the second line
/// says so.
struct RequestLog {
    method: Method,
    uri: Uri,
    client_address: Option<IpAddr>,
    matched: Option<MatchedPath>,
    trace: Arc<Trace>,
    started: Instant,
    ended: bool,
}

impl RequestLog {
    fn start(request: &Request, trace: &Arc<Trace>) -> Self {
        let method = request.method().clone();
        let uri = request.uri().clone();
        let matched = request.extensions().get::<MatchedPath>().cloned();
        let client_address = trace
            .head
            .client_address(request.extensions(), request.headers());
        let trace = trace.clone();
        let started = Instant::now();
        let log = Self {
            method,
            uri,
            client_address,
            matched,
            trace,
            started,
            ended: false,
        };
        let method = log.method.as_str();
        let path = log.path();
        let client_address = client_address.map(display);
        if log.is_probe() {
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

    fn is_probe(&self) -> bool {
        let is_probe = |route: &str| route.starts_with("/health/") || route.starts_with("/metrics");
        self.matched
            .as_ref()
            .map(MatchedPath::as_str)
            .is_some_and(is_probe)
    }

    /// Shortened if long: it appears in two log lines and in an error's body.
    fn path(&self) -> Cow<'_, str> {
        let path = self.uri.path();
        if path.len() <= MAX_PATH_SHOWN {
            return path.into();
        }
        format!("{}...", &path[..path.floor_char_boundary(MAX_PATH_SHOWN)]).into()
    }

    fn count(&self, status: StatusCode, took: Duration) {
        let route = self.matched.as_ref().map_or("none", MatchedPath::as_str);
        let route = if route.len() > 1 {
            route.trim_end_matches('/')
        } else {
            route
        };
        self.trace
            .durations
            .record(&self.method, route, status, took);
    }

    fn end(mut self, status: StatusCode, problem: Option<Problem>) {
        self.ended = true;
        let took = self.started.elapsed();
        self.count(status, took);
        let method = self.method.as_str();
        let path = self.path();
        let duration_ms = milliseconds(took);
        let path = path.as_ref();
        let status_code = status.as_u16();
        let client_address = self.client_address.map(display);
        let (code, cause) = problem.map_or((None, None), |problem| {
            (Some(problem.kind.code), problem.cause)
        });
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            error!(
                method,
                path, status_code, duration_ms, client_address, code, cause, "Request failed"
            );
        } else if status.is_server_error() {
            warn!(
                method,
                path, status_code, duration_ms, client_address, code, cause, "Request failed"
            );
        } else if self.is_probe() {
            debug!(
                target: PROBES,
                method,
                path,
                status_code,
                duration_ms,
                client_address,
                "Request completed"
            );
        } else {
            info!(
                method,
                path, status_code, duration_ms, client_address, code, "Request completed"
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
            warn!(
                method,
                path = path.as_ref(),
                duration_ms,
                client_address,
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
