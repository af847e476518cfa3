//! Password hashing: argon2id, on at most one thread per core, at low priority, so that other
//! requests hardly notice. Waiting callers are served in turn (`turns`). Imports only `domain`.

mod turns;

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use argon2::password_hash::{self, phc};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinError;
use tokio::time::timeout;
use tracing::warn;

use self::turns::Turns;
use crate::domain::actor::Client;
use crate::domain::password::{Password, PasswordHash};

// OWASP Password Storage Cheat Sheet, argon2id.
/// Memory of one hash, in KiB.
const MEMORY_KIB: u32 = 19_456;
/// Passes over that memory.
const ITERATIONS: u32 = 2;
/// Degree of parallelism of one hash.
const LANES: u32 = 1;

/// Niceness of the hashing threads, from 0 (normal) to 19 (lowest priority): they get little of a
/// busy core, and all of an idle one.
const NICENESS: i32 = 19;

/// How long idle working memory is kept.
const KEPT_IDLE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum HashError {
    #[error("too many passwords wait to be hashed")]
    Overloaded,
    #[error("the client hung up while its password waited to be hashed")]
    CallerGone,
    #[error("argon2 failed")]
    Argon2(#[source] Box<dyn Error + Send + Sync>),
    #[error("the hashing task failed")]
    Task(#[source] JoinError),
}

/// Who asks for a hash.
pub struct Caller<G> {
    /// Whose turns it shares.
    pub client: Client,
    /// Resolves when the caller no longer waits for the result.
    pub gone: G,
}

/// Hashes passwords on its own threads, at most one per core.
#[derive(Clone)]
pub struct PasswordHasher {
    turns: Turns,
    width: usize,
    longest_wait: Duration,
    threads: Arc<Threads>,
    workspaces: Workspaces,
}

impl PasswordHasher {
    /// `longest_wait` limits how long a request waits for a slot.
    pub fn new(longest_wait: Duration) -> io::Result<Self> {
        let width = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = Arc::new(Threads::up_to(width)?);
        let turns = Turns::new(width);
        Ok(Self {
            turns,
            width,
            longest_wait,
            threads,
            workspaces: Workspaces::default(),
        })
    }

    pub const fn longest_wait(&self) -> Duration {
        self.longest_wait
    }

    /// The numbers of free and of busy slots.
    pub fn slots(&self) -> (f64, f64) {
        let of = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let free = self.turns.free();
        (of(free), of(self.width - free))
    }

    /// Frees working memory that no hash has used for a while.
    pub fn free_idle_memory(&self) {
        self.workspaces
            .0
            .lock()
            .retain(|idle| idle.since.elapsed() < KEPT_IDLE);
    }

    /// Hashes a password as soon as it is the caller's turn.
    ///
    /// # Errors
    /// `HashError::Overloaded` if too many callers wait, or no slot is free in time;
    /// `HashError::CallerGone` if the caller hangs up while it waits; `HashError::Argon2` or
    /// `HashError::Task` if the hashing itself fails.
    pub async fn hash(
        &self,
        password: Password,
        caller: Caller<impl Future<Output = ()>>,
    ) -> Result<PasswordHash, HashError> {
        let turn = tokio::select! {
            biased;
            turn = timeout(self.longest_wait, self.turns.wait(caller.client)) => turn.ok().flatten(),
            () = caller.gone => return Err(HashError::CallerGone),
        };
        let turn = turn.ok_or(HashError::Overloaded)?;
        let workspaces = self.workspaces.clone();
        let hashed = self.threads.handle.spawn_blocking(move || {
            let hash = workspaces.with(|memory| hash(&password, memory));
            // Released here, not by the caller: if the caller gives up, the core is still busy.
            drop(turn);
            hash.map_err(HashError::Argon2)
        });
        hashed.await.map_err(HashError::Task)?
    }
}

/// The blocking threads of a separate runtime: the main runtime's threads also do other work, and
/// a lowered priority cannot be raised again.
struct Threads {
    handle: Handle,
    runtime: Option<Runtime>,
}

impl Threads {
    fn up_to(width: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .max_blocking_threads(width)
            .thread_name("hasher")
            .on_thread_start(lower_priority)
            .build()?;
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // May run in an async task, which must not block until a hash ends.
            runtime.shutdown_background();
        }
    }
}

/// Lowers the calling thread's priority. Linux only: elsewhere this would affect the whole process.
fn lower_priority() {
    if cfg!(target_os = "linux")
        && let Err(error) = rustix::process::setpriority_process(None, NICENESS)
    {
        warn!(%error, "Cannot lower the priority of the hashing threads");
    }
}

/// Reusable working memory, 19 MiB per hash. If it were freed after each hash, the allocator would
/// keep a copy for every thread that ever hashed. There are as many workspaces as hashes recently
/// ran at the same time.
#[derive(Clone, Default)]
struct Workspaces(Arc<Mutex<Vec<Idle>>>);

/// A workspace, and the time since which it is unused.
struct Idle {
    memory: Vec<Block>,
    since: Instant,
}

impl Workspaces {
    fn with<T>(&self, work: impl FnOnce(&mut [Block]) -> T) -> T {
        let idle = self.0.lock().pop().map(|idle| idle.memory);
        let mut memory = idle.unwrap_or_else(|| {
            vec![Block::new(); params().map_or(0, |params| params.block_count())]
        });
        let result = work(&mut memory);
        self.0.lock().push(Idle {
            memory,
            since: Instant::now(),
        });
        result
    }
}

fn hash(
    password: &Password,
    memory: &mut [Block],
) -> Result<PasswordHash, Box<dyn Error + Send + Sync>> {
    let params = params()?;
    let algorithm = Algorithm::Argon2id;
    let version = Version::V0x13;
    let salt = password_hash::try_generate_salt()?;
    let mut output = [0; Params::DEFAULT_OUTPUT_LEN];
    Argon2::new(algorithm, version, params.clone()).hash_password_into_with_memory(
        password.expose().as_bytes(),
        &salt,
        &mut output,
        memory,
    )?;
    let phc = phc::PasswordHash {
        algorithm: algorithm.ident(),
        version: Some(version.into()),
        params: phc::ParamsString::try_from(&params)?,
        salt: Some(phc::Salt::new(&salt)?),
        hash: Some(phc::Output::new(&output)?),
    };
    Ok(PasswordHash::from_phc(phc.to_string()))
}

fn params() -> argon2::Result<Params> {
    Params::new(MEMORY_KIB, ITERATIONS, LANES, None)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Caller, HashError, PasswordHasher};
    use crate::domain::actor::Client;
    use crate::domain::password::{Password, PasswordPolicy};
    use argon2::password_hash::phc;
    use argon2::{Argon2, PasswordVerifier};

    fn secret() -> Password {
        let policy = PasswordPolicy { min_chars: 1 };
        policy.check("secret123".into()).unwrap()
    }

    fn caller() -> Caller<impl Future<Output = ()>> {
        Caller {
            client: Client::Address(None),
            gone: std::future::pending(),
        }
    }

    #[tokio::test]
    async fn a_hash_is_a_salted_argon2id_phc_string_that_verifies() {
        let hasher = PasswordHasher::new(Duration::from_mins(1)).unwrap();
        let first = hasher.hash(secret(), caller()).await.unwrap();
        let second = hasher.hash(secret(), caller()).await.unwrap();
        assert!(
            first
                .expose()
                .starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{}",
            first.expose()
        );
        assert_ne!(first.expose(), second.expose());
        let verify = |password: &str| {
            Argon2::default().verify_password(
                password.as_bytes(),
                &phc::PasswordHash::new(first.expose()).unwrap(),
            )
        };
        assert!(verify("secret123").is_ok());
        assert!(verify("secret124").is_err());
    }

    #[tokio::test]
    async fn password_hashing_reuses_its_working_memory() {
        let hasher = PasswordHasher::new(Duration::from_mins(1)).unwrap();
        for _ in 0..3 {
            hasher.hash(secret(), caller()).await.unwrap();
        }
        assert_eq!(hasher.workspaces.0.lock().len(), 1);
    }

    #[tokio::test]
    async fn a_caller_that_gets_no_hashing_slot_is_refused_after_the_wait() {
        let hasher = PasswordHasher::new(Duration::from_millis(1)).unwrap();
        let mut taken = Vec::new();
        for _ in 0..hasher.width {
            taken.push(hasher.turns.wait(Client::Address(None)).await);
        }
        assert!(matches!(
            hasher.hash(secret(), caller()).await,
            Err(HashError::Overloaded)
        ));
    }
}
