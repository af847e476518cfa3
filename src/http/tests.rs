//! A panic, and a handler that never ends: only routes made for the test can provoke these.

use std::time::Duration;

use axum::Router;
use axum::body::to_bytes;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use axum::routing::get;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::{HeadRules, RequestDurations, TaskTracker, Trace, layered};

async fn answer(path: &str) -> (Response<()>, Value) {
    let routes = Router::new()
        .route(
            "/panics",
            get(|| async { panic!("secret") as &'static str }),
        )
        .route("/hangs", get(std::future::pending::<&'static str>));
    let request = Request::get(path)
        .header("Host", "localhost")
        .header("X-Request-Id", "t-1")
        .body(axum::body::Body::empty())
        .unwrap();
    let trace = Trace {
        time_limit: Duration::from_millis(20),
        head: HeadRules::default(),
        durations: RequestDurations::default(),
        tasks: TaskTracker::new(),
    };
    let response = layered(routes, trace).oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = serde_json::from_slice(&to_bytes(body, usize::MAX).await.unwrap()).unwrap();
    (Response::from_parts(parts, ()), body)
}

#[tokio::test]
async fn a_panic_is_an_opaque_500_problem_with_the_trace_id() {
    let (response, body) = answer("/panics").await;
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
async fn a_handler_past_its_time_is_a_504_problem() {
    let (response, body) = answer("/hangs").await;
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(response.headers()["x-trace-id"], "t-1");
    assert_eq!(
        (&body["code"], &body["status"]),
        (&json!("time_limit_exceeded"), &json!(504))
    );
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
