//! Query parameters. Out of range, repeated or unknown ones are errors, never silently corrected.

use std::ops::RangeInclusive;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::http::problem::Problem;
use crate::http::problem::field_error::{
    FieldError, FieldErrorCode, MAX_FIELD_ERRORS, MAX_NAME_SHOWN,
};
use crate::http::problem::responses::Fallible;
use crate::http::problem::types::INVALID_QUERY;

/// The query of a route. It takes its parameters by name; one that it does not take is an error.
pub(crate) trait FromQuery: Sized {
    /// `None` if a parameter is wrong; `query` records why.
    fn from_query(query: &mut Query) -> Option<Self>;
}

/// The query of a request, read as `T`.
pub(crate) struct Parameters<T>(pub T);

impl<T: FromQuery, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        parse(parts.uri.query().unwrap_or_default()).map(Self)
    }
}

impl<T: FromQuery> Fallible for Parameters<T> {
    fn problems() -> Vec<Problem> {
        parse::<T>("limit=0").err().into_iter().collect()
    }
}

/// Reads a query string as `T`.
///
/// # Errors
/// `invalid_query`, naming every error.
fn parse<T: FromQuery>(raw: &str) -> Result<T, Problem> {
    let mut query = Query::read(raw);
    let request = T::from_query(&mut query);
    match (request, query.into_errors()) {
        (Some(request), errors) if errors.is_empty() => Ok(request),
        (_, errors) => Err(invalid(errors)),
    }
}

/// For routes that take no query parameter.
pub(crate) struct NoQuery;

impl FromQuery for NoQuery {
    fn from_query(_query: &mut Query) -> Option<Self> {
        Some(Self)
    }
}

/// The parameters not taken yet, and the errors of those taken.
pub(crate) struct Query {
    parameters: Vec<(String, String)>,
    errors: Vec<FieldError>,
}

impl Query {
    fn read(raw: &str) -> Self {
        Self {
            parameters: form_urlencoded::parse(raw.as_bytes())
                .into_owned()
                .collect(),
            errors: Vec::new(),
        }
    }

    /// Takes a number: `default` if it is absent, `None` if it is wrong. `hint` is appended to the error
    /// for a number out of range.
    pub(crate) fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
        default: i64,
        hint: &str,
    ) -> Option<i64> {
        let values: Vec<String> = self
            .parameters
            .extract_if(.., |(given, _)| given == name)
            .map(|(_, value)| value)
            .collect();
        match &values[..] {
            [] => Some(default),
            [value] => {
                let digits = value.bytes().all(|byte| byte.is_ascii_digit());
                let parsed = digits.then(|| value.parse().ok()).flatten();
                let in_range = parsed.filter(|number| range.contains(number));
                if in_range.is_none() {
                    let detail = format!(
                        "Must be a whole number from {} to {}.{hint}",
                        range.start(),
                        range.end()
                    );
                    let code = FieldErrorCode::OutOfRange;
                    self.errors.push(FieldError::parameter(name, code, detail));
                }
                in_range
            }
            _ => {
                let code = FieldErrorCode::Repeated;
                let error = FieldError::parameter(name, code, "Must be given once.");
                self.errors.push(error);
                None
            }
        }
    }

    fn into_errors(mut self) -> Vec<FieldError> {
        let unknown = self.parameters.iter().take(MAX_FIELD_ERRORS);
        self.errors.extend(unknown.map(|(name, _)| {
            let shown: String = name.chars().take(MAX_NAME_SHOWN).collect();
            let detail = "There is no such parameter here.";
            FieldError::parameter(&shown, FieldErrorCode::UnknownParameter, detail)
        }));
        self.errors
    }
}

fn invalid(errors: Vec<FieldError>) -> Problem {
    let names: Vec<_> = errors
        .iter()
        .filter_map(|fault| fault.parameter.as_deref())
        .collect();
    let detail = format!("Wrong in the query: {}.", names.join(", "));
    Problem::new(&INVALID_QUERY, detail).with_errors(errors)
}
