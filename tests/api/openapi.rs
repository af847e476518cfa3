//! The OpenAPI document matches the agreed contract and the server.

use serde_json::Value;

use harness::{Answer, command, start};

/// The document without its error examples; `examples` compares those with the server's responses.
fn promised(mut document: Value) -> Value {
    let operations = document["paths"]
        .as_object_mut()
        .unwrap()
        .values_mut()
        .flat_map(members);
    for response in operations.flat_map(|operation| members(&mut operation["responses"])) {
        if let Some(problem) = response.pointer_mut("/content/application~1problem+json") {
            problem
                .as_object_mut()
                .unwrap()
                .remove("examples")
                .expect("each error has an example");
        }
    }
    document
}

fn members(object: &mut Value) -> impl Iterator<Item = &mut Value> {
    object.as_object_mut().unwrap().values_mut()
}

async fn document() -> Value {
    let output = command(&[]).arg("openapi").output().await.unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn the_document_is_the_one_that_was_agreed_on() {
    let document = document().await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    insta::assert_json_snapshot!(promised(document));
}

/// Not every language supports `\p{…}` and look-around; models generated with them fail to load.
#[tokio::test]
async fn the_pattern_of_names_is_portable_and_their_length_is_bounded() {
    let document = document().await;
    for (schema, field) in [
        ("CreateUser", "name"),
        ("CreateUser", "surname"),
        ("UpdateUser", "name"),
    ] {
        let name = &document["components"]["schemas"][schema]["properties"][field];
        let pattern = name["pattern"].as_str().unwrap();
        assert!(
            !["(", "\\p", "\\P", "\\x"]
                .iter()
                .any(|part| pattern.contains(part)),
            "{pattern}"
        );
        assert_eq!(
            (&name["minLength"], &name["maxLength"]),
            (&1.into(), &1_024.into())
        );
    }
}

#[tokio::test]
async fn the_server_serves_the_document_and_the_page_that_shows_it() {
    let (_world, app) = start().await;
    let served = app.get("/openapi.json").await;
    assert_eq!(served.header("content-type"), "application/json");
    assert_eq!(served.body, document().await);
    for path in ["/", "/docs", "/docs/"] {
        let page = app.get(path).await;
        assert!(
            page.status == 200 && page.text.contains("swagger-ui"),
            "{path}: {page:?}"
        );
    }
}

#[tokio::test]
async fn every_documented_path_exists_and_accepts_only_its_methods() {
    let (_world, app) = start().await;
    for (path, item) in document().await["paths"].as_object().unwrap() {
        let answer =
            Answer::of(app.request(reqwest::Method::TRACE, &path.replace("{id}", "1"))).await;
        let mut allowed: Vec<_> = answer
            .header("allow")
            .split(',')
            .filter(|method| *method != "HEAD")
            .map(str::to_lowercase)
            .collect();
        let mut documented: Vec<_> = item.as_object().unwrap().keys().cloned().collect();
        allowed.sort_unstable();
        documented.sort_unstable();
        assert_eq!(allowed, documented, "{path}");
    }
}

#[tokio::test]
async fn every_page_answers_with_a_trailing_slash_too() {
    let (_world, app) = start().await;
    for path in [
        "/users",
        "/health/live",
        "/health/ready",
        "/metrics",
        "/openapi.json",
        "/docs/errors",
        "/docs/errors/not_found",
    ] {
        let without = app.get(path).await;
        let with = app.get(&format!("{path}/")).await;
        assert_eq!(
            (without.status.as_u16(), with.status.as_u16()),
            (200, 200),
            "{path}"
        );
        assert_eq!(
            without.header("content-type"),
            with.header("content-type"),
            "{path}"
        );
    }
    let requests =
        r#"http_request_duration_seconds_count{method="GET",route="/health/live",status="200"} 2"#;
    assert!(app.get("/metrics").await.text.contains(requests));
}

#[tokio::test]
async fn responses_forbid_mime_sniffing_and_shared_caching_of_users() {
    let (_world, app) = start().await;
    let id = app.create_user("Анна").await;
    for path in [
        "/users",
        &format!("/users/{id}"),
        "/users/999",
        "/nowhere",
        "/health/live",
        "/metrics",
        "/docs/",
        "/openapi.json",
    ] {
        let answer = app.get(path).await;
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(
            answer.header("cross-origin-resource-policy"),
            "same-origin",
            "{path}"
        );
        assert!(!answer.header("cache-control").is_empty(), "{path}");
        let of_users = answer
            .headers
            .get("cache-control")
            .is_some_and(|value| value == "private, no-cache");
        assert_eq!(of_users, path.starts_with("/users"), "{path}");
    }
}

#[tokio::test]
async fn only_the_swagger_ui_files_that_the_page_loads_are_served() {
    let (_world, app) = start().await;
    for file in ["index.html", "oauth2-redirect.html", "swagger-ui.js.map"] {
        app.get(&format!("/docs/{file}"))
            .await
            .assert_problem(404, "not_found");
    }
}

#[tokio::test]
async fn pages_have_a_strict_policy_and_are_resent_only_if_changed() {
    let (_world, app) = start().await;
    for path in [
        "/docs/",
        "/docs/swagger-ui-bundle.js",
        "/docs/swagger-ui.css",
        "/docs/errors",
        "/openapi.json",
    ] {
        let page = app.get(path).await;
        let policy = page.header("content-security-policy");
        assert!(
            policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
            "{policy}"
        );
        assert!(
            !policy.contains("unsafe-eval")
                && !policy.contains("script-src 'self' 'unsafe-inline'"),
            "{policy}"
        );
        assert_eq!(page.header("referrer-policy"), "no-referrer");
        let again = |tags: &str| {
            app.request(reqwest::Method::GET, path)
                .header("if-none-match", tags)
        };
        let unchanged = Answer::of(again(&format!("\"other\", W/{}", page.header("etag")))).await;
        assert_eq!(
            (unchanged.status.as_u16(), unchanged.text.as_str()),
            (304, ""),
            "{path}"
        );
        assert_eq!(unchanged.header("etag"), page.header("etag"));
        assert_eq!(Answer::of(again("\"other\"")).await.status, 200, "{path}");
    }
}
