//! Random faults under load, one after another: nothing may be lost, invented or out of order.

mod fault;
mod report;

use std::env;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, interval, sleep};

use self::fault::{Fault, Planned};
use self::report::{Report, Window};
use crate::chaos::trial::Trial;
use harness::{Proxy, World, troubles_file};

/// Recovering from a fault must not take longer than this.
const RECOVERY_LIMIT: Duration = Duration::from_mins(1);
/// Events flow if the oldest is younger than this, in seconds. Shorter than any fault, so that no
/// event waits that was in flight when the fault began.
const MOST_LAG: f64 = 0.3;
/// Pause before the first fault, and between two.
const CALM: Duration = Duration::from_secs(1);

#[expect(
    clippy::disallowed_methods,
    reason = "the tests' own settings are none of the service's"
)]
fn setting(name: &str) -> u64 {
    let value =
        env::var(name).unwrap_or_else(|_| panic!("{name}: this test is run by ./setup.sh chaos"));
    value.parse().unwrap()
}

pub struct Storm {
    pub trial: Trial,
    /// Each replica's proxies to PostgreSQL and RabbitMQ.
    pub networks: Vec<(Proxy, Proxy)>,
}

impl Storm {
    async fn gather(replicas: usize) -> Self {
        let mut storm = Self {
            trial: Trial::start_with(World::new().await, 0, &[]).await,
            networks: Vec::new(),
        };
        for index in 0..replicas {
            let world = &storm.trial.world;
            storm.networks.push((
                Proxy::before(&world.database_url).await,
                Proxy::before(&world.broker_url).await,
            ));
            let settings = storm.settings(index);
            storm.trial.add(&borrowed(&settings)).await;
        }
        storm
    }

    fn settings(&self, index: usize) -> Vec<(&'static str, String)> {
        let world = &self.trial.world;
        let (database, broker) = &self.networks[index];
        vec![
            (world.direct_setting(), database.url(&world.database_url)),
            ("RABBITMQ_URL", broker.url(&world.broker_url)),
            ("ALLOW_ANONYMOUS", "false".to_owned()),
        ]
    }

    async fn restart(&mut self, index: usize) {
        let settings = self.settings(index);
        self.trial.restart(index, &borrowed(&settings)).await;
    }

    /// A path of RabbitMQ's management API, in this world.
    fn path(&self, kind: &str, name: &str) -> String {
        format!("/api/{kind}/{}/{name}", self.trial.world.virtual_host)
    }

    /// Whether all replicas are ready, one leads, and events flow.
    async fn is_well(&self) -> bool {
        let mut leaders = 0;
        for replica in &self.trial.replicas {
            let health = replica.health().await;
            leaders += usize::from(health["checks"]["relay"] == "leading");
            if health["status"] != "ready" {
                return false;
            }
        }
        let lag = "SELECT coalesce(extract(epoch FROM clock_timestamp() - min(occurred_at)), \
                   0)::float8 FROM outbox";
        let lag = sqlx::query_scalar::<_, f64>(lag)
            .fetch_one(&self.trial.world.pool)
            .await;
        leaders == 1 && lag.is_ok_and(|lag| lag < MOST_LAG)
    }

    /// Waits until all is well, and returns how long it took; `None` if it took too long.
    async fn recovery(&self) -> Option<Duration> {
        let began = Instant::now();
        let mut tick = interval(Duration::from_millis(50));
        while began.elapsed() < RECOVERY_LIMIT {
            tick.tick().await;
            if self.is_well().await {
                return Some(began.elapsed());
            }
        }
        None
    }

    /// The sizes of the outbox and of its index, in bytes.
    async fn outbox_bytes(&self) -> (i64, i64) {
        let sizes = sqlx::query_as("SELECT pg_table_size('outbox'), pg_indexes_size('outbox')");
        sizes.fetch_one(&self.trial.world.pool).await.unwrap()
    }
}

fn borrowed<'a>(settings: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    settings
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect()
}

/// Rounds of all faults, each in random order. The same seed yields the same schedule.
fn schedule(seed: u64, replicas: usize) -> impl Iterator<Item = Planned> {
    let mut chance = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(move || {
        let mut round = Fault::ALL.to_vec();
        chance.shuffle(&mut round);
        round
            .into_iter()
            .map(|fault| Planned::draw(fault, replicas, &mut chance))
            .collect::<Vec<_>>()
    })
    .flatten()
}

#[tokio::test(flavor = "multi_thread")]
async fn random_faults_lose_invent_and_reorder_nothing() {
    let minutes = setting("CHAOS_MINUTES");
    let seed = setting("CHAOS_SEED");
    let rate = setting("CHAOS_RATE");
    let replicas = usize::try_from(setting("CHAOS_REPLICAS")).unwrap();
    let mut storm = Storm::gather(replicas).await;
    let load = storm.trial.load(u32::try_from(rate).unwrap());
    let began = Instant::now();
    let started_at = SystemTime::now();
    let mut report = Report::new(seed, replicas, started_at);
    sleep(CALM * 5).await;
    for planned in schedule(seed, replicas) {
        if began.elapsed() >= Duration::from_mins(minutes) {
            break;
        }
        let at = SystemTime::now();
        let accepted = load.tally.accepted();
        planned.befall(&mut storm).await;
        let recovery = storm.recovery().await;
        report.note_sizes(storm.outbox_bytes().await, &storm.trial.replicas);
        sleep(CALM).await;
        let writes = load.tally.accepted() - accepted;
        report.add(Window {
            fault: planned.fault,
            at,
            writes,
            recovery,
        });
        report.show_progress(
            began.elapsed(),
            planned,
            load.tally.accepted(),
            storm.trial.collector.count(),
        );
        if recovery.is_none() {
            break;
        }
    }
    let under_load = began.elapsed();
    let tally = load.stop().await;
    let troubles = storm.trial.digest.clone();
    storm.trial.until_quiet().await;
    report.note_sizes(storm.outbox_bytes().await, &storm.trial.replicas);
    let judgement = storm.trial.judge(&tally).await;
    let verdict = report.conclude(&judgement, &tally, rate, under_load);
    assert!(
        verdict.is_ok(),
        "{}\n{:#?}\nsee {}",
        verdict.unwrap_err(),
        troubles.troubles.lock().unwrap(),
        troubles_file().display()
    );
}
