//! Whoever waits for an operation that somebody else's task runs.

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::error::DatabaseError;
use super::pool::OPERATION_TIMEOUT;

/// The other end of [`ask`].
pub struct Caller<T> {
    pub deadline: Instant,
    answer: oneshot::Sender<Result<T, DatabaseError>>,
}

impl<T> Caller<T> {
    /// Whether nobody waits any more.
    pub fn has_gone(&self) -> bool {
        self.answer.is_closed()
    }

    pub fn tell(self, answer: Result<T, DatabaseError>) {
        // It may have gone away.
        _ = self.answer.send(answer);
    }
}

/// Hands itself over to a task, and waits for what that task tells it, within the time for an operation.
pub async fn ask<T>(hand_over: impl FnOnce(Caller<T>) -> Result<(), DatabaseError>) -> Result<T, DatabaseError> {
    let deadline = Instant::now() + OPERATION_TIMEOUT;
    let (answer, answered) = oneshot::channel();
    hand_over(Caller { deadline, answer })?;
    // The task drops a caller whom it cannot answer in time.
    timeout_at(deadline, answered).await.ok().and_then(Result::ok).unwrap_or(Err(DatabaseError::Timeout))
}

impl<T> From<TrySendError<T>> for DatabaseError {
    /// Of a task's queue, which is full, or closed for good.
    fn from(refused: TrySendError<T>) -> Self {
        match refused {
            TrySendError::Full(_) => Self::Overloaded,
            TrySendError::Closed(_) => Self::Timeout,
        }
    }
}
