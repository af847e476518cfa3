//! The bytes of a body: how many, how fast, and how many of all unfinished bodies together.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::header;
use http_body_util::BodyExt;
use hyper::body::Body;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::http::problem::Problem;
use crate::http::problem::types::{BODY_TIMEOUT, OVERLOADED, PAYLOAD_TOO_LARGE, UNREADABLE_BODY};

/// Largest body, in bytes.
pub const MAX_BYTES: usize = 65_536;
/// Most bytes of memory for all bodies of which a part has come.
const MAX_UNFINISHED: usize = 64 << 20;
/// First size of a buffer for a body that comes in parts, in bytes.
const FIRST_SIZE: usize = 1 << 10;

/// Limits of bodies; shared by all requests.
pub struct BodyLimits {
    /// For the next bytes of a body.
    timeout: Duration,
    /// Bytes that unfinished bodies may still take.
    unfinished: Arc<Semaphore>,
}

impl BodyLimits {
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, unfinished: Arc::new(Semaphore::new(MAX_UNFINISHED)) }
    }

    /// Reads a body to its end.
    ///
    /// # Errors
    /// `payload_too_large`, `body_timeout`, `unreadable_body`, or `overloaded` if too many bodies are unfinished.
    pub async fn read(&self, request: Request) -> Result<Bytes, Problem> {
        let declared =
            request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        if declared.is_some_and(|length: u64| length > MAX_BYTES as u64) {
            return Err(too_large());
        }
        let mut body = request.into_body();
        let first = self.next(&mut body).await?.unwrap_or_default();
        // Most bodies come whole.
        if body.is_end_stream() && first.len() <= MAX_BYTES {
            return Ok(first);
        }
        // Copied: a slice of the connection's buffer would keep all of it in memory.
        let mut read = Unfinished { bytes: Vec::new(), permit: None, limits: self };
        read.add(&first)?;
        drop(first);
        while let Some(more) = self.next(&mut body).await? {
            read.add(&more)?;
        }
        Ok(read.bytes.into())
    }

    /// The next bytes; `None` at the end.
    async fn next(&self, body: &mut axum::body::Body) -> Result<Option<Bytes>, Problem> {
        loop {
            let frame = timeout(self.timeout, body.frame()).await.map_err(|_elapsed| too_slow(self.timeout))?;
            match frame.transpose().map_err(|error| ended_early().with_cause(&error))? {
                None => return Ok(None),
                Some(frame) => {
                    // The other kind is trailers, which say nothing to us.
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }
}

/// The body did not go on within `limit`.
pub fn too_slow(limit: Duration) -> Problem {
    let problem = Problem::new(&BODY_TIMEOUT, format!("No more of the body came within {} ms.", limit.as_millis()));
    problem.with_header("connection", "close")
}

/// A body of which a part has come.
struct Unfinished<'a> {
    bytes: Vec<u8>,
    /// For its capacity.
    permit: Option<OwnedSemaphorePermit>,
    limits: &'a BodyLimits,
}

impl Unfinished<'_> {
    fn add(&mut self, more: &[u8]) -> Result<(), Problem> {
        let wanted = self.bytes.len() + more.len();
        if wanted > MAX_BYTES {
            return Err(too_large());
        }
        let capacity = self.bytes.capacity();
        if wanted > capacity {
            let grown = wanted.max(capacity * 2).clamp(FIRST_SIZE, MAX_BYTES);
            self.take_permit(grown - capacity)?;
            self.bytes.reserve_exact(grown - self.bytes.len());
        }
        self.bytes.extend_from_slice(more);
        Ok(())
    }

    fn take_permit(&mut self, bytes: usize) -> Result<(), Problem> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let more = self.limits.unfinished.clone().try_acquire_many_owned(bytes);
        let more = more.map_err(|_none_left| Problem::new(&OVERLOADED, "Too many bodies are on their way."))?;
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        Ok(())
    }
}

pub fn too_large() -> Problem {
    Problem::new(&PAYLOAD_TOO_LARGE, format!("The body is larger than {MAX_BYTES} bytes."))
}

pub fn ended_early() -> Problem {
    Problem::new(&UNREADABLE_BODY, "The body ended early.")
}
