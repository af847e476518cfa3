//! Returns memory to the system after a flood of requests.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::task::spawn_blocking;
use tokio::time::interval;

use crate::password::PasswordHasher;

/// How often free memory is returned to the system while the service is quiet.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(5);
/// The service is quiet while it uses less than one part in this many of a core.
const QUIET: u32 = 5;

/// Returns free memory whenever the service is quiet: glibc's allocator would keep it. While the
/// service is busy, it would need the memory again immediately.
pub(crate) async fn give_back(hasher: PasswordHasher) {
    let mut tick = interval(GIVE_BACK_EVERY);
    let mut used_before = processor_time();
    loop {
        tick.tick().await;
        hasher.free_idle_memory();
        let used = processor_time();
        if used.saturating_sub(used_before) < GIVE_BACK_EVERY / QUIET {
            // This blocks for a few milliseconds. A panic there only skips this round.
            _ = spawn_blocking(trim::give_memory_back).await;
        }
        used_before = used;
    }
}

/// Processor time of all threads since the start.
fn processor_time() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        used.tv_sec.try_into().unwrap_or_default(),
        used.tv_nsec.try_into().unwrap_or_default(),
    )
}
