//! From signals to a cancelled token: the first asks for an orderly stop, the second ends the process at once, which is
//! always safe, for the state is in PostgreSQL.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The exit code of a process that a second signal ended.
const FORCED: i32 = 130;

/// Cancels the token at the first SIGTERM or SIGINT.
///
/// # Errors
/// When the process may not install signal handlers.
pub fn on_signal() -> io::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let requested = stop.clone();
    tokio::spawn(async move {
        let name = next(&mut terminate, &mut interrupt).await;
        info!(signal = name, "Stopping; a second signal stops at once");
        requested.cancel();
        let name = next(&mut terminate, &mut interrupt).await;
        warn!(signal = name, "Stopped at once");
        std::process::exit(FORCED);
    });
    Ok(stop)
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
