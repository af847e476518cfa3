//! Trailing slashes, which clients of the original Python service send. One trailing slash is
//! ignored in routing; the log and the errors show the path as it was sent.

use axum::extract::Request;
use axum::http::Uri;
use axum::http::uri::PathAndQuery;

use crate::http::routes;

/// The target as the client sent it, if another one was routed.
#[derive(Clone)]
struct Sent(Uri);

/// Removes one trailing slash. Must run before the router, because it changes what is routed.
pub(crate) fn trim<B>(mut request: Request<B>) -> Request<B> {
    if let Some(trimmed) = trimmed(request.uri()) {
        let sent = std::mem::replace(request.uri_mut(), trimmed);
        request.extensions_mut().insert(Sent(sent));
    }
    request
}

/// The target as it was sent.
pub(crate) fn sent(request: &Request) -> &Uri {
    let sent = request.extensions().get::<Sent>();
    sent.map_or(request.uri(), |Sent(uri)| uri)
}

fn trimmed(uri: &Uri) -> Option<Uri> {
    let path = uri.path().strip_suffix('/')?;
    if path.is_empty() || path.ends_with('/') || uri.path() == routes::HOME {
        return None;
    }
    let path_and_query = match uri.query() {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
        None => PathAndQuery::try_from(path),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path_and_query.ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::trimmed;

    #[test]
    fn one_trailing_slash_is_removed_and_the_rest_stays() {
        let trimmed = |uri: &str| trimmed(&uri.parse().unwrap()).map(|uri| uri.to_string());
        assert_eq!(trimmed("/users/"), Some("/users".to_owned()));
        assert_eq!(
            trimmed("/users/?limit=1/"),
            Some("/users?limit=1/".to_owned())
        );
        assert_eq!(
            trimmed("http://h:1/users/1/"),
            Some("http://h:1/users/1".to_owned())
        );
        for same in [
            "/",
            "//",
            "/users",
            "/users//",
            "/docs/",
            "/docs//",
            "/users?x=/",
            "*",
        ] {
            assert_eq!(trimmed(same), None, "{same}");
        }
    }
}
