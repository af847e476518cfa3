//! A request to another task, and the reply to it.

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::database::{DatabaseError, TimeLimits};

/// Where to send the reply.
pub(crate) struct ReplyTo<T> {
    pub deadline: Instant,
    answer: oneshot::Sender<Result<T, DatabaseError>>,
}

impl<T> ReplyTo<T> {
    /// Whether the caller has stopped waiting.
    pub(crate) fn has_gone(&self) -> bool {
        self.answer.is_closed()
    }

    pub(crate) fn send(self, answer: Result<T, DatabaseError>) {
        // The caller may be gone.
        _ = self.answer.send(answer);
    }
}

/// Hands a [`ReplyTo`] over to a task and waits for its answer, within the time limit of an
/// operation.
pub(crate) async fn request<T>(
    hand_over: impl FnOnce(ReplyTo<T>) -> Result<(), DatabaseError>,
) -> Result<T, DatabaseError> {
    let deadline = Instant::now() + TimeLimits::REQUESTS.operation;
    let (answer, answered) = oneshot::channel();
    hand_over(ReplyTo { deadline, answer })?;
    // The task drops a caller that it cannot answer in time.
    timeout_at(deadline, answered)
        .await
        .ok()
        .and_then(Result::ok)
        .unwrap_or(Err(DatabaseError::Timeout))
}

impl<T> From<TrySendError<T>> for DatabaseError {
    /// Converts the error of a task's queue that is full, or closed permanently.
    fn from(refused: TrySendError<T>) -> Self {
        match refused {
            TrySendError::Full(_) => Self::Overloaded,
            TrySendError::Closed(_) => Self::Timeout,
        }
    }
}
