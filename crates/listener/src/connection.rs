//! One connection, from accept to end.

use std::convert::Infallible;
use std::error::Error;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll::{Pending, Ready};

use hyper::body::{Body, Incoming};
use hyper::server::conn::http1::Builder;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::activity::{Activity, Close, Observed, Overdue};
use super::body::{RequestBody, ResponseBody};
use super::event::Closed;
use super::limits::Limits;

/// Largest request line and headers together, in bytes; also the read buffer for bodies.
const MAX_HEAD_BYTES: usize = 32 << 10;

/// The other end of a request's connection; stored in the request's extensions.
#[derive(Clone)]
pub struct Peer {
    pub address: SocketAddr,
    activity: Arc<Activity>,
    stop: CancellationToken,
}

impl Peer {
    pub(crate) const fn new(
        address: SocketAddr,
        activity: Arc<Activity>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            address,
            activity,
            stop,
        }
    }

    /// Returns a peer that never hangs up, for tests of code that reads it.
    #[doc(hidden)]
    pub fn at(address: SocketAddr) -> Self {
        Self::new(address, Arc::new(Activity::new()), CancellationToken::new())
    }

    /// Waits until the service stops. Long responses should end then.
    pub async fn stopping(self) {
        self.stop.cancelled().await;
    }

    /// Waits until the client has closed its half of the connection.
    pub async fn hung_up(self) {
        self.activity.hung_up().await;
    }
}

/// Why a connection ended.
enum End {
    Hyper(hyper::Result<()>),
    Overdue(Overdue),
    /// It was closed to make room for another.
    Displaced,
}

/// Serves a connection until the client or one of the limits ends it. Returns the reason if the
/// service closed it.
pub async fn serve<S, B>(io: TcpStream, peer: &Peer, service: S, limits: &Limits) -> Option<Closed>
where
    S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible>,
    B: Body + Unpin + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let activity = &peer.activity;
    let observed = TokioIo::new(Observed {
        io,
        activity: activity.clone(),
    });
    let service = service_fn(move |mut request: Request<Incoming>| {
        activity.serving();
        request.extensions_mut().insert(peer.clone());
        let request = request.map(|body| RequestBody::new(body, activity.clone()));
        let answer = service.call(request);
        async move {
            let answer = answer.await?;
            activity.responding();
            Ok::<_, Infallible>(answer.map(|body| ResponseBody::new(body, activity.clone())))
        }
    });
    let mut http = Builder::new();
    // The poll loop below enforces the time limits. A client that has closed its half may still
    // read.
    http.header_read_timeout(None)
        .max_buf_size(MAX_HEAD_BYTES)
        .half_close(true);
    let mut connection = pin!(http.serve_connection(observed, service));
    let mut timer = pin!(sleep_until(Instant::now() + limits.header_read));
    let end = poll_fn(|cx| {
        activity.listen(cx);
        if activity.is_to_finish() {
            connection.as_mut().graceful_shutdown();
        }
        if let Ready(ended) = connection.as_mut().poll(cx) {
            return Ready(End::Hyper(ended));
        }
        // The timer is reset only after it fired or for an earlier deadline, so that postponing the
        // deadline costs requests nothing.
        loop {
            let (deadline, why) = match activity.close_when(limits) {
                Close::Now => return Ready(End::Displaced),
                Close::At(deadline, why) => (deadline, why),
                Close::Never => break,
            };
            if deadline < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(deadline);
            }
            if timer.as_mut().poll(cx).is_pending() {
                break;
            }
            if deadline <= Instant::now() {
                return Ready(End::Overdue(why));
            }
        }
        Pending
    })
    .await;
    report(&end, peer.address)
}

fn report(end: &End, peer: SocketAddr) -> Option<Closed> {
    let client_address = tracing::field::display(peer.ip());
    match end {
        End::Hyper(Ok(())) => None,
        End::Hyper(Err(error)) if error.is_parse() => {
            let (reason, closed) = if error.is_parse_too_large() {
                ("head_too_large", Closed::HeadTooLarge)
            } else {
                ("malformed_request", Closed::MalformedRequest)
            };
            warn!(
                client_address,
                reason,
                cause = %error,
                "Request refused: its head is not HTTP/1.1, or too large"
            );
            Some(closed)
        }
        End::Hyper(Err(error)) => {
            debug!(client_address, cause = %error, "Connection broken");
            None
        }
        End::Overdue(Overdue::Idle) => Some(Closed::KeepAliveTimeout),
        End::Overdue(Overdue::Head) => {
            info!(
                client_address,
                "Connection closed: the head of a request did not come in time"
            );
            Some(Closed::HeaderReadTimeout)
        }
        End::Overdue(Overdue::Write) => {
            warn!(
                client_address,
                "Connection closed: the client does not read its answers"
            );
            Some(Closed::WriteTimeout)
        }
        End::Displaced => Some(Closed::Displaced),
    }
}
