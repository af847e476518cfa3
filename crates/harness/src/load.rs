//! Writers that send changes at a steady rate to whatever replicas there are. A third of the
//! changes are for the version that the writer has just read.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, IF_MATCH};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::app::new_user;
use super::servers::World;

/// Users that are there before the load; the first [`HOT_USERS`] of them are changed most.
pub const USERS: u64 = 20_000;
const HOT_USERS: u64 = 100;
/// Those that are changed with If-Match: so few that some of the changes are too late.
const EDITED_USERS: u64 = 20;
const WRITERS: u32 = 32;

/// What became of the writes.
#[derive(Default)]
pub struct Tally {
    next: AtomicU64,
    /// The numbers of those that were answered with success; the trace id is `load-` and the
    /// number.
    pub accepted: Mutex<Vec<u64>>,
    /// 503 and the like.
    pub refused: AtomicU64,
    /// No answer at all: perhaps committed, perhaps not.
    pub unanswered: AtomicU64,
    /// 412: somebody else was faster.
    pub stale: AtomicU64,
    /// Changed another version than the one they were for. There must be none.
    pub overwriting: AtomicU64,
    latencies: Mutex<Vec<(Instant, Duration)>>,
}

impl Tally {
    pub fn accepted(&self) -> usize {
        self.accepted.lock().unwrap().len()
    }

    /// The 99th percentile of the successes in a span of time.
    pub fn p99_between(&self, from: Instant, to: Instant) -> Duration {
        let latencies = self.latencies.lock().unwrap();
        let mut within: Vec<_> = latencies
            .iter()
            .filter(|(at, _)| *at >= from && *at < to)
            .map(|(_, took)| *took)
            .collect();
        within.sort_unstable();
        *within
            .get(within.len() * 99 / 100)
            .expect("there were successes in that time")
    }
}

/// Users that were there before anybody watched.
pub async fn seed_users(world: &World) {
    let insert = format!(
        "INSERT INTO users (name, surname, password)
         SELECT 'Имя' || n, 'Фамилия', '$argon2id$' FROM generate_series(1, {USERS}) AS n"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(insert))
        .execute(&world.pool)
        .await
        .unwrap();
}

pub struct Load {
    pub tally: Arc<Tally>,
    stop: CancellationToken,
    writers: JoinSet<()>,
}

impl Load {
    /// `rate` writes a second in all, with the key of this token, to the replicas that are in
    /// `addresses` at the time.
    pub fn start(addresses: &Arc<RwLock<Vec<String>>>, rate: u32, token: &str) -> Self {
        let tally = Arc::<Tally>::default();
        let stop = CancellationToken::new();
        let mut writers = JoinSet::new();
        let authorization = HeaderValue::try_from(format!("Bearer {token}")).unwrap();
        let client = reqwest::Client::builder()
            .default_headers(HeaderMap::from_iter([(AUTHORIZATION, authorization)]))
            .timeout(Duration::from_secs(10))
            .build()
            .unwrap();
        for _ in 0..WRITERS {
            let tally = tally.clone();
            let addresses = addresses.clone();
            let client = client.clone();
            let stop = stop.clone();
            writers.spawn(async move {
                let mut tick = interval(Duration::from_secs(1) * WRITERS / rate);
                tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
                while stop.run_until_cancelled(tick.tick()).await.is_some() {
                    let number = tally.next.fetch_add(1, Relaxed);
                    let address = {
                        let addresses = addresses.read().unwrap();
                        addresses[usize::try_from(number).unwrap() % addresses.len()].clone()
                    };
                    write(&client, &address, number, &tally).await;
                }
            });
        }
        Self {
            tally,
            stop,
            writers,
        }
    }

    pub async fn stop(self) -> Arc<Tally> {
        self.stop.cancel();
        self.writers.join_all().await;
        self.tally
    }
}

async fn write(client: &reqwest::Client, address: &str, number: u64, tally: &Tally) {
    let cold = HOT_USERS + 1 + fastrand::u64(..USERS - HOT_USERS);
    let user = match number % 3 {
        0 => cold,
        1 => 1 + fastrand::u64(..EDITED_USERS),
        _ => 1 + number % HOT_USERS,
    };
    let (method, path, body) = match number % 500 {
        0 => (Method::POST, "/users".to_owned(), Some(new_user("Новая"))),
        1..10 => (Method::DELETE, format!("/users/{cold}"), None),
        _ => (
            if number % 6 == 1 {
                Method::PATCH
            } else {
                Method::PUT
            },
            format!("/users/{user}"),
            Some(json!({"surname": format!("Фамилия{number}")})),
        ),
    };
    let url = format!("http://{address}{path}");
    let mut request = client.request(method.clone(), &url);
    request = request.header("x-request-id", format!("load-{number}"));
    if let Some(body) = body {
        if method == Method::PATCH {
            request = request.header(CONTENT_TYPE, "application/merge-patch+json");
        }
        request = request.json(&body);
    }
    let is_conditional = number % 3 == 1 && method != Method::POST;
    let read = if is_conditional {
        version(client, &url).await
    } else {
        None
    };
    if let Some(version) = read {
        request = request.header(IF_MATCH, format!("\"{version}\""));
    }
    let began = Instant::now();
    let Ok(answer) = request.send().await else {
        tally.unanswered.fetch_add(1, Relaxed);
        return;
    };
    match answer.status() {
        status if status.is_success() => {
            tally.accepted.lock().unwrap().push(number);
            let took = began.elapsed();
            tally.latencies.lock().unwrap().push((began, took));
            let written = answer.json::<Value>().await.ok();
            let written = written.and_then(|user| user["version"].as_i64());
            if read
                .zip(written)
                .is_some_and(|(read, written)| written != read + 1)
            {
                tally.overwriting.fetch_add(1, Relaxed);
            }
        }
        StatusCode::PRECONDITION_FAILED => _ = tally.stale.fetch_add(1, Relaxed),
        // A user that was deleted before.
        StatusCode::NOT_FOUND => {}
        _ => _ = tally.refused.fetch_add(1, Relaxed),
    }
}

/// Reads the version of a user; `None` if it cannot be read now.
async fn version(client: &reqwest::Client, url: &str) -> Option<i64> {
    let answer = client.get(url).send().await.ok()?;
    answer.json::<Value>().await.ok()?["version"].as_i64()
}
