//! File descriptors: as many as the connections need, where the system gives them.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// Left for what is no client's connection: files, threads, the broker, names to look up.
const RESERVE: usize = 64;

/// So many of `wanted` connections as the limit of open files allows beside `others`. The soft limit is raised first, as far as
/// need be and the hard one allows.
pub fn connections_allowed(wanted: usize, others: usize) -> usize {
    let reserve = RESERVE + others;
    let needed = u64::try_from(wanted + reserve).unwrap_or(u64::MAX);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let Some(soft) = current.filter(|soft| *soft < needed) else { return wanted };
    let raised = maximum.map_or(needed, |hard| hard.min(needed));
    let limit = match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }) {
        Ok(()) => raised,
        Err(_) => soft,
    };
    let allowed = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(reserve).clamp(1, wanted);
    if allowed < wanted {
        warn!(
            wanted,
            allowed,
            open_files = limit,
            "Fewer connections than MAX_CONNECTIONS: raise the limit of open files (ulimit -n)"
        );
    }
    allowed
}
