//! The test harness: shared servers, a private world for each test, the service as a process, and
//! its log.

mod app;
mod collector;
mod control;
mod copy;
mod digest;
mod events;
pub mod library;
mod load;
mod log;
mod oracle;
mod process;
mod proxy;
mod readers;
mod servers;
mod stranger;
mod tls;
mod topology;

use std::fmt::Debug;
use std::time::Duration;

use tokio::time::{Instant, interval};

pub use self::app::{
    Answer, App, PASSWORD, Start, new_user, start, start_audited, start_observed, start_with,
};
pub use self::collector::{Collected, Collector};
pub use self::control::{Control, Node};
pub use self::copy::Copy;
pub use self::digest::{Digest, troubles_file};
pub use self::events::Observer;
pub use self::load::{Load, Tally, seed_users};
pub use self::oracle::{Judgement, assert_delivered_exactly, audit, committed, judge};
pub use self::process::{command, make_key, scratch};
pub use self::proxy::Proxy;
pub use self::readers::Readers;
pub use self::servers::{
    QUEUE_TYPE, World, as_login, management, management_at, management_json, management_post,
    management_put,
};
pub use self::stranger::{Stranger, headers, long, nested, short};
pub use self::tls::{Authority, Protocol};

/// Longest wait for anything; far more than it should take, so that a slow machine causes no
/// failures.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Polls until the condition holds.
#[track_caller]
pub fn until(what: impl Debug, mut is_so: impl AsyncFnMut() -> bool) -> impl Future<Output = ()> {
    eventually(what, async move || is_so().await.then_some(()))
}

/// Polls until there is an answer.
#[track_caller]
pub fn eventually<T>(
    what: impl Debug,
    mut ask: impl AsyncFnMut() -> Option<T>,
) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        let deadline = Instant::now() + PATIENCE;
        let mut tick = interval(Duration::from_millis(20));
        loop {
            tick.tick().await;
            if let Some(answer) = ask().await {
                return answer;
            }
            assert!(
                Instant::now() < deadline,
                "{caller}: {what:?} did not come about within {PATIENCE:?}"
            );
        }
    }
}
