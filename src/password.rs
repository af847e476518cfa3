//! Password hashing: argon2id, off the async threads, never more at once than there are cores. A leaf: imports nothing of
//! ours.

use std::{sync::Arc, time::Duration};

use argon2::{Algorithm, Argon2, Params, PasswordHasher as _, Version};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    sync::Semaphore,
    task::{JoinError, spawn_blocking},
    time::timeout,
};

/// Memory of one hash, in KiB. With [`ITERATIONS`] and [`LANES`]: OWASP Password Storage Cheat Sheet, argon2id.
const MEMORY_KIB: u32 = 19_456;
const ITERATIONS: u32 = 2;
const LANES: u32 = 1;

/// An argon2id hash as a PHC string; `Debug` does not show it.
pub struct PasswordHash(SecretString);

impl PasswordHash {
    /// The PHC string, for the `password` column alone.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum HashError {
    #[error("no hashing slot came free in time")]
    Overloaded,
    #[error("argon2 failed: {0}")]
    Argon2(argon2::password_hash::Error),
    #[error("the hashing task failed")]
    Task(#[source] JoinError),
}

/// Hashes passwords on blocking threads, as many at once as the machine has cores.
#[derive(Clone)]
pub struct PasswordHasher {
    slots: Arc<Semaphore>,
    width: usize,
    longest_wait: Duration,
}

impl PasswordHasher {
    /// `longest_wait` bounds the time a request queues for a slot.
    #[must_use]
    pub fn new(longest_wait: Duration) -> Self {
        let width = std::thread::available_parallelism().map_or(1, usize::from);
        Self { slots: Arc::new(Semaphore::new(width)), width, longest_wait }
    }

    /// How many slots are free, and how many busy.
    pub fn slots(&self) -> (f64, f64) {
        let of = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let free = self.slots.available_permits();
        (of(free), of(self.width - free))
    }

    /// # Errors
    /// [`HashError::Overloaded`] when no slot comes free in time.
    pub async fn hash(&self, password: SecretString) -> Result<PasswordHash, HashError> {
        let slot = timeout(self.longest_wait, self.slots.clone().acquire_owned())
            .await
            .map_err(|_elapsed| HashError::Overloaded)?
            .map_err(|_closed| HashError::Overloaded)?;
        spawn_blocking(move || {
            let hash = hash(&password);
            // The slot goes with the work: a caller who gives up does not free it while the core is still busy.
            drop(slot);
            hash
        })
        .await
        .map_err(HashError::Task)?
    }
}

fn hash(password: &SecretString) -> Result<PasswordHash, HashError> {
    let params = Params::new(MEMORY_KIB, ITERATIONS, LANES, None).map_err(|error| HashError::Argon2(error.into()))?;
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password(password.expose_secret().as_bytes())
        .map(|phc| PasswordHash(phc.to_string().into()))
        .map_err(HashError::Argon2)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use argon2::{Argon2, PasswordVerifier, password_hash::phc};

    use super::{HashError, PasswordHasher};

    #[tokio::test]
    async fn a_hash_is_a_salted_argon2id_phc_string_that_verifies() {
        let hasher = PasswordHasher::new(Duration::from_mins(1));
        let first = hasher.hash("secret123".into()).await.unwrap();
        let second = hasher.hash("secret123".into()).await.unwrap();
        assert!(first.expose().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", first.expose());
        assert_ne!(first.expose(), second.expose());
        let verify = |password: &str| {
            Argon2::default().verify_password(password.as_bytes(), &phc::PasswordHash::new(first.expose()).unwrap())
        };
        assert!(verify("secret123").is_ok());
        assert!(verify("secret124").is_err());
    }

    #[tokio::test]
    async fn a_caller_who_finds_every_slot_taken_is_told_so_after_the_wait() {
        let hasher = PasswordHasher::new(Duration::from_millis(1));
        let all = u32::try_from(hasher.slots.available_permits()).unwrap();
        let _taken = hasher.slots.clone().acquire_many_owned(all).await.unwrap();
        assert!(matches!(hasher.hash("secret123".into()).await, Err(HashError::Overloaded)));
    }
}
