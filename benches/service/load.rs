//! The load generators: `wrk` for HTTP, `pgbench` for PostgreSQL.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::Outcome;
use crate::comparison::{Call, Load};

/// Number of `pgbench` clients: the one with its highest throughput on two cores.
const PGBENCH_CLIENTS: u32 = 64;
/// Transactions per client before a measurement. A count, not a time, so that a slow machine runs
/// some too.
const WARM_UP: &str = "100";

/// The result of a load generator's run. Latencies are in microseconds.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Run {
    pub requests: f64,
    pub seconds: f64,
    pub p50: f64,
    pub p99: f64,
    #[serde(default, skip_serializing)]
    errors: f64,
}

/// Threads of a load generator: half of the cores. The other half is left to the candidates.
fn threads() -> String {
    std::thread::available_parallelism()
        .map_or(1, |cores| cores.get().div_ceil(2))
        .to_string()
}

async fn output_of(command: &mut Command) -> Outcome<String> {
    let name = command.as_std().get_program().to_owned();
    let output = command
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| format!("{}: {error}", name.display()))?;
    let text = String::from_utf8(output.stdout)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!("{} failed: {text}{errors}", name.display()).into())
    }
}

/// Sends `load` to `address`, whose database has `users` users. Fails if any request did not
/// succeed.
pub async fn wrk(address: &str, load: Load, users: u32, time: Duration) -> Outcome<Run> {
    let call = match load.call {
        Call::Live => "live",
        Call::Get => "get",
        Call::Put => "put",
        Call::Post => "post",
        Call::List => "list",
        Call::Backlog | Call::Delivery => return Err("events are no requests".into()),
    };
    let threads = threads();
    let text = output_of(
        Command::new("wrk")
            // Each thread needs at least one connection.
            .args([
                "--threads",
                if load.connections == 1 { "1" } else { &threads },
            ])
            .args(["--connections", &load.connections.to_string()])
            .args([
                "--duration",
                &format!("{}s", time.as_secs()),
                "--script",
                "benches/service/requests.lua",
            ])
            .args([&format!("http://{address}"), "--", call, &users.to_string()]),
    )
    .await?;
    let report = text.lines().last().unwrap_or_default();
    let run: Run =
        serde_json::from_str(report).map_err(|error| format!("wrk said `{report}`: {error}"))?;
    if run.errors > 0.0 {
        return Err(format!("{} of {} requests failed: {load}", run.errors, run.requests).into());
    }
    Ok(run)
}

/// Runs the prepared statement of `call` repeatedly for `time`, after the clients have logged in;
/// `scratch` takes its log.
pub async fn pgbench(
    url: &str,
    call: Call,
    users: u32,
    time: Duration,
    scratch: &Path,
) -> Outcome<Run> {
    // Its own clock starts before the logins, which may take longer than `time`. They are not part
    // of what it reports.
    let warm_up = run_pgbench(url, call, users, &["--transactions", WARM_UP], scratch).await?;
    take_latencies(scratch)?;
    let logins = after(&warm_up, "initial connection time = ")?;
    let seconds = time.as_secs_f64() + 2.0 * logins / 1e3;
    let text = run_pgbench(
        url,
        call,
        users,
        &["--time", &format!("{:.0}", seconds.ceil())],
        scratch,
    )
    .await?;
    let requests = after(&text, "number of transactions actually processed: ")?;
    let throughput = after(&text, "tps = ")?;
    let latencies = take_latencies(scratch)?;
    let percentile = |percent: usize| {
        latencies
            .get(latencies.len() * percent / 100)
            .copied()
            .unwrap_or(f64::NAN)
    };
    Ok(Run {
        requests,
        seconds: requests / throughput,
        p50: percentile(50),
        p99: percentile(99),
        errors: 0.0,
    })
}

/// Returns the number that follows `beginning` in the report's line that starts with it.
fn after(report: &str, beginning: &str) -> Outcome<f64> {
    let number = report.lines().find_map(|line| {
        line.strip_prefix(beginning)?
            .split(' ')
            .next()?
            .parse()
            .ok()
    });
    number.ok_or_else(|| {
        format!(
            "pgbench said nothing after `{}`: {report}",
            beginning.trim()
        )
        .into()
    })
}

async fn run_pgbench(
    url: &str,
    call: Call,
    users: u32,
    length: &[&str],
    scratch: &Path,
) -> Outcome<String> {
    let script = match call {
        Call::Put => "benches/service/update.sql",
        Call::List => "benches/service/list.sql",
        Call::Get => "benches/service/select.sql",
        _ => return Err("pgbench has no statement for this".into()),
    };
    let prefix = scratch.join("pgbench");
    output_of(
        Command::new("pgbench")
            .args([
                "--no-vacuum",
                "--protocol",
                "prepared",
                "--jobs",
                &threads(),
                "--file",
                script,
            ])
            .args(["--client", &PGBENCH_CLIENTS.to_string()])
            .args(length)
            .args(["--define", &format!("users={users}")])
            // A twentieth of the latencies is enough for percentiles, and writing them costs
            // little.
            .args(["--log", "--sampling-rate", "0.05", "--log-prefix"])
            .arg(&prefix)
            .arg(url),
    )
    .await
}

/// Reads and deletes the logs of `pgbench`; the third field of each line is a transaction's time.
fn take_latencies(scratch: &Path) -> Outcome<Vec<f64>> {
    let mut latencies = Vec::new();
    for entry in std::fs::read_dir(scratch)? {
        let path = entry?.path();
        if path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("pgbench."))
        {
            let text = std::fs::read_to_string(&path)?;
            latencies.extend(
                text.lines()
                    .filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok()),
            );
            std::fs::remove_file(path)?;
        }
    }
    latencies.sort_unstable_by(f64::total_cmp);
    Ok(latencies)
}
