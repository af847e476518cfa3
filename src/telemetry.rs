//! Logs: one line per event on stdout, written by a separate thread behind a bounded buffer. If the
//! reader of stdout stalls, lines are dropped; requests never wait.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::str::FromStr;
use std::time::Duration;

use logline::{JsonLines, LogWriter};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::time::interval;
use tracing::{Level, Metadata, Subscriber, warn};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::domain::timestamp::Timestamp;
use crate::monitoring::catalogue;

/// How long the process waits at its end for the last lines to be written.
const FLUSH_AT_EXIT: Duration = Duration::from_secs(1);
/// The same after a panic, which may end the process.
const FLUSH_AT_PANIC: Duration = Duration::from_millis(100);
/// How often dropped lines are reported and metrics drained. Until then, each request's duration
/// takes 24 bytes.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(2);

/// Which lines are written.
#[derive(Clone, Debug)]
pub struct LogLevel(String);

impl Default for LogLevel {
    fn default() -> Self {
        Self::of("info", "info")
    }
}

impl LogLevel {
    /// Levels for libraries and for our own lines. lapin is off, because we log lost connections
    /// ourselves; so are PostgreSQL's notices, because each start would log that the migrations
    /// table exists.
    fn of(libraries: &str, ours: &str) -> Self {
        Self(format!(
            "{libraries},lapin=off,sqlx::postgres::notice=off,{}={ours},listener={ours},\
             probes={ours}",
            env!("CARGO_CRATE_NAME")
        ))
    }
}

impl FromStr for LogLevel {
    type Err = String;

    /// Takes a level's name, as in the original service and Python's `logging`, or tracing
    /// directives such as `info,lapin=debug`. A bare level below `info` applies to this service's
    /// own lines, not to its libraries.
    fn from_str(value: &str) -> Result<Self, Self::Err> {
        match value.to_ascii_lowercase().as_str() {
            "critical" | "fatal" => Ok(Self::of("error", "error")),
            "warning" => Ok(Self::of("warn", "warn")),
            level @ ("off" | "error" | "warn" | "info") => Ok(Self::of(level, level)),
            level @ ("debug" | "trace") => Ok(Self::of("info", level)),
            _ if value.contains('=') => {
                EnvFilter::try_new(value).map_err(|error| format!("`{value}`: {error}"))?;
                Ok(Self(value.to_owned()))
            }
            _ => Err(format!(
                "must be ERROR, WARN, INFO, DEBUG, TRACE or directives such as `info,lapin=debug`, \
                 not `{value}`"
            )),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line, for machines.
    #[default]
    Json,
    /// For people at a terminal.
    Pretty,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(value: &str) -> Result<Self, Self::Err> {
        match value.to_ascii_lowercase().as_str() {
            "json" => Ok(Self::Json),
            "pretty" => Ok(Self::Pretty),
            _ => Err(format!("must be json or pretty, not `{value}`")),
        }
    }
}

/// Writes what is buffered when dropped.
pub(crate) struct Telemetry {
    writer: LogWriter,
}

/// Sends this process's log lines, including panics, to stdout.
pub(crate) fn init(level: &LogLevel, format: LogFormat) -> io::Result<Telemetry> {
    // Not through `io::stdout()`, which has its own buffer and lock.
    let writer = LogWriter::to(File::from(io::stdout().as_fd().try_clone_to_owned()?))?;
    subscriber(level, format, writer.clone()).init();
    let last_words = writer.clone();
    std::panic::set_hook(Box::new(move |panic| {
        let location = panic.location().map(ToString::to_string);
        tracing::error!(location, cause = panic.payload_as_str(), "Panicked");
        last_words.flush(FLUSH_AT_PANIC);
    }));
    Ok(Telemetry { writer })
}

/// Writes the lines of `level` to `writer`, one call per line.
pub fn subscriber<W>(
    level: &LogLevel,
    format: LogFormat,
    writer: W,
) -> impl Subscriber + Send + Sync
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let filter = EnvFilter::new(&level.0);
    tracing_subscriber::registry()
        .with(filter)
        .with(filter_fn(holds_no_secret))
        .with(lines(writer, format))
}

/// Drops the libraries' TRACE lines, because lapin logs whole frames, including the broker's
/// password; and lapin's returned messages, which hold users' names.
fn holds_no_secret(line: &Metadata<'_>) -> bool {
    let ours = line.target().starts_with(env!("CARGO_CRATE_NAME"));
    ours || (*line.level() != Level::TRACE && line.target() != "lapin::returned_messages")
}

fn lines<S, W>(writer: W, format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    match format {
        LogFormat::Json => JsonLines::new(writer, Timestamp::now).boxed(),
        LogFormat::Pretty => tracing_subscriber::fmt::layer()
            .with_writer(writer)
            .with_target(false)
            .with_ansi(io::stdout().is_terminal())
            .boxed(),
    }
}

impl Telemetry {
    /// Returns the writer of this process's log.
    pub(crate) fn writer(&self) -> LogWriter {
        self.writer.clone()
    }

    /// Reports dropped lines and drains the metrics, in an endless loop.
    pub(crate) fn run_upkeep(
        &self,
        collected: PrometheusHandle,
    ) -> impl Future<Output = ()> + Send + use<> {
        let writer = self.writer.clone();
        async move {
            let mut reported = 0;
            let mut tick = interval(HOUSEKEEPING_INTERVAL);
            loop {
                tick.tick().await;
                collected.run_upkeep();
                let total = writer.dropped();
                catalogue::log_lines_dropped().absolute(total);
                if total > reported {
                    warn!(
                        dropped = total - reported,
                        total, "Log lines dropped: the reader of stdout is too slow"
                    );
                    reported = total;
                }
            }
        }
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.writer.flush(FLUSH_AT_EXIT);
    }
}

#[cfg(test)]
mod tests {
    use super::LogLevel;

    #[test]
    fn log_levels_are_accepted_in_any_case_and_in_python_spelling() {
        for level in [
            "INFO",
            "info",
            "Warning",
            "CRITICAL",
            "debug",
            "TRACE",
            "off",
            "info,lapin=debug",
        ] {
            assert!(level.parse::<LogLevel>().is_ok(), "{level}");
        }
    }

    #[test]
    fn a_misspelt_level_is_refused_and_not_read_as_a_target() {
        for level in ["INFOO", "loud", "sqlx=loud"] {
            assert!(level.parse::<LogLevel>().is_err(), "{level}");
        }
    }
}
