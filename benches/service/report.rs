//! What was measured: medians over the rounds, as a table for people, as JSON, and as a chart.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

use crate::comparison::{Aim, COMPARISONS, Candidate, Comparison, Figure, Limit, Load, Ratio};
use crate::stage::{Sample, Stage, USERS};
use crate::{Outcome, Plan, chart};

/// The machine, the versions and the plan of the measurement.
#[derive(Serialize)]
struct Setting {
    date: String,
    processor: String,
    cores: usize,
    kernel: String,
    service: &'static str,
    /// Settings that the environment changes.
    changed: Vec<String>,
    postgresql: String,
    rabbitmq: String,
    wrk: String,
    users: u32,
    rounds: u32,
    seconds: u64,
}

struct Measured {
    load: Load,
    candidate: Candidate,
    /// The sample, or why there is none.
    sample: Result<Sample, String>,
}

pub struct Report {
    setting: Setting,
    /// Round after round.
    measured: Vec<Measured>,
}

/// The medians of one candidate under one load.
#[derive(Serialize)]
pub struct Row {
    pub load: String,
    pub candidate: &'static str,
    #[serde(flatten)]
    pub median: Sample,
    /// Why its last failed measurement failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// One candidate compared with another (the median of the rounds' ratios) or with a limit (the
/// median of the rounds).
#[derive(Serialize)]
struct Verdict {
    load: String,
    of: &'static str,
    against: Option<&'static str>,
    figure: &'static str,
    value: f64,
    aim: Option<String>,
    reached: Option<bool>,
}

impl Report {
    pub async fn of_this_machine(plan: Plan, stage: &Stage) -> Outcome<Self> {
        let broker = harness::management_json("/api/overview").await;
        let setting = Setting {
            date: chrono::Utc::now().format("%Y-%m-%d").to_string(),
            processor: processor()?,
            cores: std::thread::available_parallelism()?.get(),
            kernel: kernel()?,
            service: env!("CARGO_PKG_VERSION"),
            changed: stage.changed_settings(),
            postgresql: stage.database_setting("server_version").await?,
            rabbitmq: broker["rabbitmq_version"]
                .as_str()
                .unwrap_or("unknown")
                .to_owned(),
            wrk: wrk_version()?,
            users: USERS,
            rounds: plan.rounds,
            seconds: plan.measured.as_secs(),
        };
        Ok(Self {
            setting,
            measured: Vec::new(),
        })
    }

    pub fn add(
        &mut self,
        comparison: &Comparison,
        candidate: Candidate,
        measured: Outcome<Sample>,
    ) {
        let sample = measured.map_err(|error| error.to_string());
        self.measured.push(Measured {
            load: comparison.load,
            candidate,
            sample,
        });
    }

    pub fn samples(&self) -> usize {
        self.measured.len()
    }

    fn all_of(
        &self,
        load: Load,
        candidate: Candidate,
    ) -> impl Iterator<Item = &Result<Sample, String>> {
        let found = self
            .measured
            .iter()
            .filter(move |one| one.load == load && one.candidate == candidate);
        found.map(|one| &one.sample)
    }

    /// Returns one sample per round; NaN where the measurement failed.
    fn of(&self, load: Load, candidate: Candidate) -> Vec<Sample> {
        self.all_of(load, candidate)
            .map(|sample| *sample.as_ref().unwrap_or(&Sample::NONE))
            .collect()
    }

    fn rows(&self) -> Vec<Row> {
        let rows = COMPARISONS.iter().flat_map(|comparison| {
            let load = comparison.load;
            comparison.candidates.iter().map(move |candidate| Row {
                load: load.to_string(),
                candidate: candidate.name(),
                median: median_sample(&self.of(load, *candidate)),
                failure: self
                    .all_of(load, *candidate)
                    .filter_map(|sample| sample.as_ref().err())
                    .last()
                    .cloned(),
            })
        });
        // What was not selected has no samples.
        rows.filter(|row| row.failure.is_some() || !row.median.throughput.is_nan())
            .collect()
    }

    fn verdicts(&self) -> Vec<Verdict> {
        let verdicts = COMPARISONS.iter().flat_map(|comparison| {
            let ratios = comparison
                .ratios
                .iter()
                .map(|ratio| self.of_ratio(comparison.load, ratio));
            ratios.chain(
                comparison
                    .limits
                    .iter()
                    .map(|limit| self.of_limit(comparison.load, limit)),
            )
        });
        verdicts.filter(|verdict| !verdict.value.is_nan()).collect()
    }

    fn of_ratio(&self, load: Load, ratio: &Ratio) -> Verdict {
        let Ratio {
            of,
            against,
            figure,
            aim,
        } = *ratio;
        let ones = self.of(load, of);
        let others = self.of(load, against);
        let both = ones.iter().zip(&others);
        let value =
            median(both.map(|(one, other)| figure_of(figure, one) / figure_of(figure, other)));
        let (aim, reached) = match aim {
            Some(Aim::AtLeast(least)) => (Some(format!("at least {least}")), Some(value >= least)),
            Some(Aim::AtMost(most)) => (Some(format!("at most {most}")), Some(value <= most)),
            None => (None, None),
        };
        let load = load.to_string();
        let of = of.name();
        let against = Some(against.name());
        Verdict {
            load,
            of,
            against,
            figure: figure.name(),
            value,
            aim,
            reached,
        }
    }

    fn of_limit(&self, load: Load, limit: &Limit) -> Verdict {
        let Limit { of, figure, most } = *limit;
        let value = median(
            self.of(load, of)
                .iter()
                .map(|sample| figure_of(figure, sample)),
        );
        Verdict {
            load: load.to_string(),
            of: of.name(),
            against: None,
            figure: figure.name(),
            value,
            aim: Some(format!("at most {}", milliseconds(most))),
            reached: Some(value <= most),
        }
    }

    /// The table, in Markdown.
    pub fn text(&self) -> String {
        let mut text = String::from(
            "| | requests/s | p50 | p99 | CPU a request | peak RSS \
             |\n|---|---:|---:|---:|---:|---:|\n",
        );
        let mut load = String::new();
        for row in self.rows() {
            if row.load != load {
                load.clone_from(&row.load);
                _ = writeln!(text, "| **{load}** | | | | | |");
            }
            let Sample {
                throughput,
                p50,
                p99,
                cpu,
                peak_memory,
            } = row.median;
            let cpu = cpu.map_or("-".to_owned(), |cpu| format!("{cpu:.1} µs"));
            let memory = peak_memory.map_or("-".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
            let p50 = milliseconds(p50);
            let p99 = milliseconds(p99);
            if !throughput.is_nan() {
                _ = writeln!(
                    text,
                    "| {} | {throughput:.0} | {p50} | {p99} | {cpu} | {memory} |",
                    row.candidate
                );
            }
            if let Some(failure) = row.failure {
                let reason = failure
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .replace('|', "\\|");
                _ = writeln!(text, "| {} **failed** | {reason} | | | | |", row.candidate);
            }
        }
        text += "\n| | of | ratio | aim |\n|---|---|---:|---|\n";
        for Verdict {
            load,
            of,
            against,
            figure,
            value,
            aim,
            reached,
        } in self.verdicts()
        {
            let missed = if reached == Some(false) {
                ", **missed**"
            } else {
                ""
            };
            let (who, value) = match against {
                Some(against) => (format!("{of} ÷ {against}"), format!("{value:.2}")),
                None => (of.to_owned(), milliseconds(value)),
            };
            _ = writeln!(
                text,
                "| {who} ({load}) | {figure} | {value} | {}{missed} |",
                aim.unwrap_or_default()
            );
        }
        let Setting {
            date,
            processor,
            cores,
            kernel,
            service,
            postgresql,
            rabbitmq,
            wrk,
            users,
            rounds,
            seconds,
            ..
        } = &self.setting;
        let changed = [&[String::new()], &self.setting.changed[..]]
            .concat()
            .join(" ");
        _ = write!(
            text,
            "\n{date}, {processor}, {cores} cores for everything, Linux {kernel}; service \
             {service}{changed}, PostgreSQL {postgresql}, RabbitMQ {rabbitmq}, {wrk}; {users} users \
             where nothing else is said; medians of up to {rounds} × {seconds} s.\n"
        );
        text
    }

    pub fn write(&self, folder: &Path) -> Outcome<()> {
        let rows = self.rows();
        let verdicts = self.verdicts();
        let json =
            serde_json::json!({ "setting": &self.setting, "rows": &rows, "verdicts": &verdicts });
        fs::write(
            folder.join("report.json"),
            serde_json::to_string_pretty(&json)?,
        )?;
        fs::write(folder.join("report.md"), self.text())?;
        let measured: Vec<_> = rows
            .into_iter()
            .filter(|row| !row.median.throughput.is_nan())
            .collect();
        chart::draw(&folder.join("report.svg"), &measured)
    }
}

fn milliseconds(microseconds: f64) -> String {
    if microseconds.is_nan() {
        "-".to_owned()
    } else {
        format!("{:.2} ms", microseconds / 1e3)
    }
}

fn figure_of(figure: Figure, sample: &Sample) -> f64 {
    match figure {
        Figure::Throughput => sample.throughput,
        Figure::P50 => sample.p50,
        Figure::P99 => sample.p99,
        Figure::Cpu => sample.cpu.unwrap_or(f64::NAN),
    }
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<_> = figures.filter(|figure| !figure.is_nan()).collect();
    figures.sort_unstable_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

fn median_sample(samples: &[Sample]) -> Sample {
    let of = |figure: fn(&Sample) -> f64| median(samples.iter().map(figure));
    let mut memory: Vec<_> = samples
        .iter()
        .filter_map(|sample| sample.peak_memory)
        .collect();
    memory.sort_unstable();
    let cpu = median(samples.iter().filter_map(|sample| sample.cpu));
    Sample {
        throughput: of(|sample| sample.throughput),
        p50: of(|sample| sample.p50),
        p99: of(|sample| sample.p99),
        cpu: cpu.is_finite().then_some(cpu),
        peak_memory: memory.get(memory.len() / 2).copied(),
    }
}

fn processor() -> Outcome<String> {
    let all = fs::read_to_string("/proc/cpuinfo")?;
    let name = all
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    Ok(name
        .map_or(std::env::consts::ARCH, |(_, name)| name.trim())
        .to_owned())
}

/// Returns the kernel's version number, without the distribution's suffix.
fn kernel() -> Outcome<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(release
        .trim()
        .split('-')
        .next()
        .unwrap_or_default()
        .to_owned())
}

fn wrk_version() -> Outcome<String> {
    let said = Command::new("wrk").arg("--version").output()?.stdout;
    let said = String::from_utf8_lossy(&said);
    Ok(said
        .split_whitespace()
        .take(2)
        .collect::<Vec<_>>()
        .join(" "))
}
