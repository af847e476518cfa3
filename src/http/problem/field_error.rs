//! The wrong parts of a request.

use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::violation::{Rule, Violation};

/// Most errors listed in one response.
pub(crate) const MAX_FIELD_ERRORS: usize = 32;
/// Characters of an unknown field's or parameter's name that a response repeats.
pub(crate) const MAX_NAME_SHOWN: usize = 64;

/// One wrong part of a request.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct FieldError {
    /// JSON pointer (RFC 6901) to the wrong field of the body; empty for the body itself
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "/name")]
    pub pointer: Option<String>,
    /// Name of the wrong query parameter
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    #[schema(example = "too_long")]
    pub code: FieldErrorCode,
    #[schema(example = "Must be at most 255 characters long.")]
    pub detail: String,
}

/// What is wrong. A later version may add codes
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FieldErrorCode {
    // In a body
    InvalidType,
    Required,
    UnknownField,
    DuplicateField,
    // In a string
    Blank,
    ControlCharacter,
    BidiControl,
    TooShort,
    TooLong,
    // In a query
    OutOfRange,
    Repeated,
    UnknownParameter,
}

impl From<Rule> for FieldErrorCode {
    fn from(rule: Rule) -> Self {
        match rule {
            Rule::Blank => Self::Blank,
            Rule::ControlCharacter => Self::ControlCharacter,
            Rule::BidiControl => Self::BidiControl,
            Rule::TooShort => Self::TooShort,
            Rule::TooLong => Self::TooLong,
        }
    }
}

impl FieldError {
    /// An error of the body as a whole.
    pub(crate) fn body(code: FieldErrorCode, detail: &str) -> Self {
        Self {
            pointer: Some(String::new()),
            parameter: None,
            code,
            detail: detail.to_owned(),
        }
    }

    /// An error of a field of the body; `field` is not escaped yet.
    pub(crate) fn field(field: &str, code: FieldErrorCode, detail: impl Into<String>) -> Self {
        let pointer = format!("/{}", field.replace('~', "~0").replace('/', "~1"));
        Self {
            pointer: Some(pointer),
            parameter: None,
            code,
            detail: detail.into(),
        }
    }

    /// The error of a field whose value breaks a rule.
    pub(crate) fn violation(field: &str, violation: Violation) -> Self {
        Self::field(field, violation.rule.into(), violation.detail)
    }

    pub(crate) fn parameter(name: &str, code: FieldErrorCode, detail: impl Into<String>) -> Self {
        Self {
            pointer: None,
            parameter: Some(name.to_owned()),
            code,
            detail: detail.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FieldError, FieldErrorCode};

    #[test]
    fn a_field_error_points_into_the_body_as_rfc_6901_says() {
        let error = FieldError::field("a/b~c", FieldErrorCode::UnknownField, "");
        assert_eq!(error.pointer.unwrap(), "/a~1b~0c");
    }
}
