//! Query parameters: what is out of range, repeated or unknown is an error, never silently mended.

use std::ops::RangeInclusive;

use axum::{extract::FromRequestParts, http::request::Parts};

use crate::{
    domain::page::{MAX_LIMIT, MAX_OFFSET, Page},
    http::problem::{FieldError, MAX_FIELD_ERRORS, MAX_NAME_SHOWN, Problem, types::INVALID_QUERY},
};

const PAST_MAX_OFFSET: &str = " A cursor, for pages past that, is to come.";

impl<S: Send + Sync> FromRequestParts<S> for Page {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let mut query = Query::read(parts);
        let defaults = Self::default();
        let limit = query.integer("limit", 1..=MAX_LIMIT, "").unwrap_or(defaults.limit);
        let offset = query.integer("offset", 0..=MAX_OFFSET, PAST_MAX_OFFSET).unwrap_or(defaults.offset);
        query.finish().map(|()| Self { limit, offset })
    }
}

/// For routes that take no query parameter.
pub struct NoQuery;

impl<S: Send + Sync> FromRequestParts<S> for NoQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        Query::read(parts).finish().map(|()| Self)
    }
}

/// Parameters that nobody has taken yet, and the faults of those taken.
struct Query {
    parameters: Vec<(String, String)>,
    faults: Vec<FieldError>,
}

impl Query {
    fn read(parts: &Parts) -> Self {
        let raw = parts.uri.query().unwrap_or_default();
        Self { parameters: form_urlencoded::parse(raw.as_bytes()).into_owned().collect(), faults: Vec::new() }
    }

    /// `hint` is added to what is said of a number out of range.
    fn integer(&mut self, name: &str, range: RangeInclusive<i64>, hint: &str) -> Option<i64> {
        let values: Vec<String> =
            self.parameters.extract_if(.., |(given, _)| given == name).map(|(_, value)| value).collect();
        match &values[..] {
            [] => None,
            [value] => {
                let digits = value.bytes().all(|byte| byte.is_ascii_digit());
                let parsed = digits.then(|| value.parse().ok()).flatten();
                let in_range = parsed.filter(|number| range.contains(number));
                if in_range.is_none() {
                    let detail = format!("Must be a whole number from {} to {}.{hint}", range.start(), range.end());
                    self.faults.push(FieldError::parameter(name, "out_of_range", detail));
                }
                in_range
            }
            _ => {
                self.faults.push(FieldError::parameter(name, "repeated", "Must be given once."));
                None
            }
        }
    }

    fn finish(mut self) -> Result<(), Problem> {
        let unknown = self.parameters.iter().take(MAX_FIELD_ERRORS);
        self.faults.extend(unknown.map(|(name, _)| {
            let shown: String = name.chars().take(MAX_NAME_SHOWN).collect();
            FieldError::parameter(&shown, "unknown_parameter", "There is no such parameter here.")
        }));
        if self.faults.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = self.faults.iter().filter_map(|fault| fault.parameter.as_deref()).collect();
        let detail = format!("Wrong in the query: {}.", names.join(", "));
        Err(Problem::new(&INVALID_QUERY, detail).with_errors(self.faults))
    }
}

#[cfg(test)]
mod tests {
    use axum::{extract::FromRequestParts, http::Request};

    use super::{Page, Problem};

    async fn page(query: &str) -> Result<Page, Problem> {
        let request = Request::get(format!("/users?{query}")).body(()).unwrap();
        Page::from_request_parts(&mut request.into_parts().0, &()).await
    }

    #[tokio::test]
    async fn limits_and_offsets_in_range_are_taken() {
        assert_eq!(page("").await.unwrap(), Page { limit: 100, offset: 0 });
        assert_eq!(page("limit=%31&offset=0").await.unwrap(), Page { limit: 1, offset: 0 });
        assert_eq!(page("offset=100000").await.unwrap().offset, 100_000);
    }

    #[tokio::test]
    async fn everything_else_is_named() {
        for (query, code) in [
            ("limit=0", "out_of_range"),
            ("limit=101", "out_of_range"),
            ("limit=", "out_of_range"),
            ("limit=+5", "out_of_range"),
            ("limit=ten", "out_of_range"),
            ("offset=-1", "out_of_range"),
            ("offset=100001", "out_of_range"),
            ("offset=99999999999999999999", "out_of_range"),
            ("limit=1&limit=1", "repeated"),
            ("page=1", "unknown_parameter"),
            ("Limit=1", "unknown_parameter"),
        ] {
            let problem = page(query).await.unwrap_err();
            assert_eq!((problem.kind.code, problem.errors[0].code.as_ref()), ("invalid_query", code), "{query}");
        }
    }
}
