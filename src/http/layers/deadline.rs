//! The time limit of a request.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use tokio::time::timeout;

use crate::http::problem::Problem;
use crate::http::problem::responses::Fallible;

/// Time limit of a request unless a setting says otherwise.
pub(crate) const DEFAULT_LIMIT: Duration = Duration::from_secs(10);

/// The part of a route that can exceed the time limit.
pub(crate) struct Deadline;

impl Fallible for Deadline {
    fn problems() -> Vec<Problem> {
        vec![Problem::too_slow(DEFAULT_LIMIT)]
    }
}

/// Returns the response, or a problem if it takes too long. A write that has begun continues.
pub(crate) async fn limit(limit: Duration, response: impl Future<Output = Response>) -> Response {
    timeout(limit, response)
        .await
        .unwrap_or_else(|_elapsed| Problem::too_slow(limit).into_response())
}
