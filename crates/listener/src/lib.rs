//! Serves HTTP/1.1 on a TCP listener, within limits of number and time. At the connection limit,
//! the connections that have waited longest for their clients are closed to make room for new ones;
//! a connection that is being served is never closed for another. Knows neither routes nor errors.

#![warn(clippy::unwrap_used, clippy::expect_used)]

mod activity;
mod body;
mod connection;
mod descriptors;
mod event;
mod limits;
mod open;

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Body;
use hyper::service::Service;
use hyper::{Request, Response};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

pub use self::body::RequestBody;
pub use self::connection::Peer;
pub use self::descriptors::connections_allowed;
pub use self::event::{Closed, Event};
pub use self::limits::{Limits, client_of};
use self::open::{Admission, Open};

/// A connection silent for this long is probed: its peer may have vanished.
const PROBE_AFTER: Duration = Duration::from_mins(1);
/// Pause between two probes.
const PROBE_EVERY: Duration = Duration::from_secs(10);
/// After this many unanswered probes, the peer counts as vanished.
const PROBES: u32 = 4;

/// First pause after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
/// Longest pause after repeated failures.
const LONGEST_ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Pause between two log lines about the connection limit.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// Serves until `stop`, then finishes the requests in flight. Calls `observe` with each [`Event`];
/// it must return quickly.
///
/// A request has the [`Peer`] in its extensions.
pub async fn serve<S, B>(
    listener: TcpListener,
    service: S,
    limits: Limits,
    stop: CancellationToken,
    observe: fn(Event),
) where
    S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let open = Arc::new(Open::new(
        limits.max_connections,
        limits.per_client(),
        observe,
    ));
    let limits = Arc::new(limits);
    let mut reports = interval(REPORT_EVERY);
    loop {
        let (stream, peer) = tokio::select! {
            accepted = accept(&listener, observe) => accepted,
            _ = reports.tick() => {
                report(&open, &limits);
                continue;
            }
            () = stop.cancelled() => break,
        };
        let admission = open.admit(limits.client(peer.ip()));
        if matches!(admission, Admission::Refused) {
            continue;
        }
        let service = service.clone();
        let limits = limits.clone();
        let stop = stop.clone();
        tokio::spawn(async move {
            // Wait in this task, so that a client that waits for a place does not delay others.
            let place = match admission {
                Admission::Placed(place) => Some(place),
                Admission::Waits(waiting) => waiting.place().await,
                Admission::Refused => None,
            };
            if let Some(place) = place {
                prepare(&stream);
                let peer = Peer::new(peer, place.activity().clone(), stop);
                let ended = connection::serve(stream, &peer, service, &limits).await;
                if let Some(why) = ended {
                    observe(Event::Closed(why));
                }
            }
        });
    }
    drop(listener);
    open.finish().await;
}

/// Never fails: when descriptors or memory run out, it pauses and tries again.
async fn accept(listener: &TcpListener, observe: fn(Event)) -> (TcpStream, SocketAddr) {
    let mut pause = ACCEPT_PAUSE;
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                observe(Event::AcceptFailed);
                warn!(%error, pause_ms = pause.as_millis(), "A connection could not be accepted");
                sleep(pause).await;
                pause = LONGEST_ACCEPT_PAUSE.min(pause * 2);
            }
        }
    }
}

/// Whether the error concerns only the connection being accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}

fn prepare(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new()
        .with_time(PROBE_AFTER)
        .with_interval(PROBE_EVERY)
        .with_retries(PROBES);
    let prepared = stream
        .set_nodelay(true)
        .and_then(|()| SockRef::from(stream).set_tcp_keepalive(&keepalive));
    if let Err(error) = prepared {
        // Most likely the client is already gone, and the connection ends by itself.
        debug!(%error, "The options of a connection could not be set");
    }
}

/// Logs how many connections were closed or refused at the limit since the last report.
fn report(open: &Open, limits: &Limits) {
    let (displaced, refused) = open.take_counts();
    if displaced + refused > 0 {
        warn!(
            displaced,
            refused,
            max_connections = limits.max_connections,
            max_connections_per_address = limits.per_client(),
            "The connection limit is reached (MAX_CONNECTIONS, ulimit -n): idle connections are \
             closed, or new ones refused"
        );
    }
}
