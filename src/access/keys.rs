//! The API keys as they were read last.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use super::token::TokenDigest;
use crate::domain::actor::Actor;
use crate::domain::scope::Scopes;
use crate::domain::timestamp::Timestamp;
use crate::repository::api_keys::StoredKey;

/// A key, without its token.
pub(crate) struct Key {
    id: i64,
    digest: TokenDigest,
    pub actor: Actor,
    pub scopes: Scopes,
    expires_at: Option<Timestamp>,
    /// Since [`Keys::take_used`].
    used: AtomicBool,
}

impl Key {
    /// `None` for a row that this version cannot read. Scopes of a newer version grant nothing.
    fn of(row: &StoredKey) -> Option<Self> {
        let known = row.scopes.iter().filter_map(|name| name.parse().ok());
        Some(Self {
            id: row.id,
            digest: TokenDigest::stored(&row.token_sha256)?,
            actor: Actor::key(&row.name),
            scopes: known.collect(),
            expires_at: row.expires_at,
            used: AtomicBool::new(false),
        })
    }

    pub(crate) fn has_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= now)
    }

    pub(crate) fn note_use(&self) {
        // Most uses of a minute find it noted.
        if !self.used.load(Relaxed) {
            self.used.store(true, Relaxed);
        }
    }
}

/// Every key, by its token's digest.
#[derive(Default)]
pub(crate) struct Keys(HashMap<TokenDigest, Arc<Key>>);

impl Keys {
    /// What was noted about a key in `before` stays.
    pub(crate) fn of(rows: &[StoredKey], before: Option<&Self>) -> Self {
        let keys = rows.iter().filter_map(Key::of);
        let keys = keys.map(|key| {
            let known = before.and_then(|before| before.find(&key.digest));
            if known.is_some_and(|known| known.used.load(Relaxed)) {
                key.note_use();
            }
            (key.digest, Arc::new(key))
        });
        Self(keys.collect())
    }

    pub(crate) fn find(&self, digest: &TokenDigest) -> Option<&Arc<Key>> {
        self.0.get(digest)
    }

    /// Whether any key works.
    pub(crate) fn has_live(&self, now: Timestamp) -> bool {
        self.0.values().any(|key| !key.has_expired(now))
    }

    /// The ids of the keys that were used since the last call.
    pub(crate) fn take_used(&self) -> Vec<i64> {
        let used = self.0.values().filter(|key| key.used.swap(false, Relaxed));
        used.map(|key| key.id).collect()
    }
}

#[cfg(test)]
mod tests {
    use chrono::{Duration, Utc};

    use super::{Keys, StoredKey, Timestamp};
    use crate::access::token::Token;
    use crate::domain::scope::Scope;

    fn row(token: &Token, scopes: &[&str], expires_at: Option<Timestamp>) -> StoredKey {
        StoredKey {
            id: 7,
            name: "front-end".to_owned(),
            scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
            token_sha256: token.digest().as_bytes().to_vec(),
            expires_at,
        }
    }

    #[test]
    fn a_key_is_found_by_its_token_and_grants_the_scopes_that_are_known() {
        let token = Token::generate();
        let row = row(&token, &["users:read", "users:fly"], None);
        let keys = Keys::of(&[row], None);
        let key = keys.find(&token.digest()).unwrap();
        assert_eq!(key.actor.as_str(), "key:front-end");
        assert!(key.scopes.contains(Scope::UsersRead));
        assert!(!key.scopes.contains(Scope::UsersWrite));
        assert!(keys.find(&Token::generate().digest()).is_none());
    }

    #[test]
    fn a_key_expires_at_the_moment_that_it_names() {
        let token = Token::generate();
        let moment = Utc::now();
        let keys = Keys::of(&[row(&token, &["users:read"], Some(moment.into()))], None);
        let key = keys.find(&token.digest()).unwrap();
        assert!(!key.has_expired((moment - Duration::milliseconds(1)).into()));
        assert!(key.has_expired(moment.into()));
    }

    #[test]
    fn a_use_is_reported_once_and_survives_a_new_read() {
        let token = Token::generate();
        let rows = [row(&token, &["users:read"], None)];
        let before = Keys::of(&rows, None);
        before.find(&token.digest()).unwrap().note_use();
        let after = Keys::of(&rows, Some(&before));
        assert_eq!(after.take_used(), [7]);
        assert!(after.take_used().is_empty());
    }
}
