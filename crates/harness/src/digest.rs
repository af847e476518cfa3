//! Summaries of logs, for services under load: the lines would not fit into memory.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;

use serde_json::Value;
use uuid::Uuid;

use super::process::scratch;

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
pub fn troubles_file() -> PathBuf {
    scratch().join("troubles.log")
}

impl Default for Digest {
    fn default() -> Self {
        let troubles_file = File::create(troubles_file()).unwrap();
        Self {
            received: Mutex::default(),
            troubles: Mutex::default(),
            troubles_file: Mutex::new(troubles_file),
        }
    }
}

impl Digest {
    pub(crate) fn take(&self, line: &str) {
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
