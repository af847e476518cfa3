//! File descriptors: raises the limit to what the connections need, if the system allows it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

use super::open::MAX_WAITING;

/// Reserved for everything but open connections: files, threads, the broker, name lookups,
/// connections that wait for a place.
const RESERVE: usize = 64 + MAX_WAITING;

/// Returns how many of `wanted` connections the open-files limit allows beside `others`. First
/// raises the soft limit as far as needed and as the hard limit allows.
pub fn connections_allowed(wanted: usize, others: usize) -> usize {
    let reserve = RESERVE + others;
    let needed = u64::try_from(wanted + reserve).unwrap_or(u64::MAX);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let Some(soft) = current.filter(|soft| *soft < needed) else {
        return wanted;
    };
    let raised = maximum.map_or(needed, |hard| hard.min(needed));
    let limit = match setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(raised),
            maximum,
        },
    ) {
        Ok(()) => raised,
        Err(_) => soft,
    };
    let allowed = usize::try_from(limit)
        .unwrap_or(usize::MAX)
        .saturating_sub(reserve)
        .clamp(1, wanted);
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
