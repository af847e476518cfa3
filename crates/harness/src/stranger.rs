//! A publisher of raw bytes: messages that RabbitMQ passes on but no client library would write.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use url::Url;

use super::PATIENCE;
use super::servers::World;

pub struct Stranger(TcpStream);

/// A method's class and id, and its arguments.
type Method<'a> = (u16, u16, &'a [u8]);

/// A text with its length in one byte.
pub fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text].concat()
}

/// Bytes with their length in four.
pub fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

/// The property list of a message with these headers.
pub fn headers(table: &[u8]) -> Vec<u8> {
    [&(1_u16 << 13).to_be_bytes()[..], &long(table)].concat()
}

/// A header with this many nested tables (`F`) or arrays (`A`).
pub fn nested(levels: usize, kind: u8) -> Vec<u8> {
    let mut inside_out = Vec::new();
    let mut length = 0_u32;
    for _ in 0..levels {
        inside_out.extend(length.to_be_bytes().into_iter().rev());
        inside_out.push(kind);
        length += 5;
        if kind == b'F' {
            inside_out.push(0);
            length += 1;
        }
    }
    if kind == b'F' {
        inside_out.pop();
    }
    inside_out.reverse();
    [short(b"deep"), inside_out].concat()
}

impl Stranger {
    pub async fn at(world: &World) -> Self {
        let url = Url::parse(&world.broker_url).unwrap();
        let address = (url.host_str().unwrap(), url.port().unwrap_or(5672));
        let mut this = Self(TcpStream::connect(address).await.unwrap());
        this.0.set_nodelay(true).unwrap();
        let login = format!("\0{}\0{}", url.username(), url.password().unwrap());
        let start = [
            &long(b"")[..],
            &short(b"PLAIN"),
            &long(login.as_bytes()),
            &short(b"en_US"),
        ]
        .concat();
        this.0.write_all(b"AMQP\0\0\x09\x01").await.unwrap();
        this.until((10, 10)).await;
        this.method(0, (10, 11, &start)).await;
        this.until((10, 30)).await;
        this.method(0, (10, 31, &[7, 255, 0, 2, 0, 0, 0, 0])).await;
        let virtual_host = url.path().trim_start_matches('/');
        this.method(
            0,
            (
                10,
                40,
                &[&short(virtual_host.as_bytes())[..], &[0, 0]].concat(),
            ),
        )
        .await;
        this.until((10, 41)).await;
        this.method(1, (20, 10, &[0])).await;
        this.until((20, 11)).await;
        this.method(1, (85, 10, &[0])).await;
        this.until((85, 11)).await;
        this
    }

    /// Publishes a message, and waits for the broker's confirm. `properties` begins with its flags.
    pub async fn publish(
        &mut self,
        exchange: &str,
        routing_key: &[u8],
        properties: &[u8],
        body: &[u8],
    ) {
        self.send(exchange, routing_key, properties, body).await;
        self.until((60, 80)).await;
    }

    /// Publishes a message.
    pub async fn send(
        &mut self,
        exchange: &str,
        routing_key: &[u8],
        properties: &[u8],
        body: &[u8],
    ) {
        let arguments = [
            &[0, 0][..],
            &short(exchange.as_bytes()),
            &short(routing_key),
            &[0],
        ]
        .concat();
        self.method(1, (60, 40, &arguments)).await;
        let size = u64::try_from(body.len()).unwrap().to_be_bytes();
        self.frame(2, 1, &[&[0, 60, 0, 0][..], &size, properties].concat())
            .await;
        for piece in body.chunks(131_072 - 8) {
            self.frame(3, 1, piece).await;
        }
    }

    /// Subscribes to everything published, through its own queue.
    pub async fn subscribe(&mut self) {
        let queue = short(b"stranger");
        let none = long(b"");
        // Exclusive, so it goes with the connection.
        self.method(
            1,
            (50, 10, &[&[0, 0][..], &queue, &[0b100], &none].concat()),
        )
        .await;
        self.until((50, 11)).await;
        let binding = [
            &queue[..],
            &short(b"user_events"),
            &short(b"user.*"),
            &[0],
            &none,
        ]
        .concat();
        self.method(1, (50, 20, &[&[0, 0][..], &binding].concat()))
            .await;
        self.until((50, 21)).await;
        // Without acknowledgements.
        self.method(
            1,
            (
                60,
                20,
                &[&[0, 0][..], &queue, &short(b""), &[0b10], &none].concat(),
            ),
        )
        .await;
        self.until((60, 21)).await;
    }

    /// Reads this many messages without parsing them.
    pub async fn receive(&mut self, count: u64) {
        for _ in 0..count {
            self.until((60, 60)).await;
        }
    }

    async fn method(&mut self, channel: u16, (class, id, arguments): Method<'_>) {
        self.frame(
            1,
            channel,
            &[&class.to_be_bytes(), &id.to_be_bytes(), arguments].concat(),
        )
        .await;
    }

    async fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let frame = [&[kind][..], &channel.to_be_bytes(), &long(payload), &[0xCE]].concat();
        self.0.write_all(&frame).await.unwrap();
    }

    /// Reads frames up to a method.
    async fn until(&mut self, method: (u16, u16)) {
        timeout(PATIENCE, self.read_until(method))
            .await
            .unwrap_or_else(|_| panic!("{method:?} does not come"));
    }

    async fn read_until(&mut self, (class, id): (u16, u16)) {
        let wanted = [class.to_be_bytes(), id.to_be_bytes()].concat();
        loop {
            let mut head = [0; 7];
            self.0.read_exact(&mut head).await.unwrap();
            let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
            let mut payload = vec![0; size as usize + 1];
            self.0.read_exact(&mut payload).await.unwrap();
            if head[0] == 1 && payload.starts_with(&wanted) {
                return;
            }
            assert!(
                head[0] != 1
                    || ![[0, 20, 0, 40], [0, 10, 0, 50]].contains(payload.first_chunk().unwrap()),
                "{payload:?}"
            );
        }
    }
}
