//! What one connection is doing. Its I/O and its service record it; its time limits and the
//! listener read it.

use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
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

/// When to close a connection.
pub enum Close {
    Now,
    /// At this time, for exceeding this limit, unless something happens before.
    At(Instant, Overdue),
    Never,
}

/// What a connection waits for. A new one starts with its first head, before any byte has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The rest of a request's head.
    Head,
    /// The head of the service's response.
    Serving,
    /// More of a request's body.
    Body,
    /// The rest of the response.
    Responding,
    /// A request.
    Idle,
}

/// What the listener asks of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    GoOn,
    /// To end after the current request, if there is one.
    Finish,
    /// To end immediately, unless a request has arrived meanwhile.
    Close,
}

/// The fields that change together.
struct State {
    phase: Phase,
    /// When the phase began.
    since: Instant,
    /// Since when a write waits for the client.
    stuck_since: Option<Instant>,
    order: Order,
}

impl State {
    fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Head,
            since: now,
            stuck_since: None,
            order: Order::GoOn,
        }
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        self.phase = phase;
        self.since = now;
    }

    fn received(&mut self, now: impl FnOnce() -> Instant) {
        if self.phase == Phase::Idle {
            self.enter(Phase::Head, now());
        }
    }

    fn wrote(&mut self, stuck: bool, now: impl FnOnce() -> Instant) {
        if stuck {
            self.stuck_since.get_or_insert_with(now);
        } else if self.stuck_since.take().is_some() && self.phase == Phase::Idle {
            // The client was reading until now: its idle time starts here.
            self.enter(Phase::Idle, now());
        }
    }

    fn asked_for_body(&mut self, waits: bool) {
        // The time for a body counts from its head, so `since` stays. After the response has
        // started, the phase stays too: the unwanted rest of a body is read then.
        self.phase = match self.phase {
            Phase::Serving if waits => Phase::Body,
            Phase::Body if !waits => Phase::Serving,
            phase => phase,
        };
    }

    /// The service has returned the head of the response.
    fn responding(&mut self) {
        self.phase = Phase::Responding;
    }

    /// The response has ended. If the next request is already being served, nothing changes.
    fn answered(&mut self, now: Instant) {
        if self.phase == Phase::Responding {
            self.enter(Phase::Idle, now);
        }
    }

    fn waiting_for(&self, now: Instant) -> Option<Duration> {
        match self.phase {
            Phase::Serving => None,
            Phase::Responding => self.stuck_since.map(|since| now - since),
            Phase::Head | Phase::Body | Phase::Idle => Some(now - self.since),
        }
    }

    fn deadline(&self, limits: &Limits) -> Option<(Instant, Overdue)> {
        if let Some(since) = self.stuck_since {
            return Some((since + limits.write, Overdue::Write));
        }
        match self.phase {
            Phase::Head => Some((self.since + limits.header_read, Overdue::Head)),
            Phase::Idle => Some((self.since + limits.keep_alive, Overdue::Idle)),
            Phase::Serving | Phase::Body | Phase::Responding => None,
        }
    }

    fn close(&mut self) -> bool {
        mem::replace(&mut self.order, Order::Close) != Order::Close
    }

    fn is_to_close(&mut self, now: Instant) -> bool {
        if self.order != Order::Close {
            return false;
        }
        let still_waits = self.waiting_for(now).is_some_and(|waited| waited >= SPARED);
        if !still_waits {
            self.order = Order::GoOn;
        }
        still_waits
    }
}

pub struct Activity {
    state: Mutex<State>,
    waker: AtomicWaker,
    /// Whether a task waits for the client to hang up, whether it has hung up, and the waiting
    /// tasks.
    watched: AtomicBool,
    has_hung_up: AtomicBool,
    hang_up: Notify,
}

impl Activity {
    pub fn new() -> Self {
        Self {
            state: Mutex::new(State::new(Instant::now())),
            waker: AtomicWaker::new(),
            watched: AtomicBool::new(false),
            has_hung_up: AtomicBool::new(false),
            hang_up: Notify::new(),
        }
    }

    fn received(&self) {
        self.state.lock().received(Instant::now);
    }

    fn wrote(&self, stuck: bool) {
        self.state.lock().wrote(stuck, Instant::now);
    }

    /// The service has received a request.
    pub fn serving(&self) {
        self.state.lock().enter(Phase::Serving, Instant::now());
    }

    /// The service has asked for more of the body, and `waits` for the client if none is there.
    pub fn asked_for_body(&self, waits: bool) {
        self.state.lock().asked_for_body(waits);
    }

    /// The service has answered; the body may take longer.
    pub fn responding(&self) {
        self.watched.store(false, Relaxed);
        self.state.lock().responding();
    }

    /// The response has ended.
    pub fn answered(&self) {
        self.state.lock().answered(Instant::now());
    }

    /// Waits until the client has closed its half of the connection. It may still read, so only a
    /// request that waits for others should treat this as a client that has gone.
    pub async fn hung_up(&self) {
        // Checked only from here on, because each check costs a system call.
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
        self.state.lock().waiting_for(Instant::now())
    }

    /// Returns whether to close now, or else when and why to close if nothing happens. Drops an
    /// order to close that came too late.
    pub fn close_when(&self, limits: &Limits) -> Close {
        let mut state = self.state.lock();
        if state.order == Order::Close && state.is_to_close(Instant::now()) {
            return Close::Now;
        }
        match state.deadline(limits) {
            Some((deadline, why)) => Close::At(deadline, why),
            None => Close::Never,
        }
    }

    /// Asks the connection to end after the current request, if there is one.
    pub fn finish(&self) {
        self.state.lock().order = Order::Finish;
        self.waker.wake();
    }

    /// Asks the connection to end immediately, unless a request has arrived meanwhile. Returns
    /// `false` if it was asked already.
    pub fn close(&self) -> bool {
        let is_new = self.state.lock().close();
        self.waker.wake();
        is_new
    }

    pub fn is_to_finish(&self) -> bool {
        self.state.lock().order == Order::Finish
    }

    /// Registers the task that orders wake.
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

    /// hyper calls this each time it polls the connection, so a hang-up is checked for here.
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

#[cfg(test)]
mod tests {
    use super::{Duration, Instant, Limits, Order, Overdue, Phase, SPARED, State};

    const LIMITS: Limits = Limits {
        header_read: Duration::from_secs(10),
        keep_alive: Duration::from_mins(1),
        write: Duration::from_secs(30),
        max_connections: 1,
        max_per_address: None,
        shared_addresses: Vec::new(),
    };

    fn overdue(state: &State) -> Option<Overdue> {
        state.deadline(&LIMITS).map(|(_, why)| why)
    }

    #[test]
    fn each_phase_of_a_connection_has_its_own_time_limit() {
        let now = Instant::now();
        let mut state = State::new(now);
        assert_eq!(overdue(&state), Some(Overdue::Head));
        state.enter(Phase::Serving, now);
        assert_eq!(overdue(&state), None);
        state.wrote(true, || now);
        assert_eq!(overdue(&state), Some(Overdue::Write));
        state.wrote(false, || now);
        state.responding();
        assert_eq!(overdue(&state), None);
        state.answered(now);
        assert_eq!(overdue(&state), Some(Overdue::Idle));
        state.received(|| now);
        assert_eq!(overdue(&state), Some(Overdue::Head));
    }

    #[test]
    fn idle_time_starts_once_the_client_has_read_the_response() {
        let now = Instant::now();
        let later = now + Duration::from_secs(20);
        let mut state = State::new(now);
        state.wrote(true, || now);
        state.wrote(true, || later);
        assert_eq!(
            state.deadline(&LIMITS),
            Some((now + LIMITS.write, Overdue::Write))
        );
        state.enter(Phase::Idle, now);
        state.wrote(false, || later);
        assert_eq!(
            state.deadline(&LIMITS),
            Some((later + LIMITS.keep_alive, Overdue::Idle))
        );
    }

    #[test]
    fn body_time_counts_from_the_head_while_the_service_waits() {
        let now = Instant::now();
        let later = now + SPARED;
        let mut state = State::new(now);
        state.enter(Phase::Serving, now);
        assert_eq!(state.waiting_for(later), None);
        state.asked_for_body(true);
        assert_eq!(state.waiting_for(later), Some(SPARED));
        state.asked_for_body(false);
        assert_eq!(state.waiting_for(later), None);
        state.enter(Phase::Idle, later);
        state.asked_for_body(true);
        assert_eq!(
            overdue(&state),
            Some(Overdue::Idle),
            "nobody wants the rest"
        );
    }

    #[test]
    fn a_long_response_makes_room_only_if_its_client_stops_reading() {
        let now = Instant::now();
        let later = now + SPARED;
        let mut state = State::new(now);
        state.enter(Phase::Serving, now);
        state.responding();
        state.asked_for_body(true);
        assert_eq!(
            state.waiting_for(later),
            None,
            "the rest of a body is no matter"
        );
        state.wrote(true, || now);
        assert_eq!(state.waiting_for(later), Some(SPARED));
    }

    #[test]
    fn the_end_of_a_response_does_not_end_the_next_request() {
        let now = Instant::now();
        let mut state = State::new(now);
        state.responding();
        state.enter(Phase::Serving, now);
        state.answered(now);
        assert_eq!(state.waiting_for(now + SPARED), None);
    }

    #[test]
    fn a_connection_makes_room_unless_a_request_has_arrived() {
        let now = Instant::now();
        let later = now + SPARED;
        let mut state = State::new(now);
        assert!(state.close());
        assert!(!state.is_to_close(now), "it is new");
        assert_eq!(state.order, Order::GoOn);
        assert!(state.close());
        assert!(!state.close(), "it was asked already");
        assert!(state.is_to_close(later));
        state.enter(Phase::Serving, later);
        assert!(!state.is_to_close(later));
        state.order = Order::Finish;
        assert!(!state.is_to_close(later + SPARED));
        assert_eq!(state.order, Order::Finish);
    }
}
