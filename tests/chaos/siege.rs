//! Hostile clients, all kinds at once, against one replica with few file descriptors; and honest
//! ones beside them, who must hardly notice. Run by `./setup.sh siege`. Each kind comes from an
//! address of its own, as from a machine of its own.

use std::env;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep};

use harness::{App, Digest, Stranger, World, headers, long, nested, new_user, seed_users, short};

/// What the replica may open, and memory that it may take.
const OPEN_FILES: u32 = 1_024;
const MIB: u64 = 1 << 20;
const MOST_MEMORY: u64 = 160 * MIB;
const MOST_LEFT: u64 = 32 * MIB;
/// Limits for the 99th percentile of honest GETs and for the longest time without a successful
/// honest write.
const MOST_P99: Duration = Duration::from_millis(100);
const MOST_REFUSED: Duration = Duration::from_secs(1);
/// Pauses of a hostile client after a response and after a refusal: it shares two cores with the
/// service that it attacks.
const REST: Duration = Duration::from_secs(1);
const REST_AFTER_REFUSAL: Duration = Duration::from_secs(3);

const HONEST: &str = "127.0.0.1";
const POST: &str = "POST /users HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";

fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let kind = "Content-Type: application/json";
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{kind}\r\nContent-Length: \
         {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// A client of one address, on one connection at a time.
struct Client {
    from: &'static str,
    to: SocketAddr,
    stream: Option<TcpStream>,
}

impl Client {
    fn new(from: &'static str, to: SocketAddr) -> Self {
        Self {
            from,
            to,
            stream: None,
        }
    }

    async fn stream(&mut self) -> Option<&mut TcpStream> {
        if self.stream.is_none() {
            let socket = TcpSocket::new_v4().ok()?;
            socket
                .bind(SocketAddr::new(self.from.parse().unwrap(), 0))
                .ok()?;
            let stream = socket.connect(self.to).await.ok()?;
            stream.set_nodelay(true).ok()?;
            self.stream = Some(stream);
        }
        self.stream.as_mut()
    }

    /// The status of the answer; `None` if there is none. The answer's body is below 64 KiB.
    async fn send(&mut self, request: &[u8]) -> Option<u16> {
        let answer = self.try_to_send(request).await;
        if answer.is_none() {
            self.stream = None;
        }
        answer
    }

    async fn try_to_send(&mut self, request: &[u8]) -> Option<u16> {
        let stream = self.stream().await?;
        stream.write_all(request).await.ok()?;
        let mut answer = Vec::new();
        loop {
            let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
            if let Some(end) = end {
                let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
                let length = head
                    .split("content-length: ")
                    .nth(1)
                    .and_then(|rest| rest.split("\r\n").next()?.parse().ok());
                if answer.len() >= end + 4 + length.unwrap_or(0) {
                    return head.split(' ').nth(1)?.parse().ok();
                }
            }
            if stream.read_buf(&mut answer).await.ok()? == 0 {
                return None;
            }
        }
    }
}

/// The honest clients' experience.
#[derive(Default)]
struct Honest {
    reads: Mutex<Vec<Duration>>,
    /// Longest time between a refusal and the next success, and how many were refused.
    longest_refused: [Mutex<Duration>; 2],
    refused: [AtomicU64; 2],
    succeeded: [AtomicU64; 2],
}

impl Honest {
    async fn read(self: Arc<Self>, to: SocketAddr) {
        let mut client = Client::new(HONEST, to);
        let mut tick = interval(Duration::from_millis(20));
        loop {
            tick.tick().await;
            let began = Instant::now();
            let path = format!("/users/{}", fastrand::u32(1_000..20_000));
            while client.send(&request("GET", &path, "")).await != Some(200) {}
            self.reads.lock().unwrap().push(began.elapsed());
        }
    }

    async fn write(self: Arc<Self>, to: SocketAddr, kind: usize, every: Duration) {
        let mut client = Client::new(HONEST, to);
        let mut tick = interval(every);
        let mut refused_since = None;
        loop {
            tick.tick().await;
            let name = format!("Имя {}", fastrand::u32(..));
            let request = if kind == 0 {
                request(
                    "PUT",
                    &format!("/users/{}", fastrand::u32(1_000..20_000)),
                    &json!({"name": name}).to_string(),
                )
            } else {
                request("POST", "/users", &new_user(&name).to_string())
            };
            if client
                .send(&request)
                .await
                .is_some_and(|status| status < 300)
            {
                self.succeeded[kind].fetch_add(1, Relaxed);
                if let Some(since) = refused_since.take() {
                    let mut longest = self.longest_refused[kind].lock().unwrap();
                    *longest = longest.max(Instant::elapsed(&since));
                }
            } else {
                self.refused[kind].fetch_add(1, Relaxed);
                refused_since.get_or_insert_with(Instant::now);
            }
        }
    }
}

/// Message headers that break a client library.
async fn hostile_heads(world: Arc<World>) {
    let mut stranger = Stranger::at(&world).await;
    let id = [&(1_u16 << 7).to_be_bytes()[..], &short(b"\xff")].concat();
    let wide = headers(&[&short(b"wide")[..], b"A", &long(&[b't', 1].repeat(60_000))].concat());
    let heads = [
        headers(&nested(18_720, b'F')),
        headers(&nested(26_000, b'A')),
        id,
        wide,
        vec![0, 0],
    ];
    for properties in heads.iter().cycle() {
        let key: &[u8] = if properties.len() == 2 {
            b"user.\xff"
        } else {
            b"user.created"
        };
        stranger
            .publish("user_events", key, properties, b"{}")
            .await;
        sleep(Duration::from_millis(100)).await;
    }
}

/// Messages of sizes that no event has.
async fn large_messages(world: Arc<World>) {
    let mut stranger = Stranger::at(&world).await;
    for size in [1 << 20, 7 << 20, 100 << 10].into_iter().cycle() {
        let body = format!(
            r#"{{"event_type":"user.created","trace_id":"{}"}}"#,
            "x".repeat(size)
        );
        stranger
            .publish("user_events", b"user.created", &[0, 0], body.as_bytes())
            .await;
        sleep(Duration::from_millis(300)).await;
    }
}

/// A body of 60 kB, byte by byte.
async fn bytes_one_by_one(to: SocketAddr) {
    loop {
        let mut client = Client::new("127.0.0.4", to);
        if let Some(stream) = client.stream().await
            && stream
                .write_all(format!("{POST}Content-Length: 60001\r\n\r\n").as_bytes())
                .await
                .is_ok()
        {
            for number in 0..60_000 {
                if stream.write_all(b" ").await.is_err() {
                    break;
                }
                if number % 20 == 0 {
                    sleep(Duration::from_millis(1)).await;
                }
            }
        }
        sleep(REST).await;
    }
}

/// Bodies of which only one byte arrives, or none.
async fn bodies_that_do_not_come(to: SocketAddr, expects: bool) {
    let expect = if expects {
        "Expect: 100-continue\r\n\r\n"
    } else {
        "\r\n{"
    };
    loop {
        let mut client = Client::new("127.0.0.5", to);
        if let Some(stream) = client.stream().await
            && stream
                .write_all(format!("{POST}Content-Length: 100\r\n{expect}").as_bytes())
                .await
                .is_ok()
        {
            let mut answer = Vec::new();
            _ = stream.read_to_end(&mut answer).await;
        }
        sleep(REST).await;
    }
}

/// The same request again and again.
async fn again_and_again(from: &'static str, to: SocketAddr, request: impl Fn() -> Vec<u8>) {
    let mut client = Client::new(from, to);
    loop {
        let is_refused = client.send(&request()).await.is_none();
        sleep(if is_refused { REST_AFTER_REFUSAL } else { REST }).await;
    }
}

fn lay_siege(world: &Arc<World>, to: SocketAddr) -> JoinSet<()> {
    let mut hostile = JoinSet::new();
    hostile.spawn(hostile_heads(world.clone()));
    hostile.spawn(large_messages(world.clone()));
    for number in 0..186 {
        hostile.spawn(bodies_that_do_not_come(to, number % 2 == 0));
    }
    for _ in 0..8 {
        hostile.spawn(bytes_one_by_one(to));
    }
    for _ in 0..3_000 {
        let change = || {
            request(
                "PUT",
                "/users/7",
                &json!({"name": format!("Имя {}", fastrand::u32(..))}).to_string(),
            )
        };
        hostile.spawn(again_and_again("127.0.0.6", to, change));
    }
    for _ in 0..300 {
        hostile.spawn(again_and_again("127.0.0.7", to, || {
            request("POST", "/users", &new_user("Борис").to_string())
        }));
    }
    for _ in 0..64 {
        let far = || {
            request(
                "GET",
                &format!("/users?limit=100&offset={}", fastrand::u32(90_000..100_000)),
                "",
            )
        };
        hostile.spawn(again_and_again("127.0.0.8", to, far));
    }
    hostile
}

fn seconds() -> u64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "the tests' own settings are none of the service's"
    )]
    let value =
        env::var("SIEGE_SECONDS").expect("SIEGE_SECONDS: this test is run by ./setup.sh siege");
    value.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn siege() {
    let world = Arc::new(World::new().await);
    seed_users(&world).await;
    let many = "INSERT INTO users (name, surname, password) SELECT 'Имя', 'Фамилия', '$argon2id$' \
                FROM generate_series(1, 90000)";
    sqlx::query(many).execute(&world.pool).await.unwrap();
    let digest = Arc::<Digest>::default();
    let replica = App::start(&world)
        .open_files(OPEN_FILES)
        .digest(&digest)
        .await;
    let to = replica.address.parse().unwrap();

    // Idle, once everything has been used.
    let honest = Arc::<Honest>::default();
    let visit = |honest: &Arc<Honest>| {
        let mut clients = JoinSet::new();
        (0..4).for_each(|_| _ = clients.spawn(honest.clone().read(to)));
        clients.spawn(honest.clone().write(to, 0, Duration::from_millis(50)));
        clients.spawn(honest.clone().write(to, 1, Duration::from_millis(250)));
        clients
    };
    let mut clients = visit(&honest);
    sleep(Duration::from_secs(3)).await;
    clients.shutdown().await;
    let idle = replica.resident();

    let honest = Arc::<Honest>::default();
    let mut clients = visit(&honest);
    let mut hostile = lay_siege(&world, to);
    let began = Instant::now();
    let mut peak = 0;
    let mut tick = interval(Duration::from_millis(200));
    while began.elapsed() < Duration::from_secs(seconds()) {
        tick.tick().await;
        peak = peak.max(replica.resident());
    }
    clients.shutdown().await;
    hostile.shutdown().await;
    let ended = Instant::now();
    while ended.elapsed() < Duration::from_secs(20) && replica.resident() >= idle + MOST_LEFT {
        tick.tick().await;
    }
    let left = replica.resident();

    let mut reads = std::mem::take(&mut *honest.reads.lock().unwrap());
    reads.sort_unstable();
    let p99 = reads[reads.len() * 99 / 100];
    let refused = [0, 1].map(|kind| *honest.longest_refused[kind].lock().unwrap());
    let count = |of: &[AtomicU64; 2], kind: usize| of[kind].load(Relaxed);
    println!(
        "\n{} honest GETs, p50 {:?}, p99 {p99:?}, longest {:?}",
        reads.len(),
        reads[reads.len() / 2],
        reads[reads.len() - 1]
    );
    for (kind, name) in ["PUT", "POST"].into_iter().enumerate() {
        let succeeded = count(&honest.succeeded, kind);
        let failed = count(&honest.refused, kind);
        println!(
            "{succeeded} honest {name}s succeeded, {failed} were refused, for {:?} at the longest",
            refused[kind]
        );
    }
    println!(
        "memory: {} MiB idle, {} at the peak, {} after",
        idle / MIB,
        peak / MIB,
        left / MIB
    );
    println!(
        "the service's warnings and errors: {:#?}",
        digest.troubles.lock().unwrap()
    );
    assert!(p99 < MOST_P99, "{p99:?}");
    for kind in [0, 1] {
        assert!(
            refused[kind] < MOST_REFUSED && count(&honest.succeeded, kind) > 0,
            "{:?}",
            refused[kind]
        );
    }
    assert!(peak < MOST_MEMORY, "{peak}");
    assert!(left < idle + MOST_LEFT, "memory is not given back: {left}");
    assert_eq!(
        digest
            .troubles
            .lock()
            .unwrap()
            .get("Session lost, starting it again"),
        None
    );
}
