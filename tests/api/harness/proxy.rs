//! A TCP proxy between the service and a server, with a switch.

use std::net::SocketAddr;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Open,
    /// Connections break, and new ones are closed at once.
    Closed,
    /// Connections stay, and nothing comes through: a network that swallows packets.
    Silent,
}

pub struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
}

impl Proxy {
    /// In front of the server of `url`.
    pub async fn before(url: &str) -> Self {
        let url = url::Url::parse(url).unwrap();
        let upstream = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, modes) = watch::channel(Mode::Open);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, upstream.clone(), modes.clone()));
            }
        });
        Self { address, mode }
    }

    /// `url`, by way of the proxy.
    pub fn url(&self, url: &str) -> String {
        let mut url = url::Url::parse(url).unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(self.address.port())).unwrap();
        url.to_string()
    }

    pub fn close(&self) {
        self.mode.send_replace(Mode::Closed);
    }

    pub fn silence(&self) {
        self.mode.send_replace(Mode::Silent);
    }

    pub fn open(&self) {
        self.mode.send_replace(Mode::Open);
    }
}

async fn carry(mut client: TcpStream, upstream: String, mut modes: watch::Receiver<Mode>) {
    if *modes.borrow() == Mode::Closed {
        return;
    }
    if modes.wait_for(|mode| *mode != Mode::Silent).await.is_err() {
        return;
    }
    let Ok(mut server) = TcpStream::connect(upstream).await else { return };
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => {}
        _ = modes.wait_for(|mode| *mode != Mode::Open) => {}
    }
    // What a silent network swallowed is lost: the connection breaks when packets come through again.
    let _ = modes.wait_for(|mode| *mode != Mode::Silent).await;
}
