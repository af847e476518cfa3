//! Reads the bytes of a body. Limits its size, its pace, and the memory of all unfinished bodies.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::domain::actor::Client;
use crate::http::layers::head::HeadRules;
use crate::http::problem::Problem;
use crate::http::problem::responses::Fallible;
use crate::http::problem::types::{BODY_TIMEOUT, OVERLOADED, PAYLOAD_TOO_LARGE, UNREADABLE_BODY};

/// Largest body, in bytes.
pub(crate) const MAX_BYTES: usize = 65_536;
/// Time limit for the next bytes of a body, unless a setting says otherwise.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// Most memory for partly received bodies, in bytes.
const MAX_UNFINISHED: usize = 64 << 20;
/// The same for one client.
const MAX_UNFINISHED_OF_CLIENT: usize = 8 << 20;
/// First size of a buffer for a body that comes in parts, in bytes.
const FIRST_SIZE: usize = 1 << 10;

/// Limits of bodies; shared by all requests.
pub(crate) struct BodyLimits {
    /// Time limit for the next bytes of a body.
    timeout: Duration,
    unfinished: Mutex<Taken>,
}

/// Bytes that unfinished bodies take, in all and by client.
#[derive(Default)]
struct Taken {
    total: usize,
    by_client: HashMap<Client, usize>,
}

impl BodyLimits {
    pub(crate) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            unfinished: Mutex::default(),
        }
    }

    /// Reads a body to its end. `head` identifies its client.
    ///
    /// # Errors
    /// `payload_too_large`, `body_timeout`, `unreadable_body`, or `overloaded` if too many bodies
    /// are unfinished.
    pub(crate) async fn read(&self, request: Request, head: &HeadRules) -> Result<Bytes, Problem> {
        let (parts, mut body) = request.into_parts();
        let declared = parts
            .headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        if declared.is_some_and(|length: u64| length > MAX_BYTES as u64) {
            return Err(too_large());
        }
        let first = self.next(&mut body).await?.unwrap_or_default();
        // Most bodies arrive in one piece.
        if body.is_end_stream() && first.len() <= MAX_BYTES {
            return Ok(first);
        }
        // Copied: a slice of the connection's buffer would keep all of it in memory.
        let client = head.client(&parts.extensions, &parts.headers);
        let mut read = Unfinished {
            bytes: Vec::new(),
            taken: 0,
            client,
            limits: self,
        };
        read.add(&first)?;
        drop(first);
        while let Some(more) = self.next(&mut body).await? {
            read.add(&more)?;
        }
        Ok(std::mem::take(&mut read.bytes).into())
    }

    /// The next bytes; `None` at the end.
    async fn next(&self, body: &mut axum::body::Body) -> Result<Option<Bytes>, Problem> {
        loop {
            let frame = match soon(body).await {
                Some(frame) => frame,
                None => timeout(self.timeout, body.frame())
                    .await
                    .map_err(|_elapsed| too_slow(self.timeout))?,
            };
            match frame
                .transpose()
                .map_err(|error| ended_early().with_cause(&error))?
            {
                None => return Ok(None),
                Some(frame) => {
                    // Trailers, the other kind of frame, are ignored.
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }
}

impl Fallible for BodyLimits {
    fn problems() -> Vec<Problem> {
        vec![ended_early(), too_slow(DEFAULT_TIMEOUT), too_large()]
    }
}

type NextFrame = Option<Result<Frame<Bytes>, axum::Error>>;

/// Returns the next frame if it is here, or arrives with the next read of the connection. Polling
/// twice is cheaper than a timer.
async fn soon(body: &mut axum::body::Body) -> Option<NextFrame> {
    let mut looks = 0;
    poll_fn(|cx| match Pin::new(&mut *body).poll_frame(cx) {
        Poll::Ready(frame) => Poll::Ready(Some(frame)),
        Poll::Pending if looks > 0 => Poll::Ready(None),
        Poll::Pending => {
            looks += 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}

/// The problem of a body without more bytes within `limit`.
fn too_slow(limit: Duration) -> Problem {
    let problem = Problem::new(
        &BODY_TIMEOUT,
        format!("No more of the body came within {} ms.", limit.as_millis()),
    );
    problem.with_header(header::CONNECTION, HeaderValue::from_static("close"))
}

/// A partly received body.
struct Unfinished<'a> {
    bytes: Vec<u8>,
    /// Its share of what is taken.
    taken: usize,
    client: Client,
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
            self.take(grown - capacity)?;
            self.bytes.reserve_exact(grown - self.bytes.len());
        }
        self.bytes.extend_from_slice(more);
        Ok(())
    }

    fn take(&mut self, bytes: usize) -> Result<(), Problem> {
        let mut all = self.limits.unfinished.lock();
        let total = all.total + bytes;
        let of_client = all.by_client.entry(self.client.clone()).or_default();
        if total > MAX_UNFINISHED || *of_client + bytes > MAX_UNFINISHED_OF_CLIENT {
            return Err(Problem::new(
                &OVERLOADED,
                "Too many request bodies are unfinished.",
            ));
        }
        *of_client += bytes;
        all.total = total;
        self.taken += bytes;
        Ok(())
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let mut all = self.limits.unfinished.lock();
        all.total -= self.taken;
        if let Some(of_client) = all.by_client.get_mut(&self.client) {
            *of_client -= self.taken;
            if *of_client == 0 {
                all.by_client.remove(&self.client);
            }
        }
    }
}

fn too_large() -> Problem {
    Problem::new(
        &PAYLOAD_TOO_LARGE,
        format!("The body is larger than {MAX_BYTES} bytes."),
    )
}

fn ended_early() -> Problem {
    Problem::new(&UNREADABLE_BODY, "The body ended early.")
}
