//! Problem documents as they are sent, and their schemas.

use std::borrow::Cow;

use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};

use super::field_error::FieldError;
use super::types::PROBLEM_TYPES;
use crate::http::health::checks::Checks;

/// Name of the schema of most errors.
pub(crate) const PROBLEM_SCHEMA: &str = "Problem";
/// Name of the schema of the error that lists the state of each dependency.
pub(crate) const NOT_READY_SCHEMA: &str = "NotReady";

/// An error (RFC 9457)
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemBody<'a> {
    /// Leads to a page that explains this kind of error
    #[serde(rename = "type")]
    #[schema(example = "/docs/errors/validation_failed")]
    pub problem_type: String,
    #[schema(example = "A field is wrong")]
    pub title: Cow<'a, str>,
    #[schema(example = 422)]
    pub status: u16,
    #[schema(example = "The fault is at /name.")]
    pub detail: Cow<'a, str>,
    /// Path of the request
    #[schema(example = "/users/")]
    pub instance: String,
    #[schema(schema_with = code_schema)]
    pub code: Cow<'a, str>,
    pub trace_id: String,
    /// Each wrong part of the request; empty where there is none to name
    pub errors: &'a [FieldError],
    #[serde(flatten)]
    #[schema(ignore)]
    pub members: Option<&'a Members>,
}

/// Members that only one type of problem has.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Members {
    NotReady { checks: Checks },
}

/// The error of a service that cannot serve, with the state of each dependency
#[derive(ToSchema)]
#[schema(as = NotReady)]
#[expect(dead_code, reason = "it is the schema of `Members::NotReady`")]
pub(crate) struct NotReadyBody<'a> {
    #[serde(flatten)]
    problem: ProblemBody<'a>,
    checks: Checks,
}

fn code_schema() -> Schema {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("The word to switch on. A later version may add codes"))
        .enum_values(Some(PROBLEM_TYPES.iter().map(|kind| kind.code)))
        .examples(["validation_failed"])
        .into()
}
