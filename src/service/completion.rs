//! Work that finishes even if its caller goes away.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

/// Runs `work` in place. If the future is dropped before the end, `work` continues as one of
/// `tasks`. Spawning a task for each write would be simpler, but cost a tenth more CPU time.
pub(crate) fn run_to_completion<F>(tasks: &TaskTracker, work: F) -> impl Future<Output = F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    Completing {
        work: Some(Box::pin(work)),
        span: Span::current(),
        tasks: tasks.clone(),
    }
}

struct Completing<F: Future<Output: Send> + Send + 'static> {
    work: Option<Pin<Box<F>>>,
    span: Span,
    tasks: TaskTracker,
}

impl<F: Future<Output: Send> + Send + 'static> Future for Completing<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // Taken out while it is polled, so that work that panics is not polled again.
        let Some(mut work) = self.work.take() else {
            return Poll::Pending;
        };
        let polled = work.as_mut().poll(context);
        if polled.is_pending() {
            self.work = Some(work);
        }
        polled
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for Completing<F> {
    fn drop(&mut self) {
        if let (Some(work), Ok(runtime)) = (self.work.take(), Handle::try_current()) {
            self.tasks
                .spawn_on(work.instrument(self.span.clone()), &runtime);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::sync::oneshot;

    use super::{TaskTracker, run_to_completion};

    #[tokio::test]
    async fn awaited_work_yields_its_outcome() {
        assert_eq!(run_to_completion(&TaskTracker::new(), async { 1 }).await, 1);
    }

    #[tokio::test]
    async fn abandoned_work_runs_to_completion() {
        let (go, gone) = oneshot::channel();
        let (done, is_done) = oneshot::channel();
        let tasks = TaskTracker::new();
        let work = run_to_completion(&tasks, async {
            gone.await.unwrap();
            done.send(()).unwrap();
        });
        assert!(work.now_or_never().is_none());
        go.send(()).unwrap();
        is_done.await.unwrap();
    }
}
