//! The service as a process.

use std::path::PathBuf;
use std::process::ExitStatus;

use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::PATIENCE;
use super::servers::World;

/// The root of the workspace.
pub(crate) const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// The folder of the build that the running test is part of.
pub(crate) fn build() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    // The test is in its folder `deps`.
    test.ancestors().nth(2).unwrap().to_owned()
}

/// The service that Cargo has built for the running test.
pub(crate) fn binary() -> PathBuf {
    let binary = build().join("user-management-api");
    assert!(
        binary.is_file(),
        "{} is not built: run the tests of the root package",
        binary.display()
    );
    binary
}

/// A folder for the files of tests.
pub fn scratch() -> PathBuf {
    let folder = build().join("tmp");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The binary, without the tests' environment.
pub fn command(settings: &[(&str, &str)]) -> Command {
    isolated(Command::new(binary()), settings)
}

/// The same, with a limit of open files.
pub fn with_open_files(limit: u32, settings: &[(&str, &str)]) -> Command {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &format!("ulimit -n {limit} && exec \"$0\"")])
        .arg(binary());
    isolated(shell, settings)
}

/// Makes a key with this scope in `world`, and returns its token.
pub async fn make_key(world: &World, name: &str, scope: &str) -> String {
    let made = command(&world.settings())
        .args(["api-key", "create", name, "--scope", scope])
        .output()
        .await
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    String::from_utf8(made.stdout)
        .unwrap()
        .trim_end()
        .to_owned()
}

pub fn isolated(mut command: Command, settings: &[(&str, &str)]) -> Command {
    // A folder without a developer's own .env.
    command
        .env_clear()
        .envs(settings.iter().copied())
        .current_dir(scratch())
        .kill_on_drop(true);
    command
}

pub struct Process(pub Child);

impl Process {
    pub fn id(&self) -> u32 {
        self.0.id().expect("the service runs")
    }

    /// Sends a signal, given by its shell name.
    pub fn signal(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.id());
        assert!(
            std::process::Command::new("sh")
                .args(["-c", &kill])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Resident memory, in bytes.
    pub fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// Peak resident memory since the start, in bytes.
    pub fn peak_resident(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        line.split_whitespace()
            .next()
            .unwrap()
            .parse::<u64>()
            .unwrap()
            * 1024
    }

    /// Threads, and open files and sockets.
    pub fn threads_and_files(&self) -> (usize, usize) {
        let count = |what: &str| {
            std::fs::read_dir(format!("/proc/{}/{what}", self.id()))
                .unwrap()
                .count()
        };
        (count("task"), count("fd"))
    }

    pub async fn exit_status(&mut self) -> ExitStatus {
        timeout(PATIENCE, self.0.wait())
            .await
            .expect("the service ends")
            .unwrap()
    }

    pub async fn kill(&mut self) {
        self.0.kill().await.unwrap();
    }

    /// By SIGTERM.
    pub async fn stop(&mut self) {
        self.signal("TERM");
        assert!(self.exit_status().await.success());
    }
}
