//! Clients that read one user again and again, each on a connection of its own.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use reqwest::StatusCode;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::until;

const READERS: usize = 256;
/// Between two reads of one client.
const PAUSE: Duration = Duration::from_millis(50);

/// What one client received.
#[derive(Default)]
struct Tally {
    answered: AtomicUsize,
    refused: AtomicUsize,
}

pub struct Readers {
    tallies: Vec<Arc<Tally>>,
    stop: CancellationToken,
    /// Each task returns its longest wait for an answer.
    clients: JoinSet<Duration>,
}

impl Readers {
    /// Of `path`, which must be there; returns when each of them has had its answer.
    pub async fn start(address: &str, path: &str) -> Self {
        let mut readers = Self {
            tallies: Vec::new(),
            stop: CancellationToken::new(),
            clients: JoinSet::new(),
        };
        for _ in 0..READERS {
            let tally = Arc::<Tally>::default();
            let stop = readers.stop.clone();
            readers.tallies.push(tally.clone());
            readers
                .clients
                .spawn(read(format!("http://{address}{path}"), tally, stop));
        }
        readers.until_answered().await;
        readers
    }

    /// Waits until each client succeeds once more.
    pub async fn until_answered(&self) {
        self.until_each_has_more(|tally| &tally.answered).await;
    }

    /// Waits until each client gets one more 503.
    pub async fn until_refused(&self) {
        self.until_each_has_more(|tally| &tally.refused).await;
    }

    async fn until_each_has_more(&self, count: fn(&Tally) -> &AtomicUsize) {
        let before: Vec<_> = self
            .tallies
            .iter()
            .map(|tally| count(tally).load(Relaxed))
            .collect();
        until("another answer for each reader", async || {
            let mut both = self.tallies.iter().zip(&before);
            both.all(|(tally, before)| count(tally).load(Relaxed) > *before)
        })
        .await;
    }

    /// Waits until each has had an answer, and checks that from then on nobody is refused.
    pub async fn until_healed(&self) {
        self.until_answered().await;
        let refused = || {
            self.tallies
                .iter()
                .map(|tally| tally.refused.load(Relaxed))
                .sum::<usize>()
        };
        let before = refused();
        for _ in 0..5 {
            self.until_answered().await;
        }
        assert_eq!(refused(), before, "503s after the trouble was over");
    }

    /// The longest that any of them waited for an answer. Fails if one of them met anything but 200
    /// and 503.
    pub async fn stop(self) -> Duration {
        self.stop.cancel();
        self.clients
            .join_all()
            .await
            .into_iter()
            .max()
            .unwrap_or_default()
    }
}

async fn read(url: String, tally: Arc<Tally>, stop: CancellationToken) -> Duration {
    let client = reqwest::Client::new();
    let mut slowest = Duration::ZERO;
    let mut tick = interval(PAUSE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let began = Instant::now();
        let answer = client
            .get(&url)
            .send()
            .await
            .expect("every request is answered");
        slowest = slowest.max(began.elapsed());
        match answer.status() {
            StatusCode::OK => tally.answered.fetch_add(1, Relaxed),
            StatusCode::SERVICE_UNAVAILABLE if answer.headers().contains_key("retry-after") => {
                tally.refused.fetch_add(1, Relaxed)
            }
            _ => panic!("{answer:?}"),
        };
    }
    slowest
}
