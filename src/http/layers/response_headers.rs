//! Headers that every response has.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;

use crate::http::routes::{Cache, Traits};

/// Keeps other sites from embedding responses, and from measuring them.
/// <https://fetch.spec.whatwg.org/#cross-origin-resource-policy-header>
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

pub(crate) fn add(response: &mut Response, of_route: Traits) {
    // A caller who is not let in must not learn from it whether there is such a route.
    let cache = if response.status() == StatusCode::UNAUTHORIZED {
        Cache::Never
    } else {
        of_route.cache
    };
    let headers = response.headers_mut();
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(cache.header());
}

/// The router adds `Allow` after all layers, to refusals too.
pub(crate) fn hide_methods(mut response: Response) -> Response {
    if response.status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().remove(header::ALLOW);
    }
    response
}
