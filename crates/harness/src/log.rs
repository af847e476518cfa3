//! The service's log lines on its standard output.

use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::PATIENCE;
use super::digest::Digest;

/// How the line with the address begins.
const LISTENING: &str = r#"{"event":"Listening""#;

#[derive(Clone, Default)]
pub struct Log(Arc<Inner>);

#[derive(Default)]
struct Inner {
    lines: Mutex<Vec<Value>>,
    grown: Notify,
    paused: watch::Sender<bool>,
}

impl Log {
    /// Collects lines in the background, into `digest` if there is one. Else each must be one flat
    /// JSON object with the keys that all lines have.
    pub(crate) fn collect(
        &self,
        output: impl AsyncRead + Unpin + Send + 'static,
        digest: Option<Arc<Digest>>,
    ) {
        let log = self.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            let mut paused = log.0.paused.subscribe();
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some(digest) = &digest {
                    digest.take(&line);
                    if !line.starts_with(LISTENING) {
                        continue;
                    }
                }
                let line: Value =
                    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line}"));
                for key in ["event", "level", "timestamp"] {
                    assert!(line[key].is_string(), "no {key} in {line}");
                }
                log.0.lines.lock().unwrap().push(line);
                log.0.grown.notify_waiters();
                paused.wait_for(|paused| !paused).await.unwrap();
            }
        });
    }

    /// Stops reading, like a stalled reader, or continues.
    pub fn pause(&self, paused: bool) {
        self.0.paused.send_replace(paused);
    }

    pub fn lines(&self) -> Vec<Value> {
        self.0.lines.lock().unwrap().clone()
    }

    pub fn matching(&self, event: &str, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        self.matching_from(0, event, wanted).0
    }

    /// The matching lines from a place on, and the place where the next search continues.
    fn matching_from(
        &self,
        place: usize,
        event: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> (Vec<Value>, usize) {
        let lines = self.0.lines.lock().unwrap();
        let matching = lines[place..]
            .iter()
            .filter(|line| line["event"] == event && wanted(line));
        (matching.cloned().collect(), lines.len())
    }

    /// Waits for the first matching line.
    #[track_caller]
    pub fn wait_for<'a>(
        &'a self,
        event: &'a str,
        wanted: impl Fn(&Value) -> bool + 'a,
    ) -> impl Future<Output = Value> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let found = async {
                let mut place = 0;
                loop {
                    let grown = self.0.grown.notified();
                    let (lines, searched) = self.matching_from(place, event, &wanted);
                    if let Some(line) = lines.into_iter().next() {
                        return line;
                    }
                    place = searched;
                    grown.await;
                }
            };
            let line = timeout(PATIENCE, found).await;
            line.unwrap_or_else(|_| {
                panic!(
                    "{caller}: no such line `{event}` within {PATIENCE:?} in\n{}",
                    self.text()
                )
            })
        }
    }

    pub fn text(&self) -> String {
        self.lines()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n")
    }
}
