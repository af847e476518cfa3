//! What was measured: medians over the rounds, as a table for people, as JSON, and as a chart.

use std::{fmt::Write, fs, path::Path, process::Command};

use serde::Serialize;

use crate::{
    Outcome, Plan, chart,
    comparison::{Aim, COMPARISONS, Candidate, Comparison, Load},
    harness,
    stage::{Sample, Stage, USERS},
};

/// Where and with what it was measured.
#[derive(Serialize)]
struct Setting {
    date: String,
    processor: String,
    cores: usize,
    kernel: String,
    service: &'static str,
    /// As the environment has it; empty for the default.
    coalesce_reads: String,
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
    sample: Sample,
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
}

/// The service held against another candidate: the median of the rounds' ratios.
#[derive(Serialize)]
struct Ratio {
    load: String,
    against: &'static str,
    of: &'static str,
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
            coalesce_reads: stage.coalesce_reads(),
            postgresql: stage.database_setting("server_version").await?,
            rabbitmq: broker["rabbitmq_version"].as_str().unwrap_or("unknown").to_owned(),
            wrk: wrk_version()?,
            users: USERS,
            rounds: plan.rounds,
            seconds: plan.measured.as_secs(),
        };
        Ok(Self { setting, measured: Vec::new() })
    }

    pub fn add(&mut self, comparison: &Comparison, candidate: Candidate, sample: Sample) {
        self.measured.push(Measured { load: comparison.load, candidate, sample });
    }

    pub fn samples(&self) -> usize {
        self.measured.len()
    }

    fn of(&self, load: Load, candidate: Candidate) -> Vec<Sample> {
        let found = self.measured.iter().filter(|one| one.load == load && one.candidate == candidate);
        found.map(|one| one.sample).collect()
    }

    fn rows(&self) -> Vec<Row> {
        let rows = COMPARISONS.iter().flat_map(|comparison| {
            let load = comparison.load;
            comparison.candidates.iter().map(move |candidate| Row {
                load: load.to_string(),
                candidate: candidate.name(),
                median: median_sample(&self.of(load, *candidate)),
            })
        });
        rows.collect()
    }

    fn ratios(&self) -> Vec<Ratio> {
        let mut ratios = Vec::new();
        for Comparison { load, candidates, aims } in &COMPARISONS {
            let service = self.of(*load, candidates[0]);
            for (against, aim) in candidates[1..].iter().zip(*aims) {
                let figure = |sample: &Sample| match aim {
                    Some(Aim::MedianLatencyAtMost(_)) => sample.p50,
                    Some(Aim::ThroughputAtLeast(_)) | None => sample.throughput,
                };
                let others = self.of(*load, *against);
                let value = median(service.iter().zip(&others).map(|(one, other)| figure(one) / figure(other)));
                let (of, wanted, reached) = match *aim {
                    Some(Aim::ThroughputAtLeast(least)) => {
                        ("throughput", Some(format!("at least {least}")), Some(value >= least))
                    }
                    Some(Aim::MedianLatencyAtMost(most)) => {
                        ("p50", Some(format!("at most {most}")), Some(value <= most))
                    }
                    None => ("throughput", None, None),
                };
                let load = load.to_string();
                ratios.push(Ratio { load, against: against.name(), of, value, aim: wanted, reached });
            }
        }
        ratios
    }

    /// The table, in Markdown.
    pub fn text(&self) -> String {
        let mut text =
            String::from("| | requests/s | p50 | p99 | CPU a request | peak RSS |\n|---|---:|---:|---:|---:|---:|\n");
        let mut load = String::new();
        for row in self.rows() {
            if row.load != load {
                load.clone_from(&row.load);
                _ = writeln!(text, "| **{load}** | | | | | |");
            }
            let Sample { throughput, p50, p99, cpu, peak_memory } = row.median;
            let cpu = cpu.map_or("-".to_owned(), |cpu| format!("{cpu:.1} µs"));
            let memory = peak_memory.map_or("-".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
            let (p50, p99) = (milliseconds(p50), milliseconds(p99));
            _ = writeln!(text, "| {} | {throughput:.0} | {p50} | {p99} | {cpu} | {memory} |", row.candidate);
        }
        text += "\n| the service ÷ … | of | ratio | aim |\n|---|---|---:|---|\n";
        for Ratio { load, against, of, value, aim, reached } in self.ratios() {
            let aim = aim.map_or(String::new(), |aim| {
                format!("{aim}{}", if reached == Some(true) { "" } else { ", **missed**" })
            });
            _ = writeln!(text, "| {against} ({load}) | {of} | {value:.2} | {aim} |");
        }
        let Setting {
            date, processor, cores, kernel, service, postgresql, rabbitmq, wrk, users, rounds, seconds, ..
        } = &self.setting;
        let reads = match self.setting.coalesce_reads.as_str() {
            "" => String::new(),
            value => format!(" with COALESCE_READS={value}"),
        };
        _ = write!(
            text,
            "\n{date}, {processor}, {cores} cores for everything, Linux {kernel}; service {service}{reads}, \
             PostgreSQL {postgresql}, RabbitMQ {rabbitmq}, {wrk}; {users} users; medians of {rounds} × {seconds} s.\n"
        );
        text
    }

    pub fn write(&self, folder: &Path) -> Outcome<()> {
        let (rows, ratios) = (self.rows(), self.ratios());
        let json = serde_json::json!({ "setting": &self.setting, "rows": &rows, "ratios": &ratios });
        fs::write(folder.join("report.json"), serde_json::to_string_pretty(&json)?)?;
        fs::write(folder.join("report.md"), self.text())?;
        chart::draw(&folder.join("report.svg"), &rows)
    }
}

fn milliseconds(microseconds: f64) -> String {
    format!("{:.2} ms", microseconds / 1e3)
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<_> = figures.collect();
    figures.sort_unstable_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

fn median_sample(samples: &[Sample]) -> Sample {
    let of = |figure: fn(&Sample) -> f64| median(samples.iter().map(figure));
    let mut memory: Vec<_> = samples.iter().filter_map(|sample| sample.peak_memory).collect();
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
    let name = all.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    Ok(name.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_owned())
}

/// Its numbers, without what a distribution adds.
fn kernel() -> Outcome<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(release.trim().split('-').next().unwrap_or_default().to_owned())
}

fn wrk_version() -> Outcome<String> {
    let said = Command::new("wrk").arg("--version").output()?.stdout;
    let said = String::from_utf8_lossy(&said);
    Ok(said.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
}
