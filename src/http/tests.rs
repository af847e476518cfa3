//! A panic, and a handler that never ends: only routes made for the test can provoke these.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use axum::response::Response;
use axum::routing::get;
use futures_util::stream;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::extract::raw_body;
use super::layers::head;
use super::problem::types::{HEAD_TOO_LARGE, PAYLOAD_TOO_LARGE, URI_TOO_LONG};
use super::routes::{Audience, Entrance};
use super::{Contract, openapi_document};
use super::{HeadRules, Layers, TaskTracker, api, complete, layered, routes};
use crate::access::Access;
use crate::domain::password::PasswordPolicy;
use crate::telemetry::{self, LogFormat, LogLevel};

/// A body in two pieces; the second arrives only when it is polled.
async fn pieces() -> Body {
    let pieces = ["first ", "second"].map(Ok::<_, Infallible>);
    Body::from_stream(stream::iter(pieces))
}

/// At paths of pages, which are declared and open.
async fn respond(path: &str) -> Response {
    let routes = Router::new()
        .route("/docs/errors", get(pieces))
        .route(
            "/openapi.json",
            get(|| async { panic!("secret") as &'static str }),
        )
        .route("/docs/license", get(std::future::pending::<&'static str>))
        .route("/undeclared", get(|| async { "secret" }));
    let request = Request::get(path)
        .header("Host", "localhost")
        .header("X-Request-Id", "t-1")
        .body(Body::empty())
        .unwrap();
    let tasks = TaskTracker::new();
    let layers = Layers::new(
        Duration::from_millis(20),
        Entrance::Only,
        HeadRules::default(),
        Access::open_without_keys(),
        tasks,
    );
    complete(layered(routes, layers))
        .oneshot(request)
        .await
        .unwrap()
}

async fn answer(path: &str) -> (Response<()>, Value) {
    let (parts, body) = respond(path).await.into_parts();
    let body = serde_json::from_slice(&to_bytes(body, usize::MAX).await.unwrap()).unwrap();
    (Response::from_parts(parts, ()), body)
}

#[tokio::test]
async fn a_panic_is_an_opaque_500_problem_with_the_trace_id() {
    let (response, body) = answer("/openapi.json").await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(
        response.headers()["content-type"],
        "application/problem+json"
    );
    assert_eq!(response.headers()["x-trace-id"], "t-1");
    assert_eq!(
        (&body["code"], &body["trace_id"]),
        (&json!("internal_error"), &json!("t-1"))
    );
    assert!(!body.to_string().contains("secret"), "{body}");
}

#[tokio::test]
async fn a_handler_beyond_its_time_limit_is_a_504_problem() {
    let (response, body) = answer("/docs/license").await;
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(response.headers()["x-trace-id"], "t-1");
    assert_eq!(
        (&body["code"], &body["status"]),
        (&json!("time_limit_exceeded"), &json!(504))
    );
}

#[tokio::test]
async fn a_route_that_declares_nothing_is_not_served() {
    let (response, body) = answer("/undeclared").await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert_eq!(body["code"], "not_found");
}

#[tokio::test]
async fn a_path_without_a_route_is_a_404_problem() {
    let (response, body) = answer("/nowhere").await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert_eq!(
        (&body["code"], &body["instance"]),
        (&json!("not_found"), &json!("/nowhere"))
    );
}

/// Collects log lines.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// The messages so far, with the trace ids.
    fn messages(&self) -> Vec<(String, String)> {
        let lines = String::from_utf8(self.0.lock().clone()).unwrap();
        let message = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            (text("event"), text("trace_id"))
        };
        lines.lines().map(message).collect()
    }
}

fn said(messages: &[&str]) -> Vec<(String, String)> {
    let with_trace_id = |message: &&str| ((*message).to_owned(), "t-1".to_owned());
    messages.iter().map(with_trace_id).collect()
}

#[tokio::test]
async fn a_request_end_is_logged_at_its_last_byte_or_at_a_disconnect() {
    let lines = Lines::default();
    let make_lines = {
        let lines = lines.clone();
        move || lines.clone()
    };
    let level = LogLevel::default();
    let subscriber = telemetry::subscriber(&level, LogFormat::Json, make_lines);
    let _default = tracing::subscriber::set_default(subscriber);
    let mut body = respond("/docs/errors").await.into_body();
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_data().unwrap(),
        "first "
    );
    assert_eq!(lines.messages(), said(&["Request started"]));
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_data().unwrap(),
        "second"
    );
    assert!(body.frame().await.is_none());
    drop(body);
    assert_eq!(
        lines.messages(),
        said(&["Request started", "Request completed"])
    );
    lines.0.lock().clear();
    drop(respond("/docs/errors").await);
    assert_eq!(
        lines.messages(),
        said(&["Request started", "Request failed"])
    );
}

#[tokio::test]
async fn a_trailing_slash_keeps_the_route_and_stays_in_the_instance() {
    let (response, body) = answer("/openapi.json/").await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(body["instance"], "/openapi.json/");
}

#[test]
fn the_error_pages_name_the_limits_in_force() {
    let thousands = |bytes: usize| format!("{},{:03} bytes", bytes / 1_000, bytes % 1_000);
    for (kind, limit) in [
        (&PAYLOAD_TOO_LARGE, raw_body::MAX_BYTES),
        (&URI_TOO_LONG, head::MAX_TARGET_BYTES),
        (&HEAD_TOO_LARGE, head::MAX_HEAD_BYTES),
    ] {
        let meaning = kind.meaning;
        assert!(meaning.contains(&thousands(limit)), "{limit}: {meaning}");
    }
}

#[test]
fn each_documented_route_declares_its_logging_and_caching() {
    let documented = api().into_openapi().paths.paths;
    let documented: BTreeSet<_> = documented.keys().map(String::as_str).collect();
    let known: BTreeSet<_> = routes::DOCUMENTED.iter().map(|(path, _)| *path).collect();
    assert_eq!(documented, known);
}

#[test]
fn each_method_of_a_closed_route_declares_its_scope() {
    let contract = Contract {
        password_policy: PasswordPolicy::default(),
        allow_anonymous: false,
        require_if_match: false,
    };
    let document = openapi_document(contract).unwrap();
    let document: Value = serde_json::from_str(&document).unwrap();
    for (path, traits) in routes::DOCUMENTED {
        let Audience::Scoped(scopes) = traits.audience else {
            continue;
        };
        let documented = document["paths"][path].as_object().unwrap();
        let documented: BTreeSet<_> = documented
            .keys()
            .map(|method| method.to_uppercase())
            .collect();
        let known: BTreeSet<_> = scopes
            .iter()
            .map(|(method, _)| (*method).to_owned())
            .collect();
        assert_eq!(documented, known, "{path}");
    }
}
