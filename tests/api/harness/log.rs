//! What the service writes to its standard output, line by line.

use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    sync::Notify,
    time::timeout,
};

use super::PATIENCE;

#[derive(Clone, Default)]
pub struct Log(Arc<Inner>);

#[derive(Default)]
struct Inner {
    lines: Mutex<Vec<Value>>,
    grown: Notify,
}

impl Log {
    /// Collects lines in the background; each must be one flat JSON object with the keys that every line has.
    pub fn collect(&self, output: impl AsyncRead + Unpin + Send + 'static) {
        let log = self.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Some(line) = lines.next_line().await.unwrap() {
                let line: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line}"));
                for key in ["event", "level", "timestamp"] {
                    assert!(line[key].is_string(), "no {key} in {line}");
                }
                log.0.lines.lock().unwrap().push(line);
                log.0.grown.notify_waiters();
            }
        });
    }

    pub fn lines(&self) -> Vec<Value> {
        self.0.lines.lock().unwrap().clone()
    }

    pub fn matching(&self, event: &str, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        self.lines().into_iter().filter(|line| line["event"] == event && wanted(line)).collect()
    }

    /// The first line with this event that is wanted, now or soon.
    #[track_caller]
    pub fn wait_for<'a>(
        &'a self,
        event: &'a str,
        wanted: impl Fn(&Value) -> bool + 'a,
    ) -> impl Future<Output = Value> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let found = async {
                loop {
                    let grown = self.0.grown.notified();
                    if let Some(line) = self.matching(event, &wanted).into_iter().next() {
                        return line;
                    }
                    grown.await;
                }
            };
            let line = timeout(PATIENCE, found).await;
            line.unwrap_or_else(|_| panic!("{caller}: no such line `{event}` within {PATIENCE:?} in\n{}", self.text()))
        }
    }

    pub fn text(&self) -> String {
        self.lines().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }
}
