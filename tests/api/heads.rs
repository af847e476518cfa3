//! How the service handles the head of a request: `Host`, the length of the path, the origin.

use std::process::Stdio;

use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use harness::{Answer, App, PATIENCE, World, command, eventually, start};

/// Status and code of the answer to a request with these header lines.
async fn answer_to(app: &App, target: &str, headers: &[&str]) -> (u16, String) {
    let mut stream = TcpStream::connect(&app.address).await.unwrap();
    let lines = headers.join("\r\n") + if headers.is_empty() { "" } else { "\r\n" };
    stream
        .write_all(format!("GET {target} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        body["code"].as_str().unwrap_or_default().to_owned(),
    )
}

#[tokio::test]
async fn on_loopback_a_host_name_that_is_not_allowed_is_421() {
    let (world, app) = start().await;
    for host in ["127.0.0.1", "localhost:8000", "[::1]:1", "192.0.2.7"] {
        assert_eq!(
            answer_to(&app, "/users", &[&format!("Host: {host}")])
                .await
                .0,
            200,
            "{host}"
        );
    }
    for host in [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
    ] {
        let answer = answer_to(&app, "/users", &[&format!("Host: {host}")]).await;
        assert_eq!(answer, (421, "misdirected_request".to_owned()), "{host}");
    }
    assert_eq!(
        answer_to(&app, "http://evil.example/users", &["Host: localhost"])
            .await
            .0,
        421
    );

    let app = App::start(&world)
        .with(&[
            ("ALLOWED_HOSTS", "users.example, other.example"),
            ("ALLOW_ANONYMOUS", "true"),
        ])
        .await;
    assert_eq!(
        answer_to(&app, "/users", &["Host: Users.Example:443"])
            .await
            .0,
        200
    );
    assert_eq!(
        answer_to(&app, "/users", &["Host: evil.example"]).await.0,
        421
    );
}

#[tokio::test]
async fn off_loopback_only_configured_host_names_are_accepted() {
    let world = World::new().await;
    let elsewhere = [("HOST", "0.0.0.0"), ("ALLOW_ANONYMOUS", "true")];
    let app = App::start(&world).with(&elsewhere).await;
    let answer = answer_to(&app, "/users", &["Host: any.example"]).await;
    assert_eq!(answer, (421, "misdirected_request".to_owned()));
    assert_eq!(answer_to(&app, "/users", &["Host: 127.0.0.1"]).await.0, 200);
    let lines = app.log.lines();
    let warns = |line: &&serde_json::Value| {
        line["event"]
            .as_str()
            .unwrap()
            .starts_with("ALLOW_ANONYMOUS=true: anybody who can reach")
    };
    assert_eq!(
        lines.iter().find(warns).expect("a warning")["level"],
        "warning"
    );
    for allowed in ["*", "any.example"] {
        let app = App::start(&world)
            .with(&[&elsewhere[..], &[("ALLOWED_HOSTS", allowed)]].concat())
            .await;
        assert_eq!(
            answer_to(&app, "/users", &["Host: any.example"]).await.0,
            200,
            "{allowed}"
        );
    }
}

#[tokio::test]
async fn an_unknown_transfer_encoding_or_expectation_is_refused() {
    let (_world, app) = start().await;
    let answers = [
        ("Transfer-Encoding: gzip, chunked", 400, "bad_request"),
        ("Transfer-Encoding: chunked, chunked", 400, "bad_request"),
        ("Expect: tea", 417, "expectation_failed"),
        ("Expect: 100-Continue", 200, ""),
    ];
    for (header, status, code) in answers {
        assert_eq!(
            answer_to(&app, "/users", &["Host: localhost", header]).await,
            (status, code.to_owned()),
            "{header}"
        );
    }
}

#[tokio::test]
async fn a_head_over_32_kib_is_431_and_one_below_is_read() {
    let (_world, app) = start().await;
    let with = |bytes: usize| format!("X-Long: {}", "x".repeat(bytes));
    let answer = answer_to(&app, "/users", &["Host: localhost", &with(32_800)]).await;
    assert_eq!(answer, (431, "head_too_large".to_owned()));
    assert_eq!(
        answer_to(&app, "/users", &["Host: localhost", &with(32_600)])
            .await
            .0,
        200
    );
}

#[tokio::test]
async fn a_missing_repeated_or_malformed_host_is_400() {
    let (_world, app) = start().await;
    for hosts in [
        &[][..],
        &["Host: localhost", "Host: localhost"],
        &["Host:"],
        &["Host: a b"],
        &["Host: localhost/x"],
    ] {
        assert_eq!(
            answer_to(&app, "/users", hosts).await,
            (400, "bad_request".to_owned()),
            "{hosts:?}"
        );
    }
}

#[tokio::test]
async fn a_path_beyond_its_limit_is_414_and_a_long_one_is_shortened() {
    let (_world, app) = start().await;
    app.get(&format!("/{}", "x".repeat(8_192)))
        .await
        .assert_problem(414, "uri_too_long");
    let answer = app.get(&format!("/{}", "y".repeat(8_000))).await;
    answer.assert_problem(404, "not_found");
    let shown = answer.body["instance"].as_str().unwrap();
    assert!(shown.starts_with("/yyy") && shown.len() < 300, "{shown}");
    for message in ["Request started", "Request completed"] {
        app.log
            .wait_for(message, |line| line["path"] == shown)
            .await;
    }
    assert!(!app.log.text().contains(&"y".repeat(300)));
}

#[tokio::test]
async fn request_logs_name_the_client_and_trust_only_known_proxies() {
    let (world, app) = start().await;
    let forwarded = |app: &App| {
        app.request(Method::GET, "/nowhere")
            .header("x-forwarded-for", "203.0.113.9, 127.0.0.9")
    };
    Answer::of(forwarded(&app))
        .await
        .assert_problem(404, "not_found");
    for message in ["Request started", "Request completed"] {
        let line = app
            .log
            .wait_for(message, |line| line["path"] == "/nowhere")
            .await;
        assert_eq!(line["client_address"], "127.0.0.1");
    }
    let app = App::start(&world)
        .with(&[
            ("TRUSTED_PROXIES", "127.0.0.0/8"),
            ("ALLOW_ANONYMOUS", "true"),
        ])
        .await;
    Answer::of(forwarded(&app))
        .await
        .assert_problem(404, "not_found");
    let line = app
        .log
        .wait_for("Request completed", |line| line["path"] == "/nowhere")
        .await;
    assert_eq!(line["client_address"], json!("203.0.113.9"));
}

#[tokio::test]
async fn characters_that_would_disguise_a_log_line_are_escaped() {
    let world = World::new().await;
    for format in ["json", "pretty"] {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
            .to_string();
        let settings = [
            &world.settings()[..],
            &[("LOG_FORMAT", format), ("PORT", &port)],
        ]
        .concat();
        let mut service = command(&settings).stdout(Stdio::piped()).spawn().unwrap();
        let mut stream = eventually("a connection", async || {
            TcpStream::connect(format!("127.0.0.1:{port}")).await.ok()
        })
        .await;
        let path = "/a\u{202e}b\u{9b}c";
        stream
            .write_all(
                format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    .as_bytes(),
            )
            .await
            .unwrap();
        stream.read_to_string(&mut String::new()).await.unwrap();
        let mut lines = BufReader::new(service.stdout.take().unwrap()).lines();
        while let Some(line) = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap() {
            assert!(!line.contains(['\u{202e}', '\u{9b}']), "{line}");
            if line.contains("Request completed") {
                assert!(line.contains("202e") && line.contains("9b"), "{line}");
                break;
            }
        }
        service.kill().await.unwrap();
    }
}
