//! The shared servers as processes, for tests that stop, freeze and kill them. Only `./setup.sh
//! chaos` allows that.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::process::{ROOT, build};

/// A pair of servers, or a node of a cluster.
pub struct Control {
    folder: String,
}

/// A node of the cluster of three.
pub struct Node {
    pub control: Control,
    pub amqp_port: u16,
    pub management_port: u16,
}

impl Control {
    /// The servers that all tests share.
    #[expect(
        clippy::disallowed_methods,
        reason = "the tests' own settings are none of the service's"
    )]
    pub fn of_shared_servers() -> Self {
        let folder = env::var("TEST_SERVERS")
            .expect("TEST_SERVERS: these tests are run by ./setup.sh chaos");
        Self { folder }
    }

    /// Sends a signal, given by its shell name, to `postgres` or `rabbitmq`. If that ends the
    /// server, waits for its end.
    pub async fn signal(&self, server: &str, signal: &str) {
        self.run(&["signal", server, signal]).await;
    }

    /// Starts `postgres` or `rabbitmq` again, and waits until it takes connections.
    pub async fn start(&self, server: &str) {
        self.run(&["start", server]).await;
    }

    pub async fn rabbitmqctl(&self, arguments: &[&str]) -> String {
        self.run(&[&["rabbitmqctl"], arguments].concat()).await
    }

    /// A standby of the shared PostgreSQL, and its port.
    pub async fn standby(&self) -> (Self, u16) {
        let described = self.run(&["standby"]).await;
        let (folder, port) = described.trim().split_once(' ').unwrap();
        (
            Self {
                folder: folder.to_owned(),
            },
            port.parse().unwrap(),
        )
    }

    /// Runs commands from a guide in a folder, with the programs of PostgreSQL and the service.
    pub async fn run_commands(&self, commands: &str, folder: &Path, database_url: &str) {
        let mut command = Command::new("scripts/server.sh");
        let build = build();
        command.args([
            &self.folder,
            "commands",
            folder.to_str().unwrap(),
            build.to_str().unwrap(),
            commands,
        ]);
        command
            .current_dir(ROOT)
            .stdin(Stdio::null())
            .env("DATABASE_URL", database_url);
        command.env("DATABASE_DIRECT_URL", "");
        let output = command.output().await.unwrap();
        let text = [output.stdout, output.stderr].concat();
        assert!(
            output.status.success(),
            "{commands}: {}",
            String::from_utf8_lossy(&text)
        );
    }

    /// Starts a pooler in transaction mode with an extra line of configuration. Returns its URL.
    pub async fn pooler(&self, line: &str) -> String {
        self.run(&["pooler", line]).await.trim().to_owned()
    }

    /// Starts a server on a physical backup. Returns its port.
    pub async fn adopt(&self, data: &Path) -> (Self, u16) {
        let described = self.run(&["adopt", data.to_str().unwrap()]).await;
        let (folder, port) = described.trim().split_once(' ').unwrap();
        (
            Self {
                folder: folder.to_owned(),
            },
            port.parse().unwrap(),
        )
    }

    /// The folder of the shared PostgreSQL's data.
    pub fn data(&self) -> PathBuf {
        Path::new(&self.folder).join("postgres/data")
    }

    /// Three RabbitMQ nodes; they live as long as the shared servers.
    pub async fn cluster(&self) -> Vec<Node> {
        let described = self.run(&["cluster"]).await;
        let node = |line: &str| {
            let [folder, amqp, management] =
                line.split(' ').collect::<Vec<_>>().try_into().unwrap();
            let control = Self {
                folder: folder.to_owned(),
            };
            Node {
                control,
                amqp_port: amqp.parse().unwrap(),
                management_port: management.parse().unwrap(),
            }
        };
        described.lines().map(node).collect()
    }

    async fn run(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("scripts/server.sh");
        command
            .arg(&self.folder)
            .args(arguments)
            .current_dir(ROOT)
            .stdin(Stdio::null());
        let output = command.output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{arguments:?}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }
}
