//! Request bodies: read within the limit, parsed as JSON, turned into domain types with every fault found at once.

use std::{fmt, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, Request},
    http::{HeaderMap, header},
};
use futures_util::StreamExt;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::{
    Deserializer as _,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Value, error::Category};
use tokio::time::timeout;

use super::error::{
    Fault, MAX_FAULTS, MAX_NAME_SHOWN, Problem,
    kinds::{MALFORMED_JSON, PAYLOAD_TOO_LARGE, UNREADABLE_BODY, UNSUPPORTED_MEDIA_TYPE, VALIDATION_FAILED},
};
use crate::domain::user::{Name, NewUser, PasswordPolicy, Refusal, UserChanges};

/// Largest body, in bytes.
pub const MAX_BYTES: usize = 65_536;
/// Of a body beyond [`MAX_BYTES`], read and thrown away at most so much, for at most so long: a client that writes all of
/// it before it reads gets its 413 instead of a broken connection.
const DISCARD_BYTES: usize = 256 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(30);

/// The fields that a body may hold, as they came.
#[derive(Default)]
pub struct UserFields {
    name: Option<Value>,
    surname: Option<Value>,
    password: Option<Value>,
    faults: Vec<Fault>,
}

impl<S: Send + Sync> FromRequest<S> for UserFields {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Problem> {
        check_media_type(request.headers())?;
        let body = read(request).await?;
        parse(&body)
    }
}

fn check_media_type(headers: &HeaderMap) -> Result<(), Problem> {
    let given = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    let essence = given.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let detail = match given {
        None => "There is no Content-Type; send Content-Type: application/json.",
        Some(_) => "Send the body with Content-Type: application/json.",
    };
    Err(Problem::new(&UNSUPPORTED_MEDIA_TYPE, detail))
}

async fn read(request: Request) -> Result<Bytes, Problem> {
    let too_large = || Problem::new(&PAYLOAD_TOO_LARGE, format!("The body is larger than {MAX_BYTES} bytes."));
    let waits_for_continue = request.headers().contains_key(header::EXPECT);
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let mut body = request.into_body();
    if declared.is_some_and(|length: u64| length > MAX_BYTES as u64) {
        // A client that waits for `100 Continue` has sent nothing, and never will.
        if !waits_for_continue {
            discard(body);
        }
        return Err(too_large());
    }
    match Limited::new(&mut body, MAX_BYTES).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            discard(body);
            Err(too_large())
        }
        Err(error) => Err(Problem::new(&UNREADABLE_BODY, "The body ended early.").with_cause(error.as_ref())),
    }
}

/// Reads the rest of a body in the background, so that the answer goes out meanwhile.
fn discard(body: Body) {
    tokio::spawn(timeout(DISCARD_TIME, async move {
        let mut chunks = body.into_data_stream();
        let mut discarded = 0;
        while let Some(Ok(chunk)) = chunks.next().await {
            discarded += chunk.len();
            if discarded > DISCARD_BYTES {
                return;
            }
        }
    }));
}

fn parse(body: &[u8]) -> Result<UserFields, Problem> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let fields = json.deserialize_map(FieldsVisitor).and_then(|fields| json.end().map(|()| fields));
    fields.map_err(|error| match error.classify() {
        Category::Data => {
            let detail = "The body must be a JSON object.".to_owned();
            let fault = Fault { pointer: Some(String::new()), parameter: None, code: "invalid_type".into(), detail };
            invalid(vec![fault])
        }
        Category::Io | Category::Syntax | Category::Eof => {
            Problem::new(&MALFORMED_JSON, format!("The body is not JSON: {error}."))
        }
    })
}

fn invalid(faults: Vec<Fault>) -> Problem {
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
                    fields.refuse(&shortened(&key), "unknown_field", "There is no such field; it would be ignored.");
                    continue;
                }
            };
            if slot.replace(map.next_value()?).is_some() {
                fields.refuse(&key, "duplicate_field", "Stands in the body more than once.");
            }
        }
        Ok(fields)
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
        let name = self.required("name", name, |raw| Name::parse(&raw));
        let surname = self.required("surname", surname, |raw| Name::parse(&raw));
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
            name: self.optional("name", name, |raw| Name::parse(&raw)),
            surname: self.optional("surname", surname, |raw| Name::parse(&raw)),
            password: self.optional("password", password, |raw| policy.check(raw)),
        };
        if self.faults.is_empty() { Ok(changes) } else { Err(invalid(self.faults)) }
    }

    /// `None` when the field is absent, null or wrong; the last is noted.
    fn optional<T>(
        &mut self,
        field: &str,
        value: Option<Value>,
        parse: impl FnOnce(String) -> Result<T, Refusal>,
    ) -> Option<T> {
        let parsed = match value? {
            Value::Null => return None,
            Value::String(raw) => parse(raw),
            _ => Err(Refusal { code: "invalid_type", detail: "Must be a string.".to_owned() }),
        };
        parsed.map_err(|Refusal { code, detail }| self.refuse(field, code, &detail)).ok()
    }

    fn required<T>(
        &mut self,
        field: &str,
        value: Option<Value>,
        parse: impl FnOnce(String) -> Result<T, Refusal>,
    ) -> Option<T> {
        if matches!(value, None | Some(Value::Null)) {
            self.refuse(field, "required", "Must be given.");
        }
        self.optional(field, value, parse)
    }

    fn refuse(&mut self, field: &str, code: &'static str, detail: &str) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(Fault::field(field, Refusal { code, detail: detail.to_owned() }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{PasswordPolicy, Problem, parse};

    const POLICY: PasswordPolicy = PasswordPolicy { min_chars: 8 };

    fn refused(body: &str) -> Problem {
        match parse(body.as_bytes()).map(|fields| fields.into_new_user(POLICY)) {
            Err(problem) | Ok(Err(problem)) => problem,
            Ok(Ok(user)) => panic!("{body} was taken as {user:?}"),
        }
    }

    fn faults(problem: &Problem) -> Vec<(&str, &str)> {
        problem.errors.iter().map(|fault| (fault.pointer.as_deref().unwrap(), fault.code.as_ref())).collect()
    }

    #[test]
    fn every_fault_of_a_body_is_named_at_once() {
        let problem = refused(r#"{"name":"","nmae":1,"password":"short","password":"again!"}"#);
        assert_eq!(
            faults(&problem),
            [
                ("/nmae", "unknown_field"),
                ("/password", "duplicate_field"),
                ("/name", "blank"),
                ("/surname", "required"),
                ("/password", "too_short")
            ]
        );
    }

    #[test]
    fn what_is_no_object_is_refused_as_such() {
        for body in ["[]", "1", "\"secret\"", "null", "true"] {
            let problem = refused(body);
            assert_eq!(
                (problem.kind.code, faults(&problem)),
                ("validation_failed", vec![("", "invalid_type")]),
                "{body}"
            );
        }
    }

    #[test]
    fn what_is_no_json_is_refused_without_being_repeated() {
        for body in ["", "{", r#"{"name":"secret"#, r#"{"name":"\ud800"}"#, "{} {}", "secret", "\u{feff}{}"] {
            let problem = refused(body);
            assert_eq!(problem.kind.code, "malformed_json", "{body}");
            assert!(!problem.detail.contains("secret"), "{}", problem.detail);
        }
    }

    #[test]
    fn a_thousand_unknown_fields_get_a_short_answer() {
        let body = (0..1000).map(|n| format!(r#""{n}{}":0"#, "x".repeat(40))).collect::<Vec<_>>().join(",");
        let problem = refused(&format!("{{{body}}}"));
        assert!(problem.errors.len() <= super::MAX_FAULTS);
    }

    #[test]
    fn null_leaves_a_field_of_an_update_as_it_is() {
        let changes = parse(r#"{"name":null,"surname":"Ли"}"#.as_bytes()).unwrap().into_changes(POLICY).unwrap();
        assert!(changes.name.is_none() && changes.password.is_none());
        assert_eq!(changes.surname.unwrap().as_str(), "Ли");
    }
}
