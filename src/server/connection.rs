//! One connection, from its accept to its end.

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
use metrics::counter;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::activity::{Activity, Observed, Overdue};
use super::body::RequestBody;
use super::limits::Limits;

/// Largest request line and headers together, in bytes; also the read buffer for bodies.
const MAX_HEAD_BYTES: usize = 32 << 10;

/// The other end of a request's connection; stored in the request's extensions.
#[derive(Clone)]
pub struct Peer {
    pub address: SocketAddr,
    activity: Arc<Activity>,
}

impl Peer {
    #[cfg(test)]
    pub fn at(address: SocketAddr) -> Self {
        Self {
            address,
            activity: Arc::new(Activity::new()),
        }
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

/// Serves until the client or one of the limits ends it.
pub async fn serve<S, B>(
    io: TcpStream,
    peer: SocketAddr,
    service: S,
    activity: Arc<Activity>,
    limits: &Limits,
) where
    S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible>,
    B: Body + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let observed = TokioIo::new(Observed {
        io,
        activity: activity.clone(),
    });
    let noted = activity.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        noted.serving();
        request.extensions_mut().insert(Peer {
            address: peer,
            activity: noted.clone(),
        });
        let request = request.map(|body| RequestBody::new(body, noted.clone()));
        let answer = service.call(request);
        let noted = noted.clone();
        async move {
            let answer = answer.await;
            noted.answered();
            answer
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
        if activity.is_to_close() {
            return Ready(End::Displaced);
        }
        // The timer is reset only when it has fired, so that moving the deadline costs requests
        // nothing.
        while let Some((deadline, why)) = activity.deadline(limits) {
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
    report(&end, peer);
}

fn report(end: &End, peer: SocketAddr) {
    let client_address = tracing::field::display(peer.ip());
    let closed =
        |reason| counter!("http_connections_closed_total", "reason" => reason).increment(1);
    match end {
        End::Hyper(Ok(())) => {}
        End::Hyper(Err(error)) if error.is_parse() => {
            let reason = if error.is_parse_too_large() {
                "head_too_large"
            } else {
                "malformed_request"
            };
            closed(reason);
            warn!(
                client_address,
                reason,
                cause = %error,
                "Request refused: its head is not HTTP/1.1, or too large"
            );
        }
        End::Hyper(Err(error)) => debug!(client_address, cause = %error, "Connection broken"),
        End::Overdue(Overdue::Idle) => closed("keep_alive_timeout"),
        End::Overdue(Overdue::Head) => {
            closed("header_read_timeout");
            info!(
                client_address,
                "Connection closed: the head of a request did not come in time"
            );
        }
        End::Overdue(Overdue::Write) => {
            closed("write_timeout");
            warn!(
                client_address,
                "Connection closed: the client does not read its answers"
            );
        }
        End::Displaced => closed("displaced"),
    }
}
