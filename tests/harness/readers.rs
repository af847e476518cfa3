//! Clients that read one user again and again, each on a connection of its own.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use reqwest::StatusCode;
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::eventually;

const READERS: usize = 256;
/// Between two reads of one client.
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Tally {
    answered: AtomicUsize,
    refused: AtomicUsize,
    slowest: Mutex<Duration>,
}

pub struct Readers {
    tally: Arc<Tally>,
    stop: CancellationToken,
    clients: JoinSet<()>,
}

impl Readers {
    /// Of `path`, which must be there; returns when each of them has had its answer.
    pub async fn start(address: &str, path: &str) -> Self {
        let (tally, stop, mut clients) = (Arc::<Tally>::default(), CancellationToken::new(), JoinSet::new());
        for _ in 0..READERS {
            let (tally, stop, url) = (tally.clone(), stop.clone(), format!("http://{address}{path}"));
            clients.spawn(async move {
                let client = reqwest::Client::new();
                let mut tick = interval(PAUSE);
                tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
                while stop.run_until_cancelled(tick.tick()).await.is_some() {
                    let began = Instant::now();
                    let answer = client.get(&url).send().await.expect("every request is answered");
                    match answer.status() {
                        StatusCode::OK => tally.answered.fetch_add(1, Relaxed),
                        StatusCode::SERVICE_UNAVAILABLE if answer.headers().contains_key("retry-after") => {
                            tally.refused.fetch_add(1, Relaxed)
                        }
                        _ => panic!("{answer:?}"),
                    };
                    let mut slowest = tally.slowest.lock().unwrap();
                    *slowest = slowest.max(began.elapsed());
                }
            });
        }
        let readers = Self { tally, stop, clients };
        readers.until_answered().await;
        readers
    }

    /// Waits for as many more successes as there are readers.
    pub async fn until_answered(&self) {
        Self::until_grown(&self.tally.answered, "answers").await;
    }

    /// Waits for as many more 503s as there are readers.
    pub async fn until_refused(&self) {
        Self::until_grown(&self.tally.refused, "refusals").await;
    }

    async fn until_grown(count: &AtomicUsize, what: &str) {
        let wanted = count.load(Relaxed) + READERS;
        eventually(what, async || (count.load(Relaxed) >= wanted).then_some(())).await;
    }

    /// The longest that any of them waited for an answer. Fails if one of them met anything but 200 and 503.
    pub async fn stop(self) -> Duration {
        self.stop.cancel();
        self.clients.join_all().await;
        *self.tally.slowest.lock().unwrap()
    }
}
