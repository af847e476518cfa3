//! Headers that every response has.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;

use crate::http::routes::{Cache, Traits};

/// Keeps other sites from embedding responses, and from measuring them.
/// <https://fetch.spec.whatwg.org/#cross-origin-resource-policy-header>
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// Marks a response that must not tell whether its request has a route.
#[derive(Clone)]
struct HidesRoute;

/// `is_shown` says whether the caller was let in, and may learn what there is.
pub(crate) fn add(response: &mut Response, of_route: Traits, is_shown: bool) {
    let cache = if is_shown {
        of_route.cache
    } else {
        response.extensions_mut().insert(HidesRoute);
        Cache::Never
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

/// Removes what the router adds after all layers: `Allow`, to every response, and the length of a
/// body that is not sent, which in a 304 would have to be that of the 200.
/// <https://www.rfc-editor.org/rfc/rfc9110#section-8.6>
pub(crate) fn prune(mut response: Response) -> Response {
    if response.extensions().get::<HidesRoute>().is_some() {
        response.headers_mut().remove(header::ALLOW);
    }
    if response.status() == StatusCode::NOT_MODIFIED {
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    response
}
