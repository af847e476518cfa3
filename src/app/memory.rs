//! Gives memory back to the system that a flood of requests has taken.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::task::spawn_blocking;
use tokio::time::interval;

use crate::password::PasswordHasher;

/// How often free memory is given back to the system, if there is little to do.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(5);
/// There is little to do while the service uses less than one part in this many of a core.
const QUIET: u32 = 5;

/// After a flood, glibc's allocator would keep what it took. While there is much to do, it is
/// needed again at once.
pub(crate) async fn give_back(hasher: PasswordHasher) {
    let mut tick = interval(GIVE_BACK_EVERY);
    let mut used_before = processor_time();
    loop {
        tick.tick().await;
        hasher.free_idle_memory();
        let used = processor_time();
        if used.saturating_sub(used_before) < GIVE_BACK_EVERY / QUIET {
            // It takes a few milliseconds. A panic there costs one turn.
            _ = spawn_blocking(trim::give_memory_back).await;
        }
        used_before = used;
    }
}

/// That of all threads since the start.
fn processor_time() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        used.tv_sec.try_into().unwrap_or_default(),
        used.tv_nsec.try_into().unwrap_or_default(),
    )
}
