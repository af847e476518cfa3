//! The document: that it is what was agreed on, and what the server does.

use serde_json::Value;

use crate::harness::{App, World, command};

/// What clients were promised. After a change that is meant: `cargo run -- openapi > tests/api/openapi.json`.
const AGREED: &str = include_str!("openapi.json");

#[tokio::test]
async fn the_document_is_the_one_that_was_agreed_on() {
    let output = command(&[]).arg("openapi").output().await.unwrap();
    let (document, agreed): (Value, Value) =
        (serde_json::from_slice(&output.stdout).unwrap(), serde_json::from_str(AGREED).unwrap());
    assert_eq!(document, agreed, "if the change is meant: cargo run -- openapi > tests/api/openapi.json");
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
}

#[tokio::test]
async fn the_server_serves_the_document_and_the_page_that_shows_it() {
    let world = World::new().await;
    let app = App::start(&world).await;
    let document = app.get("/openapi.json").await;
    assert_eq!(document.header("content-type"), "application/json");
    assert_eq!(document.body, serde_json::from_str::<Value>(AGREED).unwrap());
    for path in ["/", "/docs", "/docs/"] {
        let page = app.get(path).await;
        assert!(page.status == 200 && page.text.contains("swagger-ui"), "{path}: {page:?}");
    }
}

#[tokio::test]
async fn every_path_of_the_document_is_there_and_takes_just_its_methods() {
    let world = World::new().await;
    let app = App::start(&world).await;
    let document: Value = serde_json::from_str(AGREED).unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        let answer = crate::harness::Answer::of(app.request(reqwest::Method::TRACE, &path.replace("{id}", "1"))).await;
        let mut allowed: Vec<_> =
            answer.header("allow").split(',').filter(|method| *method != "HEAD").map(str::to_lowercase).collect();
        let mut documented: Vec<_> = item.as_object().unwrap().keys().cloned().collect();
        allowed.sort_unstable();
        documented.sort_unstable();
        assert_eq!(allowed, documented, "{path}");
    }
}
