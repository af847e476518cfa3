//! Keeps a session with the broker alive: when it ends, drops all of it, waits, and starts again.

use std::io;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::backoff::Backoff;
use crate::database::DatabaseError;
use crate::error_chain::Chain;
use crate::monitoring::catalogue;

/// A session that lasted this long was healthy: the backoff starts over.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("RabbitMQ")]
    Broker(#[from] lapin::Error),
    #[error("timed out: {0}")]
    Timeout(&'static str),
    #[error("cannot read {path}")]
    File { path: String, source: io::Error },
    #[error("RabbitMQ closed the connection")]
    Closed,
    #[error("RabbitMQ refused a message")]
    Refused,
    #[error("an event cannot be written as JSON")]
    Encode(#[from] serde_json::Error),
    #[error("PostgreSQL")]
    Database(#[source] DatabaseError),
    /// The lock would not belong to this replica alone, so another one could lead at the same time.
    #[error(
        "PostgreSQL ignored the relay's session settings, so a pooler in between shares the \
         session with others: set DATABASE_DIRECT_URL to PostgreSQL itself"
    )]
    Shared,
    #[error(
        "the outbox's sequence has a cache of {0}, which puts events out of order: ALTER TABLE \
         outbox ALTER seq SET CACHE 1"
    )]
    Unordered(i64),
    /// Another replica may do better.
    #[error("nothing is confirmed, though events wait: another replica may lead")]
    Stuck,
    /// A bug in the service. It ends only this session; the log has the cause.
    #[error("panicked")]
    Panicked,
}

impl SessionError {
    /// The metrics' label value.
    const fn cause(&self) -> &'static str {
        match self {
            Self::Broker(_) | Self::File { .. } | Self::Closed | Self::Refused | Self::Stuck => {
                "broker"
            }
            Self::Timeout(_) => "timeout",
            Self::Encode(_) | Self::Panicked => "event",
            Self::Database(_) | Self::Shared | Self::Unordered(_) => "database",
        }
    }

    /// The broker's error, if it closed the channel or the connection.
    fn protocol_error(&self) -> Option<&AMQPErrorKind> {
        let Self::Broker(error) = self else {
            return None;
        };
        let ErrorKind::ProtocolError(error) = error.kind() else {
            return None;
        };
        Some(error.kind())
    }

    /// Whether the broker closed the channel because the exchange is missing, which is not the
    /// message's fault.
    pub fn is_missing_exchange(&self) -> bool {
        matches!(
            self.protocol_error(),
            Some(AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND))
        )
    }

    /// The broker's reply code, or 0.
    /// <https://www.rabbitmq.com/amqp-0-9-1-reference#constants>
    pub fn reply_code(&self) -> u16 {
        self.protocol_error().map_or(0, AMQPErrorKind::get_id)
    }

    /// Whether the broker closed the channel or the connection because of the message.
    pub fn blames_the_message(&self) -> bool {
        matches!(
            self.protocol_error(),
            Some(
                AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED)
                    | AMQPErrorKind::Hard(AMQPHardError::FRAMEERROR | AMQPHardError::SYNTAXERROR)
            )
        )
    }

    /// Whether a statement exceeded PostgreSQL's `statement_timeout`.
    pub fn is_statement_timeout(&self) -> bool {
        matches!(self, Self::Database(error) if error.is_statement_timeout())
    }

    /// Whether the broker refused the login, the virtual host or a permission.
    pub fn is_refused(&self) -> bool {
        matches!(
            self.protocol_error(),
            Some(
                AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)
                    | AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED)
            )
        )
    }

    /// Returns the broker's text, if it refused something.
    ///
    /// # Errors
    /// The error itself, if it is of another kind.
    pub fn refusal(self) -> Result<String, Self> {
        if self.is_refused() {
            Ok(Chain(&self).to_string())
        } else {
            Err(self)
        }
    }
}

impl From<sqlx::Error> for SessionError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

impl From<DatabaseError> for SessionError {
    fn from(error: DatabaseError) -> Self {
        Self::Database(error)
    }
}

/// Limits the time of one step of a session. Neither lapin nor sqlx does, and a vanished peer never
/// answers.
pub(crate) async fn with_timeout<T, E: Into<SessionError>>(
    limit: Duration,
    step: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, SessionError> {
    timeout(limit, work)
        .await
        .map_err(|_elapsed| SessionError::Timeout(step))?
        .map_err(Into::into)
}

/// Runs `session` repeatedly until `stop`, or until it returns `Ok`. Passes it `lasting`, which
/// outlives the sessions.
pub(crate) async fn supervise<T>(
    name: &'static str,
    stop: &CancellationToken,
    lasting: &mut T,
    session: impl for<'s> Fn(
        &'s mut T,
        &'s CancellationToken,
    ) -> BoxFuture<'s, Result<(), SessionError>>,
) {
    let mut backoff = Backoff::default();
    loop {
        let started = Instant::now();
        let outcome = AssertUnwindSafe(session(lasting, stop))
            .catch_unwind()
            .await;
        match outcome.unwrap_or(Err(SessionError::Panicked)) {
            Ok(()) => return,
            Err(error) if stop.is_cancelled() => {
                warn!(session = name, error = %Chain(&error), "Session ended while stopping");
                return;
            }
            Err(error) => {
                if started.elapsed() > HEALTHY_AFTER {
                    backoff = Backoff::default();
                }
                catalogue::sessions_lost(name, error.cause()).increment(1);
                let pause = backoff.next_pause();
                let retry_in_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
                warn!(
                    session = name,
                    error = %Chain(&error),
                    retry_in_ms,
                    "Session lost, starting it again"
                );
                tokio::select! {
                    () = sleep(pause) => {}
                    () = stop.cancelled() => return,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::supervise;

    #[tokio::test]
    async fn a_panic_ends_a_session_and_not_the_process() {
        let mut sessions = 0;
        supervise(
            "test",
            &CancellationToken::new(),
            &mut sessions,
            |sessions, _stop| {
                Box::pin(async move {
                    *sessions += 1;
                    assert!(*sessions > 1, "the first panics");
                    Ok(())
                })
            },
        )
        .await;
        assert_eq!(sessions, 2);
    }
}
