//! Parses JSON bodies, and reports all errors together.

use std::marker::PhantomData;
use std::{fmt, str};

use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use secrecy::SecretString;
use serde::Deserializer as _;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::Deserializer;
use serde_json::value::RawValue;

use super::raw_body::BodyLimits;
use crate::domain::password::PasswordPolicy;
use crate::domain::violation::Violation;
use crate::http::problem::Problem;
use crate::http::problem::field_error::{
    FieldError, FieldErrorCode, MAX_FIELD_ERRORS, MAX_NAME_SHOWN,
};
use crate::http::problem::responses::Fallible;
use crate::http::problem::types::{
    BAD_REQUEST, MALFORMED_JSON, UNSUPPORTED_MEDIA_TYPE, VALIDATION_FAILED,
};
use crate::http::state::AppState;

/// <https://www.rfc-editor.org/rfc/rfc5789#section-3.1>
const ACCEPT_PATCH: HeaderName = HeaderName::from_static("accept-patch");

/// A request body. It takes its fields by name; a field that it does not take is an error.
pub(crate) trait FromFields: Sized {
    const MEDIA_TYPE: MediaType = MediaType::Json;

    /// `None` if a field is wrong; `fields` records why.
    fn from_fields(fields: &mut Fields, policy: PasswordPolicy) -> Option<Self>;
}

#[derive(Clone, Copy)]
pub(crate) enum MediaType {
    Json,
    /// <https://www.rfc-editor.org/rfc/rfc7396>
    MergePatch,
}

impl MediaType {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::MergePatch => "application/merge-patch+json",
        }
    }
}

/// The body of a request, read as `T`.
pub(crate) struct Body<T>(pub T);

impl<T: FromFields> FromRequest<AppState> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Problem> {
        check_media_type(request.headers(), T::MEDIA_TYPE)?;
        check_encoding(request.headers())?;
        let body = state.bodies.read(request, &state.head).await?;
        parse(&body, state.contract.password_policy).map(Self)
    }
}

impl<T: FromFields> Fallible for Body<T> {
    fn problems() -> Vec<Problem> {
        let policy = PasswordPolicy::default();
        let refused = [
            parse::<T>(br#"{"name": "#, policy).err(),
            parse::<T>(br#"{"name": "", "nickname": "x"}"#, policy).err(),
            check_media_type(&HeaderMap::new(), T::MEDIA_TYPE).err(),
        ];
        let refused = refused.into_iter().flatten();
        refused.chain(BodyLimits::problems()).collect()
    }
}

fn check_media_type(headers: &HeaderMap, expected: MediaType) -> Result<(), Problem> {
    let name = expected.as_str();
    let mut given = headers
        .get_all(header::CONTENT_TYPE)
        .iter()
        .map(|value| value.to_str().unwrap_or_default());
    let detail = match (given.next(), given.next()) {
        (Some(given), None) => {
            let essence = given.split(';').next().unwrap_or_default().trim();
            if essence.eq_ignore_ascii_case(name) {
                return Ok(());
            }
            format!("Send the body with Content-Type: {name}.")
        }
        (None, _) => format!("There is no Content-Type; send Content-Type: {name}."),
        (Some(_), Some(_)) => {
            return Err(Problem::new(
                &BAD_REQUEST,
                "There is more than one Content-Type header.",
            ));
        }
    };
    let problem = Problem::new(&UNSUPPORTED_MEDIA_TYPE, detail);
    Err(match expected {
        MediaType::Json => problem,
        MediaType::MergePatch => problem.with_header(ACCEPT_PATCH, HeaderValue::from_static(name)),
    })
}

fn check_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    let is_identity = |value: &HeaderValue| {
        value
            .as_bytes()
            .trim_ascii()
            .eq_ignore_ascii_case(b"identity")
    };
    if headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .all(is_identity)
    {
        return Ok(());
    }
    let problem = Problem::new(
        &UNSUPPORTED_MEDIA_TYPE,
        "Send the body as it is, without Content-Encoding.",
    );
    Err(problem.with_header(
        header::ACCEPT_ENCODING,
        HeaderValue::from_static("identity"),
    ))
}

/// Reads a body as `T`.
///
/// # Errors
/// `malformed_json`; or `validation_failed`, naming every error.
pub(crate) fn parse<T: FromFields>(body: &[u8], policy: PasswordPolicy) -> Result<T, Problem> {
    let malformed = |error: &dyn fmt::Display| {
        Problem::new(&MALFORMED_JSON, format!("The body is not JSON: {error}."))
    };
    let text = str::from_utf8(body).map_err(|error| malformed(&error))?;
    if !text.trim_ascii_start().starts_with('{') {
        serde_json::from_str::<IgnoredAny>(text).map_err(|error| malformed(&error))?;
        let detail = "The body must be a JSON object.";
        let error = FieldError::body(FieldErrorCode::InvalidType, detail);
        return Err(invalid(vec![error]));
    }
    let mut json = Deserializer::from_str(text);
    let fields = json
        .deserialize_map(FieldsVisitor(PhantomData))
        .and_then(|fields| json.end().map(|()| fields));
    let mut fields = fields.map_err(|error| malformed(&error))?;
    let request = T::from_fields(&mut fields, policy);
    if fields.has_lone_surrogate {
        return Err(malformed(&"a text holds half of a surrogate pair"));
    }
    match (request, fields.into_errors()) {
        (Some(request), errors) if errors.is_empty() => Ok(request),
        (_, errors) => Err(invalid(errors)),
    }
}

fn invalid(errors: Vec<FieldError>) -> Problem {
    let places: Vec<_> = errors
        .iter()
        .filter_map(|error| error.pointer.as_deref())
        .collect();
    let detail = match places[..] {
        [""] => "The body is not an object.".to_owned(),
        [place] => format!("The fault is at {place}."),
        _ => format!("There are {} faults: {}.", places.len(), places.join(", ")),
    };
    Problem::new(&VALIDATION_FAILED, detail).with_errors(errors)
}

/// The fields not taken yet, in the body's order, and the errors of those taken.
pub(crate) struct Fields<'a> {
    given: Vec<Given<'a>>,
    /// Position and name of each repeated field.
    duplicates: Vec<(usize, &'static str)>,
    errors: Vec<FieldError>,
    has_lone_surrogate: bool,
}

struct Given<'a> {
    /// Position in the body.
    place: usize,
    name: String,
    value: &'a RawValue,
}

impl<'a> Fields<'a> {
    /// `None` if the field is absent, null or wrong; a wrong one is recorded as an error.
    pub(crate) fn optional<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(SecretString) -> Result<T, Violation>,
    ) -> Option<T> {
        let value = self.take(name)?.get();
        if value == "null" {
            return None;
        }
        if !value.starts_with('"') {
            // Not parsed further: numbers of any length and arrays of any depth are valid JSON.
            let error = FieldError::field(name, FieldErrorCode::InvalidType, "Must be a string.");
            self.errors.push(error);
            return None;
        }
        parse(self.text(value)?)
            .map_err(|violation| self.errors.push(FieldError::violation(name, violation)))
            .ok()
    }

    /// Reads a string. Any string may be a password, so it is wiped when dropped.
    fn text(&mut self, value: &str) -> Option<SecretString> {
        let text = serde_json::from_str::<String>(value)
            .ok()
            .map(SecretString::from);
        // The only malformed JSON that `RawValue` accepts.
        self.has_lone_surrogate |= text.is_none();
        text
    }

    /// Like [`Self::optional`], but absent or null is an error.
    pub(crate) fn required<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(SecretString) -> Result<T, Violation>,
    ) -> Option<T> {
        if self.is_null(name).unwrap_or(true) {
            let error = FieldError::field(name, FieldErrorCode::Required, "Must be given.");
            self.errors.push(error);
        }
        self.optional(name, parse)
    }

    /// Like [`Self::optional`], but null is an error.
    pub(crate) fn not_null<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(SecretString) -> Result<T, Violation>,
    ) -> Option<T> {
        if self.is_null(name).unwrap_or(false) {
            let detail = "Must not be null: it cannot be removed.";
            let error = FieldError::field(name, FieldErrorCode::Required, detail);
            self.errors.push(error);
        }
        self.optional(name, parse)
    }

    /// Whether the field is null; `None` if it is absent.
    fn is_null(&self, name: &str) -> Option<bool> {
        let last = self.given.iter().rfind(|given| given.name == name)?;
        Some(last.value.get() == "null")
    }

    /// The last field of that name. Earlier ones must be valid JSON too.
    fn take(&mut self, name: &'static str) -> Option<&'a RawValue> {
        let taken: Vec<_> = self
            .given
            .extract_if(.., |given| given.name == name)
            .collect();
        for (before, again) in taken.iter().zip(taken.iter().skip(1)) {
            if before.value.get().starts_with('"') {
                self.text(before.value.get());
            }
            self.duplicates.push((again.place, name));
        }
        taken.last().map(|given| given.value)
    }

    /// Unknown and repeated fields first, in the body's order.
    fn into_errors(self) -> Vec<FieldError> {
        let unknown = self.given.iter().take(MAX_FIELD_ERRORS).map(|given| {
            let name = shortened(&given.name);
            let detail = "There is no such field.";
            let error = FieldError::field(&name, FieldErrorCode::UnknownField, detail);
            (given.place, error)
        });
        let duplicates = self.duplicates.iter().take(MAX_FIELD_ERRORS);
        let duplicates = duplicates.map(|(place, name)| {
            let detail = "Must not be given more than once.";
            let error = FieldError::field(name, FieldErrorCode::DuplicateField, detail);
            (*place, error)
        });
        let mut of_body: Vec<_> = unknown.chain(duplicates).collect();
        of_body.sort_by_key(|(place, _)| *place);
        of_body
            .into_iter()
            .map(|(_, error)| error)
            .chain(self.errors)
            .take(MAX_FIELD_ERRORS)
            .collect()
    }
}

struct FieldsVisitor<'a>(PhantomData<&'a ()>);

impl<'de> Visitor<'de> for FieldsVisitor<'de> {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
        let mut given = Vec::new();
        while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
            given.push(Given {
                place: given.len(),
                name,
                value,
            });
        }
        Ok(Fields {
            given,
            duplicates: Vec::new(),
            errors: Vec::new(),
            has_lone_surrogate: false,
        })
    }
}

fn shortened(name: &str) -> String {
    match name.char_indices().nth(MAX_NAME_SHOWN) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}
