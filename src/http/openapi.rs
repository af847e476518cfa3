//! The OpenAPI document: what the routes' macros say, and what holds for every route, added from the tables of `error`.

mod examples;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::{OpenApi, ToSchema, openapi::OpenApi as Document};

use super::problem::{
    PROBLEM_JSON, ProblemBody,
    types::{
        BAD_REQUEST, DATABASE_UNAVAILABLE, INTERNAL_ERROR, INVALID_QUERY, MALFORMED_JSON, MISDIRECTED_REQUEST,
        NOT_READY, OVERLOADED, PAYLOAD_TOO_LARGE, ProblemType, TIME_LIMIT_EXCEEDED, UNREADABLE_BODY,
        UNSUPPORTED_MEDIA_TYPE, URI_TOO_LONG, USER_NOT_FOUND, VALIDATION_FAILED,
    },
};
use crate::domain::user::PasswordPolicy;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "User Management API",
        description = "A small record of truth for users. Each change is committed together with its event; events go to \
                       the RabbitMQ topic exchange `user_events` as `user.created`, `user.updated`, `user.deleted`. \
                       Errors are problem documents (RFC 9457), explained under [/docs/errors](/docs/errors). \
                       The header `X-Request-Id` of any request, if it is 1 to 128 characters of \
                       `A-Z a-z 0-9 . _ : / @ + = -`, becomes its trace id; else a UUID is made. `X-Trace-Id` of every \
                       answer, the log lines and the event carry it.",
        license(name = "MIT OR Apache-2.0", url = "/docs/license")
    ),
    tags((name = "users", description = "The record of truth"), (name = "health", description = "Probes")),
    components(schemas(ProblemBody))
)]
pub struct ApiDoc;

/// White space by Unicode's `White_Space`, which other languages' `\s` is not quite; for a class of a regular expression.
const SPACE: &str = r"\t-\r \u0085\u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000";
/// What no name may hold: control characters, and those that turn the direction of text; for the same.
const REFUSED: &str = r"\u0000-\u001F\u007F-\u009F\u061C\u200E\u200F\u202A-\u202E\u2066-\u2069";
/// White space beyond [`REFUSED`]; for the same.
const PLAIN_SPACE: &str = r" \u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000";

/// What a name must match: the length is that of the trimmed text, which `maxLength` cannot say; and some of it must be visible.
fn name_pattern() -> String {
    let (any, edge) = (format!("[^{REFUSED}]"), format!("[^{REFUSED}{PLAIN_SPACE}]"));
    let visible = r"[\p{L}\p{M}\p{N}\p{P}\p{S}]";
    format!("^[{SPACE}]*(?={any}*{visible}){edge}(?:{any}{{0,253}}{edge})?[{SPACE}]*$")
}

/// A new user
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "describes the body that `UserFields` reads")]
pub struct CreateUser {
    /// Trimmed and stored in Unicode's normal form C; then 1 to 255 characters, at least one of them visible, none a control
    /// character or one that turns the direction of text
    #[schema(example = "Иван")]
    name: String,
    /// Trimmed and stored in Unicode's normal form C; then 1 to 255 characters, at least one of them visible, none a control
    /// character or one that turns the direction of text
    #[schema(example = "Иванов")]
    surname: String,
    /// At most 1,024 bytes in UTF-8; stored as an argon2id hash alone
    #[schema(format = Password, max_length = 1024, example = "secret123")]
    password: String,
}

/// Fields to change; one that is absent or null stays as it is
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "describes the body that `UserFields` reads")]
pub struct UpdateUser {
    /// Trimmed and stored in Unicode's normal form C; then 1 to 255 characters, at least one of them visible, none a control
    /// character or one that turns the direction of text
    #[schema(example = "Петр")]
    name: Option<String>,
    /// Trimmed and stored in Unicode's normal form C; then 1 to 255 characters, at least one of them visible, none a control
    /// character or one that turns the direction of text
    #[schema(example = "Петров")]
    surname: Option<String>,
    /// At most 1,024 bytes in UTF-8; stored as an argon2id hash alone
    #[schema(format = Password, max_length = 1024)]
    password: Option<String>,
}

/// What may go wrong in each operation.
fn problems(operation: &str) -> Vec<&'static ProblemType> {
    let path = [&USER_NOT_FOUND];
    let query = [&INVALID_QUERY];
    let body = [&MALFORMED_JSON, &UNREADABLE_BODY, &PAYLOAD_TOO_LARGE, &UNSUPPORTED_MEDIA_TYPE, &VALIDATION_FAILED];
    let mut types = match operation {
        "list_users" => query.to_vec(),
        "get_user" | "delete_user" => [&query[..], &path, &[&OVERLOADED]].concat(),
        "create_user" => [&query[..], &body, &[&OVERLOADED]].concat(),
        "update_user" => [&query[..], &path, &body, &[&OVERLOADED]].concat(),
        "ready" => vec![&NOT_READY],
        _ => Vec::new(),
    };
    if operation.contains("user") {
        types.extend([&DATABASE_UNAVAILABLE, &INTERNAL_ERROR]);
    }
    if operation != "live" {
        types.push(&TIME_LIMIT_EXCEEDED);
    }
    types.extend([&BAD_REQUEST, &URI_TOO_LONG, &MISDIRECTED_REQUEST]);
    types.sort_by_key(|kind| kind.status);
    types
}

/// The document as it is served, for a service with this policy.
///
/// # Errors
/// None that can arise: every part of a document can be written.
pub fn render(document: &Document, policy: PasswordPolicy) -> serde_json::Result<String> {
    let mut document = serde_json::to_value(document)?;
    for body in ["CreateUser", "UpdateUser"] {
        let properties = &mut document["components"]["schemas"][body]["properties"];
        properties["password"]["minLength"] = policy.min_chars.into();
        for name in ["name", "surname"] {
            properties[name]["pattern"] = name_pattern().into();
        }
    }
    for (path, operations) in document["paths"].as_object_mut().into_iter().flatten() {
        for operation in operations.as_object_mut().into_iter().flat_map(Map::values_mut) {
            describe_errors(operation, path, policy);
            describe_trace_id(operation);
        }
    }
    serde_json::to_string_pretty(&document)
}

fn describe_errors(operation: &mut Value, path: &str, policy: PasswordPolicy) {
    let name = operation["operationId"].as_str().unwrap_or_default().to_owned();
    let given = examples::problems(&name, policy);
    for types in problems(&name).chunk_by(|kind, next| kind.status == next.status) {
        let description: Vec<_> = types.iter().map(|kind| format!("{} (`{}`)", kind.title, kind.code)).collect();
        let examples: Map<_, _> =
            types.iter().map(|kind| (kind.code.to_owned(), examples::example(kind, &given, path))).collect();
        let mut response = json!({
            "description": description.join("; "),
            "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples}},
        });
        if types.iter().any(|kind| kind.retry_after.is_some()) {
            response["headers"]["Retry-After"] = json!({"description": "Seconds after which to try again", "required": true, "schema": {"type": "integer"}});
        }
        operation["responses"][types[0].status.as_str()] = response;
    }
}

fn describe_trace_id(operation: &mut Value) {
    let header = json!({
        "description": "The request's trace id",
        "required": true,
        "schema": {"type": "string"},
    });
    for response in operation["responses"].as_object_mut().into_iter().flat_map(Map::values_mut) {
        response["headers"]["X-Trace-Id"] = header.clone();
    }
}
