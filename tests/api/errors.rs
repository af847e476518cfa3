//! Provokes every error of the contract and checks its status, its code, what it names, and that
//! nothing changed.

use reqwest::{Body, Method};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use harness::{Answer, App, PASSWORD, World, new_user, start, start_with};

async fn post_raw(app: &App, body: impl Into<Body>) -> Answer {
    Answer::of(
        app.request(Method::POST, "/users")
            .header("content-type", "application/json")
            .body(body),
    )
    .await
}

async fn nothing_was_written(world: &World) -> bool {
    let users: i64 = world.value("SELECT count(*) FROM users").await;
    users == 0 && world.outbox_is_empty().await
}

#[tokio::test]
async fn a_body_that_is_not_json_is_400() {
    let (world, app) = start().await;
    let truncated = format!(r#"{{"name":"Анна","surname":"Ли","password":"{PASSWORD}"#);
    let surrogate = r#"{"name":"\ud800","surname":"Ли","password":"12345678"}"#;
    let deep = format!("{{\"name\":{}", "[".repeat(60_000));
    let others = [
        "[",
        "[nope",
        "truex",
        r#""abc" x"#,
        "1 2",
        "{\"name\":1e}",
        "{\"name\":01}",
    ];
    for body in ["", "{", "nope", &truncated, surrogate, "{} {}", &deep]
        .into_iter()
        .chain(others)
    {
        post_raw(&app, body.to_owned())
            .await
            .assert_problem(400, "malformed_json");
    }
    post_raw(&app, b"{\"name\":\"\xff\"}".to_vec())
        .await
        .assert_problem(400, "malformed_json");
    assert!(nothing_was_written(&world).await);
}

#[tokio::test]
async fn a_body_that_is_invalid_is_422_and_names_every_fault() {
    let (world, app) = start().await;
    let user = |field: &str, value: Value| {
        let mut user = new_user("Анна");
        user[field] = value;
        user
    };
    let cases = [
        (
            json!({}),
            vec![
                ("/name", "required"),
                ("/surname", "required"),
                ("/password", "required"),
            ],
        ),
        (json!([new_user("Анна")]), vec![("", "invalid_type")]),
        (user("name", json!(null)), vec![("/name", "required")]),
        (user("name", json!("  ")), vec![("/name", "blank")]),
        (
            user("name", json!("a\u{0}b")),
            vec![("/name", "control_character")],
        ),
        (
            user("name", json!("\u{200b}\u{ad} \u{feff}")),
            vec![("/name", "blank")],
        ),
        (
            user("name", json!("\u{e000}\u{378}")),
            vec![("/name", "blank")],
        ),
        (
            user("surname", json!("Ли\u{202e}")),
            vec![("/surname", "bidi_control")],
        ),
        (
            user("surname", json!("я".repeat(256))),
            vec![("/surname", "too_long")],
        ),
        (
            user("surname", json!(["Ли"])),
            vec![("/surname", "invalid_type")],
        ),
        (
            user("password", json!("short")),
            vec![("/password", "too_short")],
        ),
        (
            user("password", json!("x".repeat(1025))),
            vec![("/password", "too_long")],
        ),
        (
            user("nmae", json!("Анна")),
            vec![("/nmae", "unknown_field")],
        ),
        (user("a/b~c", json!(1)), vec![("/a~1b~0c", "unknown_field")]),
    ];
    let deep = format!("{}{}", "[".repeat(130), "]".repeat(130));
    for value in [&deep, &"9".repeat(5_000), "1e999999"] {
        let body = format!(r#"{{"name":{value},"surname":"Ли","password":"{PASSWORD}"}}"#);
        let answer = post_raw(&app, body).await;
        answer.assert_problem(422, "validation_failed");
        assert_eq!(answer.faults(), [("/name", "invalid_type")], "{answer:?}");
    }
    for (body, faults) in cases {
        let answer = app.post("/users", &body).await;
        answer.assert_problem(422, "validation_failed");
        assert_eq!(answer.faults(), faults, "{answer:?}");
    }
    let twice = format!(r#"{{"name":"А","name":"Б","surname":"Ли","password":"{PASSWORD}"}}"#);
    assert_eq!(
        post_raw(&app, twice).await.faults(),
        [("/name", "duplicate_field")]
    );
    assert!(nothing_was_written(&world).await);

    app.create_user("Анна").await;
    let answer = app
        .put("/users/1", &json!({"name": "", "surnam": "Ли"}))
        .await;
    answer.assert_problem(422, "validation_failed");
    assert_eq!(
        answer.faults(),
        [("/surnam", "unknown_field"), ("/name", "blank")]
    );
    assert_eq!(app.get("/users/1").await.body["name"], "Анна");
}

#[tokio::test]
async fn the_shortest_password_is_a_setting() {
    let (_world, app) = start_with(&[("PASSWORD_MIN_LENGTH", "30")]).await;
    let answer = app.post("/users", &new_user("Анна")).await;
    assert_eq!(answer.faults(), [("/password", "too_short")]);
    let document = app.get("/openapi.json").await.body;
    assert_eq!(
        document["components"]["schemas"]["CreateUser"]["properties"]["password"]["minLength"],
        30
    );
}

#[tokio::test]
async fn a_query_that_is_out_of_range_repeated_or_unknown_is_400() {
    let (_world, app) = start().await;
    for (query, fault) in [
        ("limit=0", ("limit", "out_of_range")),
        ("limit=101", ("limit", "out_of_range")),
        ("limit=ten", ("limit", "out_of_range")),
        ("offset=-1", ("offset", "out_of_range")),
        ("offset=99999999999999999999", ("offset", "out_of_range")),
        ("offset=1&offset=1", ("offset", "repeated")),
        ("page=2", ("page", "unknown_parameter")),
    ] {
        let answer = app.get(&format!("/users?{query}")).await;
        answer.assert_problem(400, "invalid_query");
        assert_eq!(answer.faults(), [fault], "{query}");
    }
    app.get("/users/1?verbose=true")
        .await
        .assert_problem(400, "invalid_query");
}

#[tokio::test]
async fn a_malformed_user_id_is_404() {
    let (_world, app) = start().await;
    for id in [
        "abc",
        "-1",
        "0",
        "01",
        "1.5",
        "9223372036854775807",
        "9223372036854775808",
        "%00",
        "%FF",
        "1%2F2",
    ] {
        for method in [Method::GET, Method::DELETE] {
            Answer::of(app.request(method, &format!("/users/{id}")))
                .await
                .assert_problem(404, "user_not_found");
        }
        app.put(&format!("/users/{id}"), &json!({"name": "Анна"}))
            .await
            .assert_problem(404, "user_not_found");
    }
}

#[tokio::test]
async fn an_unknown_path_is_404_and_an_unknown_method_405_with_allow() {
    let (_world, app) = start().await;
    for path in [
        "/nowhere",
        "/users/1/2",
        "/docs/errors/no_such_code",
        "/docs/no-such-file.js",
    ] {
        app.get(path).await.assert_problem(404, "not_found");
    }
    for (method, path, allowed) in [
        (Method::PATCH, "/users", "GET,HEAD,POST"),
        (Method::DELETE, "/users/", "GET,HEAD,POST"),
        (Method::POST, "/users/1", "DELETE,GET,HEAD,PATCH,PUT"),
        (Method::TRACE, "/users/1", "DELETE,GET,HEAD,PATCH,PUT"),
        (Method::POST, "/health/live", "GET,HEAD"),
    ] {
        let answer = Answer::of(app.request(method, path)).await;
        answer.assert_problem(405, "method_not_allowed");
        let mut methods: Vec<_> = answer.header("allow").split(',').map(str::trim).collect();
        methods.sort_unstable();
        assert_eq!(methods.join(","), allowed, "{path}");
    }
}

#[tokio::test]
async fn an_unsupported_media_type_is_415() {
    let (world, app) = start().await;
    let body = new_user("Анна").to_string();
    for media_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/merge-patch+json",
        "json",
        "",
    ] {
        let request = app
            .request(Method::POST, "/users")
            .header("content-type", media_type)
            .body(body.clone());
        Answer::of(request)
            .await
            .assert_problem(415, "unsupported_media_type");
    }
    Answer::of(app.request(Method::POST, "/users").body(body.clone()))
        .await
        .assert_problem(415, "unsupported_media_type");
    let twice = app
        .request(Method::POST, "/users")
        .header("content-type", "application/json");
    let twice = twice
        .header("content-type", "application/json")
        .body(body.clone());
    Answer::of(twice).await.assert_problem(400, "bad_request");
    for encoding in ["gzip", "br", "identity, gzip", "x"] {
        let request = app
            .request(Method::POST, "/users")
            .header("content-encoding", encoding);
        let answer = Answer::of(
            request
                .header("content-type", "application/json")
                .body(body.clone()),
        )
        .await;
        answer.assert_problem(415, "unsupported_media_type");
        assert_eq!(answer.header("accept-encoding"), "identity");
    }
    assert!(nothing_was_written(&world).await);
    let request = app
        .request(Method::PUT, "/users/1")
        .header("content-encoding", "Identity");
    let request = request
        .header("content-type", "application/json")
        .body(body.clone());
    Answer::of(request)
        .await
        .assert_problem(404, "user_not_found");
    let request = app
        .request(Method::POST, "/users")
        .header("content-type", "Application/JSON; charset=utf-8")
        .body(body);
    assert_eq!(Answer::of(request).await.status, 201);
}

#[tokio::test]
async fn a_client_that_writes_its_whole_oversized_body_first_gets_413() {
    let (world, app) = start().await;
    let long_name = new_user(&"x".repeat(1 << 20));
    app.post("/users", &long_name)
        .await
        .assert_problem(413, "payload_too_large");
    post_raw(&app, vec![b' '; 100 << 20])
        .await
        .assert_problem(413, "payload_too_large");
    let chunk = || Ok::<_, std::io::Error>(vec![b' '; 1 << 16]);
    let chunked = Body::wrap_stream(futures_util::stream::iter((0..64).map(move |_| chunk())));
    post_raw(&app, chunked)
        .await
        .assert_problem(413, "payload_too_large");
    assert!(nothing_was_written(&world).await);
}

#[tokio::test]
async fn every_refusal_reaches_a_client_that_writes_its_body_first() {
    const BODY: usize = 100 << 20;
    let (_world, app) = start().await;
    let json = "Host: localhost\r\nContent-Type: application/json\r\n";
    for (start, headers, status) in [
        ("POST /users", json, 413),
        ("PUT /users/1", json, 413),
        ("POST /users?x=1", json, 400),
        (
            "POST /users",
            "Host: localhost\r\nContent-Type: text/plain\r\n",
            415,
        ),
        ("POST /nowhere", json, 404),
        ("PATCH /users", json, 405),
        ("GET /users/7", json, 404),
        ("POST /users", "Host: evil.example\r\n", 421),
    ] {
        let mut stream = TcpStream::connect(&app.address).await.unwrap();
        let head = format!("{start} HTTP/1.1\r\n{headers}Content-Length: {BODY}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let chunk = vec![b' '; 1 << 20];
        for sent in 0..BODY >> 20 {
            stream
                .write_all(&chunk)
                .await
                .unwrap_or_else(|error| panic!("{start}: {error} after {sent} MiB"));
        }
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(
            String::from_utf8_lossy(&answer),
            format!("HTTP/1.1 {status}"),
            "{start}"
        );
    }
}

#[tokio::test]
async fn reading_of_an_endless_body_stops() {
    let (_world, app) = start().await;
    let mut stream = TcpStream::connect(&app.address).await.unwrap();
    stream
        .write_all(
            b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
        .await
        .unwrap();
    let chunk = [b"10000\r\n".as_slice(), &vec![b' '; 1 << 16], b"\r\n"].concat();
    let cut_off = async { while stream.write_all(&chunk).await.is_ok() {} };
    tokio::time::timeout(std::time::Duration::from_secs(10), cut_off)
        .await
        .expect("the service closes the connection");
}

#[tokio::test]
async fn a_request_beyond_its_time_limit_is_504() {
    let (_world, app) = start_with(&[("REQUEST_TIMEOUT_MS", "300")]).await;
    let never_ends = Body::wrap_stream(futures_util::stream::pending::<
        Result<Vec<u8>, std::io::Error>,
    >());
    post_raw(&app, never_ends)
        .await
        .assert_problem(504, "time_limit_exceeded");
}

#[tokio::test]
async fn passwords_not_hashed_in_time_are_503_while_reads_continue() {
    let (_world, app) = start_with(&[("PASSWORD_HASH_WAIT_MS", "1")]).await;
    let user = new_user("Анна");
    let answers = futures_util::future::join_all((0..64).map(|_| app.post("/users", &user))).await;
    let (created, refused): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer.status == 201);
    assert!(
        !created.is_empty() && !refused.is_empty(),
        "{} created, {} refused",
        created.len(),
        refused.len()
    );
    for answer in &refused {
        answer.assert_problem(503, "overloaded");
    }
    let total: usize = app
        .get("/users?limit=1")
        .await
        .header("x-total-count")
        .parse()
        .unwrap();
    assert_eq!(total, created.len());
}

#[tokio::test]
async fn bytes_that_are_not_http_harm_no_other_client() {
    let (_world, app) = start().await;
    for garbage in [
        "\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/1.1\r\nX-Request-Id: a\nb: c\n\n\r\n\r\n",
        "\u{0}\u{1}\u{2}\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(&app.address).await.unwrap();
        stream.write_all(garbage.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // A response or a closed connection are both fine, as long as it ends.
        let _ = stream.read_to_end(&mut answer).await;
        assert!(
            !String::from_utf8_lossy(&answer).contains(" 500 "),
            "{garbage:?}"
        );
    }
    assert_eq!(app.get("/health/live").await.status, 200);
}

#[tokio::test]
async fn each_problems_type_leads_to_a_page_that_explains_it() {
    let (_world, app) = start().await;
    let problem = app.get("/nowhere").await;
    let page = app.get(problem.body["type"].as_str().unwrap()).await;
    assert_eq!(page.status, 200);
    assert!(
        page.header("content-type").starts_with("text/html") && page.text.contains("not_found"),
        "{page:?}"
    );
    assert!(
        app.get("/docs/errors")
            .await
            .text
            .contains("time_limit_exceeded")
    );
}
