//! Writes the body of every error response, whatever produced it.

use std::any::Any;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

use crate::http::problem::{PROBLEM_JSON, Problem};
use crate::trace_id::TraceId;

/// Turns an error response into a problem document; keeps headers such as `Allow`.
pub(crate) fn write(response: &mut Response, path: &str, trace_id: &TraceId) -> Option<Problem> {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return None;
    }
    let problem = response
        .extensions_mut()
        .remove::<Problem>()
        .unwrap_or_else(|| Problem::from_status(status));
    let body =
        serde_json::to_vec(&problem.body(path.to_owned(), trace_id.as_str())).unwrap_or_default();
    *response.body_mut() = Body::from(body);
    response.headers_mut().remove(header::CONTENT_LENGTH);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    Some(problem)
}

/// Responds to a panic. The panic hook has logged its message and location.
pub(crate) fn on_panic(_message: Box<dyn Any + Send>) -> Response {
    Problem::internal().into_response()
}
