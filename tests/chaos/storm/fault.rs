//! The kinds of faults, and how each is caused and ended.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::sleep;
use uuid::Uuid;

use super::Storm;
use harness::{eventually, management, management_post, management_put};

/// Defines the kinds of faults and their names. With those that explain repeats, a leader may lose
/// a confirm, or fail to delete a confirmed event; with the others, a repeat is a bug.
macro_rules! faults {
    (exact: { $($exact:ident = $exact_name:literal,)* } explains_repeats: { $($fault:ident = $name:literal,)* }) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Fault { $($exact,)* $($fault,)* }

        impl Fault {
            pub const ALL: &[Self] = &[$(Self::$exact,)* $(Self::$fault,)*];

            pub const fn name(self) -> &'static str {
                match self { $(Self::$exact => $exact_name,)* $(Self::$fault => $name,)* }
            }

            pub const fn explains_repeats(self) -> bool {
                matches!(self, $(Self::$fault)|*)
            }
        }
    };
}

faults! {
    exact: {
        ReplicaStopped = "replica stopped (SIGTERM)",
        BrokerShortOfMemory = "broker short of memory",
        BrokerShortOfDisk = "broker short of disk",
        TableLocked = "table locked",
        OldSnapshot = "an old snapshot held",
        ForeignMessages = "foreign messages",
        ClientsHangUp = "clients hang up",
    }
    explains_repeats: {
        ReplicaKilled = "replica killed",
        LeaderFrozen = "leader frozen for 12 s",
        BrokerKilled = "broker killed",
        BrokerStopped = "broker stopped",
        BrokerFrozen = "broker frozen",
        QueueDeleted = "queue deleted",
        ExchangeDeleted = "exchange deleted",
        QueueFull = "a queue full",
        DatabaseRestarted = "database restarted",
        DatabaseCrashed = "database crashed",
        ConnectionsTerminated = "connections terminated",
        LeaderTerminated = "leader's session terminated",
        DatabaseReset = "database unreachable (RST)",
        DatabaseSilent = "database unreachable (silent)",
        BrokerReset = "broker unreachable (RST)",
        BrokerSilent = "broker unreachable (silent)",
        LeaderCutOffAndBack = "leader's packets 12 s late",
        AlarmAndLeaderKilled = "memory alarm, leader killed",
        BothRestarted = "broker and database restarted",
    }
}

/// An entry of the schedule, with everything that is random about it.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    pub fault: Fault,
    /// The replica it affects, if it affects one.
    pub victim: usize,
    /// How long it lasts, if the kind does not determine that.
    pub hold: Duration,
}

impl Planned {
    pub fn draw(fault: Fault, replicas: usize, chance: &mut fastrand::Rng) -> Self {
        Self {
            fault,
            victim: chance.usize(..replicas),
            hold: Duration::from_millis(chance.u64(500..3_000)),
        }
    }

    /// Causes the fault, and ends it.
    pub async fn befall(self, storm: &mut Storm) {
        let Self {
            fault,
            victim,
            hold,
        } = self;
        match fault {
            Fault::ReplicaKilled => {
                storm.trial.replicas[victim].kill().await;
                sleep(hold).await;
                storm.restart(victim).await;
            }
            Fault::ReplicaStopped => stop_replica(storm, victim).await,
            Fault::LeaderFrozen => freeze_leader(storm).await,
            Fault::BrokerKilled => {
                storm.trial.control.signal("rabbitmq", "KILL").await;
                sleep(hold).await;
                storm.trial.control.start("rabbitmq").await;
            }
            Fault::BrokerStopped => {
                storm.trial.control.rabbitmqctl(&["stop_app"]).await;
                sleep(hold).await;
                storm.trial.control.rabbitmqctl(&["start_app"]).await;
            }
            Fault::BrokerFrozen => {
                storm.trial.control.signal("rabbitmq", "STOP").await;
                sleep(hold * 2).await;
                storm.trial.control.signal("rabbitmq", "CONT").await;
            }
            Fault::BrokerShortOfMemory => run_out_of_memory(storm, hold).await,
            Fault::BrokerShortOfDisk => run_out_of_disk(storm, hold).await,
            Fault::QueueDeleted => {
                _ = management(Method::DELETE, &storm.path("queues", "user_events_queue")).await;
            }
            Fault::ExchangeDeleted => {
                _ = management(Method::DELETE, &storm.path("exchanges", "user_events")).await;
            }
            Fault::QueueFull => fill_a_queue(storm, hold).await,
            Fault::DatabaseRestarted => restart_database(storm, "INT").await,
            Fault::DatabaseCrashed => restart_database(storm, "QUIT").await,
            Fault::ConnectionsTerminated => storm.trial.world.terminate_connections().await,
            Fault::LeaderTerminated => storm.trial.world.terminate_leader().await,
            Fault::DatabaseReset
            | Fault::DatabaseSilent
            | Fault::BrokerReset
            | Fault::BrokerSilent => {
                cut(storm, fault, victim, hold).await;
            }
            Fault::LeaderCutOffAndBack => cut_leader_off_and_back(storm).await,
            Fault::AlarmAndLeaderKilled => kill_leader_amid_alarm(storm, hold).await,
            Fault::BothRestarted => {
                storm.trial.control.signal("rabbitmq", "KILL").await;
                restart_database(storm, "QUIT").await;
                storm.trial.control.start("rabbitmq").await;
            }
            Fault::TableLocked => lock_table(storm, hold).await,
            Fault::OldSnapshot => hold_snapshot(storm, hold).await,
            Fault::ForeignMessages => publish_foreign_messages(storm).await,
            Fault::ClientsHangUp => hang_up(storm, victim).await,
        }
    }
}

/// In the queue that is full.
const ROOM: usize = 50;
/// Longer than a leader keeps its lock without a word.
const LEASE_IS_OVER: Duration = Duration::from_secs(12);

async fn stop_replica(storm: &mut Storm, victim: usize) {
    storm.trial.replicas[victim].signal("TERM");
    let status = storm.trial.replicas[victim].exit_status().await;
    assert_eq!(
        status.code(),
        Some(0),
        "a replica that is stopped exits with 0"
    );
    storm.restart(victim).await;
}

async fn run_out_of_disk(storm: &Storm, hold: Duration) {
    storm
        .trial
        .control
        .rabbitmqctl(&["set_disk_free_limit", "mem_relative", "9000"])
        .await;
    sleep(hold).await;
    storm
        .trial
        .control
        .rabbitmqctl(&["set_disk_free_limit", "100MB"])
        .await;
}

async fn cut_leader_off_and_back(storm: &Storm) {
    let leader = leader(storm).await;
    let (database, broker) = &storm.networks[leader];
    database.delay();
    broker.delay();
    // Longer than the lease: another replica leads by then, and the old leader's last
    // messages arrive.
    sleep(LEASE_IS_OVER).await;
    database.open();
    broker.open();
}

async fn lock_table(storm: &Storm, hold: Duration) {
    let mut lock = storm.trial.world.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *lock)
        .await
        .unwrap();
    sleep(hold).await;
    lock.rollback().await.unwrap();
}

async fn hold_snapshot(storm: &Storm, hold: Duration) {
    let mut holder = storm.trial.world.pool.begin().await.unwrap();
    let begin = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox";
    sqlx::raw_sql(begin).execute(&mut *holder).await.unwrap();
    sleep(hold * 3).await;
    holder.rollback().await.unwrap();
}

async fn limit_memory(storm: &Storm, limit: &[&str]) {
    let set = [&["set_vm_memory_high_watermark"], limit].concat();
    storm.trial.control.rabbitmqctl(&set).await;
}

const NO_MEMORY: [&str; 2] = ["absolute", "1MB"];
const USUAL_MEMORY: [&str; 1] = ["0.4"];

async fn run_out_of_memory(storm: &Storm, hold: Duration) {
    limit_memory(storm, &NO_MEMORY).await;
    sleep(hold).await;
    limit_memory(storm, &USUAL_MEMORY).await;
}

async fn kill_leader_amid_alarm(storm: &mut Storm, hold: Duration) {
    limit_memory(storm, &NO_MEMORY).await;
    let leader = leader(storm).await;
    storm.trial.replicas[leader].kill().await;
    sleep(hold).await;
    limit_memory(storm, &USUAL_MEMORY).await;
    storm.restart(leader).await;
}

async fn leader(storm: &Storm) -> usize {
    eventually("a leader", async || {
        for (index, replica) in storm.trial.replicas.iter().enumerate() {
            if replica.leads().await {
                return Some(index);
            }
        }
        None
    })
    .await
}

async fn freeze_leader(storm: &mut Storm) {
    let leader = leader(storm).await;
    // As a load balancer would, after its first probe.
    let address = (storm.trial.replicas.len() > 1)
        .then(|| storm.trial.addresses.write().unwrap().remove(leader));
    storm.trial.replicas[leader].signal("STOP");
    sleep(LEASE_IS_OVER).await;
    storm.trial.replicas[leader].signal("CONT");
    if let Some(address) = address {
        storm
            .trial
            .addresses
            .write()
            .unwrap()
            .insert(leader, address);
    }
}

/// Fills another subscriber's queue, which accepts some messages and refuses the rest. Every event
/// that left the outbox meanwhile must be in it.
async fn fill_a_queue(storm: &Storm, hold: Duration) {
    let queue = storm.path("queues", "full");
    let arguments = json!({"x-max-length": ROOM, "x-overflow": "reject-publish"});
    management_put(&queue, &json!({"durable": true, "arguments": arguments})).await;
    let binding = format!(
        "/api/bindings/{}/e/user_events/q/full",
        storm.trial.world.virtual_host
    );
    management_post(&binding, &json!({"routing_key": "user.*"})).await;
    let bound: DateTime<Utc> = storm.trial.world.value("SELECT clock_timestamp()").await;
    sleep(hold).await;
    let gone = "SELECT event_id FROM audit_events WHERE at > $1 AND event_id NOT IN (SELECT \
                event_id FROM outbox)";
    let gone: HashSet<Uuid> = sqlx::query_scalar(gone)
        .bind(bound)
        .fetch_all(&storm.trial.world.pool)
        .await
        .unwrap()
        .into_iter()
        .collect();
    let read = json!({"count": 10_000, "ackmode": "ack_requeue_false", "encoding": "auto"});
    let messages: Value = management_post(&(queue.clone() + "/get"), &read)
        .await
        .json()
        .await
        .unwrap();
    let taken: HashSet<Uuid> = messages.as_array().unwrap().iter().map(event_id).collect();
    assert!(
        !taken.is_empty() && gone.is_subset(&taken),
        "confirmed, and not in the full queue: {gone:?} {taken:?}"
    );
    management(Method::DELETE, &queue).await;
}

fn event_id(message: &Value) -> Uuid {
    message["properties"]["message_id"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

async fn restart_database(storm: &Storm, signal: &str) {
    storm.trial.control.signal("postgres", signal).await;
    storm.trial.control.start("postgres").await;
}

async fn cut(storm: &Storm, fault: Fault, victim: usize, hold: Duration) {
    let (database, broker) = &storm.networks[victim];
    let network = if matches!(fault, Fault::DatabaseReset | Fault::DatabaseSilent) {
        database
    } else {
        broker
    };
    if matches!(fault, Fault::DatabaseReset | Fault::BrokerReset) {
        network.reset();
    } else {
        network.silence();
    }
    sleep(hold).await;
    network.open();
}

async fn publish_foreign_messages(storm: &Storm) {
    let path = storm.path("exchanges", "amq.default") + "/publish";
    for n in 0..20 {
        let payload = if n % 2 == 0 {
            "no event"
        } else {
            "{\"event_type\": \"user.eaten\"}"
        };
        let message = json!({"routing_key": "user_events_queue", "payload": payload, "payload_encoding": "string", "properties": {}});
        management_post(&path, &message).await;
    }
}

async fn hang_up(storm: &Storm, victim: usize) {
    for n in 0..100 {
        let body = format!("{{\"name\":\"Имя{n}-{}\"}}", fastrand::u32(..));
        let request = format!(
            "PUT /users/{} HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\ncontent-length: \
             {}\r\n\r\n{body}",
            1 + n % 30,
            body.len()
        );
        let mut stream = TcpStream::connect(&storm.trial.replicas[victim].address)
            .await
            .unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        // Dropped here, before the response is read.
    }
}
