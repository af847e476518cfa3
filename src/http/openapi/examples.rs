//! The document's examples of errors. Each is made by the code that makes it for a client, so
//! examples and responses cannot differ.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use futures_util::FutureExt;
use serde_json::{Value, json};

use crate::domain::page::Page;
use crate::domain::password::PasswordPolicy;
use crate::http::extract::json;
use crate::http::extract::query::{NoQuery, Parameters};
use crate::http::extract::raw_body;
use crate::http::health;
use crate::http::layers::head::HeadRules;
use crate::http::problem::Problem;
use crate::http::problem::types::ProblemType;
use crate::http::users::{CreateUser, UpdateUser};
use crate::monitoring::health::{DatabaseState, Health};
use crate::monitoring::state::Link;

const TRACE_ID: &str = "0b8f3a52-7c1d-4e5f-9a6b-2d4c8e1f7a93";
/// The settings' defaults.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// The health of a service whose database is away.
const WITHOUT_DATABASE: Health = Health {
    database: DatabaseState::Down,
    publisher: Link::Down,
    consumer: Link::Up,
    relay_leads: false,
    is_draining: false,
};

/// The example of one problem type for user 1, from those that the operation can return.
pub fn example(kind: &'static ProblemType, problems: &[Problem], path: &str) -> Value {
    let problem = problems.iter().find(|problem| problem.kind == kind);
    let value = problem.map(|problem| problem.body(&path.replace("{id}", "1"), TRACE_ID));
    json!({"summary": kind.title, "value": value})
}

/// A problem of each type, as the operation returns it.
pub fn problems(operation: &str, policy: PasswordPolicy) -> Vec<Problem> {
    let loopback = HeadRules {
        allowed_hosts: Some(Vec::new()),
        ..HeadRules::default()
    };
    let too_long = format!("/?{}", "x".repeat(10_000));
    let with = |name: &str, value: &str| {
        let mut request = request("/", Some("localhost"));
        let header = (
            HeaderName::from_bytes(name.as_bytes()).ok(),
            HeaderValue::from_str(value).ok(),
        );
        if let (Some(name), Some(value)) = header {
            request.headers_mut().insert(name, value);
        }
        loopback.check(&request).err()
    };
    let refused = [
        with("expect", "tea"),
        with("x-long", &"x".repeat(33_000)),
        loopback.check(&request("/", None)).err(),
        loopback.check(&request("/", Some("example.com"))).err(),
        loopback.check(&request(&too_long, Some("localhost"))).err(),
        json::check_media_type(&HeaderMap::new()).err(),
        json::parse::<CreateUser>(br#"{"name": "#, policy).err(),
        invalid_fields(operation, policy),
        invalid_query(operation),
    ];
    let others = [
        raw_body::too_large(),
        raw_body::ended_early(),
        raw_body::too_slow(BODY_TIMEOUT),
        health::not_ready(WITHOUT_DATABASE),
        Problem::user_not_found(),
        Problem::database_unavailable(),
        Problem::database_read_only(),
        Problem::overloaded(),
        Problem::internal(),
        Problem::too_slow(REQUEST_TIMEOUT),
    ];
    refused.into_iter().flatten().chain(others).collect()
}

fn request(target: &str, host: Option<&str>) -> Request {
    let request = Request::get(target);
    let request = if let Some(host) = host {
        request.header(header::HOST, host)
    } else {
        request
    };
    request.body(Body::empty()).unwrap_or_default()
}

fn invalid_fields(operation: &str, policy: PasswordPolicy) -> Option<Problem> {
    let body = br#"{"name": "", "nickname": "x"}"#;
    if operation == "create_user" {
        json::parse::<CreateUser>(body, policy).err()
    } else {
        json::parse::<UpdateUser>(body, policy).err()
    }
}

fn invalid_query(operation: &str) -> Option<Problem> {
    let (mut parts, ()) = Request::get("/?limit=0").body(()).ok()?.into_parts();
    // The extractor never waits.
    if operation == "list_users" {
        Parameters::<Page>::from_request_parts(&mut parts, &())
            .now_or_never()?
            .err()
    } else {
        Parameters::<NoQuery>::from_request_parts(&mut parts, &())
            .now_or_never()?
            .err()
    }
}
