//! Clients that are slow, silent, many or broken, seen from the socket.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use harness::{App, PASSWORD, PATIENCE, World, eventually, start, start_with};

async fn connect(app: &App) -> TcpStream {
    TcpStream::connect(&app.address).await.unwrap()
}

/// Reads until the service closes the connection; a reset counts as an end.
async fn rest_of(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("the service closes the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn read_some(stream: &mut TcpStream) -> String {
    let mut answer = [0; 4096];
    let length = timeout(PATIENCE, stream.read(&mut answer))
        .await
        .expect("an answer")
        .unwrap();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

const CROWDED: &str = "The connection limit is reached (MAX_CONNECTIONS, ulimit -n): idle \
                       connections are closed, or new ones refused";

const LIVE: &[u8] = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// A connection that has received a response and has no request in flight.
async fn connect_and_ask(app: &App) -> TcpStream {
    let mut stream = connect(app).await;
    stream.write_all(LIVE).await.unwrap();
    assert!(read_some(&mut stream).await.starts_with("HTTP/1.1 200 "));
    stream
}

async fn closed_for(app: &App, reason: &str) -> bool {
    let counter = format!("http_connections_closed_total{{reason=\"{reason}\"}}");
    // On a separate connection: the test may be about to have the client's own one closed.
    let metrics = reqwest::get(format!("http://{}/metrics", app.address))
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    metrics.lines().any(|line| line.starts_with(&counter))
}

#[tokio::test]
async fn a_head_that_is_late_ends_the_connection_begun_or_not() {
    let (_world, app) = start_with(&[("HEADER_READ_TIMEOUT_MS", "300")]).await;
    let began = Instant::now();
    let mut silent = connect(&app).await;
    let mut half = connect(&app).await;
    half.write_all(b"GET /users HTTP/1.1\r\nHost: loc")
        .await
        .unwrap();
    let mut second = connect_and_ask(&app).await;
    second.write_all(b"GET ").await.unwrap();
    for stream in [&mut silent, &mut half, &mut second] {
        assert_eq!(rest_of(stream).await, "");
    }
    assert!(
        began.elapsed() >= Duration::from_millis(300),
        "{:?}",
        began.elapsed()
    );
    app.log
        .wait_for(
            "Connection closed: the head of a request did not come in time",
            |_| true,
        )
        .await;
    assert!(closed_for(&app, "header_read_timeout").await);
}

#[tokio::test]
async fn a_connection_without_requests_is_closed_after_its_idle_time() {
    let (_world, app) = start_with(&[("KEEP_ALIVE_TIMEOUT_MS", "300")]).await;
    let mut stream = connect_and_ask(&app).await;
    let began = Instant::now();
    assert_eq!(rest_of(&mut stream).await, "");
    assert!(
        began.elapsed() >= Duration::from_millis(250),
        "{:?}",
        began.elapsed()
    );
    assert!(closed_for(&app, "keep_alive_timeout").await);
}

#[tokio::test]
async fn a_client_that_does_not_read_its_responses_is_cut_off() {
    let (_world, app) = start_with(&[("WRITE_TIMEOUT_MS", "300")]).await;
    let mut stream = connect(&app).await;
    let requests = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(64);
    stream.write_all(&requests).await.unwrap();
    app.log
        .wait_for(
            "Connection closed: the client does not read its answers",
            |_| true,
        )
        .await;
    assert!(closed_for(&app, "write_timeout").await);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused_counted_and_logged() {
    let settings = [
        ("MAX_CONNECTIONS", "8"),
        ("MAX_CONNECTIONS_PER_ADDRESS", "8"),
        ("REQUEST_TIMEOUT_MS", "600000"),
    ];
    let (world, app) = start_with(&settings).await;
    let mut lock = world.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE users")
        .execute(&mut *lock)
        .await
        .unwrap();
    // Each is being served: it waits for the lock.
    let mut busy = Vec::new();
    let opened = eventually("a refusal", async || {
        let mut stream = connect(&app).await;
        stream
            .write_all(b"DELETE /users/1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await
            .ok()?;
        let refused = timeout(Duration::from_millis(200), stream.read_u8())
            .await
            .is_ok();
        if !refused {
            busy.push(stream);
        }
        refused.then_some(busy.len())
    })
    .await;
    assert!(opened <= 8, "{opened}");
    let line = app.log.wait_for(CROWDED, |_| true).await;
    assert_eq!(line["max_connections"], 8);
    lock.rollback().await.unwrap();
    drop(busy);
    let refused = eventually("a metric", async || {
        let metrics = app
            .request(reqwest::Method::GET, "/metrics")
            .send()
            .await
            .ok()?
            .text()
            .await
            .ok()?;
        metrics.lines().find_map(|line| {
            line.strip_prefix("http_connections_refused_total ")?
                .parse::<u32>()
                .ok()
        })
    })
    .await;
    assert!(refused > 0);
}

#[tokio::test]
async fn silent_clients_make_room_when_descriptors_are_few() {
    let world = World::new().await;
    let app = App::start(&world).open_files(256).await;
    let silent = join_all((0..300).map(|_| connect(&app))).await;
    let began = Instant::now();
    let answers = eventually("an answer", async || {
        let mut stream = connect(&app).await;
        stream.write_all(LIVE).await.ok()?;
        let mut answer = [0; 12];
        timeout(Duration::from_secs(1), stream.read_exact(&mut answer))
            .await
            .ok()?
            .ok()?;
        Some(answer)
    })
    .await;
    assert_eq!(&answers, b"HTTP/1.1 200");
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
    app.log
        .wait_for(CROWDED, |line| line["displaced"].as_u64() > Some(0))
        .await;
    app.log
        .wait_for(
            "Fewer connections than MAX_CONNECTIONS: raise the limit of open files (ulimit -n)",
            |_| true,
        )
        .await;
    drop(silent);
}

#[tokio::test]
async fn running_out_of_descriptors_is_logged_and_recovered_from() {
    let (_world, app) = start().await;
    app.limit_open_files("10:");
    let mut stream = connect(&app).await;
    stream.write_all(LIVE).await.unwrap();
    app.log
        .wait_for("A connection could not be accepted", |line| {
            line["level"] == "warning"
        })
        .await;
    app.limit_open_files("1000:");
    assert!(read_some(&mut stream).await.starts_with("HTTP/1.1 200 "));
    assert!(app.metric("http_accept_errors_total").await > 0);
}

#[tokio::test]
async fn a_half_closed_client_still_gets_its_response() {
    let (_world, app) = start().await;
    let body = format!(r#"{{"name":"Анна","surname":"Ли","password":"{PASSWORD}"}}"#);
    let mut stream = connect(&app).await;
    let head = format!(
        "POST /users HTTP/1.1\r\nHost: localhost\r\nContent-Type: \
         application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let answer = rest_of(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
}

#[tokio::test]
async fn an_oversized_head_is_refused_and_its_memory_is_freed() {
    let (_world, app) = start().await;
    let before = app.resident();
    let head = format!(
        "GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: {}",
        "x".repeat(400_000)
    )
    .into_bytes();
    let answers = join_all((0..200).map(async |_| {
        let mut stream = connect(&app).await;
        // The service answers and closes before it has read all.
        let _ = stream.write_all(&head).await;
        stream
    }))
    .await;
    let grown = app.resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
    drop(answers);
    let mut stream = connect(&app).await;
    stream.write_all(&head[..40_000]).await.unwrap();
    assert!(rest_of(&mut stream).await.starts_with("HTTP/1.1 431 "));
    let line = app
        .log
        .wait_for(
            "Request refused: its head is not HTTP/1.1, or too large",
            |line| line["reason"] == "head_too_large",
        )
        .await;
    assert_eq!(line["client_address"], "127.0.0.1");
    assert!(closed_for(&app, "head_too_large").await);
}

#[tokio::test]
async fn bytes_that_are_not_http_get_a_400_a_log_line_and_a_count() {
    let (_world, app) = start().await;
    let mut stream = connect(&app).await;
    stream.write_all(b"GET  nonsense\r\n\r\n").await.unwrap();
    assert!(rest_of(&mut stream).await.starts_with("HTTP/1.1 400 "));
    app.log
        .wait_for(
            "Request refused: its head is not HTTP/1.1, or too large",
            |line| line["reason"] == "malformed_request",
        )
        .await;
    assert!(closed_for(&app, "malformed_request").await);
}

#[tokio::test]
async fn a_slow_reader_gets_its_whole_response_during_a_stop() {
    let (_world, mut app) = start().await;
    let mut stream = connect(&app).await;
    let path = "/docs/swagger-ui-bundle.js";
    let length: usize = app
        .request(reqwest::Method::GET, path)
        .send()
        .await
        .unwrap()
        .headers()["content-length"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    // More than the sockets' buffers hold, so that the last answers wait for their reader.
    let requests = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").repeat(32);
    stream.write_all(requests.as_bytes()).await.unwrap();
    app.log
        .wait_for("Request completed", |line| line["path"] == path)
        .await;
    app.signal("TERM");
    app.log
        .wait_for("Stopping; a second signal stops at once", |_| true)
        .await;
    let mut received = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut received))
        .await
        .unwrap()
        .unwrap();
    let mut rest = &received[..];
    let mut answers = 0;
    while let Some(head) = rest.windows(4).position(|end| end == b"\r\n\r\n") {
        rest = rest
            .get(head + 4 + length..)
            .expect("an answer is cut short");
        answers += 1;
    }
    assert!(
        answers > 0 && rest.is_empty(),
        "{answers} answers and {} bytes",
        rest.len()
    );
    assert_eq!(app.exit_status().await.code(), Some(0));
}

#[tokio::test]
async fn open_connections_are_gauged_and_a_stop_skips_idle_ones() {
    let (_world, mut app) = start().await;
    let idle = connect_and_ask(&app).await;
    let silent = connect(&app).await;
    let gauge = eventually("both of them in the gauge", async || {
        Some(app.metric("http_connections").await).filter(|open| *open >= 3)
    })
    .await;
    assert!(gauge < 10, "{gauge}");
    let began = Instant::now();
    app.signal("TERM");
    assert_eq!(app.exit_status().await.code(), Some(0));
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    drop((idle, silent));
}
