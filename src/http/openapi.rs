//! The OpenAPI document: what the routes' macros declare, plus the errors from the table in
//! `problem`.

mod examples;

use serde_json::{Map, Value, json};
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;

use super::problem::types::{
    BAD_REQUEST, EXPECTATION_FAILED, HEAD_TOO_LARGE, MISDIRECTED_REQUEST, PROBLEM_TYPES,
    ProblemType, URI_TOO_LONG,
};
use super::problem::{PROBLEM_JSON, ProblemBody};
use super::users;
use crate::domain::password::PasswordPolicy;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "User Management API",
        description = "A REST API over user records. Each change is committed together with its \
                       event; events go to the RabbitMQ topic exchange `user_events` as \
                       `user.created`, `user.updated`, `user.deleted`. Errors are problem documents \
                       (RFC 9457), explained under [/docs/errors](/docs/errors). The header \
                       `X-Request-Id` of any request, if it is 1 to 128 characters of `A-Z a-z 0-9 \
                       . _ : / @ + = -`, becomes its trace id; else a UUID is made. `X-Trace-Id` of \
                       every answer, the log lines and the event carry it.",
        license(name = "MIT OR Apache-2.0", url = "/docs/license")
    ),
    tags((name = "users", description = "User records"), (name = "health", description = "Probes")),
    components(schemas(ProblemBody))
)]
pub struct ApiDoc;

/// The member of an operation that lists its own problem codes. It is removed from the served
/// document.
const PROBLEMS: &str = "x-problems";
/// Problems of any request.
const ANYWHERE: [&ProblemType; 5] = [
    &BAD_REQUEST,
    &URI_TOO_LONG,
    &EXPECTATION_FAILED,
    &MISDIRECTED_REQUEST,
    &HEAD_TOO_LARGE,
];

/// Removes and returns an operation's own problems.
///
/// # Errors
/// If it lists none: each route must say what can go wrong.
fn take_problems(operation: &mut Value) -> serde_json::Result<Vec<&'static ProblemType>> {
    let own = operation
        .as_object_mut()
        .and_then(|operation| operation.remove(PROBLEMS))
        .unwrap_or_default();
    let own: Vec<String> = serde_json::from_value(own)?;
    // In the route's order, because Swagger UI shows the first of each status.
    let named = own
        .iter()
        .filter_map(|code| PROBLEM_TYPES.iter().copied().find(|kind| kind.code == code));
    let mut types: Vec<_> = named.chain(ANYWHERE).collect();
    types.sort_by_key(|kind| kind.status);
    Ok(types)
}

/// The document as it is served, for a service with this policy.
///
/// # Errors
/// If a route does not list its problems.
pub fn render(document: &Document, policy: PasswordPolicy) -> serde_json::Result<String> {
    let mut document = serde_json::to_value(document)?;
    document["components"]["headers"] = headers();
    users::describe_limits(&mut document["components"]["schemas"], policy);
    for (path, operations) in document["paths"].as_object_mut().into_iter().flatten() {
        for operation in operations
            .as_object_mut()
            .into_iter()
            .flat_map(Map::values_mut)
        {
            describe_problems(operation, path, policy)?;
            describe_trace_id(operation);
        }
    }
    serde_json::to_string_pretty(&document)
}

fn describe_problems(
    operation: &mut Value,
    path: &str,
    policy: PasswordPolicy,
) -> serde_json::Result<()> {
    let name = operation["operationId"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let given = examples::problems(&name, policy);
    for types in take_problems(operation)?.chunk_by(|kind, next| kind.status == next.status) {
        let description: Vec<_> = types
            .iter()
            .map(|kind| format!("{} (`{}`)", kind.title, kind.code))
            .collect();
        let examples: Map<_, _> = types
            .iter()
            .map(|kind| (kind.code.to_owned(), examples::example(kind, &given, path)))
            .collect();
        let mut response = json!({
            "description": description.join("; "),
            "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples}},
        });
        if types.iter().any(|kind| kind.retry_after.is_some()) {
            response["headers"]["Retry-After"] = header("Retry-After");
        }
        operation["responses"][types[0].status.as_str()] = response;
    }
    Ok(())
}

/// Every response has it.
fn describe_trace_id(operation: &mut Value) {
    for response in operation["responses"]
        .as_object_mut()
        .into_iter()
        .flat_map(Map::values_mut)
    {
        response["headers"]["X-Trace-Id"] = header("X-Trace-Id");
    }
}

fn header(name: &str) -> Value {
    json!({"$ref": format!("#/components/headers/{name}")})
}

fn headers() -> Value {
    json!({
        "X-Trace-Id": {"description": "The request's trace id", "required": true, "schema": {"type": "string"}},
        "Retry-After": {
            "description": "Seconds after which to try again", "required": true, "schema": {"type": "integer"},
        },
    })
}
