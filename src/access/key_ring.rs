//! Keeps the API keys at hand: reads all of them every few seconds, and sooner for a token that is
//! not among them. While PostgreSQL is away, those read before stay.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::keys::{Key, Keys};
use super::token::TokenDigest;
use crate::database::{Database, DatabaseError};
use crate::domain::timestamp::Timestamp;
use crate::error_chain::Chain;
use crate::monitoring::catalogue;
use crate::repository::api_keys;

/// Between two reads. A revoked key works for no longer than this and one query.
const READ_EVERY: Duration = Duration::from_secs(5);
/// Between two reads that unknown tokens ask for, so that a flood of them costs a query a second.
const READ_AT_MOST_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for a read that may bring a token: for its turn, and for the query.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// Between two warnings that the keys cannot be read.
const WARN_EVERY: Duration = Duration::from_mins(1);
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
        // Whether it came in time shows in what is known now.
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

    /// Reads the keys again and again, until `stop`. `is_closed` says whether callers without a key
    /// are kept out.
    pub(crate) async fn run(self, is_closed: bool, stop: CancellationToken) {
        let notes = tokio::spawn(self.clone().note_uses_until(stop.clone()));
        let notes = AbortOnDropHandle::new(notes);
        let mut warned: Option<Instant> = None;
        while !stop.is_cancelled() {
            let began = Instant::now();
            match self.read(is_closed).await {
                Ok(()) => {
                    if warned.take().is_some() {
                        info!("The API keys can be read again");
                    }
                }
                // The service waits for its schema, and says so.
                Err(DatabaseError::NotMigrated(_)) => {}
                Err(error) => {
                    if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
                        let error = Chain(&error);
                        warn!(%error, "The API keys cannot be read; those read before stay valid");
                        warned = Some(began);
                    }
                }
            }
            self.0.read.send_replace(Some(began));
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep_until(began + READ_EVERY) => {}
                () = self.0.wanted.notified() => sleep_until(began + READ_AT_MOST_EVERY).await,
            }
        }
        _ = notes.await;
    }

    async fn read(&self, is_closed: bool) -> Result<(), DatabaseError> {
        let rows = self
            .0
            .database
            .read(|connection| Box::pin(api_keys::all(connection)))
            .await?;
        let before = self.0.keys.read().clone();
        let keys = Keys::of(&rows, before.as_deref());
        let now = Timestamp::now();
        if is_closed && !keys.has_live(now) && before.is_none_or(|before| before.has_live(now)) {
            warn!(
                "No API key exists, so nobody gets in: make one by `user-management-api api-key \
                 create NAME --scope users:write`"
            );
        }
        *self.0.keys.write() = Some(Arc::new(keys));
        catalogue::api_keys_read().set(seconds_since_1970());
        Ok(())
    }

    async fn note_uses_until(self, stop: CancellationToken) {
        let mut tick = interval(NOTE_USES_EVERY);
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            self.note_uses().await;
        }
        self.note_uses().await;
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

fn seconds_since_1970() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}
