//! Headers that every response has.

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::Response;

use crate::http::routes::Traits;

/// Keeps other sites from embedding responses, and from measuring them.
/// <https://fetch.spec.whatwg.org/#cross-origin-resource-policy-header>
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

pub(crate) fn add(response: &mut Response, of_route: Traits) {
    let headers = response.headers_mut();
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(of_route.cache.header());
}
