//! The time limit of a request.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use tokio::time::timeout;

use crate::http::problem::Problem;

/// The response, or that it took too long. What the request has begun to write goes on.
pub async fn limit(limit: Duration, response: impl Future<Output = Response>) -> Response {
    timeout(limit, response)
        .await
        .unwrap_or_else(|_elapsed| Problem::too_slow(limit).into_response())
}
