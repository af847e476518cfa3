//! Who gets in: keys, scopes, and what a caller without one learns.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::api::commands::run;
use harness::{Answer, App, Observer, Proxy, World, make_key, new_user, start_with, until};

pub const CLOSED: [(&str, &str); 1] = [("ALLOW_ANONYMOUS", "false")];

/// Runs `api-key …` and returns whether it succeeded, and what it printed.
async fn api_key(world: &World, arguments: &[&str]) -> (bool, String) {
    let arguments = [&["api-key"], arguments].concat();
    let (output, text) = run(&arguments, &world.settings()).await;
    (output.status.success(), text)
}

fn with_key(app: &App, method: Method, path: &str, token: &str) -> RequestBuilder {
    app.request(method, path).bearer_auth(token)
}

pub async fn get(app: &App, path: &str, token: &str) -> Answer {
    Answer::of(with_key(app, Method::GET, path, token)).await
}

/// A token of the right form that nobody made.
const UNKNOWN: &str = "umapi_0000000000000000000000000000002C8GjS";

/// A path, and the scope that each method needs that it takes.
const CLOSED_PATHS: [(&str, &[(&str, &str)]); 5] = [
    ("/users", &[("GET", "users:read"), ("POST", "users:write")]),
    (
        "/users/7",
        &[
            ("GET", "users:read"),
            ("PUT", "users:write"),
            ("PATCH", "users:write"),
            ("DELETE", "users:write"),
        ],
    ),
    ("/metrics", &[("GET", "metrics:read")]),
    ("/nowhere", &[]),
    ("/users/7/more", &[]),
];
const OPEN_PATHS: [&str; 8] = [
    "/",
    "/docs",
    "/docs/errors",
    "/docs/errors/not_found",
    "/docs/no/such",
    "/openapi.json",
    "/health/live",
    "/health/ready",
];
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// What a request with a key of this scope is answered: 401 or 403 if it is not let in.
fn expected(needed: &[(&str, &str)], method: &str, scope: Option<&str>) -> Option<u16> {
    let Some(scope) = scope else {
        return Some(401);
    };
    let method = if method == "HEAD" { "GET" } else { method };
    let (_, needed) = needed.iter().find(|(name, _)| *name == method)?;
    let suffices = scope == *needed || (scope == "users:write" && *needed == "users:read");
    (!suffices).then_some(403)
}

#[tokio::test]
async fn every_route_method_and_credential_is_answered_as_the_table_says() {
    let (world, app) = start_with(&CLOSED).await;
    let mut credentials: Vec<(Option<String>, Option<&str>)> = vec![
        (None, None),
        (Some("Bearer umapi_short".to_owned()), None),
        (Some(format!("Bearer {UNKNOWN}")), None),
        (Some("Basic dTpw".to_owned()), None),
        (Some("Bearer".to_owned()), None),
    ];
    for scope in [
        "users:read",
        "users:write",
        "passwords:verify",
        "metrics:read",
    ] {
        let token = make_key(&world, &scope.replace(':', "-"), scope).await;
        credentials.push((Some(format!("Bearer {token}")), Some(scope)));
    }
    let expired = make_key(&world, "expired", "users:write").await;
    let expire = "UPDATE api_keys SET expires_at = now() WHERE name = 'expired'";
    sqlx::raw_sql(expire).execute(&world.pool).await.unwrap();
    credentials.push((Some(format!("Bearer {expired}")), None));
    for (credential, scope) in &credentials {
        for (path, needed) in CLOSED_PATHS {
            for method in METHODS {
                for path in [path.to_owned(), format!("{path}/")] {
                    let method = Method::from_bytes(method.as_bytes()).unwrap();
                    let mut request = app.request(method.clone(), &path);
                    if let Some(credential) = credential {
                        request = request.header("authorization", credential);
                    }
                    let status = Answer::of(request).await.status.as_u16();
                    let case = format!("{method} {path} with {credential:?}: {status}");
                    match expected(needed, method.as_str(), *scope) {
                        Some(refusal) => assert_eq!(status, refusal, "{case}"),
                        None => assert!(status != 401 && status != 403, "{case}"),
                    }
                }
            }
        }
    }
    for path in OPEN_PATHS {
        for method in METHODS {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let request = app.request(method.clone(), path);
            let status = Answer::of(request).await.status.as_u16();
            assert!(status != 401, "{method} {path}: {status}");
        }
    }
}

#[tokio::test]
async fn a_refusal_says_what_is_missing_by_rfc_6750() {
    let (world, app) = start_with(&CLOSED).await;
    let challenge = |answer: &Answer| answer.header("www-authenticate").to_owned();
    let realm = r#"Bearer realm="user-management-api""#;
    let none = app.get("/users").await;
    none.assert_problem(401, "unauthenticated");
    assert_eq!(challenge(&none), realm);
    let unknown = get(&app, "/users", UNKNOWN).await;
    unknown.assert_problem(401, "invalid_token");
    assert_eq!(
        challenge(&unknown),
        format!(r#"{realm}, error="invalid_token""#)
    );
    let reader = make_key(&world, "reader", "users:read").await;
    let write = with_key(&app, Method::POST, "/users", &reader).json(&new_user("Анна"));
    let write = Answer::of(write).await;
    write.assert_problem(403, "insufficient_scope");
    assert_eq!(
        challenge(&write),
        format!(r#"{realm}, error="insufficient_scope", scope="users:write""#)
    );
    let twice = app
        .request(Method::GET, "/users")
        .bearer_auth(&reader)
        .bearer_auth(&reader);
    Answer::of(twice).await.assert_problem(400, "bad_request");
    for (reason, count) in [("missing", 1), ("invalid", 1), ("scope", 1)] {
        let scraper = make_key(&world, &format!("scraper-{reason}"), "metrics:read").await;
        let metrics = get(&app, "/metrics", &scraper).await.text;
        let line = format!("auth_failures_total{{reason=\"{reason}\"}} {count}");
        assert!(metrics.contains(&line), "no {line} in {metrics}");
    }
}

#[tokio::test]
async fn without_a_key_known_and_unknown_paths_look_alike() {
    let (_world, app) = start_with(&CLOSED).await;
    let refused: [(&str, &[(&str, &str)]); 5] = [
        ("no key", &[]),
        ("a wrong key", &[("authorization", "Bearer x")]),
        (
            "two keys",
            &[("authorization", "Bearer x"), ("authorization", "Bearer y")],
        ),
        ("an expectation", &[("expect", "tea")]),
        ("a transfer", &[("x-long", &"x".repeat(33_000))]),
    ];
    for (what, headers) in refused {
        let mut seen = Vec::new();
        for path in ["/users", "/users/1", "/users/x", "/metrics", "/nowhere"] {
            for method in [Method::GET, Method::POST, Method::PATCH] {
                let mut request = app.request(method, path);
                for (name, value) in headers {
                    request = request.header(*name, *value);
                }
                let mut answer = Answer::of(request).await;
                for header in ["x-trace-id", "date", "content-length"] {
                    answer.headers.remove(header);
                }
                answer.body["trace_id"] = Value::Null;
                answer.body["instance"] = Value::Null;
                seen.push((answer.status, answer.headers, answer.body));
            }
        }
        assert!(seen[0].0.is_client_error(), "{what}");
        let alike = seen.iter().all(|answer| *answer == seen[0]);
        assert!(alike, "{what}: {seen:#?}");
    }
}

#[tokio::test]
async fn a_body_is_not_asked_for_before_the_credential_is_checked() {
    let (_world, app) = start_with(&CLOSED).await;
    let mut stream = TcpStream::connect(&app.address).await.unwrap();
    let head = "POST /users HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\
                Content-Type: application/json\r\nExpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
}

#[tokio::test]
async fn a_key_works_immediately_on_each_replica_and_stops_within_6_s() {
    let world = World::new().await;
    let first = App::start(&world).with(&CLOSED).await;
    let second = App::start(&world).with(&CLOSED).await;
    let token = make_key(&world, "front-end", "users:read").await;
    for app in [&first, &second] {
        assert_eq!(get(app, "/users", &token).await.status, 200);
    }
    let (revoked, text) = api_key(&world, &["revoke", "front-end"]).await;
    assert!(revoked, "{text}");
    let began = Instant::now();
    for app in [&first, &second] {
        until("a refusal", async || {
            get(app, "/users", &token).await.status == 401
        })
        .await;
    }
    assert!(began.elapsed() < Duration::from_secs(6), "{began:?}");
}

#[tokio::test]
async fn a_rotated_key_works_with_both_tokens_until_the_old_one_expires() {
    let (world, app) = start_with(&CLOSED).await;
    let old = make_key(&world, "front-end", "users:read").await;
    let (again, text) = api_key(&world, &["create", "front-end", "--scope", "users:read"]).await;
    assert!(!again && text.contains("api-key rotate"), "{text}");
    let (rotated, new) = api_key(&world, &["rotate", "front-end", "--keep-old", "1h"]).await;
    assert!(rotated, "{new}");
    for token in [&old, new.trim_end()] {
        assert_eq!(get(&app, "/users", token).await.status, 200);
    }
    let (rotated, newest) = api_key(&world, &["rotate", "front-end", "--keep-old", "0s"]).await;
    assert!(rotated, "{newest}");
    for token in [&old, new.trim_end()] {
        until("a refusal", async || {
            let answer = get(&app, "/users", token).await;
            answer.status == 401 && answer.body["detail"] == "The token has expired."
        })
        .await;
    }
    assert_eq!(get(&app, "/users", newest.trim_end()).await.status, 200);
    for unknown in [["rotate", "nobody"], ["revoke", "nobody"]] {
        let (done, text) = api_key(&world, &unknown).await;
        assert!(!done && text.contains("no key of this name"), "{text}");
    }
    let (listed, text) = api_key(&world, &["list", "--format", "json"]).await;
    let list: Value = serde_json::from_str(&text).unwrap();
    assert!(listed && list["count"] == 3, "{text}");
    assert_eq!(list["keys"][0]["scopes"], json!(["users:read"]));
}

#[tokio::test]
async fn no_token_or_digest_is_in_a_log_a_list_a_metric_or_check() {
    let (world, app) = start_with(&CLOSED).await;
    let scraper = make_key(&world, "scraper", "metrics:read").await;
    let token = make_key(&world, "front-end", "users:write").await;
    let create = with_key(&app, Method::POST, "/users", &token).json(&new_user("Анна"));
    assert_eq!(Answer::of(create).await.status, 201);
    let digests: Vec<String> =
        sqlx::query_scalar("SELECT encode(token_sha256, 'hex') FROM api_keys")
            .fetch_all(&world.pool)
            .await
            .unwrap();
    let (_, listed) = api_key(&world, &["list"]).await;
    let (_, checked) = run(&["check"], &world.settings()).await;
    let metrics = get(&app, "/metrics", &scraper).await.text;
    for secret in [&[token, scraper], &digests[..]].concat() {
        for text in [&listed, &checked, &metrics, &app.log.text()] {
            assert!(!text.contains(&secret), "{secret} is in {text}");
        }
    }
}

#[tokio::test]
async fn the_actor_is_in_log_outbox_and_event_and_absent_without_a_key() {
    let world = World::new().await;
    let mut observer = Observer::new(&world).await;
    let app = App::start(&world).await;
    let token = make_key(&world, "front-end", "users:write").await;
    let create = with_key(&app, Method::POST, "/users", &token).json(&new_user("Анна"));
    let id = Answer::of(create).await.body["id"].clone();
    let path = format!("/users/{id}");
    let rename = with_key(&app, Method::PUT, &path, &token).json(&json!({"name": "Вера"}));
    assert_eq!(Answer::of(rename).await.status, 200);
    let password = json!({"password": "another-secret"});
    let change = with_key(&app, Method::PUT, &path, &token).json(&password);
    assert_eq!(Answer::of(change).await.status, 200);
    assert_eq!(
        Answer::of(with_key(&app, Method::DELETE, &path, &token))
            .await
            .status,
        204
    );
    for event in observer.next_bodies(4).await {
        assert_eq!(event["actor"], "key:front-end", "{event}");
    }
    for line in ["User created", "User updated", "User deleted"] {
        let line = app.log.wait_for(line, |_| true).await;
        assert_eq!(line["actor"], "key:front-end", "{line}");
    }
    let ended = app
        .log
        .wait_for("Request completed", |line| line["method"] == "DELETE")
        .await;
    assert_eq!(ended["actor"], "key:front-end", "{ended}");
    app.create_user("Анна").await;
    let event = &observer.next_bodies(1).await[0];
    assert!(event.get("actor").is_none(), "{event}");
}

#[tokio::test]
async fn a_bad_key_is_refused_where_none_is_needed() {
    let (_world, app) = start_with(&[]).await;
    assert_eq!(app.get("/users").await.status, 200);
    get(&app, "/users", UNKNOWN)
        .await
        .assert_problem(401, "invalid_token");
}

#[tokio::test]
async fn known_keys_work_while_the_database_is_away() {
    let world = World::new().await;
    let proxy = Proxy::before(&world.database_url).await;
    let url = proxy.url(&world.database_url);
    let settings = [CLOSED[0], ("DATABASE_URL", &*url)];
    let app = App::start(&world).with(&settings).await;
    let scraper = make_key(&world, "scraper", "metrics:read").await;
    assert_eq!(get(&app, "/metrics", &scraper).await.status, 200);
    proxy.close();
    app.log
        .wait_for(
            "The API keys cannot be read; those read before stay valid",
            |_| true,
        )
        .await;
    assert_eq!(get(&app, "/metrics", &scraper).await.status, 200);
    app.get("/metrics")
        .await
        .assert_problem(401, "unauthenticated");
}

#[tokio::test]
async fn before_the_first_read_a_key_is_503_and_its_absence_401() {
    let world = World::new().await;
    let away = "postgresql://u:p@127.0.0.1:1/none";
    let app = App::start(&world)
        .with(&[CLOSED[0], ("DATABASE_URL", away)])
        .launch()
        .await;
    get(&app, "/users", UNKNOWN)
        .await
        .assert_problem(503, "database_unavailable");
    app.get("/users")
        .await
        .assert_problem(401, "unauthenticated");
}

#[tokio::test]
async fn a_flood_of_unknown_tokens_costs_a_query_a_second() {
    let (world, app) = start_with(&CLOSED).await;
    let scans = async || {
        let scans = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'api_keys'";
        world.value::<i64>(scans).await
    };
    let before = scans().await;
    let began = Instant::now();
    for _ in 0..3 {
        let flood = (0..200).map(|_| get(&app, "/users", UNKNOWN));
        for answer in futures_util::future::join_all(flood).await {
            assert_eq!(answer.status, 401);
        }
    }
    let seconds = began.elapsed().as_secs();
    let most = i64::try_from(seconds).unwrap() + 2;
    until("the statistics", async || scans().await > before).await;
    let reads = scans().await - before;
    assert!(reads <= most, "{reads} reads in {seconds} s");
}

#[tokio::test]
async fn an_address_others_can_reach_starts_closed_and_says_what_to_do() {
    let (world, app) = start_with(&[("HOST", "0.0.0.0")]).await;
    app.get("/users")
        .await
        .assert_problem(401, "unauthenticated");
    let advice = |line: &Value| {
        line["event"]
            .as_str()
            .unwrap()
            .starts_with("No API key exists")
    };
    until("advice", async || app.log.lines().iter().any(advice)).await;
    let token = make_key(&world, "front-end", "users:read").await;
    assert_eq!(get(&app, "/users", &token).await.status, 200);
}

#[tokio::test]
async fn the_last_use_of_a_key_is_noted_when_the_service_stops() {
    let (world, mut app) = start_with(&CLOSED).await;
    let token = make_key(&world, "front-end", "users:read").await;
    make_key(&world, "unused", "users:read").await;
    assert_eq!(get(&app, "/users", &token).await.status, 200);
    app.stop().await;
    let used: Vec<(String, bool)> =
        sqlx::query_as("SELECT name, last_used_at IS NOT NULL FROM api_keys ORDER BY name")
            .fetch_all(&world.pool)
            .await
            .unwrap();
    assert_eq!(
        used,
        [("front-end".to_owned(), true), ("unused".to_owned(), false)]
    );
}

#[tokio::test]
async fn check_says_how_many_keys_there_are_and_what_is_open() {
    let world = World::new().await;
    let finding = async |settings: &[(&str, &str)]| {
        let settings = [&world.settings()[..], settings].concat();
        let (_, text) = run(&["check", "--format", "json"], &settings).await;
        let report: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        let findings = report["findings"].as_array().unwrap();
        let found = findings.iter().find(|finding| finding["check"] == "access");
        found.unwrap().clone()
    };
    let closed = finding(&CLOSED).await;
    assert_eq!(closed["result"], "warning");
    assert!(closed["to_do"].as_str().unwrap().contains("api-key create"));
    make_key(&world, "front-end", "users:read").await;
    let found = finding(&CLOSED).await;
    assert_eq!(
        found["found"],
        "1 API key works, and nobody gets in without one"
    );
    let open = finding(&[]).await;
    assert!(
        open["found"]
            .as_str()
            .unwrap()
            .contains("callers without one")
    );
}

#[tokio::test]
async fn a_lifetime_is_whole_seconds_of_this_century() {
    let world = World::new().await;
    for time in ["0s", "1ns", "1000000y", "soon"] {
        let arguments = [
            "create",
            "key",
            "--scope",
            "users:read",
            "--expires-in",
            time,
        ];
        let (made, text) = api_key(&world, &arguments).await;
        assert!(!made && text.contains("--expires-in"), "{time}: {text}");
    }
    let arguments = [
        "create",
        "key",
        "--scope",
        "users:read",
        "--expires-in",
        "90d",
    ];
    let (made, text) = api_key(&world, &[&arguments[..], &["--format", "json"]].concat()).await;
    let key: Value = serde_json::from_str(&text).unwrap();
    assert!(made && key["expires_at"].is_string(), "{text}");
}

#[tokio::test]
async fn a_key_that_floods_hashing_delays_no_other_key() {
    let (world, app) = start_with(&CLOSED).await;
    let crowd = make_key(&world, "crowd", "users:write").await;
    let single = make_key(&world, "single", "users:write").await;
    let post = |token: &str| {
        let request = with_key(&app, Method::POST, "/users", token);
        request.json(&new_user("Анна")).send()
    };
    let answered = Arc::new(AtomicUsize::new(0));
    let mut flood = JoinSet::new();
    for _ in 0..200 {
        let answered = answered.clone();
        let request = post(&crowd);
        flood.spawn(async move {
            _ = request.await;
            answered.fetch_add(1, Relaxed);
        });
    }
    until("the first hashes", async || answered.load(Relaxed) > 0).await;
    assert_eq!(post(&single).await.unwrap().status(), 201);
    let before = answered.load(Relaxed);
    assert!(before < 150, "{before} of the crowd's 200 were first");
    flood.join_all().await;
}
