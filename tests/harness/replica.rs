//! The service as a process under load: its log is summarized, not kept.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::ops::{Deref, DerefMut};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::oneshot;
use tokio::time::timeout;
use uuid::Uuid;

use super::process::{Process, command, with_open_files};
use super::servers::World;
use super::{PATIENCE, until};

/// A summary of the logs of all replicas.
pub struct Digest {
    /// Events that a consumer has logged, and their trace ids.
    pub received: Mutex<HashMap<Uuid, String>>,
    /// How often each line of level `error` or `warning` appeared.
    pub troubles: Mutex<BTreeMap<String, u64>>,
    /// The full lines, for diagnosis.
    troubles_file: Mutex<File>,
}

/// File with the lines of level `error` and `warning` of the last trial.
pub const TROUBLES_FILE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/troubles.log");

impl Default for Digest {
    fn default() -> Self {
        let troubles_file = File::create(TROUBLES_FILE).unwrap();
        Self {
            received: Mutex::default(),
            troubles: Mutex::default(),
            troubles_file: Mutex::new(troubles_file),
        }
    }
}

impl Digest {
    fn take(&self, line: &str) {
        if line.starts_with(r#"{"event":"Event received""#) {
            let line: Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| line[key].as_str().unwrap().to_owned();
            self.received
                .lock()
                .unwrap()
                .insert(text("event_id").parse().unwrap(), text("trace_id"));
        } else if line.contains(r#","level":"warning","#) || line.contains(r#","level":"error","#) {
            writeln!(self.troubles_file.lock().unwrap(), "{line}").unwrap();
            let line: Value = serde_json::from_str(line).unwrap();
            let event = line["event"].as_str().unwrap().to_owned();
            *self.troubles.lock().unwrap().entry(event).or_default() += 1;
        }
    }
}

pub struct Replica {
    pub address: String,
    process: Process,
    client: reqwest::Client,
}

impl Replica {
    /// Starts it without waiting until it is ready.
    pub async fn launch(world: &World, settings: &[(&str, &str)], digest: &Arc<Digest>) -> Self {
        let settings = [&world.settings()[..], &[("PORT", "0")], settings].concat();
        Self::spawn(command(&settings), digest).await
    }

    /// Like [`Self::start`], with a limit of open files.
    pub async fn start_with_open_files(world: &World, limit: u32, digest: &Arc<Digest>) -> Self {
        let settings = [&world.settings()[..], &[("PORT", "0")]].concat();
        let replica = Self::spawn(with_open_files(limit, &settings), digest).await;
        until("a replica that is ready", async || {
            replica.is("ready").await
        })
        .await;
        replica
    }

    async fn spawn(mut command: Command, digest: &Arc<Digest>) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (found, address) = oneshot::channel();
        let digest = digest.clone();
        tokio::spawn(async move {
            let mut found = Some(found);
            while let Ok(Some(line)) = lines.next_line().await {
                if found.is_some() && line.contains(r#""event":"Listening""#) {
                    let line: Value = serde_json::from_str(&line).unwrap();
                    _ = found
                        .take()
                        .unwrap()
                        .send(line["address"].as_str().unwrap().to_owned());
                }
                digest.take(&line);
            }
        });
        let address = timeout(PATIENCE, address)
            .await
            .expect("it listens")
            .expect("it starts");
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(5))
            .build()
            .unwrap();
        Self {
            address,
            process: Process(process),
            client,
        }
    }

    /// Starts it and waits until it is ready.
    pub async fn start(world: &World, settings: &[(&str, &str)], digest: &Arc<Digest>) -> Self {
        let replica = Self::launch(world, settings, digest).await;
        until("a replica that is ready", async || {
            replica.is("ready").await
        })
        .await;
        replica
    }

    /// The response of `/health/ready`; `Null` if none comes in time.
    pub async fn health(&self) -> Value {
        match self
            .client
            .get(format!("http://{}/health/ready", self.address))
            .send()
            .await
        {
            Ok(answer) => answer.json().await.unwrap_or_default(),
            Err(_) => Value::Null,
        }
    }

    pub async fn is(&self, status: &str) -> bool {
        self.health().await["status"] == status
    }

    pub async fn leads(&self) -> bool {
        self.health().await["checks"]["relay"] == "leading"
    }

    pub async fn metrics(&self) -> String {
        self.client
            .get(format!("http://{}/metrics", self.address))
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap()
    }
}

impl Deref for Replica {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Replica {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}
