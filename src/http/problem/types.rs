//! The one table of errors: code, status, title, meaning. `/docs/errors` shows it.

use axum::http::StatusCode;

/// One kind of error.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Stable `snake_case` word; also the last segment of the type's URI.
    pub code: &'static str,
    pub status: StatusCode,
    pub title: &'static str,
    /// What it means and what to do.
    pub meaning: &'static str,
    /// Seconds after which the same request is worth another try.
    pub retry_after: Option<u32>,
}

const fn kind(code: &'static str, status: StatusCode, title: &'static str, meaning: &'static str) -> Kind {
    Kind { code, status, title, meaning, retry_after: None }
}

const fn passing(code: &'static str, title: &'static str, meaning: &'static str, retry_after: u32) -> Kind {
    Kind { code, status: StatusCode::SERVICE_UNAVAILABLE, title, meaning, retry_after: Some(retry_after) }
}

pub static BAD_REQUEST: Kind = kind(
    "bad_request",
    StatusCode::BAD_REQUEST,
    "The request cannot be understood",
    "The path or a header is not well formed, a header is given twice, or `Host` is missing. Nothing was changed.",
);
pub static MALFORMED_JSON: Kind = kind(
    "malformed_json",
    StatusCode::BAD_REQUEST,
    "The body is not JSON",
    "The body cannot be parsed as JSON in UTF-8. `detail` says where. Nothing was changed.",
);
pub static UNREADABLE_BODY: Kind = kind(
    "unreadable_body",
    StatusCode::BAD_REQUEST,
    "The body cannot be read",
    "The connection or the transfer encoding broke before the body's end. Nothing was changed.",
);
pub static INVALID_QUERY: Kind = kind(
    "invalid_query",
    StatusCode::BAD_REQUEST,
    "A query parameter is wrong",
    "A query parameter is unknown, repeated or out of range. `errors` names each in `parameter`.",
);
pub static NOT_FOUND: Kind = kind(
    "not_found",
    StatusCode::NOT_FOUND,
    "There is nothing at this path",
    "No route has this path. `/docs` lists all.",
);
pub static USER_NOT_FOUND: Kind = kind(
    "user_not_found",
    StatusCode::NOT_FOUND,
    "There is no such user",
    "The user was deleted or never existed, or the path holds something else than a user's id.",
);
pub static METHOD_NOT_ALLOWED: Kind = kind(
    "method_not_allowed",
    StatusCode::METHOD_NOT_ALLOWED,
    "The path does not take this method",
    "The `Allow` header lists the methods that the path takes.",
);
pub static PAYLOAD_TOO_LARGE: Kind = kind(
    "payload_too_large",
    StatusCode::PAYLOAD_TOO_LARGE,
    "The body is too large",
    "A body may be 65,536 bytes at most. Nothing was changed.",
);
pub static UNSUPPORTED_MEDIA_TYPE: Kind = kind(
    "unsupported_media_type",
    StatusCode::UNSUPPORTED_MEDIA_TYPE,
    "The body's media type is not taken",
    "Send the body as JSON, with the header `Content-Type: application/json`, and without `Content-Encoding`.",
);
pub static MISDIRECTED_REQUEST: Kind = kind(
    "misdirected_request",
    StatusCode::MISDIRECTED_REQUEST,
    "The request is for another host",
    "`Host` is neither an IP address, nor `localhost`, nor a name of the setting `ALLOWED_HOSTS`. A service that listens on \
     loopback takes no others, for a web page could send them. Nothing was changed.",
);
pub static URI_TOO_LONG: Kind = kind(
    "uri_too_long",
    StatusCode::URI_TOO_LONG,
    "The path is too long",
    "Path and query may be 8,192 bytes at most. Nothing was changed.",
);
pub static VALIDATION_FAILED: Kind = kind(
    "validation_failed",
    StatusCode::UNPROCESSABLE_ENTITY,
    "A field is wrong",
    "The body is JSON, but fields are missing, unknown, repeated or against the rules. `errors` names each by a JSON \
     pointer, with a code and a sentence. Nothing was changed.",
);
pub static INTERNAL_ERROR: Kind = kind(
    "internal_error",
    StatusCode::INTERNAL_SERVER_ERROR,
    "Something went wrong in the service",
    "A defect of the service. Its log has the cause under the same `trace_id`.",
);
pub static DATABASE_UNAVAILABLE: Kind = passing(
    "database_unavailable",
    "The database is unavailable",
    "The database is away or too slow. A write may have been committed, and if it was, its event is too: read the user \
     before you repeat it. A read can be repeated a little later.",
    1,
);
pub static OVERLOADED: Kind = passing(
    "overloaded",
    "The service is saturated",
    "All cores are busy hashing passwords, or too many reads wait for the database. Nothing was changed: repeat the request \
     a little later.",
    1,
);
pub static NOT_READY: Kind = passing(
    "not_ready",
    "The service is not ready",
    "The database is away, migrations are pending, or the process is stopping. `checks` says which.",
    1,
);
pub static TIME_LIMIT_EXCEEDED: Kind = kind(
    "time_limit_exceeded",
    StatusCode::GATEWAY_TIMEOUT,
    "The request took too long",
    "The request, its body included, did not finish within the service's time limit. A write may have been \
     committed: read the user before you repeat it.",
);

/// Every kind, for the documentation.
pub static KINDS: [&Kind; 17] = [
    &BAD_REQUEST,
    &MALFORMED_JSON,
    &UNREADABLE_BODY,
    &INVALID_QUERY,
    &NOT_FOUND,
    &USER_NOT_FOUND,
    &METHOD_NOT_ALLOWED,
    &PAYLOAD_TOO_LARGE,
    &UNSUPPORTED_MEDIA_TYPE,
    &MISDIRECTED_REQUEST,
    &URI_TOO_LONG,
    &VALIDATION_FAILED,
    &INTERNAL_ERROR,
    &DATABASE_UNAVAILABLE,
    &OVERLOADED,
    &NOT_READY,
    &TIME_LIMIT_EXCEEDED,
];
