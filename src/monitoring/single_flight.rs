//! Shares one check at a time among all callers (single flight).

use tokio::sync::Mutex;
use tokio::time::Instant;

/// The last result, and when its check began.
pub(crate) struct SingleFlight<T>(Mutex<Option<(Instant, T)>>);

impl<T> Default for SingleFlight<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> SingleFlight<T> {
    /// Waits for a running check to end, then runs `look`, or shares the result of one that began
    /// after the call.
    pub(crate) async fn run(&self, look: impl Future<Output = T>) -> T {
        let asked = Instant::now();
        let mut last = self.0.lock().await;
        if let Some((began, seen)) = &*last
            && *began >= asked
        {
            return seen.clone();
        }
        let began = Instant::now();
        let seen = look.await;
        *last = Some((began, seen.clone()));
        seen
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::Relaxed;

    use futures_util::future::join_all;
    use tokio::sync::Semaphore;
    use tokio::task::yield_now;

    use super::SingleFlight;

    #[tokio::test]
    async fn a_hundred_concurrent_callers_share_one_later_fetch() {
        let shared = Arc::new(SingleFlight::default());
        let looks = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(Semaphore::new(0));
        let ask = || {
            let shared = shared.clone();
            let looks = looks.clone();
            let gate = gate.clone();
            tokio::spawn(async move {
                let look = async {
                    let mine = looks.fetch_add(1, Relaxed);
                    gate.acquire().await.unwrap().forget();
                    mine
                };
                shared.run(look).await
            })
        };
        let first = ask();
        while looks.load(Relaxed) == 0 {
            yield_now().await;
        }
        let others: Vec<_> = (0..99).map(|_| ask()).collect();
        yield_now().await;
        gate.add_permits(2);
        assert_eq!(first.await.unwrap(), 0);
        assert!(
            join_all(others)
                .await
                .into_iter()
                .all(|seen| seen.unwrap() == 1)
        );
    }
}
