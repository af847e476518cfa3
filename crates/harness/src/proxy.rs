//! A TCP proxy between the service and a server, with a switch.

use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use tokio::io::{self, AsyncReadExt, AsyncWriteExt, copy, copy_bidirectional};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Open,
    /// Connections are closed cleanly, and new ones are closed at once.
    Closed,
    /// Connections break with RST, and so do new ones.
    Reset,
    /// Connections stay, and nothing comes through: a network that swallows packets.
    Silent,
    /// Connections stay, and what is sent arrives once it is open again.
    Late,
    /// New connections are slow: everything arrives after this delay.
    Slow(Duration),
    /// New connections to RabbitMQ stay without deliveries, also once it is open again.
    Undelivered,
}

pub struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    upstreams: watch::Sender<Vec<String>>,
}

impl Proxy {
    /// In front of the server of `url`.
    pub async fn before(url: &str) -> Self {
        let url = url::Url::parse(url).unwrap();
        Self::to(vec![format!(
            "{}:{}",
            url.host_str().unwrap(),
            url.port().unwrap()
        )])
        .await
    }

    /// In front of several servers: a connection goes to any that answers.
    pub async fn before_any_of(ports: &[u16]) -> Self {
        Self::to(
            ports
                .iter()
                .map(|port| format!("127.0.0.1:{port}"))
                .collect(),
        )
        .await
    }

    async fn to(upstreams: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, modes) = watch::channel(Mode::Open);
        let (upstreams, servers) = watch::channel(upstreams);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                client.set_nodelay(true).unwrap();
                tokio::spawn(carry(client, servers.borrow().clone(), modes.clone()));
            }
        });
        Self {
            address,
            mode,
            upstreams,
        }
    }

    /// `url`, by way of the proxy.
    pub fn url(&self, url: &str) -> String {
        let mut url = url::Url::parse(url).unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(self.address.port())).unwrap();
        url.to_string()
    }

    /// Redirects new connections to another server; open ones stay.
    pub fn lead_to(&self, port: u16) {
        self.upstreams
            .send_replace(vec![format!("127.0.0.1:{port}")]);
    }

    pub fn close(&self) {
        self.mode.send_replace(Mode::Closed);
    }

    pub fn reset(&self) {
        self.mode.send_replace(Mode::Reset);
    }

    pub fn silence(&self) {
        self.mode.send_replace(Mode::Silent);
    }

    pub fn delay(&self) {
        self.mode.send_replace(Mode::Late);
    }

    pub fn slow(&self, delay: Duration) {
        self.mode.send_replace(Mode::Slow(delay));
    }

    pub fn withhold_deliveries(&self) {
        self.mode.send_replace(Mode::Undelivered);
    }

    pub fn open(&self) {
        self.mode.send_replace(Mode::Open);
    }
}

async fn carry(mut client: TcpStream, upstreams: Vec<String>, mut modes: watch::Receiver<Mode>) {
    let Ok(mode) = modes
        .wait_for(|mode| !matches!(mode, Mode::Silent | Mode::Late))
        .await
        .map(|mode| *mode)
    else {
        return;
    };
    let server = match mode {
        Mode::Closed => return,
        Mode::Reset => return client.set_zero_linger().unwrap(),
        _ => connect(&upstreams).await,
    };
    let Some(mut server) = server else { return };
    if let Mode::Slow(delay) = mode {
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::select! {
            () = carry_late(from_client, to_server, delay) => {}
            () = carry_late(from_server, to_client, delay) => {}
            _ = modes.wait_for(|now| *now != mode) => {}
        }
        return;
    }
    if mode == Mode::Undelivered {
        let (mut from_client, mut to_client) = client.into_split();
        let (from_server, mut to_server) = server.into_split();
        tokio::select! {
            _ = copy(&mut from_client, &mut to_server) => {}
            _ = carry_without_deliveries(from_server, &mut to_client) => {}
        }
        return;
    }
    copy_while_open(&mut client, &mut server, &mut modes).await;
    // What a silent network swallowed is lost: the connection breaks when packets come through
    // again.
    if modes
        .wait_for(|mode| *mode != Mode::Silent)
        .await
        .is_ok_and(|mode| *mode == Mode::Reset)
    {
        client.set_zero_linger().unwrap();
        server.set_zero_linger().unwrap();
    }
}

/// Copies until one side closes or the mode changes. Delayed packets wait in the sockets.
async fn copy_while_open(
    client: &mut TcpStream,
    server: &mut TcpStream,
    modes: &mut watch::Receiver<Mode>,
) {
    let mut copying = pin!(copy_bidirectional(client, server));
    loop {
        let mode = *modes.borrow_and_update();
        if !matches!(mode, Mode::Open | Mode::Late) {
            return;
        }
        tokio::select! {
            _ = &mut copying, if mode == Mode::Open => return,
            changed = modes.changed() => if changed.is_err() { return },
        }
    }
}

async fn connect(upstreams: &[String]) -> Option<TcpStream> {
    let start = fastrand::usize(..upstreams.len());
    for offset in 0..upstreams.len() {
        if let Ok(server) = TcpStream::connect(&upstreams[(start + offset) % upstreams.len()]).await
        {
            server.set_nodelay(true).unwrap();
            return Some(server);
        }
    }
    None
}

async fn carry_late(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let mut packet = vec![0; 65_536];
    while let Ok(length @ 1..) = from.read(&mut packet).await {
        sleep(delay).await;
        if to.write_all(&packet[..length]).await.is_err() {
            return;
        }
    }
}

/// Drops the frames of `basic.deliver` and all message headers and bodies.
async fn carry_without_deliveries(
    mut from: OwnedReadHalf,
    to: &mut OwnedWriteHalf,
) -> io::Result<()> {
    const METHOD: u8 = 1;
    const CONTENT: [u8; 2] = [2, 3];
    const BASIC_DELIVER: [u8; 4] = [0, 60, 0, 60];
    loop {
        // Type, channel, length.
        let mut frame = vec![0; 7];
        from.read_exact(&mut frame).await?;
        let length = u32::from_be_bytes([frame[3], frame[4], frame[5], frame[6]]);
        let end_mark = 1;
        frame.resize(7 + length as usize + end_mark, 0);
        from.read_exact(&mut frame[7..]).await?;
        let is_delivery = frame[0] == METHOD && frame[7..].starts_with(&BASIC_DELIVER);
        if !is_delivery && !CONTENT.contains(&frame[0]) {
            to.write_all(&frame).await?;
        }
    }
}
