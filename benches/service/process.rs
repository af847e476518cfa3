//! A candidate's process: CPU time and memory.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{interval, timeout};

use crate::Outcome;
use harness::{PATIENCE, eventually};

/// `USER_HZ`, the unit of `/proc/PID/stat`; 100 on every architecture that Linux has today.
const TICKS_PER_SECOND: f64 = 100.0;

/// A running candidate; killed when dropped.
pub struct Served {
    pub address: String,
    /// Its log file, if it has one.
    pub log: Option<PathBuf>,
    pid: u32,
    _process: Child,
}

impl Served {
    /// Starts the service with its log in a file, and waits until it is ready, or degraded if it
    /// has no broker.
    pub async fn service(settings: &[(&str, &str)], log: &Path, has_broker: bool) -> Outcome<Self> {
        let address = free_address()?;
        let port = address.port().to_string();
        fs::write(log, "")?;
        // Append, so that the file can be truncated while the service writes to it.
        let output = fs::File::options().append(true).open(log)?;
        let mut command = harness::command(&[settings, &[("PORT", &port)]].concat());
        let process = command.stdout(output).spawn()?;
        let pid = process.id().ok_or("the service ended")?;
        let status = if has_broker { "ready" } else { "degraded" };
        eventually(
            format!("a service that is ready, see {}", log.display()),
            async || {
                let answer = reqwest::get(format!("http://{address}/health/ready"))
                    .await
                    .ok()?;
                (answer.json::<serde_json::Value>().await.ok()?["status"] == status).then_some(())
            },
        )
        .await;
        Ok(Self {
            address: address.to_string(),
            log: Some(log.to_owned()),
            pid,
            _process: process,
        })
    }

    /// Starts a candidate that prints its address as its first line.
    pub async fn spawn(mut command: Command) -> Outcome<Self> {
        let mut process = command.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let mut lines = BufReader::new(process.stdout.take().ok_or("no standard output")?).lines();
        let address = timeout(PATIENCE, lines.next_line())
            .await??
            .ok_or("a candidate ended at its start")?;
        let pid = process.id().ok_or("a candidate ended")?;
        Ok(Self {
            address,
            log: None,
            pid,
            _process: process,
        })
    }

    /// Processor time so far, in seconds.
    pub fn cpu(&self) -> Outcome<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        let fields: Vec<_> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        let user: f64 = fields[11].parse()?;
        let system: f64 = fields[12].parse()?;
        Ok((user + system) / TICKS_PER_SECOND)
    }

    /// Waits until the process uses almost no CPU time.
    pub async fn until_idle(&self) -> Outcome<()> {
        let mut tick = interval(Duration::from_millis(200));
        tick.tick().await;
        loop {
            let before = self.cpu()?;
            tick.tick().await;
            if self.cpu()? - before < 0.02 {
                return Ok(());
            }
        }
    }

    /// Largest resident memory since [`Self::reset_peak`], in bytes.
    pub fn peak_memory(&self) -> Outcome<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .ok_or("no VmHWM")?;
        Ok(peak.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }

    /// Resets its peak memory and truncates its log.
    pub fn reset_peak(&self) -> Outcome<()> {
        fs::write(format!("/proc/{}/clear_refs", self.pid), "5")?;
        if let Some(log) = &self.log {
            fs::File::options().write(true).open(log)?.set_len(0)?;
        }
        Ok(())
    }
}

fn free_address() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
