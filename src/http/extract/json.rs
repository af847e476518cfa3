//! Request bodies: read within the limit, parsed as JSON, turned into domain types with every fault found at once.

use std::fmt;

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
    http::{HeaderMap, HeaderValue, header},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use secrecy::{ExposeSecret, SecretString};
use serde::{
    Deserializer as _,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Deserializer, value::RawValue};

use crate::{
    domain::{
        name::Name,
        user::{NewUser, PasswordPolicy, UserChanges, Violation},
    },
    http::problem::{
        FieldError, MAX_FIELD_ERRORS, MAX_NAME_SHOWN, Problem,
        types::{
            BAD_REQUEST, MALFORMED_JSON, PAYLOAD_TOO_LARGE, UNREADABLE_BODY, UNSUPPORTED_MEDIA_TYPE, VALIDATION_FAILED,
        },
    },
};

/// Largest body, in bytes.
pub const MAX_BYTES: usize = 65_536;

/// The fields that a body may hold, as they came.
#[derive(Default)]
pub struct UserFields {
    name: Option<Given>,
    surname: Option<Given>,
    password: Option<Given>,
    lone_surrogate: bool,
    faults: Vec<FieldError>,
}

/// A field's value. All texts are wiped when dropped, as one of them may be a password.
enum Given {
    Null,
    Text(SecretString),
    Other,
}

impl<S: Send + Sync> FromRequest<S> for UserFields {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Problem> {
        check_media_type(request.headers())?;
        check_encoding(request.headers())?;
        let body = read(request).await?;
        parse(&body)
    }
}

pub fn check_media_type(headers: &HeaderMap) -> Result<(), Problem> {
    let mut given = headers.get_all(header::CONTENT_TYPE).iter().map(|value| value.to_str().unwrap_or_default());
    let detail = match (given.next(), given.next()) {
        (Some(given), None) => {
            let essence = given.split(';').next().unwrap_or_default().trim();
            if essence.eq_ignore_ascii_case("application/json") {
                return Ok(());
            }
            "Send the body with Content-Type: application/json."
        }
        (None, _) => "There is no Content-Type; send Content-Type: application/json.",
        (Some(_), Some(_)) => return Err(Problem::new(&BAD_REQUEST, "There is more than one Content-Type header.")),
    };
    Err(Problem::new(&UNSUPPORTED_MEDIA_TYPE, detail))
}

fn check_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    let is_identity = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity");
    if headers.get_all(header::CONTENT_ENCODING).iter().all(is_identity) {
        return Ok(());
    }
    let problem = Problem::new(&UNSUPPORTED_MEDIA_TYPE, "Send the body as it is, without Content-Encoding.");
    Err(problem.with_header("accept-encoding", "identity"))
}

async fn read(request: Request) -> Result<Bytes, Problem> {
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if declared.is_some_and(|length: u64| length > MAX_BYTES as u64) {
        return Err(too_large());
    }
    match Limited::new(request.into_body(), MAX_BYTES).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(error) => Err(ended_early().with_cause(error.as_ref())),
    }
}

pub fn too_large() -> Problem {
    Problem::new(&PAYLOAD_TOO_LARGE, format!("The body is larger than {MAX_BYTES} bytes."))
}

pub fn ended_early() -> Problem {
    Problem::new(&UNREADABLE_BODY, "The body ended early.")
}

pub fn parse(body: &[u8]) -> Result<UserFields, Problem> {
    let malformed = |fault: &dyn fmt::Display| Problem::new(&MALFORMED_JSON, format!("The body is not JSON: {fault}."));
    let text = str::from_utf8(body).map_err(|error| malformed(&error))?;
    if !text.trim_ascii_start().starts_with('{') {
        serde_json::from_str::<IgnoredAny>(text).map_err(|error| malformed(&error))?;
        let detail = "The body must be a JSON object.".to_owned();
        let fault = FieldError { pointer: Some(String::new()), parameter: None, code: "invalid_type".into(), detail };
        return Err(invalid(vec![fault]));
    }
    let mut json = Deserializer::from_str(text);
    let fields = json.deserialize_map(FieldsVisitor).and_then(|fields| json.end().map(|()| fields));
    let fields = fields.map_err(|error| malformed(&error))?;
    if fields.lone_surrogate { Err(malformed(&"a text holds half of a surrogate pair")) } else { Ok(fields) }
}

fn invalid(faults: Vec<FieldError>) -> Problem {
    let places: Vec<_> = faults.iter().filter_map(|fault| fault.pointer.as_deref()).collect();
    let detail = match places[..] {
        [""] => "The body is not an object.".to_owned(),
        [place] => format!("The fault is at {place}."),
        _ => format!("There are {} faults: {}.", places.len(), places.join(", ")),
    };
    Problem::new(&VALIDATION_FAILED, detail).with_errors(faults)
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = UserFields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UserFields, A::Error> {
        let mut fields = UserFields::default();
        while let Some(key) = map.next_key::<String>()? {
            let slot = match key.as_str() {
                "name" => &mut fields.name,
                "surname" => &mut fields.surname,
                "password" => &mut fields.password,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    fields.refuse(&shortened(&key), "unknown_field", "There is no such field.");
                    continue;
                }
            };
            let Some(given) = Given::parse(map.next_value()?) else {
                fields.lone_surrogate = true;
                continue;
            };
            if slot.replace(given).is_some() {
                fields.refuse(&key, "duplicate_field", "Stands in the body more than once.");
            }
        }
        Ok(fields)
    }
}

impl Given {
    /// Only a text is looked into: numbers of any length and arrays of any depth are JSON. `None` for a text with half of a
    /// surrogate pair, the one fault that [`RawValue`] lets pass.
    fn parse(value: &RawValue) -> Option<Self> {
        match value.get() {
            "null" => Some(Self::Null),
            text if text.starts_with('"') => {
                serde_json::from_str(text).ok().map(|text: String| Self::Text(text.into()))
            }
            _ => Some(Self::Other),
        }
    }
}

fn shortened(name: &str) -> String {
    match name.char_indices().nth(MAX_NAME_SHOWN) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

impl UserFields {
    /// # Errors
    /// `validation_failed`, naming every fault.
    pub fn into_new_user(mut self, policy: PasswordPolicy) -> Result<NewUser, Problem> {
        let (name, surname, password) = (self.name.take(), self.surname.take(), self.password.take());
        let name = self.required("name", name, |raw| Name::parse(raw.expose_secret()));
        let surname = self.required("surname", surname, |raw| Name::parse(raw.expose_secret()));
        let password = self.required("password", password, |raw| policy.check(raw));
        match (name, surname, password) {
            (Some(name), Some(surname), Some(password)) if self.faults.is_empty() => {
                Ok(NewUser { name, surname, password })
            }
            _ => Err(invalid(self.faults)),
        }
    }

    /// # Errors
    /// `validation_failed`, naming every fault.
    pub fn into_changes(mut self, policy: PasswordPolicy) -> Result<UserChanges, Problem> {
        let (name, surname, password) = (self.name.take(), self.surname.take(), self.password.take());
        let changes = UserChanges {
            name: self.optional("name", name, |raw| Name::parse(raw.expose_secret())),
            surname: self.optional("surname", surname, |raw| Name::parse(raw.expose_secret())),
            password: self.optional("password", password, |raw| policy.check(raw)),
        };
        if self.faults.is_empty() { Ok(changes) } else { Err(invalid(self.faults)) }
    }

    /// `None` when the field is absent, null or wrong; the last is noted.
    fn optional<T>(
        &mut self,
        field: &str,
        value: Option<Given>,
        parse: impl FnOnce(SecretString) -> Result<T, Violation>,
    ) -> Option<T> {
        let parsed = match value? {
            Given::Null => return None,
            Given::Text(raw) => parse(raw),
            Given::Other => Err(Violation { code: "invalid_type", detail: "Must be a string.".to_owned() }),
        };
        parsed.map_err(|Violation { code, detail }| self.refuse(field, code, &detail)).ok()
    }

    fn required<T>(
        &mut self,
        field: &str,
        value: Option<Given>,
        parse: impl FnOnce(SecretString) -> Result<T, Violation>,
    ) -> Option<T> {
        if matches!(value, None | Some(Given::Null)) {
            self.refuse(field, "required", "Must be given.");
        }
        self.optional(field, value, parse)
    }

    fn refuse(&mut self, field: &str, code: &'static str, detail: &str) {
        if self.faults.len() < MAX_FIELD_ERRORS {
            self.faults.push(FieldError::field(field, Violation { code, detail: detail.to_owned() }));
        }
    }
}

#[cfg(test)]
mod tests;
