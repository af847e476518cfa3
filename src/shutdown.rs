//! Signals: the first asks for an orderly stop, the second ends the process immediately. That is
//! always safe, because all state is in PostgreSQL.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// What the signals ask for.
pub(crate) struct Stop {
    /// Finish what is in flight.
    pub orderly: CancellationToken,
    /// End now.
    pub at_once: CancellationToken,
}

/// The outcome of a process that a second signal ended.
#[derive(Debug, thiserror::Error)]
#[error("stopped at once by a second signal")]
pub(crate) struct StoppedAtOnce;

/// Cancels the tokens at the first and the second SIGTERM or SIGINT.
pub(crate) fn on_signal() -> io::Result<Stop> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let orderly = CancellationToken::new();
    let at_once = CancellationToken::new();
    let stop = Stop {
        orderly: orderly.clone(),
        at_once: at_once.clone(),
    };
    tokio::spawn(async move {
        let name = next(&mut terminate, &mut interrupt).await;
        info!(signal = name, "Stopping; a second signal stops at once");
        orderly.cancel();
        let name = next(&mut terminate, &mut interrupt).await;
        warn!(signal = name, "Stopped at once");
        at_once.cancel();
    });
    Ok(stop)
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
