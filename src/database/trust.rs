//! From when on an opened connection may be used. After a failover, a host name or a load balancer
//! leads elsewhere, but open connections stay open and may still lead to a standby.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_utils::atomic::AtomicCell;
use tokio::time::{Instant, sleep_until};

/// How often new connections are tried while the server takes no writes, instead of one for each
/// request.
const DOUBT_INTERVAL: Duration = Duration::from_millis(500);

/// Shared by all pools and lanes of one address; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Trust(Arc<AtomicCell<Option<Instant>>>);

impl Trust {
    /// Whether a connection opened at `opened` may still be used.
    pub(crate) fn covers(&self, opened: Instant) -> bool {
        self.0.load().is_none_or(|since| opened >= since)
    }

    /// Retires existing connections after a session failed an operation that began at `began`.
    /// When this returns, the next connection is a newer one.
    pub(crate) async fn doubt(&self, began: Instant) {
        while let Some(since) = self
            .0
            .load()
            .filter(|since| since.elapsed() < DOUBT_INTERVAL)
        {
            if since > began {
                return;
            }
            sleep_until(since + DOUBT_INTERVAL).await;
        }
        self.0.store(Some(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::{DOUBT_INTERVAL, Trust};

    #[tokio::test]
    async fn doubted_work_resumes_immediately_and_newer_work_after_500_ms() {
        let trust = Trust::default();
        let began = Instant::now();
        assert!(trust.covers(began));
        trust.doubt(began).await;
        assert!(!trust.covers(began) && trust.covers(Instant::now()));
        trust.doubt(began).await;
        let later = Instant::now();
        assert!(later - began < DOUBT_INTERVAL);
        trust.doubt(later).await;
        assert!(began.elapsed() >= DOUBT_INTERVAL && !trust.covers(later));
    }
}
