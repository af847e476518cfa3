//! The original Python service's own examples, byte for byte.

use reqwest::{Method, StatusCode};
use serde_json::json;

use harness::{Answer, App, start};

fn json_request(
    app: &App,
    method: Method,
    path: &str,
    body: &'static str,
) -> reqwest::RequestBuilder {
    app.request(method, path)
        .header("Content-Type", "application/json")
        .body(body)
}

#[tokio::test]
async fn the_original_curl_calls_give_the_original_answers() {
    let (_world, app) = start().await;

    let body = "{\n    \"name\": \"Иван\",\n    \"surname\": \"Иванов\",\n    \"password\": \
                \"secret123\"\n  }";
    let created = Answer::of(json_request(&app, Method::POST, "/users/", body)).await;
    assert_eq!(created.status, StatusCode::CREATED, "{created:?}");
    assert_eq!(
        (&created.body["id"], &created.body["name"]),
        (&json!(1), &json!("Иван"))
    );

    let listed = app.get("/users/").await;
    assert_eq!(
        (listed.status, &listed.body),
        (StatusCode::OK, &json!([created.body]))
    );

    let got = app.get("/users/1").await;
    assert_eq!((got.status, &got.body), (StatusCode::OK, &created.body));

    let body = "{\n    \"name\": \"Петр\",\n    \"surname\": \"Петров\"\n  }";
    let updated = Answer::of(json_request(&app, Method::PUT, "/users/1", body)).await;
    assert_eq!(
        (updated.status, &updated.body["surname"]),
        (StatusCode::OK, &json!("Петров"))
    );

    let deleted = app.delete("/users/1").await;
    assert_eq!(
        (deleted.status, deleted.text.as_str()),
        (StatusCode::NO_CONTENT, "")
    );

    for event_type in ["user.created", "user.updated", "user.deleted"] {
        app.log
            .wait_for("Event received", |line| {
                line["event_type"] == event_type && line["user_id"] == 1
            })
            .await;
    }
    assert!(!app.log.text().contains("secret123"));
}

#[tokio::test]
async fn a_log_line_is_flat_with_the_original_keys_and_client_address() {
    let (_world, app) = start().await;
    let trace_id = "a1b2c3d4-e5f6-7890-abcd-ef1234567890";
    Answer::of(
        app.request(Method::GET, "/users/")
            .header("X-Request-Id", trace_id),
    )
    .await;

    let started = app
        .log
        .wait_for("Request started", |line| line["trace_id"] == trace_id)
        .await;
    let keys: std::collections::BTreeSet<_> = started
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        keys,
        [
            "client_address",
            "event",
            "level",
            "method",
            "path",
            "timestamp",
            "trace_id"
        ]
        .into()
    );
    assert_eq!(
        (&started["level"], &started["method"], &started["path"]),
        (&json!("info"), &json!("GET"), &json!("/users/"))
    );

    let completed = app
        .log
        .wait_for("Request completed", |line| line["trace_id"] == trace_id)
        .await;
    assert_eq!(completed["status_code"], 200);
    assert!(
        completed["duration_ms"]
            .as_f64()
            .is_some_and(|duration| duration > 0.0),
        "{completed}"
    );
    for line in app.log.lines() {
        assert!(
            line.as_object()
                .unwrap()
                .values()
                .all(|value| !value.is_object() && !value.is_array()),
            "{line}"
        );
    }
}
