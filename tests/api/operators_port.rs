//! The operators' port: what it serves, and what the other port then lacks.

use crate::api::access::{CLOSED, get};
use crate::api::commands::run;
use harness::{Answer, App, World, make_key, start_with};

async fn admin_address(app: &App) -> String {
    let listening = app.log.wait_for("Listening", |_| true).await;
    listening["admin_address"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_operators_port_serves_everything_and_metrics_without_a_key() {
    let (world, app) = start_with(&[CLOSED[0], ("ADMIN_PORT", "0")]).await;
    let admin = admin_address(&app).await;
    let at = |path: &str, token: &str| {
        let request = reqwest::Client::new().get(format!("http://{admin}{path}"));
        if token.is_empty() {
            request
        } else {
            request.bearer_auth(token)
        }
    };
    let reader = make_key(&world, "reader", "users:read").await;
    for (path, status) in [
        ("/metrics", 200),
        ("/docs/", 200),
        ("/openapi.json", 200),
        ("/docs/errors", 200),
        ("/health/ready", 200),
        ("/users", 401),
        ("/nowhere", 401),
    ] {
        assert_eq!(Answer::of(at(path, "")).await.status, status, "{path}");
    }
    assert_eq!(Answer::of(at("/users", &reader)).await.status, 200);
    let scraper = make_key(&world, "scraper", "metrics:read").await;
    for path in ["/metrics", "/docs/", "/", "/openapi.json", "/docs/license"] {
        app.get(path).await.assert_problem(401, "unauthenticated");
        let known = get(&app, path, &scraper).await;
        known.assert_problem(404, "not_found");
    }
    for path in ["/docs/errors", "/docs/errors/not_found", "/health/live"] {
        assert_eq!(app.get(path).await.status, 200, "{path}");
    }
    assert_eq!(get(&app, "/users", &reader).await.status, 200);
}

#[tokio::test]
async fn the_operators_port_must_be_another_one() {
    let world = World::new().await;
    let settings = [
        &world.settings()[..],
        &[("PORT", "8123"), ("ADMIN_PORT", "8123")],
    ]
    .concat();
    let (output, text) = run(&["serve"], &settings).await;
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("ADMIN_PORT: "), "{text}");
}

#[tokio::test]
async fn an_operators_port_that_others_reach_closes_the_service() {
    let (_world, app) = start_with(&[("ADMIN_PORT", "0"), ("ADMIN_HOST", "0.0.0.0")]).await;
    app.get("/users")
        .await
        .assert_problem(401, "unauthenticated");
    let admin = admin_address(&app).await.replace("0.0.0.0", "127.0.0.1");
    let metrics = format!("http://{admin}/metrics");
    let client = reqwest::Client::new();
    assert_eq!(Answer::of(client.get(&metrics)).await.status, 200);
    let rebound = client.get(&metrics).header("host", "evil.example");
    Answer::of(rebound)
        .await
        .assert_problem(421, "misdirected_request");
}
