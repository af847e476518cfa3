//! The trace id of a request: the client's own, or a new one. It goes into the request's
//! extensions, the span of its log lines, and its response.

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use tracing::{Span, error_span, warn};

use crate::trace_id::TraceId;

/// The client's own trace id, in a request.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The trace id, in every response.
pub(crate) const TRACE_ID: HeaderName = HeaderName::from_static("x-trace-id");

pub(crate) struct Assigned {
    pub trace_id: TraceId,
    /// The client gave one that cannot be used.
    is_refused: bool,
}

pub(crate) fn assign(request: &mut Request) -> Assigned {
    let mut given = request.headers().get_all(REQUEST_ID).iter();
    let first = given.next();
    let second = given.next();
    let accepted = first
        .filter(|_| second.is_none())
        .and_then(|value| TraceId::parse(value.as_bytes()));
    let is_refused = first.is_some() && accepted.is_none();
    let trace_id = accepted.unwrap_or_else(TraceId::generate);
    request.extensions_mut().insert(trace_id.clone());
    Assigned {
        trace_id,
        is_refused,
    }
}

impl Assigned {
    /// At ERROR, so that lines have the trace id at every log level.
    pub(crate) fn span(&self) -> Span {
        error_span!("request", trace_id = self.trace_id.as_str())
    }

    pub(crate) fn warn_if_refused(&self) {
        if self.is_refused {
            warn!("X-Request-Id is not {}, made a new trace id", TraceId::FORM);
        }
    }

    pub(crate) fn name(&self, response: &mut Response) {
        if let Ok(value) = HeaderValue::from_str(self.trace_id.as_str()) {
            response.headers_mut().insert(TRACE_ID, value);
        }
    }
}
