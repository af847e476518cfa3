//! What one connection is doing: recorded by its I/O and its service, read by its time limits and
//! by the listener.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::limits::Limits;

/// A connection that has waited for less than this is not closed to make room.
pub const SPARED: Duration = Duration::from_secs(1);

/// Which time limit a connection has exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// The head of a request did not come in time.
    Head,
    /// No request came in time.
    Idle,
    /// The client does not read its response.
    Write,
}

/// The phases. A new connection starts with its first head, before any byte has come.
const HEAD: u8 = 0;
const SERVING: u8 = 1;
const IDLE: u8 = 2;
/// The service waits for more of a request's body.
const BODY: u8 = 3;

/// What the listener asks of a connection.
const GO_ON: u8 = 0;
const FINISH: u8 = 1;
const CLOSE: u8 = 2;

pub struct Activity {
    opened: Instant,
    phase: AtomicU8,
    /// Milliseconds after `opened` at which the phase began.
    since: AtomicU64,
    /// When a write began to wait for the client, in milliseconds after `opened`, plus one; 0 if
    /// none waits.
    stuck_since: AtomicU64,
    order: AtomicU8,
    waker: AtomicWaker,
    /// Somebody wants to know whether the client hangs up; whether it has; and who waits for that.
    watched: AtomicBool,
    has_hung_up: AtomicBool,
    hang_up: Notify,
}

impl Activity {
    pub fn new() -> Self {
        Self {
            opened: Instant::now(),
            phase: AtomicU8::new(HEAD),
            since: AtomicU64::new(0),
            stuck_since: AtomicU64::new(0),
            order: AtomicU8::new(GO_ON),
            waker: AtomicWaker::new(),
            watched: AtomicBool::new(false),
            has_hung_up: AtomicBool::new(false),
            hang_up: Notify::new(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn enter(&self, phase: u8) {
        self.since.store(self.now(), Relaxed);
        self.phase.store(phase, Relaxed);
    }

    fn received(&self) {
        if self.phase.load(Relaxed) == IDLE {
            self.enter(HEAD);
        }
    }

    fn wrote(&self, stuck: bool) {
        if !stuck {
            if self.stuck_since.load(Relaxed) != 0 {
                self.stuck_since.store(0, Relaxed);
                // The client was reading until now: its idle time starts here.
                if self.phase.load(Relaxed) == IDLE {
                    self.enter(IDLE);
                }
            }
        } else if self.stuck_since.load(Relaxed) == 0 {
            self.stuck_since.store(self.now() + 1, Relaxed);
        }
    }

    /// A request is with the service.
    pub fn serving(&self) {
        self.enter(SERVING);
    }

    /// The service has asked for more of the body: it has to wait for the client, or not.
    pub fn asked_for_body(&self, waits: bool) {
        let (from, to) = if waits {
            (SERVING, BODY)
        } else {
            (BODY, SERVING)
        };
        // Not once it has answered: the rest of a body that nobody wants is read after that.
        _ = self.phase.compare_exchange(from, to, Relaxed, Relaxed);
    }

    /// The service has answered.
    pub fn answered(&self) {
        self.watched.store(false, Relaxed);
        self.enter(IDLE);
    }

    /// Waits until the client has closed its half of the connection. It may still read: only a
    /// request that has to wait for others should take that for a client who has gone.
    pub async fn hung_up(&self) {
        // Looked for only now, because it costs a system call.
        self.watched.store(true, Relaxed);
        self.waker.wake();
        loop {
            let hang_up = self.hang_up.notified();
            if self.has_hung_up.load(Relaxed) {
                return;
            }
            hang_up.await;
        }
    }

    fn note_hang_up(&self) {
        self.has_hung_up.store(true, Relaxed);
        self.hang_up.notify_waiters();
    }

    /// How long the service has waited for the client: for a request, for the rest of its head, for
    /// its body since its head came, or for the client to read its response. `None` while the
    /// service works on a request.
    pub fn waiting_for(&self) -> Option<Duration> {
        let waiting = self.phase.load(Relaxed) != SERVING;
        waiting.then(|| Duration::from_millis(self.now().saturating_sub(self.since.load(Relaxed))))
    }

    /// When to close the connection if nothing happens, and why.
    pub fn deadline(&self, limits: &Limits) -> Option<(Instant, Overdue)> {
        let after = |milliseconds, limit, why| {
            (
                self.opened + Duration::from_millis(milliseconds) + limit,
                why,
            )
        };
        let stuck_since = self.stuck_since.load(Relaxed);
        if stuck_since > 0 {
            return Some(after(stuck_since - 1, limits.write, Overdue::Write));
        }
        let since = self.since.load(Relaxed);
        match self.phase.load(Relaxed) {
            HEAD => Some(after(since, limits.header_read, Overdue::Head)),
            IDLE => Some(after(since, limits.keep_alive, Overdue::Idle)),
            _ => None,
        }
    }

    /// Asks the connection to end after the current request, if there is one.
    pub fn finish(&self) {
        self.order.store(FINISH, Relaxed);
        self.waker.wake();
    }

    /// Asks the connection to end at once, unless a request has come meanwhile. Returns `false` if
    /// it was asked already.
    pub fn close(&self) -> bool {
        let is_new = self.order.swap(CLOSE, Relaxed) != CLOSE;
        self.waker.wake();
        is_new
    }

    pub fn is_to_finish(&self) -> bool {
        self.order.load(Relaxed) == FINISH
    }

    /// Whether to close now. An order that came too late is dropped.
    pub fn is_to_close(&self) -> bool {
        if self.order.load(Relaxed) != CLOSE {
            return false;
        }
        let still_waits = self.waiting_for().is_some_and(|waited| waited >= SPARED);
        if !still_waits {
            // But do not overwrite a later order to finish.
            _ = self.order.compare_exchange(CLOSE, GO_ON, Relaxed, Relaxed);
        }
        still_waits
    }

    /// From now on, orders wake this task.
    pub fn listen(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }
}

/// I/O that records its activity.
pub struct Observed {
    pub io: TcpStream,
    pub activity: Arc<Activity>,
}

impl AsyncRead for Observed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            self.activity.received();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Observed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.activity.wrote(written.is_pending());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, parts);
        self.activity.wrote(written.is_pending());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// Called each time that the connection is polled.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.activity.watched.load(Relaxed) {
            let mut byte = [0];
            if let Poll::Ready(Ok(0) | Err(_)) = self.io.poll_peek(cx, &mut ReadBuf::new(&mut byte))
            {
                self.activity.note_hang_up();
            }
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
