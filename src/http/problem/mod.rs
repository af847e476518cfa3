//! Errors as clients see them: `application/problem+json` (RFC 9457), from the table in [`types`].
//!
//! A handler returns a [`Problem`]; `layers::problems`, which gets the trace id and the path,
//! writes its body.

pub(crate) mod body;
pub(crate) mod field_error;
pub(crate) mod responses;
pub(crate) mod types;

use std::borrow::Cow;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use self::body::{Members, ProblemBody};
use self::field_error::FieldError;
use self::types::{
    DATABASE_READ_ONLY, DATABASE_UNAVAILABLE, INTERNAL_ERROR, METHOD_NOT_ALLOWED, NOT_FOUND,
    OVERLOADED, PRECONDITION_FAILED, PRECONDITION_REQUIRED, ProblemType, TIME_LIMIT_EXCEEDED,
    USER_NOT_FOUND,
};
use super::entity_tag::entity_tag;
use crate::domain::user::Version;
use crate::error_chain::Chain;
use crate::service::error::ServiceError;

/// Media type of problem documents.
/// <https://www.rfc-editor.org/rfc/rfc9457#section-3>
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";
/// Path of the error pages. A problem's `type` is the URI of its page.
pub(crate) const ERROR_PAGES: &str = "/docs/errors";

/// An error on its way to the client.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub kind: &'static ProblemType,
    pub detail: Cow<'static, str>,
    pub errors: Vec<FieldError>,
    /// For the log, never for the client.
    pub cause: Option<String>,
    /// Headers besides those that every response has. Boxed, because few problems have any.
    pub headers: Option<Box<HeaderMap>>,
    pub members: Option<Members>,
}

impl Problem {
    pub(crate) fn new(kind: &'static ProblemType, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            errors: Vec::new(),
            cause: None,
            headers: None,
            members: None,
        }
    }

    pub(crate) fn with_errors(self, errors: Vec<FieldError>) -> Self {
        Self { errors, ..self }
    }

    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.get_or_insert_default().insert(name, value);
        self
    }

    pub(crate) fn with_members(self, members: Members) -> Self {
        Self {
            members: Some(members),
            ..self
        }
    }

    pub(crate) fn with_cause(self, cause: &(dyn std::error::Error + 'static)) -> Self {
        Self {
            cause: Some(Chain(cause).to_string()),
            ..self
        }
    }

    pub(crate) fn no_route() -> Self {
        Self::from_status(StatusCode::NOT_FOUND)
    }

    pub(crate) fn user_not_found() -> Self {
        Self::new(&USER_NOT_FOUND, "No user has this id.")
    }

    /// `version` is that of the user; `None` if there is no such user.
    pub(crate) fn precondition_failed(version: Option<Version>) -> Self {
        let Some(version) = version else {
            let detail = "The user does not exist, or no longer does, and `If-Match` needs one that \
                          does. Nothing was changed.";
            return Self::new(&PRECONDITION_FAILED, detail);
        };
        let detail = format!(
            "The precondition rules out the user's version, which is {version}. Nothing was changed: \
             read the user again before you repeat a change."
        );
        Self::new(&PRECONDITION_FAILED, detail).with_header(header::ETAG, entity_tag(version))
    }

    pub(crate) fn precondition_required() -> Self {
        let detail = "Send If-Match with the user's ETag, or * to change any version. Nothing was \
                      changed.";
        Self::new(&PRECONDITION_REQUIRED, detail)
    }

    pub(crate) fn database_unavailable() -> Self {
        let detail = "The database did not answer. A write may have been committed: read the user \
                      before you repeat it. A read can be repeated a little later.";
        Self::new(&DATABASE_UNAVAILABLE, detail)
    }

    pub(crate) fn keys_unread() -> Self {
        let detail = "The API keys could not be read from the database yet. Nothing was changed: \
                      repeat the request a little later.";
        Self::new(&DATABASE_UNAVAILABLE, detail)
    }

    pub(crate) fn database_read_only() -> Self {
        let detail = "The database takes no writes: it is a standby, or it was set to read-only. \
                      Nothing was changed. Reads work; repeat a write a little later.";
        Self::new(&DATABASE_READ_ONLY, detail)
    }

    pub(crate) fn id_taken() -> Self {
        let detail = "The database's sequence of ids is behind the ids that are taken, and the \
                      service may not lift it: `user-management-api check` gives the statement. \
                      Nothing was changed.";
        Self::new(&DATABASE_UNAVAILABLE, detail)
    }

    pub(crate) fn schema_not_current() -> Self {
        let detail = "The database's schema is not current: migrations are pending. \
                      `user-management-api migrate` applies them. Nothing was changed.";
        Self::new(&DATABASE_UNAVAILABLE, detail)
    }

    pub(crate) fn overloaded() -> Self {
        let detail = "The service is overloaded. Nothing was changed: repeat the request a little \
                      later.";
        Self::new(&OVERLOADED, detail)
    }

    pub(crate) fn internal() -> Self {
        Self::new(
            &INTERNAL_ERROR,
            "The service's log has the cause under this trace_id.",
        )
    }

    pub(crate) fn too_slow(limit: Duration) -> Self {
        let limit = limit.as_millis();
        let detail = format!(
            "The request did not finish within {limit} ms. A write may have been committed: read \
             the user before you repeat it."
        );
        Self::new(&TIME_LIMIT_EXCEEDED, detail)
    }

    /// The problem of an error response that comes from axum's router.
    pub(crate) fn from_status(status: StatusCode) -> Self {
        let kind = match status {
            StatusCode::NOT_FOUND => &NOT_FOUND,
            StatusCode::METHOD_NOT_ALLOWED => &METHOD_NOT_ALLOWED,
            _ => &INTERNAL_ERROR,
        };
        Self::new(kind, kind.meaning)
    }

    pub(crate) fn body(&self, instance: String, trace_id: &str) -> ProblemBody<'_> {
        ProblemBody {
            problem_type: format!("{ERROR_PAGES}/{}", self.kind.code),
            title: self.kind.title.into(),
            status: self.kind.status.as_u16(),
            detail: self.detail.as_ref().into(),
            instance,
            code: self.kind.code.into(),
            trace_id: trace_id.to_owned(),
            errors: &self.errors,
            members: self.members.as_ref(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.kind.status.into_response();
        if let Some(seconds) = self.kind.retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(headers) = &self.headers {
            response.headers_mut().extend((**headers).clone());
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<ServiceError> for Problem {
    fn from(error: ServiceError) -> Self {
        let problem = match &error {
            ServiceError::UserNotFound => Self::user_not_found(),
            ServiceError::PreconditionFailed(version) => Self::precondition_failed(*version),
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

    use super::Problem;
    use super::types::PROBLEM_TYPES;

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
    fn every_503_says_when_to_retry() {
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
    fn a_cause_keeps_the_whole_chain_and_stays_out_of_the_body() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);
        let problem =
            Problem::new(PROBLEM_TYPES[0], "d").with_cause(&Outer(std::io::Error::other("inner")));
        assert_eq!(problem.cause.as_deref(), Some("outer: inner"));
        assert!(
            !serde_json::to_string(&problem.body("/".to_owned(), "t"))
                .unwrap()
                .contains("inner")
        );
    }
}
