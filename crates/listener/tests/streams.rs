//! A long response is served to its end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Body, Bytes, Frame};
use hyper::service::service_fn;
use hyper::{Request, Response};
use listener::{Event, Limits, Peer, RequestBody, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;

const PIECES: usize = 20;
/// Pause between two pieces of a response.
const PAUSE: Duration = Duration::from_millis(100);

/// Time limits shorter than the response.
const LIMITS: Limits = Limits {
    header_read: Duration::from_millis(500),
    keep_alive: Duration::from_millis(500),
    write: Duration::from_millis(500),
    max_connections: 1,
    max_per_address: Some(1),
    shared_addresses: Vec::new(),
};

/// Twenty pieces in two seconds, or fewer if the service stops.
async fn pieces(
    request: Request<RequestBody>,
) -> Result<Response<impl Body<Data = Bytes, Error = Infallible> + Send + Unpin>, Infallible> {
    let peer = request.extensions().get::<Peer>().unwrap().clone();
    let begin = (0, interval(PAUSE), Box::pin(peer.stopping()));
    let pieces = stream::unfold(begin, async |(sent, mut tick, mut stopping)| {
        if sent == PIECES {
            return None;
        }
        tokio::select! {
            _ = tick.tick() => {}
            () = &mut stopping => return None,
        }
        let piece = Ok(Frame::data(Bytes::from_static(b"piece\n")));
        Some((piece, (sent + 1, tick, stopping)))
    });
    Ok(Response::new(
        StreamBody::new(Box::pin(pieces)).boxed_unsync(),
    ))
}

async fn start() -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let served = serve(
        listener,
        service_fn(pieces),
        LIMITS,
        stop.clone(),
        |_: Event| {},
    );
    (address, stop, tokio::spawn(served))
}

/// Returns everything that the server sends until it closes the connection.
async fn ask(address: SocketAddr) -> String {
    let mut client = TcpStream::connect(address).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    client.write_all(request).await.unwrap();
    let mut answer = String::new();
    let read = timeout(Duration::from_secs(30), client.read_to_string(&mut answer));
    _ = read.await.unwrap();
    answer
}

fn pieces_in(answer: &str) -> usize {
    answer.matches("piece\n").count()
}

#[tokio::test]
async fn a_long_response_arrives_whole_while_other_clients_connect() {
    let (address, ..) = start().await;
    let first = tokio::spawn(ask(address));
    let mut answers = tokio::task::JoinSet::new();
    // The only place is taken meanwhile.
    let mut tick = interval(PAUSE);
    for _ in 0..5 {
        tick.tick().await;
        answers.spawn(ask(address));
    }
    let first = first.await.unwrap();
    assert_eq!(pieces_in(&first), PIECES);
    assert!(first.ends_with("\r\n0\r\n\r\n"), "{first:?}");
    for answer in answers.join_all().await {
        assert!([0, PIECES].contains(&pieces_in(&answer)), "{answer:?}");
    }
}

#[tokio::test]
async fn a_long_response_ends_when_the_service_stops() {
    let (address, stop, served) = start().await;
    let answer = tokio::spawn(ask(address));
    let mut tick = interval(PAUSE);
    for _ in 0..5 {
        tick.tick().await;
    }
    stop.cancel();
    let answer = answer.await.unwrap();
    assert!(pieces_in(&answer) < PIECES);
    assert!(answer.ends_with("\r\n0\r\n\r\n"), "{answer:?}");
    served.await.unwrap();
}
