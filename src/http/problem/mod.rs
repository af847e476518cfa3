//! Errors as clients see them: `application/problem+json` (RFC 9457), from the table in [`types`].
//!
//! A handler returns a [`Problem`]; the trace layer, which knows the trace id and the path, writes
//! its body.

pub mod types;

use std::borrow::Cow;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use self::types::{
    DATABASE_READ_ONLY, DATABASE_UNAVAILABLE, INTERNAL_ERROR, OVERLOADED, PROBLEM_TYPES,
    ProblemType, TIME_LIMIT_EXCEEDED, USER_NOT_FOUND,
};
use crate::domain::violation::Violation;
use crate::error_chain::Chain;
use crate::service::error::ServiceError;

/// Media type of problem documents.
/// <https://www.rfc-editor.org/rfc/rfc9457#section-3>
pub const PROBLEM_JSON: &str = "application/problem+json";
/// Path of the error pages. A problem's `type` is the URI of its page.
pub const ERROR_PAGES: &str = "/docs/errors";

/// Most errors listed in one response.
pub const MAX_FIELD_ERRORS: usize = 32;
/// Characters of an unknown field's or parameter's name that a response repeats.
pub const MAX_NAME_SHOWN: usize = 64;

/// One wrong part of a request.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FieldError {
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

impl FieldError {
    /// A wrong field of the body; `field` is unescaped.
    pub fn field(field: &str, violation: Violation) -> Self {
        let pointer = format!("/{}", field.replace('~', "~0").replace('/', "~1"));
        Self {
            pointer: Some(pointer),
            parameter: None,
            code: violation.code.into(),
            detail: violation.detail,
        }
    }

    pub fn parameter(name: &str, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            pointer: None,
            parameter: Some(name.to_owned()),
            code: code.into(),
            detail: detail.into(),
        }
    }
}

/// An error on its way to the client.
#[derive(Clone, Debug)]
pub struct Problem {
    pub kind: &'static ProblemType,
    pub detail: Cow<'static, str>,
    pub errors: Vec<FieldError>,
    /// For the log, never for the client.
    pub cause: Option<String>,
    /// A header that only this type has.
    pub header: Option<(&'static str, &'static str)>,
    /// Members that only this type has.
    pub extensions: Box<Map<String, Value>>,
}

impl Problem {
    pub fn new(kind: &'static ProblemType, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            errors: Vec::new(),
            cause: None,
            header: None,
            extensions: Box::default(),
        }
    }

    pub fn with_errors(self, errors: Vec<FieldError>) -> Self {
        Self { errors, ..self }
    }

    pub fn with_header(self, name: &'static str, value: &'static str) -> Self {
        Self {
            header: Some((name, value)),
            ..self
        }
    }

    pub fn with_cause(self, cause: &(dyn std::error::Error + 'static)) -> Self {
        Self {
            cause: Some(Chain(cause).to_string()),
            ..self
        }
    }

    pub fn user_not_found() -> Self {
        Self::new(&USER_NOT_FOUND, "No user has this id.")
    }

    pub fn database_unavailable() -> Self {
        let detail = "The database did not answer. A write may have been committed: read the user \
                      before you repeat it. A read can be repeated a little later.";
        Self::new(&DATABASE_UNAVAILABLE, detail)
    }

    pub fn database_read_only() -> Self {
        let detail = "The database takes no writes: it is a standby, or it was set to read-only. \
                      Nothing was changed. Reads work; repeat a write a little later.";
        Self::new(&DATABASE_READ_ONLY, detail)
    }

    pub fn id_taken() -> Self {
        let detail = "The database's sequence of ids is behind the ids that are taken, and the \
                      service may not lift it: `user-management-api check` gives the statement. \
                      Nothing was changed.";
        Self::new(&DATABASE_UNAVAILABLE, detail)
    }

    pub fn schema_not_current() -> Self {
        let detail = "The database's schema is not current: migrations are pending. \
                      `user-management-api migrate` applies them. Nothing was changed.";
        Self::new(&DATABASE_UNAVAILABLE, detail)
    }

    pub fn overloaded() -> Self {
        let detail = "The service has more to do than it can in time. Nothing was changed: repeat \
                      the request a little later.";
        Self::new(&OVERLOADED, detail)
    }

    pub fn internal() -> Self {
        Self::new(
            &INTERNAL_ERROR,
            "The service's log has the cause under this trace_id.",
        )
    }

    pub fn too_slow(limit: Duration) -> Self {
        let limit = limit.as_millis();
        let detail = format!(
            "The request did not finish within {limit} ms. A write may have been committed: read \
             the user before you repeat it."
        );
        Self::new(&TIME_LIMIT_EXCEEDED, detail)
    }

    /// For an error response that did not come from a [`Problem`].
    pub fn from_status(status: StatusCode) -> Self {
        let kind = PROBLEM_TYPES
            .iter()
            .copied()
            .find(|kind| kind.status == status)
            .unwrap_or(&INTERNAL_ERROR);
        Self::new(kind, kind.meaning)
    }

    /// The body.
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
    errors: &'a [FieldError],
    #[serde(flatten)]
    #[schema(ignore)]
    extensions: &'a Map<String, Value>,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.kind.status.into_response();
        if let Some(seconds) = self.kind.retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some((name, value)) = self.header {
            response
                .headers_mut()
                .insert(name, HeaderValue::from_static(value));
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<ServiceError> for Problem {
    fn from(error: ServiceError) -> Self {
        let problem = match &error {
            ServiceError::UserNotFound => Self::user_not_found(),
            ServiceError::DatabaseUnavailable(_) => Self::database_unavailable(),
            ServiceError::DatabaseReadOnly(_) => Self::database_read_only(),
            ServiceError::IdTaken(_) => Self::id_taken(),
            ServiceError::SchemaNotCurrent(_) => Self::schema_not_current(),
            ServiceError::Overloaded(_) => Self::overloaded(),
            ServiceError::Internal(_) => Self::internal(),
        };
        problem.with_cause(&error)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{FieldError, PROBLEM_TYPES, Problem, Violation};

    #[test]
    fn codes_are_unique_and_snake_case() {
        let codes: HashSet<_> = PROBLEM_TYPES.iter().map(|kind| kind.code).collect();
        assert_eq!(codes.len(), PROBLEM_TYPES.len());
        assert!(
            codes
                .iter()
                .all(|code| code.chars().all(|c| c.is_ascii_lowercase() || c == '_')),
            "{codes:?}"
        );
    }

    #[test]
    fn a_saturated_or_cut_off_service_says_when_to_come_back() {
        for kind in PROBLEM_TYPES {
            assert_eq!(
                kind.retry_after.is_some(),
                kind.status == 503,
                "{}",
                kind.code
            );
        }
    }

    #[test]
    fn a_fault_points_into_the_body_by_rfc_6901() {
        let violation = Violation {
            code: "unknown_field",
            detail: String::new(),
        };
        assert_eq!(
            FieldError::field("a/b~c", violation).pointer.unwrap(),
            "/a~1b~0c"
        );
    }

    #[test]
    fn a_cause_is_the_whole_chain_and_stays_out_of_the_body() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);
        let problem =
            Problem::new(PROBLEM_TYPES[0], "d").with_cause(&Outer(std::io::Error::other("inner")));
        assert_eq!(problem.cause.as_deref(), Some("outer: inner"));
        assert!(
            !serde_json::to_string(&problem.body("/", "t"))
                .unwrap()
                .contains("inner")
        );
    }
}
