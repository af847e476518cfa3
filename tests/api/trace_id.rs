//! One trace id from the header to the consumer's log.

use reqwest::Method;

use harness::{Answer, App, World, new_user, start, start_observed};

async fn get_with_id(app: &App, path: &str, id: &str) -> Answer {
    Answer::of(app.request(Method::GET, path).header("x-request-id", id)).await
}

#[tokio::test]
async fn one_trace_id_runs_from_the_header_to_the_consumers_log() {
    let (_world, mut observer, app) = start_observed().await;
    let request = app
        .request(Method::POST, "/users")
        .json(&new_user("Анна"))
        .header("X-Request-Id", "order-66/a@b");
    assert_eq!(
        Answer::of(request).await.header("x-trace-id"),
        "order-66/a@b"
    );
    assert_eq!(observer.next_bodies(1).await[0]["trace_id"], "order-66/a@b");
    for event in [
        "Request started",
        "User created",
        "Request completed",
        "Event published",
        "Event received",
    ] {
        app.log
            .wait_for(event, |line| line["trace_id"] == "order-66/a@b")
            .await;
    }
}

#[tokio::test]
async fn a_well_formed_trace_id_is_kept() {
    let (_world, app) = start().await;
    for id in ["a", "A-Z_a.z:0/9@+=-", &"x".repeat(128)] {
        assert_eq!(
            get_with_id(&app, "/users", id).await.header("x-trace-id"),
            id
        );
    }
}

#[tokio::test]
async fn a_malformed_trace_id_becomes_a_uuid_with_a_redacted_warning() {
    let (_world, app) = start().await;
    for id in [
        "two words",
        "{\"evil\":1}",
        "тест",
        &"y".repeat(129),
        &"z".repeat(10_000),
    ] {
        let answer = get_with_id(&app, "/users", id).await;
        let trace_id = answer.header("x-trace-id").to_owned();
        assert!(uuid::Uuid::parse_str(&trace_id).is_ok(), "{trace_id}");
        let warned = |line: &serde_json::Value| {
            line["trace_id"] == trace_id.as_str() && line["level"] == "warning"
        };
        let started = app
            .log
            .wait_for("Request completed", |line| {
                line["trace_id"] == trace_id.as_str()
            })
            .await;
        assert_eq!(started["status_code"], 200);
        assert!(app.log.lines().iter().any(warned), "{}", app.log.text());
        assert!(!app.log.text().contains(id), "{id} is in the log");
    }
}

#[tokio::test]
async fn two_trace_ids_count_as_a_malformed_one() {
    let (_world, app) = start().await;
    let request = app
        .request(Method::GET, "/users")
        .header("x-request-id", "first")
        .header("x-request-id", "second");
    let answer = Answer::of(request).await;
    assert!(
        uuid::Uuid::parse_str(answer.header("x-trace-id")).is_ok(),
        "{answer:?}"
    );
    app.log
        .wait_for(
            "X-Request-Id is not 1 to 128 characters of A-Z a-z 0-9 . _ : / @ + = -, made a new \
             trace id",
            |_| true,
        )
        .await;
}

#[tokio::test]
async fn each_request_without_a_trace_id_gets_its_own_uuid() {
    let (_world, app) = start().await;
    let first = app.get("/users").await;
    let second = app.get("/users").await;
    assert_ne!(first.header("x-trace-id"), second.header("x-trace-id"));
    assert!(uuid::Uuid::parse_str(first.header("x-trace-id")).is_ok());
}

#[tokio::test]
async fn every_response_has_the_trace_id_even_errors_and_pages() {
    let (_world, app) = start().await;
    for path in [
        "/users/7",
        "/nowhere",
        "/users?limit=0",
        "/docs/",
        "/openapi.json",
        "/health/live",
        "/health/ready",
        "/",
    ] {
        assert_eq!(
            get_with_id(&app, path, "t-1").await.header("x-trace-id"),
            "t-1",
            "{path}"
        );
    }
    let request = app
        .request(Method::POST, "/users")
        .body("x")
        .header("x-request-id", "t-2");
    assert_eq!(Answer::of(request).await.header("x-trace-id"), "t-2");
}

#[tokio::test]
async fn successful_probes_and_scrapes_are_logged_only_at_debug() {
    let world = World::new().await;
    let probe = async |level: &str| {
        let app = App::start(&world).with(&[("LOG_LEVEL", level)]).await;
        for path in ["/health/live", "/health/ready/", "/metrics", "/users/7"] {
            get_with_id(&app, path, "probe-1").await;
        }
        app.log
            .wait_for("Request completed", |line| line["path"] == "/users/7")
            .await;
        let lines = app
            .log
            .matching("Request completed", |line| line["trace_id"] == "probe-1");
        lines
            .into_iter()
            .map(|line| line["level"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(probe("info").await, ["info"]);
    for level in ["debug", "info,probes=debug"] {
        assert_eq!(
            probe(level).await,
            ["debug", "debug", "debug", "info"],
            "{level}"
        );
    }
}
