//! Who may do what. Knows neither HTTP nor SQL.

pub(crate) mod key_ring;
mod keys;
pub(crate) mod token;

use self::key_ring::{Found, KeyRing};
use self::token::TokenDigest;
#[cfg(test)]
use crate::database::{Database, DatabaseUrl, Route, TimeLimits};
use crate::domain::actor::Actor;
use crate::domain::scope::{Scope, Scopes};
use crate::domain::timestamp::Timestamp;

/// What a request shows to be let in.
#[derive(Clone, Copy)]
pub(crate) enum Credential<'a> {
    /// Or one of another scheme than ours, which may be a proxy's.
    Missing,
    Token(&'a [u8]),
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Unauthenticated,
    InvalidToken,
    ExpiredToken,
    InsufficientScope(Scope),
    /// No key has been read yet, so that no token can be told from another.
    KeysUnread,
}

/// Who makes a request, and what it may do.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// `None` for one without a credential.
    pub actor: Option<Actor>,
    scopes: Scopes,
}

impl Identity {
    /// # Errors
    /// [`Refusal::InsufficientScope`]; of a caller without a credential
    /// [`Refusal::Unauthenticated`].
    pub(crate) fn require(&self, scope: Scope) -> Result<(), Refusal> {
        if self.scopes.contains(scope) {
            Ok(())
        } else if self.actor.is_some() {
            Err(Refusal::InsufficientScope(scope))
        } else {
            Err(Refusal::Unauthenticated)
        }
    }
}

/// Lets callers in by their keys.
#[derive(Clone)]
pub(crate) struct Access {
    keys: KeyRing,
    /// What a caller without a credential may do; `None` if it is not let in.
    anonymous: Option<Scopes>,
}

impl Access {
    pub(crate) fn new(keys: KeyRing, allow_anonymous: bool) -> Self {
        Self {
            keys,
            anonymous: allow_anonymous.then_some(Scopes::ANONYMOUS),
        }
    }

    /// Lets everyone in, and knows no key.
    #[cfg(test)]
    pub(crate) fn open_without_keys() -> Self {
        let nowhere = "postgresql://localhost/none".parse::<DatabaseUrl>();
        let database = Database::new(
            nowhere.unwrap().options(),
            1,
            Route::Direct,
            TimeLimits::REQUESTS,
        );
        Self::new(KeyRing::new(database), true)
    }

    /// A credential is checked even where none is needed.
    ///
    /// # Errors
    /// All but [`Refusal::InsufficientScope`].
    pub(crate) async fn identify(&self, credential: Credential<'_>) -> Result<Identity, Refusal> {
        let token = match credential {
            Credential::Missing => return self.anonymous_caller(),
            Credential::Token(token) => token,
        };
        let digest = TokenDigest::of(token).ok_or(Refusal::InvalidToken)?;
        let key = match self.keys.find(&digest).await {
            Found::Key(key) => key,
            Found::Unknown => return Err(Refusal::InvalidToken),
            Found::Unread => return Err(Refusal::KeysUnread),
        };
        if key.has_expired(Timestamp::now()) {
            return Err(Refusal::ExpiredToken);
        }
        key.note_use();
        Ok(Identity {
            actor: Some(key.actor.clone()),
            scopes: key.scopes,
        })
    }

    fn anonymous_caller(&self) -> Result<Identity, Refusal> {
        let scopes = self.anonymous.ok_or(Refusal::Unauthenticated)?;
        Ok(Identity {
            actor: None,
            scopes,
        })
    }
}
