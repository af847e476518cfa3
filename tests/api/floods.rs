//! A client that takes all it can does not deprive others of service, and leaks no memory.

use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use harness::{Answer, App, World, new_user, start_with, until};

const MIB: u64 = 1 << 20;
const POST: &str = "POST /users HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";

/// Time limits long enough for every password to be hashed, even on a slow machine.
const PATIENT: [(&str, &str); 3] = [
    ("LOG_LEVEL", "INFO"),
    ("PASSWORD_HASH_WAIT_MS", "60000"),
    ("REQUEST_TIMEOUT_MS", "60000"),
];

/// Connects as a client of another address of this machine.
async fn connect_from(address: &str, app: &App) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind(SocketAddr::new(address.parse().unwrap(), 0))
        .unwrap();
    socket.connect(app.address.parse().unwrap()).await.unwrap()
}

async fn send_from(address: &str, app: &App, bytes: &[u8]) -> TcpStream {
    let mut stream = connect_from(address, app).await;
    // It may be closed already.
    _ = stream.write_all(bytes).await;
    stream
}

fn post(name: &str) -> Vec<u8> {
    let body = new_user(name).to_string();
    format!("{POST}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[tokio::test]
async fn a_body_sent_byte_by_byte_uses_memory_only_for_its_length() {
    let (_world, app) = start_with(&[("LOG_LEVEL", "INFO")]).await;
    let before = app.resident();
    let bodies = (0..8).map(async |_| {
        let mut stream = TcpStream::connect(&app.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
            .write_all(format!("{POST}Content-Length: 60001\r\n\r\n").as_bytes())
            .await
            .unwrap();
        for _ in 0..15_000 {
            stream.write_all(b" ").await.unwrap();
            tokio::task::yield_now().await;
        }
        stream
    });
    let streams = join_all(bodies).await;
    let during = app.peak_resident();
    assert!(during < before + 24 * MIB, "{before} {during}");
    drop(streams);
    until("memory is given back", async || {
        app.resident() < before + 32 * MIB
    })
    .await;
}

#[tokio::test]
async fn unfinished_bodies_are_bounded_per_client_and_others_are_read() {
    let (_world, app) = start_with(&[("LOG_LEVEL", "INFO")]).await;
    let head = format!("{POST}Content-Length: 65536\r\n\r\n{}", " ".repeat(60_000));
    let streams = join_all((0..400).map(|_| send_from("127.0.0.2", &app, head.as_bytes()))).await;
    until("the rest is refused", async || {
        let metrics = app.get("/metrics").await.text;
        metrics.lines().any(|line| {
            line.starts_with("http_request_duration_seconds_count") && line.contains("\"503\"")
        })
    })
    .await;
    assert!(app.resident() < 120 * MIB, "{}", app.resident());
    // In two parts: the first one is not a complete body.
    let request = post("Анна");
    let (first, second) = request.split_at(request.len() - 20);
    let mut stream = send_from("127.0.0.3", &app, first).await;
    app.get("/health/live").await;
    stream.write_all(second).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 201");
    drop(streams);
}

#[tokio::test]
async fn requests_waiting_for_their_body_make_room_for_others() {
    let world = World::new().await;
    let app = App::start(&world).open_files(256).await;
    let announced = format!("{POST}Content-Length: 100\r\n\r\n{{");
    let expecting = format!("{POST}Content-Length: 100\r\nExpect: 100-continue\r\n\r\n");
    let heads = [announced.as_bytes(), expecting.as_bytes()]
        .into_iter()
        .cycle();
    // All from the same address as the honest requests.
    let waiting = join_all(
        heads
            .take(186)
            .map(|head| send_from("127.0.0.1", &app, head)),
    )
    .await;
    let began = Instant::now();
    until("one of the honest is served", async || {
        Answer::try_of(app.fresh("/users")).await.is_some()
    })
    .await;
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    for _ in 0..20 {
        assert!(Answer::try_of(app.fresh("/users")).await.is_some());
    }
    drop(waiting);
}

#[tokio::test]
async fn one_address_may_hold_only_half_of_the_connections() {
    let (world, app) =
        start_with(&[("MAX_CONNECTIONS", "40"), ("REQUEST_TIMEOUT_MS", "60000")]).await;
    app.create_user("Анна").await;
    let mut lock = world.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE users")
        .execute(&mut *lock)
        .await
        .unwrap();
    // Each of them is being served: nothing makes room.
    let request = post("Борис");
    let busy = join_all((0..60).map(|_| send_from("127.0.0.2", &app, &request))).await;
    let began = Instant::now();
    for _ in 0..10 {
        let mut stream = send_from(
            "127.0.0.3",
            &app,
            b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n",
        )
        .await;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    lock.rollback().await.unwrap();
    drop(busy);
}

#[tokio::test]
async fn a_trusted_proxy_may_hold_all_connections() {
    let settings = [("MAX_CONNECTIONS", "40"), ("TRUSTED_PROXIES", "127.0.0.2")];
    let (_world, app) = start_with(&settings).await;
    let mut streams = Vec::new();
    for _ in 0..35 {
        let mut stream = send_from(
            "127.0.0.2",
            &app,
            b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n",
        )
        .await;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        streams.push(stream);
    }
}

#[tokio::test]
async fn one_user_has_64_waiting_changes_and_more_are_refused() {
    let (world, app) = start_with(&[("GROUP_COMMIT", "true")]).await;
    let hot = app.create_user("Анна").await;
    let other = app.create_user("Борис").await;
    let mut lock = world.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM users WHERE id = $1 FOR UPDATE")
        .bind(hot)
        .execute(&mut *lock)
        .await
        .unwrap();
    let path = format!("/users/{hot}");
    let began = Instant::now();
    let changes = (0..100).map(async |number| {
        let answer = app
            .put(&path, &json!({"name": format!("Имя {number}")}))
            .await;
        (answer.body["code"] == "overloaded").then(|| began.elapsed())
    });
    let others = async {
        // Of the same lane.
        let answer = app
            .put(&format!("/users/{}", other + 1), &json!({"name": "Вера"}))
            .await;
        answer.assert_problem(404, "user_not_found");
        began.elapsed()
    };
    let (refused, took) = tokio::join!(join_all(changes), others);
    let refused: Vec<_> = refused.into_iter().flatten().collect();
    assert!(refused.len() >= 36, "{}", refused.len());
    assert!(
        refused
            .iter()
            .filter(|took| **took < Duration::from_secs(1))
            .count()
            >= 36,
        "{refused:?}"
    );
    assert!(took < Duration::from_secs(1), "{took:?}");
    lock.rollback().await.unwrap();
}

#[tokio::test]
async fn a_client_posting_on_256_connections_delays_only_itself() {
    let (_world, app) = start_with(&PATIENT).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let answered = AtomicUsize::new(0);
    let request = post("Борис");
    let greedy = join_all((0..256).map(async |_| {
        let mut stream = connect_from("127.0.0.2", &app).await;
        let mut answer = [0; 4096];
        while !stop.is_cancelled() {
            stream.write_all(&request).await.unwrap();
            assert!(stream.read(&mut answer).await.unwrap() > 0);
            answered.fetch_add(usize::from(answer.starts_with(b"HTTP/1.1 201")), Relaxed);
        }
    }));
    let modest = async {
        // On its turn, each waits for a hash on every core, whatever the machine's speed.
        for _ in 0..30 {
            app.create_user("Анна").await;
        }
        stop.cancel();
        answered.load(Relaxed)
    };
    let (_, meanwhile) = tokio::join!(greedy, modest);
    let cores = std::thread::available_parallelism().unwrap().get();
    assert!(meanwhile < 30 * (cores + 2), "{meanwhile}");
}

#[tokio::test]
async fn passwords_of_disconnected_clients_are_not_hashed() {
    let (world, app) = start_with(&[("LOG_LEVEL", "INFO")]).await;
    let request = post("Борис");
    let gone = join_all((0..200).map(|_| send_from("127.0.0.1", &app, &request))).await;
    // All have arrived. A later request would wait behind them, because they share one address.
    app.log.wait_for("Request started", |_| true).await;
    drop(gone);
    let began = Instant::now();
    app.create_user("Анна").await;
    // All of them would take four seconds on two fast cores.
    assert!(
        began.elapsed() < Duration::from_millis(2_500),
        "{:?}",
        began.elapsed()
    );
    let created: i64 = world.value("SELECT count(*) FROM users").await;
    assert!(created < 100, "{created}");
}

#[tokio::test]
async fn lists_with_large_offsets_leave_connections_for_others() {
    let (world, app) = start_with(&PATIENT).await;
    let insert = "INSERT INTO users (name, surname, password) SELECT 'Имя', 'Фамилия', '$argon2id$' \
                  FROM generate_series(1, 110000)";
    sqlx::query(insert).execute(&world.pool).await.unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let lists = join_all((0..64).map(|client| {
        let stop = stop.clone();
        let app = &app;
        async move {
            let mut offset = 90_000 + client;
            while !stop.is_cancelled() {
                offset = 90_000 + (offset * 7 + 1) % 10_000;
                app.get(&format!("/users?limit=100&offset={offset}")).await;
            }
        }
    }));
    let others = async {
        let mut most = 0.0_f64;
        for number in 0..20 {
            app.create_user(&format!("Имя {number}")).await;
            let metrics = app.get("/metrics").await.text;
            let busy = metrics
                .lines()
                .find_map(|line| line.strip_prefix("database_connections{state=\"in_use\"} "));
            most = most.max(
                busy.unwrap_or_else(|| panic!("no such metric: {metrics}"))
                    .parse()
                    .unwrap(),
            );
        }
        stop.cancel();
        most
    };
    let (_, most) = tokio::join!(lists, others);
    // A quarter, and those that are on their way back.
    assert!(most < 8.0, "{most} of 10 connections at a time");
}
