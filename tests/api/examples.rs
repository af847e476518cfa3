//! Replays the examples of the OpenAPI document: the server accepts each request body and sends
//! each error in it.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use harness::{Answer, App, Proxy, World, make_key, start, start_with, until};

/// An example of an error, and the operation that shows it.
struct Example {
    method: String,
    path: String,
    media_type: String,
    body: Option<Value>,
    code: String,
    value: Value,
}

impl Example {
    /// Whether the operation takes a password, and so can reach the limit on hashing.
    fn hashes(&self) -> bool {
        self.body.is_some()
    }
}

async fn document(app: &App) -> Value {
    app.get("/openapi.json").await.body
}

fn operations(document: &Value) -> impl Iterator<Item = (&String, &String, &Value)> {
    let paths = document["paths"].as_object().unwrap().iter();
    paths.flat_map(|(path, item)| {
        item.as_object()
            .unwrap()
            .iter()
            .map(move |(method, operation)| (path, method, operation))
    })
}

/// The example of a request body, and its media type.
fn body(operation: &Value) -> Option<(&str, &Value)> {
    let content = operation["requestBody"]["content"].as_object()?;
    let (media_type, content) = content.iter().next()?;
    Some((media_type, &content["example"]))
}

fn errors(document: &Value) -> Vec<Example> {
    let mut found = Vec::new();
    for (path, method, operation) in operations(document) {
        let (media_type, body) = match body(operation) {
            Some((media_type, body)) => (media_type, Some(body)),
            None => ("application/json", None),
        };
        for (status, response) in operation["responses"].as_object().unwrap() {
            if status.as_str() < "400" {
                continue;
            }
            let examples = response
                .pointer("/content/application~1problem+json/examples")
                .and_then(Value::as_object);
            let examples =
                examples.unwrap_or_else(|| panic!("no example of {status} at {method} {path}"));
            for (code, example) in examples {
                assert_eq!(example["value"]["status"].to_string(), *status);
                found.push(Example {
                    method: method.to_uppercase(),
                    path: path.replace("{id}", "1"),
                    media_type: media_type.to_owned(),
                    body: body.cloned(),
                    code: code.clone(),
                    value: example["value"].clone(),
                });
            }
        }
    }
    found
}

/// Sends a request as raw bytes, because no client library would send it. Returns the body of the
/// response.
async fn send(app: &App, head: &str, body: &[u8]) -> Value {
    let mut stream = TcpStream::connect(&app.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (_head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("`{answer}` to {head}"));
    serde_json::from_str(body).unwrap_or(Value::Null)
}

/// Sends a request that provokes the example's error. If the server's state causes the error, sends
/// a valid request.
async fn provoke(app: &App, example: &Example) -> Value {
    let Example {
        method, path, code, ..
    } = example;
    let mut body = example
        .body
        .as_ref()
        .map(|body| body.to_string().into_bytes())
        .unwrap_or_default();
    let mut target = path.clone();
    let mut host = "Host: localhost\r\n";
    let given = format!("Content-Type: {}\r\n", example.media_type);
    let mut media_type = given.as_str();
    let long = format!("Host: localhost\r\nX-Long: {}\r\n", "x".repeat(33_000));
    let mut length = None;
    match code.as_str() {
        "bad_request" if path == "/users/1" => host = "Host: localhost\r\nIf-Match: 1\r\n",
        "bad_request" => host = "",
        "precondition_failed" => host = "Host: localhost\r\nIf-Match: \"1\"\r\n",
        "expectation_failed" => host = "Host: localhost\r\nExpect: tea\r\n",
        "head_too_large" => host = &long,
        "invalid_token" => host = "Host: localhost\r\nAuthorization: Bearer x\r\n",
        "misdirected_request" => host = "Host: example.com\r\n",
        "uri_too_long" => target = format!("{path}?{}", "x".repeat(10_000)),
        "invalid_query" => target = format!("{path}?limit=0"),
        "unsupported_media_type" => media_type = "",
        "malformed_json" => body = br#"{"name": "#.to_vec(),
        "validation_failed" => body = br#"{"name": "", "nickname": "x"}"#.to_vec(),
        "payload_too_large" => length = Some(70_000),
        "unreadable_body" => length = Some(body.len() + 1),
        "overloaded" => {
            body = json!({"name": "Иван", "surname": "Иванов", "password": "secret123"})
                .to_string()
                .into_bytes();
        }
        _ => {}
    }
    let length = length.unwrap_or(body.len());
    let head = format!(
        "{method} {target} HTTP/1.1\r\n{host}{media_type}Content-Length: {length}\r\nConnection: \
         close\r\n\r\n"
    );
    send(app, &head, &body).await
}

/// Removes what differs from request to request.
fn normalised(mut problem: Value) -> Value {
    problem["trace_id"] = "".into();
    let detail = problem["detail"]
        .as_str()
        .unwrap_or_default()
        .replace("within 300 ms", "within 10000 ms");
    problem["detail"] = detail.into();
    problem
}

async fn assert_sent(app: &App, example: &Example) {
    let sent = provoke(app, example).await;
    let Example {
        method, path, code, ..
    } = example;
    assert_eq!(
        normalised(sent),
        normalised(example.value.clone()),
        "{code} at {method} {path}"
    );
}

/// Those whose cause is the server's condition; each has a test of its own.
const CONDITIONS: [&str; 10] = [
    "precondition_failed",
    "unauthenticated",
    "insufficient_scope",
    "internal_error",
    "database_unavailable",
    "database_read_only",
    "not_ready",
    "time_limit_exceeded",
    "overloaded",
    "body_timeout",
];

async fn of(app: &App, wanted: impl Fn(&str) -> bool) -> Vec<Example> {
    let examples: Vec<_> = errors(&document(app).await)
        .into_iter()
        .filter(|example| wanted(&example.code))
        .collect();
    assert!(!examples.is_empty());
    examples
}

#[tokio::test]
async fn every_example_body_is_accepted_and_answered_as_documented() {
    let (world, app) = start().await;
    let document = document(&app).await;
    let shown = |path: &str, method: &str| {
        let (_media_type, body) = body(&document["paths"][path][method]).unwrap();
        body.clone()
    };
    let created = app.post("/users", &shown("/users", "post")).await;
    assert_eq!(created.status, 201, "{created:?}");
    let hash = async || world.value::<String>("SELECT password FROM users").await;
    let before = hash().await;
    let updated = app.put("/users/1", &shown("/users/{id}", "put")).await;
    assert_eq!(updated.status, 200, "{updated:?}");
    assert_eq!(
        hash().await,
        before,
        "executing the example of PUT changes no password"
    );
    let properties = document["components"]["schemas"]["User"]["properties"]
        .as_object()
        .unwrap();
    let fields: Vec<_> = created.body.as_object().unwrap().keys().collect();
    assert_eq!(fields, properties.keys().collect::<Vec<_>>());
    for (name, property) in properties {
        assert!(!property["example"].is_null(), "{name} has no example");
    }
    for (schema, order) in [
        ("CreateUser", ["name", "surname", "password"]),
        ("UpdateUser", ["name", "surname", "password"]),
        ("PatchUser", ["name", "surname", "password"]),
    ] {
        let properties = document["components"]["schemas"][schema]["properties"]
            .as_object()
            .unwrap();
        assert_eq!(properties.keys().collect::<Vec<_>>(), order);
    }
    for (path, method, operation) in operations(&document) {
        let has_body = !operation["requestBody"].is_null();
        assert_eq!(
            has_body,
            matches!(method.as_str(), "post" | "put" | "patch"),
            "{method} {path}"
        );
    }
}

#[tokio::test]
async fn every_documented_request_error_is_sent() {
    let (_world, app) = start().await;
    for example in of(&app, |code| !CONDITIONS.contains(&code)).await {
        assert_sent(&app, &example).await;
    }
}

#[tokio::test]
async fn the_documented_errors_of_preconditions_are_sent() {
    let (world, app) = start_with(&[("REQUIRE_IF_MATCH", "true")]).await;
    app.create_user("Анна").await;
    let change = "UPDATE users SET version = 2";
    sqlx::raw_sql(change).execute(&world.pool).await.unwrap();
    for example in of(&app, |code| code.starts_with("precondition_")).await {
        assert_sent(&app, &example).await;
    }
}

#[tokio::test]
async fn the_documented_error_without_a_key_is_sent() {
    let (_world, app) = start_with(&[("ALLOW_ANONYMOUS", "false")]).await;
    for example in of(&app, |code| code == "unauthenticated").await {
        assert_sent(&app, &example).await;
    }
}

#[tokio::test]
async fn the_documented_scope_error_is_sent() {
    let (world, app) = start().await;
    let token = make_key(&world, "verifier", "passwords:verify").await;
    for example in of(&app, |code| code == "insufficient_scope").await {
        let method = example.method.parse().unwrap();
        let request = app.request(method, &example.path).bearer_auth(&token);
        let sent = Answer::of(request).await.body;
        assert_eq!(normalised(sent), normalised(example.value));
    }
}

#[tokio::test]
async fn the_documented_internal_error_is_sent() {
    let (world, app) = start().await;
    // A statement that fails is a defect of the service.
    sqlx::query("ALTER TABLE users RENAME COLUMN name TO nom")
        .execute(&world.pool)
        .await
        .unwrap();
    for example in of(&app, |code| code == "internal_error").await {
        assert_sent(&app, &example).await;
    }
}

#[tokio::test]
async fn the_documented_errors_of_an_absent_database_are_sent() {
    let world = World::new().await;
    let proxy = Proxy::before(&world.database_url).await;
    let app = App::start(&world)
        .with(&[("DATABASE_URL", &proxy.url(&world.database_url))])
        .await;
    let examples = of(&app, |code| {
        ["database_unavailable", "not_ready"].contains(&code)
    })
    .await;
    proxy.close();
    for example in examples {
        // The relay's and the consumer's connections take their time to notice.
        until(
            format!("{} at {} {}", example.code, example.method, example.path),
            async || normalised(provoke(&app, &example).await) == normalised(example.value.clone()),
        )
        .await;
    }
}

#[tokio::test]
async fn the_documented_errors_of_a_read_only_database_are_sent() {
    let world = World::new().await;
    let url = format!(
        "{}?options=-c%20default_transaction_read_only%3Don",
        world.database_url
    );
    let app = App::start(&world)
        .with(&[("DATABASE_URL", &url), ("DATABASE_DIRECT_URL", &url)])
        .launch()
        .await;
    app.until_ready("degraded").await;
    for example in of(&app, |code| code == "database_read_only").await {
        assert_sent(&app, &example).await;
    }
}

#[tokio::test]
async fn the_documented_request_timeout_is_sent() {
    let (world, app) = start_with(&[("REQUEST_TIMEOUT_MS", "300")]).await;
    let examples = of(&app, |code| code == "time_limit_exceeded").await;
    let mut lock = world.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE users, outbox, outbox_quarantine, _sqlx_migrations")
        .execute(&mut *lock)
        .await
        .unwrap();
    for example in examples {
        assert_sent(&app, &example).await;
    }
    lock.rollback().await.unwrap();
}

#[tokio::test]
async fn the_documented_body_timeout_is_sent() {
    let (_world, app) = start_with(&[("BODY_READ_TIMEOUT_MS", "300")]).await;
    for Example {
        method,
        path,
        media_type,
        code,
        value,
        ..
    } in of(&app, |code| code == "body_timeout").await
    {
        let mut stream = TcpStream::connect(&app.address).await.unwrap();
        let media_type = format!("Content-Type: {media_type}");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{media_type}\r\nContent-Length: \
             9\r\n\r\n{{"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let body = answer
            .split_once("\r\n\r\n")
            .unwrap()
            .1
            .replace("within 300 ms", "within 5000 ms");
        assert_eq!(
            normalised(serde_json::from_str(&body).unwrap()),
            normalised(value),
            "{code} at {method} {path}"
        );
    }
}

#[tokio::test]
async fn the_documented_overload_error_is_sent() {
    let (_world, app) = start_with(&[("PASSWORD_HASH_WAIT_MS", "1")]).await;
    app.create_user("Анна").await;
    let examples = of(&app, |code| code == "overloaded").await;
    let (hashing, others): (Vec<_>, Vec<_>) = examples.iter().partition(|example| example.hashes());
    assert!(!hashing.is_empty() && !others.is_empty());
    for example in &hashing {
        let answers = futures_util::future::join_all((0..64).map(|_| provoke(&app, example))).await;
        let refused = answers
            .into_iter()
            .find(|answer| answer["code"] == "overloaded")
            .expect("an overload");
        assert_eq!(normalised(refused), normalised(example.value.clone()));
    }
    // A queue of 16,384 reads is not to be filled here: the text is the same for all.
    for example in others {
        let mut same = example.value.clone();
        same["instance"] = hashing[0].value["instance"].clone();
        assert_eq!(same, hashing[0].value);
    }
}
