//! Replicas under load in a world that records all changes, from the start to the verdict.

use std::collections::HashSet;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::time::{Instant, interval};
use uuid::Uuid;

use harness::{
    App, Collector, Control, Digest, Judgement, Load, QUEUE_TYPE, Tally, World, audit, judge,
    make_key, seed_users, troubles_file,
};

/// After this long without progress, nothing more will come.
const STUCK_AFTER: Duration = Duration::from_secs(40);

/// After this long without progress, the consumer will not log what it has not logged yet.
const SETTLED_AFTER: Duration = Duration::from_secs(3);

pub struct Trial {
    pub world: World,
    pub control: Control,
    pub digest: Arc<Digest>,
    pub collector: Collector,
    pub replicas: Vec<App>,
    pub addresses: Arc<RwLock<Vec<String>>>,
    /// Of a key that may write.
    token: String,
}

impl Trial {
    pub async fn start(replicas: usize) -> Self {
        Self::start_with(World::new().await, replicas, &[]).await
    }

    pub async fn start_with(world: World, replicas: usize, settings: &[(&str, &str)]) -> Self {
        seed_users(&world).await;
        audit(&world).await;
        let chosen = settings
            .iter()
            .find(|(name, _)| *name == "AMQP_QUEUE_TYPE")
            .map(|(_, queue_type)| *queue_type);
        let collector = Collector::start(&world.broker_url, chosen.unwrap_or(&QUEUE_TYPE)).await;
        let digest = Arc::<Digest>::default();
        let token = make_key(&world, "load", "users:write").await;
        let mut trial = Self {
            world,
            token,
            control: Control::of_shared_servers(),
            digest,
            collector,
            replicas: Vec::new(),
            addresses: Arc::default(),
        };
        for _ in 0..replicas {
            trial.add(settings).await;
        }
        trial
    }

    pub async fn add(&mut self, settings: &[(&str, &str)]) {
        let replica = App::start(&self.world)
            .with(settings)
            .digest(&self.digest)
            .await;
        self.addresses
            .write()
            .unwrap()
            .push(replica.address.clone());
        self.replicas.push(replica);
    }

    pub fn load(&self, rate: u32) -> Load {
        Load::start(&self.addresses, rate, &self.token)
    }

    /// The replica, in a trial that has only one.
    pub fn replica(&self) -> &App {
        &self.replicas[0]
    }

    /// Replaces a replica that has ended.
    pub async fn restart(&mut self, index: usize, settings: &[(&str, &str)]) {
        self.replicas[index] = App::start(&self.world)
            .with(settings)
            .digest(&self.digest)
            .await;
        self.addresses.write().unwrap()[index].clone_from(&self.replicas[index].address);
    }

    /// Number of events in the outbox.
    pub async fn pending(&self) -> i64 {
        self.world.value("SELECT count(*) FROM outbox").await
    }

    pub fn troubles(&self, event: &str) -> u64 {
        self.digest
            .troubles
            .lock()
            .unwrap()
            .get(event)
            .copied()
            .unwrap_or(0)
    }

    /// Waits until the outbox is empty and everything that was committed was received, or nothing
    /// more comes. The service's own consumer may never see what was in a queue that somebody
    /// deleted, nor the collector what was published before it could bind its queue to a new
    /// exchange.
    pub async fn until_quiet(&self) {
        self.until_over(SETTLED_AFTER).await;
    }

    async fn until_over(&self, settled_after: Duration) {
        let committed: i64 = self.world.value("SELECT count(*) FROM audit_events").await;
        let committed = usize::try_from(committed).unwrap();
        let mut last = (0, 0, 0);
        let mut since = Instant::now();
        let mut tick = interval(Duration::from_millis(500));
        while since.elapsed() < STUCK_AFTER {
            tick.tick().await;
            let mut sighted: HashSet<Uuid> = self
                .digest
                .received
                .lock()
                .unwrap()
                .keys()
                .copied()
                .collect();
            let collected: HashSet<Uuid> = self
                .collector
                .messages
                .lock()
                .unwrap()
                .iter()
                .map(|message| message.event_id)
                .collect();
            let logged = sighted.len();
            let collected_too = collected.len();
            sighted.extend(collected);
            let is_over = logged.min(collected_too) >= committed || since.elapsed() > settled_after;
            if sighted.len() >= committed && is_over && self.pending().await == 0 {
                return;
            }
            let now = (logged, collected_too, sighted.len());
            if now != last {
                last = now;
                since = Instant::now();
            }
        }
    }

    /// Waits for the end of all that the load has caused, and judges it.
    pub async fn judge(self, tally: &Tally) -> Judgement {
        self.until_quiet().await;
        let collected = self.collector.stop().await;
        let logged = self.digest.received.lock().unwrap().clone();
        let accepted = tally.accepted.lock().unwrap().clone();
        judge(&self.world, &collected, &logged, &accepted).await
    }

    /// As [`Self::judge`]; whatever the fault was, nothing may be lost, invented or out of order.
    /// The number of events that were published more than once.
    #[track_caller]
    pub fn finish(self, load: Load) -> impl Future<Output = usize> {
        let caller = std::panic::Location::caller();
        async move {
            let tally = load.stop().await;
            let troubles = self.digest.clone();
            // Nobody has deleted a queue: the consumer logs everything, if only after it has
            // subscribed again.
            self.until_over(STUCK_AFTER).await;
            let judgement = self.judge(&tally).await;
            let events = judgement.committed.len();
            let repeated = judgement.repeated.len();
            eprintln!(
                "  {} writes accepted, {events} events, {repeated} repeated",
                tally.accepted()
            );
            let troubles = troubles.troubles.lock().unwrap();
            assert!(
                judgement.is_exact(),
                "{caller}: {judgement:?}\n{troubles:#?}\nsee {}",
                troubles_file().display()
            );
            let unlogged = judgement.unlogged.len();
            assert_eq!(
                unlogged, 0,
                "{caller}: events that the service's own consumer has not logged"
            );
            assert_eq!(
                judgement.unseen.len(),
                0,
                "{caller}: events that the collector has not seen"
            );
            assert!(events > 100, "{caller}: hardly any load");
            repeated
        }
    }
}
