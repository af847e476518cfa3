//! The OpenAPI document: what the macros of the routes declare, plus what all routes share.

use axum::http::Method;
use serde_json::{Value, json};
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;

use super::contract::Contract;
use super::problem::body::{NotReadyBody, ProblemBody};
use super::problem::types::BAD_REQUEST;
use super::routes::{self, Traits};
use super::users;
use crate::domain::scope::Scopes;
use crate::trace_id::TraceId;

/// Name of the way to show an API key.
const SCHEME: &str = "api_key";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "User Management API",
        license(name = "MIT OR Apache-2.0", url = "/docs/license")
    ),
    tags((name = "users", description = "User records"), (name = "health", description = "Probes")),
    components(schemas(ProblemBody, NotReadyBody))
)]
pub(crate) struct ApiDoc;

fn description() -> String {
    let form = TraceId::FORM;
    format!(
        "A REST API over user records. Each change is committed together with its event; events go \
         to the RabbitMQ topic exchange `user_events` as `user.created`, `user.updated`, \
         `user.deleted`. Errors are problem documents (RFC 9457), explained under \
         [/docs/errors](/docs/errors). The header `X-Request-Id` of any request, if it is {form}, \
         becomes its trace id; otherwise the service makes a UUID. Every response carries the \
         trace id in `X-Trace-Id`; so do the log lines and the event."
    )
}

/// The document as it is served, for a service with this contract.
///
/// # Errors
/// If the document cannot be written as JSON, which its present types rule out.
pub(crate) fn render(document: &Document, contract: Contract) -> serde_json::Result<String> {
    let mut document = serde_json::to_value(document)?;
    document["info"]["description"] = description().into();
    document["components"]["headers"] = headers();
    document["components"]["securitySchemes"] = json!({SCHEME: {
        "type": "http", "scheme": "bearer", "bearerFormat": "umapi_…",
        "description": "The token of an API key, made by `user-management-api api-key create`",
    }});
    users::describe_limits(
        &mut document["components"]["schemas"],
        contract.password_policy,
    );
    for (path, operations) in members(&mut document["paths"]) {
        let instance = path.replace("{id}", "1");
        let traits = routes::traits(Some(path));
        for (method, operation) in members(operations) {
            operation["security"] = security(traits, method, contract.allow_anonymous);
            require_if_match(operation, contract.require_if_match);
            for (status, response) in members(&mut operation["responses"]) {
                if status.as_str() < "400" {
                    for (_name, header) in members(&mut response["headers"]) {
                        header["required"] = true.into();
                    }
                }
                response["headers"]["X-Trace-Id"] = header("X-Trace-Id");
                finish_examples(response, &instance);
            }
        }
    }
    serde_json::to_string_pretty(&document)
}

/// The scopes that an operation needs; an empty requirement stands for callers without a key.
fn security(traits: Traits, method: &str, allow_anonymous: bool) -> Value {
    let method = Method::from_bytes(method.to_uppercase().as_bytes());
    let scope = method.ok().and_then(|method| traits.scope(&method));
    let Some(scope) = scope else {
        return json!([]);
    };
    let with_key = json!({SCHEME: [scope.as_str()]});
    if allow_anonymous && Scopes::ANONYMOUS.contains(scope) {
        json!([with_key, {}])
    } else {
        json!([with_key])
    }
}

/// Marks `If-Match` as required, or removes the response to its absence.
fn require_if_match(operation: &mut Value, is_required: bool) {
    let responses = operation["responses"].as_object_mut();
    let Some(responses) = responses.filter(|responses| responses.contains_key("428")) else {
        return;
    };
    if !is_required {
        responses.shift_remove("428");
        return;
    }
    let parameters = operation["parameters"].as_array_mut().into_iter().flatten();
    for parameter in parameters.filter(|parameter| parameter["name"] == "If-Match") {
        parameter["required"] = true.into();
    }
}

fn members(object: &mut Value) -> impl Iterator<Item = (&String, &mut Value)> {
    object.as_object_mut().into_iter().flatten()
}

/// Completes the examples of errors: sets `instance`, and moves `bad_request`, which any request
/// can cause, to the end, because Swagger UI shows the first.
fn finish_examples(response: &mut Value, instance: &str) {
    let examples = response.pointer_mut("/content/application~1problem+json/examples");
    let Some(examples) = examples.and_then(Value::as_object_mut) else {
        return;
    };
    for example in examples.values_mut() {
        example["value"]["instance"] = instance.into();
    }
    if let Some(of_head) = examples.shift_remove(BAD_REQUEST.code) {
        examples.insert(BAD_REQUEST.code.to_owned(), of_head);
    }
}

fn header(name: &str) -> Value {
    json!({"$ref": format!("#/components/headers/{name}")})
}

fn headers() -> Value {
    json!({
        "X-Trace-Id": {"description": "The request's trace id", "required": true, "schema": {"type": "string"}},
        "Accept-Patch": {"description": "The media type to send", "schema": {"type": "string"}},
        "ETag": {
            "description": "The entity tag of the user's present version; absent if there is no such user",
            "schema": {"type": "string"}, "example": "\"2\"",
        },
        "WWW-Authenticate": {"description": "What is missing (RFC 6750)", "schema": {"type": "string"}},
        "Retry-After": {
            "description": "Seconds after which to try again", "required": true, "schema": {"type": "integer"},
        },
    })
}
