//! The connection below lapin: TCP and TLS as lapin would open them, and a [`Screen`] for what
//! comes in.

pub(crate) mod screen;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::Stream;
use futures_util::io::{AsyncRead, AsyncWrite};
use lapin::tcp::{AMQPUriTcpExt, OwnedTLSConfig};
use lapin::uri::AMQPUri;
use lapin::{AsyncTcpStream, Connection, ConnectionProperties};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use self::screen::Screen;
pub(crate) use self::screen::{MARK, Mark, NO_LIMIT, Returned, mark};

/// Bytes read from the socket at a time.
const READ_SIZE: usize = 64 << 10;

/// Opens a connection whose incoming frames are screened: bodies over `largest` bytes are left out,
/// and the ids of returned messages are added to `returned`. If the caller gives up first, the
/// socket reports its end: otherwise, lapin's thread would wait for as long as a silent peer keeps
/// it open.
pub(crate) async fn connect(
    uri: AMQPUri,
    tls: OwnedTLSConfig,
    properties: ConnectionProperties,
    largest: u64,
    returned: Returned,
) -> lapin::Result<Connection> {
    let abandoned = CancellationToken::new();
    let abandon = abandoned.clone().drop_guard();
    let screening = Runtime::new(RuntimeParts::new(
        Tokio::current(),
        Screening(Tokio::current(), largest),
    ));
    let open = async move |uri: AMQPUri, _runtime| {
        let io = uri
            .connect_with_config_async(tls.as_ref(), &Runtime::new(Tokio::current()))
            .await?;
        Ok(AsyncTcpStream::Plain(Screened::new(
            io,
            largest,
            returned.clone(),
            &abandoned,
        )))
    };
    let connection = Connection::connector(uri, screening, open, properties).await?;
    // From now on, heartbeats watch the peer.
    abandon.disarm();
    Ok(connection)
}

type Io = AsyncTcpStream<<Tokio as Reactor>::TcpStream>;

/// A socket whose incoming bytes go through a screen.
struct Screened {
    io: Io,
    /// The largest body that is passed on, in bytes.
    largest: u64,
    screen: Screen,
    /// What the screen has passed on, and how much of it lapin has read.
    passed: Vec<u8>,
    read: usize,
    incoming: Box<[u8]>,
    /// Cancelled once the caller has given up.
    abandoned: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Screened {
    fn new(io: Io, largest: u64, returned: Returned, abandoned: &CancellationToken) -> Self {
        Self {
            io,
            largest,
            screen: Screen::new(returned),
            passed: Vec::with_capacity(READ_SIZE),
            read: 0,
            incoming: vec![0; READ_SIZE].into(),
            abandoned: Box::pin(abandoned.clone().cancelled_owned()),
        }
    }
}

impl AsyncRead for Screened {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Self {
            io,
            largest,
            screen,
            passed,
            read,
            incoming,
            abandoned,
        } = &mut *self;
        if abandoned.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(0));
        }
        while *read == passed.len() {
            passed.clear();
            passed.shrink_to(READ_SIZE);
            *read = 0;
            let count = ready!(Pin::new(&mut *io).poll_read(cx, incoming))?;
            if count == 0 {
                screen.end(passed);
                if passed.is_empty() {
                    return Poll::Ready(Ok(0));
                }
            }
            screen.pass(&incoming[..count], *largest, passed);
        }
        let waiting = &passed[*read..];
        let count = waiting.len().min(buffer.len());
        buffer[..count].copy_from_slice(&waiting[..count]);
        *read += count;
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Screened {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_close(cx)
    }
}

/// Tokio's reactor with another type of stream, which is all that lapin asks of it here:
/// [`connect`] opens the streams.
#[derive(Clone, Debug)]
struct Screening(Tokio, u64);

impl Reactor for Screening {
    type TcpStream = Screened;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Send + 'static>(
        &self,
        _socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Screened, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, period: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(period)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Screened>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        let largest = self.1;
        async move {
            let never = CancellationToken::new();
            Ok(Screened::new(
                AsyncTcpStream::Plain(connecting.await?),
                largest,
                Returned::default(),
                &never,
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use lapin::ConnectionProperties;
    use lapin::tcp::OwnedTLSConfig;
    use lapin::uri::AMQPUri;
    use tokio::net::TcpListener;
    use tokio::time::{interval, timeout};

    use super::{NO_LIMIT, Returned, connect};

    /// lapin's threads in this process.
    fn threads() -> usize {
        let names = fs::read_dir("/proc/self/task").unwrap().flatten();
        names
            .filter(|task| {
                fs::read_to_string(task.path().join("comm"))
                    .is_ok_and(|name| name.starts_with("lapin"))
            })
            .count()
    }

    #[tokio::test]
    async fn connecting_to_a_silent_peer_leaks_no_threads_or_sockets() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri: AMQPUri = format!("amqp://{}", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        let silent = async {
            let mut sockets = Vec::new();
            loop {
                sockets.push(listener.accept().await.unwrap());
            }
        };
        let attempts = async {
            for _ in 0..200 {
                let tls = OwnedTLSConfig::default();
                let properties = ConnectionProperties::default();
                let connecting =
                    connect(uri.clone(), tls, properties, NO_LIMIT, Returned::default());
                assert!(
                    timeout(Duration::from_millis(10), connecting)
                        .await
                        .is_err(),
                    "nobody answers"
                );
            }
            let mut tick = interval(Duration::from_millis(10));
            while threads() > 0 {
                tick.tick().await;
            }
        };
        tokio::select! {
            _ = silent => unreachable!(),
            ended = timeout(Duration::from_secs(30), attempts) => ended.unwrap_or_else(|_| panic!("{} \
                threads", threads())),
        }
    }
}
