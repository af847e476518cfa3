//! Errors as clients see them: `application/problem+json` (RFC 9457), from one table.
//!
//! A handler returns a [`Problem`]; the trace layer, which knows the trace id and the path, writes its body.

use std::borrow::Cow;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::{domain::user::Refusal, service::error::ServiceError};

pub const PROBLEM_JSON: &str = "application/problem+json";
/// Where the kinds of errors are explained; a kind's page is its type's URI.
pub const ERROR_PAGES: &str = "/docs/errors";

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
    "The path or a header is not well formed. Nothing was changed.",
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
    "Send the body as JSON, with the header `Content-Type: application/json`.",
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
    "The database is away or too slow. A read changed nothing. A write may or may not have been committed; if it was, \
     its event is too: read before you repeat it.",
    1,
);
pub static OVERLOADED: Kind = passing(
    "overloaded",
    "The service is saturated",
    "All cores are busy hashing passwords. Nothing was changed: repeat the request a little later.",
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
    "The request, its body included, did not finish within the service's time limit. A write may or may not have been \
     committed: read before you repeat it.",
);

/// Every kind, for the documentation.
pub static KINDS: [&Kind; 15] = [
    &BAD_REQUEST,
    &MALFORMED_JSON,
    &UNREADABLE_BODY,
    &INVALID_QUERY,
    &NOT_FOUND,
    &USER_NOT_FOUND,
    &METHOD_NOT_ALLOWED,
    &PAYLOAD_TOO_LARGE,
    &UNSUPPORTED_MEDIA_TYPE,
    &VALIDATION_FAILED,
    &INTERNAL_ERROR,
    &DATABASE_UNAVAILABLE,
    &OVERLOADED,
    &NOT_READY,
    &TIME_LIMIT_EXCEEDED,
];

/// One wrong part of a request.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Fault {
    /// JSON pointer (RFC 6901) to the wrong field of the body; empty for the body itself
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "/name")]
    pub pointer: Option<String>,
    /// Name of the wrong query parameter
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    /// Stable `snake_case` word
    #[schema(example = "too_long")]
    pub code: Cow<'static, str>,
    #[schema(example = "Must be at most 255 characters long.")]
    pub detail: String,
}

impl Fault {
    /// A wrong field of the body; `field` is unescaped.
    #[must_use]
    pub fn field(field: &str, refusal: Refusal) -> Self {
        let pointer = format!("/{}", field.replace('~', "~0").replace('/', "~1"));
        Self { pointer: Some(pointer), parameter: None, code: refusal.code.into(), detail: refusal.detail }
    }

    #[must_use]
    pub fn parameter(name: &str, code: &'static str, detail: impl Into<String>) -> Self {
        Self { pointer: None, parameter: Some(name.to_owned()), code: code.into(), detail: detail.into() }
    }
}

/// An error on its way to the client.
#[derive(Clone, Debug)]
pub struct Problem {
    pub kind: &'static Kind,
    pub detail: Cow<'static, str>,
    pub errors: Vec<Fault>,
    /// For the log, never for the client.
    pub cause: Option<String>,
    /// Members that only this kind has.
    pub extensions: Map<String, Value>,
}

impl Problem {
    #[must_use]
    pub fn new(kind: &'static Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, detail: detail.into(), errors: Vec::new(), cause: None, extensions: Map::new() }
    }

    #[must_use]
    pub fn with_errors(self, errors: Vec<Fault>) -> Self {
        Self { errors, ..self }
    }

    #[must_use]
    pub fn with_cause(self, cause: &dyn std::error::Error) -> Self {
        let mut chain = cause.to_string();
        let mut next = cause.source();
        while let Some(source) = next {
            chain = format!("{chain}: {source}");
            next = source.source();
        }
        Self { cause: Some(chain), ..self }
    }

    /// What to say of an error response that no [`Problem`] made.
    #[must_use]
    pub fn from_status(status: StatusCode) -> Self {
        let kind = KINDS.into_iter().find(|kind| kind.status == status).unwrap_or(&INTERNAL_ERROR);
        Self::new(kind, kind.meaning)
    }

    /// The body.
    #[must_use]
    pub fn body(&self, instance: &str, trace_id: &str) -> ProblemBody<'_> {
        ProblemBody {
            problem_type: format!("{ERROR_PAGES}/{}", self.kind.code),
            title: self.kind.title.into(),
            status: self.kind.status.as_u16(),
            detail: self.detail.as_ref().into(),
            instance: instance.to_owned(),
            code: self.kind.code.into(),
            trace_id: trace_id.to_owned(),
            errors: &self.errors,
            extensions: &self.extensions,
        }
    }
}

/// An error (RFC 9457)
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody<'a> {
    /// Leads to a page that explains this kind of error
    #[serde(rename = "type")]
    #[schema(example = "/docs/errors/validation_failed")]
    problem_type: String,
    #[schema(example = "A field is wrong")]
    title: Cow<'a, str>,
    #[schema(example = 422)]
    status: u16,
    #[schema(example = "The fault is at /name.")]
    detail: Cow<'a, str>,
    /// Path of the request
    #[schema(example = "/users/")]
    instance: String,
    /// Stable `snake_case` word, the one to switch on
    #[schema(example = "validation_failed")]
    code: Cow<'a, str>,
    trace_id: String,
    /// Each wrong part of the request; empty where there is none to name
    errors: &'a [Fault],
    #[serde(flatten)]
    #[schema(ignore)]
    extensions: &'a Map<String, Value>,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.kind.status.into_response();
        if let Some(seconds) = self.kind.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<ServiceError> for Problem {
    fn from(error: ServiceError) -> Self {
        let (kind, detail) = match &error {
            ServiceError::UserNotFound => (&USER_NOT_FOUND, "No user has this id."),
            ServiceError::DatabaseUnavailable(_) => {
                (&DATABASE_UNAVAILABLE, "The database did not answer; repeat the request a little later.")
            }
            ServiceError::Overloaded(_) => {
                (&OVERLOADED, "All cores are busy hashing passwords; repeat the request a little later.")
            }
            ServiceError::Internal(_) => (&INTERNAL_ERROR, "The service's log has the cause under this trace_id."),
        };
        Self::new(kind, detail).with_cause(&error)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{Fault, KINDS, Problem, Refusal};

    #[test]
    fn codes_are_unique_and_snake_case() {
        let codes: HashSet<_> = KINDS.iter().map(|kind| kind.code).collect();
        assert_eq!(codes.len(), KINDS.len());
        assert!(codes.iter().all(|code| code.chars().all(|c| c.is_ascii_lowercase() || c == '_')), "{codes:?}");
    }

    #[test]
    fn a_saturated_or_cut_off_service_says_when_to_come_back() {
        for kind in KINDS {
            assert_eq!(kind.retry_after.is_some(), kind.status == 503, "{}", kind.code);
        }
    }

    #[test]
    fn a_fault_points_into_the_body_by_rfc_6901() {
        let refusal = Refusal { code: "unknown_field", detail: String::new() };
        assert_eq!(Fault::field("a/b~c", refusal).pointer.unwrap(), "/a~1b~0c");
    }

    #[test]
    fn a_cause_is_the_whole_chain_and_stays_out_of_the_body() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);
        let problem = Problem::new(KINDS[0], "d").with_cause(&Outer(std::io::Error::other("inner")));
        assert_eq!(problem.cause.as_deref(), Some("outer: inner"));
        assert!(!serde_json::to_string(&problem.body("/", "t")).unwrap().contains("inner"));
    }
}
