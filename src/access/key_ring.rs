//! Keeps the API keys at hand: reads all of them every few seconds, and sooner for a token that is
//! not among them. While PostgreSQL is away, those read before stay.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::keys::{Key, Keys};
use super::token::TokenDigest;
use crate::database::Database;
use crate::repository::api_keys;

/// Between two reads. A revoked key works for no longer than this and one query.
const READ_EVERY: Duration = Duration::from_secs(5);
/// Between two reads that unknown tokens ask for, so that a flood of them costs a query a second.
const READ_AT_MOST_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for a read that may bring a token: for its turn, and for the query.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// Between two notes of which keys were used.
const NOTE_USES_EVERY: Duration = Duration::from_mins(1);

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct KeyRing(Arc<Inner>);

struct Inner {
    /// For reads and notes, apart from what requests share.
    database: Database,
    /// `None` before the first read.
    keys: RwLock<Option<Arc<Keys>>>,
    wanted: Notify,
    /// When the last read began that has ended.
    read: watch::Sender<Option<Instant>>,
}

/// What is known about a token.
pub(crate) enum Found {
    Key(Arc<Key>),
    Unknown,
    /// No key has been read yet.
    Unread,
}

impl KeyRing {
    pub(crate) fn new(database: Database) -> Self {
        Self(Arc::new(Inner {
            database,
            keys: RwLock::default(),
            wanted: Notify::new(),
            read: watch::Sender::default(),
        }))
    }

    /// Waits for a read that begins now, if the token is not known: its key may be new.
    pub(crate) async fn find(&self, digest: &TokenDigest) -> Found {
        if let Found::Key(key) = self.known(digest) {
            return Found::Key(key);
        }
        let asked = Instant::now();
        let mut read = self.0.read.subscribe();
        self.0.wanted.notify_one();
        let fresh = read.wait_for(|began| began.is_some_and(|began| began >= asked));
        _ = timeout(LONGEST_WAIT, fresh).await;
        self.known(digest)
    }

    fn known(&self, digest: &TokenDigest) -> Found {
        match &*self.0.keys.read() {
            None => Found::Unread,
            Some(keys) => keys
                .find(digest)
                .cloned()
                .map_or(Found::Unknown, Found::Key),
        }
    }

    /// Reads the keys again and again, until `stop`. `is_closed` says whether nobody gets in without
    /// one.
    pub(crate) async fn run(self, is_closed: bool, stop: CancellationToken) {
        let mut notes = Instant::now() + NOTE_USES_EVERY;
        let mut is_failing = false;
        while !stop.is_cancelled() {
            let began = Instant::now();
            is_failing = self.read(is_failing, is_closed).await;
            self.0.read.send_replace(Some(began));
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(READ_EVERY) => {}
                () = self.0.wanted.notified() => sleep_until(began + READ_AT_MOST_EVERY).await,
            }
            if Instant::now() >= notes || stop.is_cancelled() {
                self.note_uses().await;
                notes = Instant::now() + NOTE_USES_EVERY;
            }
        }
    }

    /// Whether it failed.
    async fn read(&self, was_failing: bool, is_closed: bool) -> bool {
        let rows = self
            .0
            .database
            .read(|connection| Box::pin(api_keys::all(connection)))
            .await;
        let rows = match rows {
            Ok(rows) => rows,
            Err(error) => {
                if !was_failing {
                    warn!(%error, "The API keys cannot be read; those read before stay valid");
                }
                return true;
            }
        };
        if was_failing {
            info!("The API keys can be read again");
        }
        let before = self.0.keys.read().clone();
        let keys = Keys::of(&rows, before.as_deref());
        if is_closed && keys.is_empty() && before.is_none_or(|before| !before.is_empty()) {
            warn!(
                "No API key exists, so that nobody gets in: make one by `user-management-api api-key \
                 create NAME --scope users:write`"
            );
        }
        *self.0.keys.write() = Some(Arc::new(keys));
        false
    }

    /// Best effort: it only helps an operator to find keys that nobody needs.
    async fn note_uses(&self) {
        let keys = self.0.keys.read().clone();
        let used = keys.map(|keys| keys.take_used()).unwrap_or_default();
        if used.is_empty() {
            return;
        }
        let noted = self.0.database.run(|connection| {
            let used = used.clone();
            Box::pin(async move { api_keys::note_uses(connection, &used).await })
        });
        if let Err(error) = noted.await {
            warn!(%error, "The last use of API keys was not noted");
        }
    }
}
