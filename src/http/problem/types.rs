//! The one table of errors: code, status, title, meaning. `/docs/errors` shows it.

use axum::http::StatusCode;

/// One type of problem.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ProblemType {
    /// Stable `snake_case` word; also the last segment of the type's URI.
    pub code: &'static str,
    pub status: StatusCode,
    pub title: &'static str,
    /// What it means and what to do.
    pub meaning: &'static str,
    /// Seconds after which to retry the request.
    pub retry_after: Option<u32>,
}

const fn problem_type(
    code: &'static str,
    status: StatusCode,
    title: &'static str,
    meaning: &'static str,
) -> ProblemType {
    ProblemType {
        code,
        status,
        title,
        meaning,
        retry_after: None,
    }
}

const fn transient(
    code: &'static str,
    title: &'static str,
    meaning: &'static str,
    retry_after: u32,
) -> ProblemType {
    ProblemType {
        code,
        status: StatusCode::SERVICE_UNAVAILABLE,
        title,
        meaning,
        retry_after: Some(retry_after),
    }
}

/// Defines the types, and the list of all of them.
macro_rules! problem_types {
    ($($name:ident = $problem_type:expr;)*) => {
        $(pub(crate) static $name: ProblemType = $problem_type;)*

        /// Every type, for the documentation.
        pub(crate) static PROBLEM_TYPES: &[&ProblemType] = &[$(&$name),*];
    };
}

problem_types! {
    BAD_REQUEST = problem_type(
        "bad_request",
        StatusCode::BAD_REQUEST,
        "The request cannot be understood",
        "The path or a header is not well formed, a header is given twice, `If-Match` or \
         `If-None-Match` is not a list of entity tags, `Host` is missing, or `Transfer-Encoding` is not \
         `chunked`. Nothing was changed.",
    );
    MALFORMED_JSON = problem_type(
        "malformed_json",
        StatusCode::BAD_REQUEST,
        "The body is not JSON",
        "The body cannot be parsed as JSON in UTF-8. `detail` says where. Nothing was changed.",
    );
    UNREADABLE_BODY = problem_type(
        "unreadable_body",
        StatusCode::BAD_REQUEST,
        "The body cannot be read",
        "The connection or the transfer encoding broke before the body's end. Nothing was changed.",
    );
    INVALID_QUERY = problem_type(
        "invalid_query",
        StatusCode::BAD_REQUEST,
        "A query parameter is wrong",
        "A query parameter is unknown, repeated or out of range. `errors` names each in \
         `parameter`.",
    );
    UNAUTHENTICATED = problem_type(
        "unauthenticated",
        StatusCode::UNAUTHORIZED,
        "The request shows no API key",
        "Send the header `Authorization: Bearer TOKEN` with the token of an API key, which the \
         operator of the service makes: `user-management-api api-key create`. Nothing was changed.",
    );
    INVALID_TOKEN = problem_type(
        "invalid_token",
        StatusCode::UNAUTHORIZED,
        "The token is not valid",
        "The token is not that of an API key, its key was revoked, or it has expired; `detail` tells \
         the last from the others. Nothing was changed.",
    );
    INSUFFICIENT_SCOPE = problem_type(
        "insufficient_scope",
        StatusCode::FORBIDDEN,
        "The key may not do this",
        "The header `WWW-Authenticate` names the scope that the request needs and the key does not \
         have. Nothing was changed.",
    );
    NOT_FOUND = problem_type(
        "not_found",
        StatusCode::NOT_FOUND,
        "There is nothing at this path",
        "No route has this path. `/docs` lists all.",
    );
    USER_NOT_FOUND = problem_type(
        "user_not_found",
        StatusCode::NOT_FOUND,
        "There is no such user",
        "The user was deleted or never existed, or the path does not hold a user's id.",
    );
    METHOD_NOT_ALLOWED = problem_type(
        "method_not_allowed",
        StatusCode::METHOD_NOT_ALLOWED,
        "The path does not take this method",
        "The `Allow` header lists the methods that the path takes.",
    );
    BODY_TIMEOUT = problem_type(
        "body_timeout",
        StatusCode::REQUEST_TIMEOUT,
        "The body came too slowly",
        "No more bytes of the body came within the service's time limit for them. Nothing was \
         changed.",
    );
    PAYLOAD_TOO_LARGE = problem_type(
        "payload_too_large",
        StatusCode::PAYLOAD_TOO_LARGE,
        "The body is too large",
        "A body may be 65,536 bytes at most. Nothing was changed.",
    );
    UNSUPPORTED_MEDIA_TYPE = problem_type(
        "unsupported_media_type",
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "The body's media type is not supported",
        "Send the body as JSON, with the header `Content-Type: application/json` (to PATCH: \
         `application/merge-patch+json`), and without `Content-Encoding`. Nothing was changed.",
    );
    PRECONDITION_FAILED = problem_type(
        "precondition_failed",
        StatusCode::PRECONDITION_FAILED,
        "The precondition does not hold",
        "`If-Match` or `If-None-Match` rules out the user's version: the user was changed since you \
         read it, or is gone. `ETag` is the tag of the present version, and absent if there is no \
         such user. Read the user again, and repeat the change with the new tag if it still makes \
         sense. Nothing was changed.",
    );
    PRECONDITION_REQUIRED = problem_type(
        "precondition_required",
        StatusCode::PRECONDITION_REQUIRED,
        "`If-Match` is missing",
        "This service changes a user only with `If-Match`, so that nobody overwrites what they have \
         not seen. Send the `ETag` of the user as you read it, or `*` for any version. Nothing was \
         changed.",
    );
    MISDIRECTED_REQUEST = problem_type(
        "misdirected_request",
        StatusCode::MISDIRECTED_REQUEST,
        "The request is for another host",
        "`Host` is neither an IP address, nor `localhost`, nor a name of the setting \
         `ALLOWED_HOSTS`. The service refuses other names, because a web page could send them (DNS \
         rebinding). Nothing was changed.",
    );
    URI_TOO_LONG = problem_type(
        "uri_too_long",
        StatusCode::URI_TOO_LONG,
        "The path is too long",
        "Path and query may be 8,192 bytes at most. Nothing was changed.",
    );
    EXPECTATION_FAILED = problem_type(
        "expectation_failed",
        StatusCode::EXPECTATION_FAILED,
        "The expectation cannot be met",
        "The header `Expect` is not `100-continue`. Nothing was changed.",
    );
    HEAD_TOO_LARGE = problem_type(
        "head_too_large",
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        "The head of the request is too large",
        "Request line and headers may be 32,768 bytes at most. Nothing was changed.",
    );
    VALIDATION_FAILED = problem_type(
        "validation_failed",
        StatusCode::UNPROCESSABLE_ENTITY,
        "A field is wrong",
        "The body is JSON, but fields are missing, unknown, repeated or against the rules. `errors` \
         names each by a JSON pointer, with a code and an explanation. Nothing was changed.",
    );
    INTERNAL_ERROR = problem_type(
        "internal_error",
        StatusCode::INTERNAL_SERVER_ERROR,
        "Something went wrong in the service",
        "A defect of the service. Its log has the cause under the same `trace_id`.",
    );
    DATABASE_UNAVAILABLE = transient(
        "database_unavailable",
        "The database is unavailable",
        "The database is away or too slow, or its schema is not current, or its next id is taken; \
         `detail` says which. A write may have been committed, and if it was, its event is too: \
         read the user before you repeat it. A read can be repeated a little later.",
        1,
    );
    DATABASE_READ_ONLY = transient(
        "database_read_only",
        "The database takes no writes",
        "The database is a standby, or was set to read-only. Nothing was changed. Reads work; \
         repeat a write a little later.",
        1,
    );
    OVERLOADED = transient(
        "overloaded",
        "The service is saturated",
        "All cores are busy hashing passwords, or too many requests wait: in all, of this client, \
         or for this user. Nothing was changed: repeat the request a little later.",
        1,
    );
    NOT_READY = transient(
        "not_ready",
        "The service is not ready",
        "The database is away, migrations are pending, or the process is stopping. `checks` says \
         which.",
        1,
    );
    TIME_LIMIT_EXCEEDED = problem_type(
        "time_limit_exceeded",
        StatusCode::GATEWAY_TIMEOUT,
        "The request took too long",
        "The request, its body included, did not finish within the service's time limit. A write \
         may have been committed: read the user before you repeat it.",
    );
}
