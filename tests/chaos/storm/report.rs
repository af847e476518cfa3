//! The storm's report, fault by fault.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use super::RECOVERY_LIMIT;
use super::fault::{Fault, Planned};
use harness::{App, Judgement, QUEUE_TYPE, Tally};

/// Limit for the outbox and its index together, in bytes: a minute of dead rows at 2,000 writes a
/// second.
const OUTBOX_BOUND: i64 = 100 << 20;
/// Least number of faults a minute; fewer prove little.
const FAULTS_A_MINUTE: u64 = 3;
/// Least percentage of the intended writes that must succeed in spite of the faults.
const LEAST_PERCENT: u64 = 40;
/// Events committed this long before the exchange was deleted may not have been published yet.
const ON_THE_WAY: Duration = Duration::from_secs(1);
/// Events published this long before the queue was deleted may not have been consumed yet.
const IN_THE_QUEUE: Duration = Duration::from_secs(3);
/// From this many faults on, each kind must have occurred three times.
const THREE_ROUNDS: usize = 3 * Fault::ALL.len();

/// A fault, and the time until the next one.
pub struct Window {
    pub fault: Fault,
    pub at: SystemTime,
    pub writes: usize,
    /// `None` if it was never over.
    pub recovery: Option<Duration>,
}

/// A line of the table.
#[derive(Default)]
struct Line {
    times: usize,
    writes: usize,
    events: usize,
    lost: usize,
    phantom: usize,
    inverted: usize,
    repeated: usize,
    unlogged: usize,
    slowest: Duration,
}

pub struct Report {
    seed: u64,
    replicas: usize,
    began: SystemTime,
    windows: Vec<Window>,
    most_bytes: (i64, i64),
    last_bytes: (i64, i64),
    most_resident: u64,
}

impl Report {
    pub fn new(seed: u64, replicas: usize, began: SystemTime) -> Self {
        Self {
            seed,
            replicas,
            began,
            windows: Vec::new(),
            most_bytes: (0, 0),
            last_bytes: (0, 0),
            most_resident: 0,
        }
    }

    pub fn add(&mut self, window: Window) {
        self.windows.push(window);
    }

    pub fn note_sizes(&mut self, bytes: (i64, i64), replicas: &[App]) {
        self.most_bytes = (
            self.most_bytes.0.max(bytes.0),
            self.most_bytes.1.max(bytes.1),
        );
        self.last_bytes = bytes;
        self.most_resident = replicas
            .iter()
            .map(|replica| replica.resident())
            .fold(self.most_resident, u64::max);
    }

    pub fn show_progress(&self, elapsed: Duration, planned: Planned, writes: usize, events: usize) {
        let seconds = elapsed.as_secs();
        let window = self.windows.last().unwrap();
        let recovery = match window.recovery {
            Some(recovery) => format!("well after {:.1} s", recovery.as_secs_f64()),
            None => "NEVER OVER".to_owned(),
        };
        eprintln!(
            "{:2}:{:02}  fault {:3}  {:30} replica {}  {recovery:18}  {writes} writes, {events} \
             messages",
            seconds / 60,
            seconds % 60,
            self.windows.len(),
            planned.fault.name(),
            planned.victim + 1,
        );
    }

    /// Prints the table. The error lists everything that is wrong.
    pub fn conclude(
        &self,
        judgement: &Judgement,
        tally: &Tally,
        rate: u64,
        elapsed: Duration,
    ) -> Result<(), String> {
        let lines = self.lines(judgement);
        eprintln!(
            "\nseed {}, {} replicas, {} queues, {:.1} minutes",
            self.seed,
            self.replicas,
            *QUEUE_TYPE,
            elapsed.as_secs_f64() / 60.0
        );
        eprintln!(
            "{:30} {:>5} {:>8} {:>8} {:>5} {:>8} {:>9} {:>10} {:>8} {:>17}",
            "fault",
            "times",
            "writes",
            "events",
            "lost",
            "phantom",
            "inverted",
            "duplicates",
            "unlogged",
            "slowest recovery"
        );
        let mut total = Line::default();
        for (fault, line) in &lines {
            print(fault.map_or("none", Fault::name), line);
            total.add(line);
        }
        print("all", &total);
        eprintln!(
            "{} writes accepted, {} refused with a 503, {} unanswered, {} stale; {} accepted and \
             not committed, {} changes without their event",
            tally.accepted(),
            tally.refused.load(Relaxed),
            tally.unanswered.load(Relaxed),
            tally.stale.load(Relaxed),
            judgement.forgotten,
            judgement.unpaired,
        );
        let mib = |bytes: i64| bytes as f64 / 1_048_576.0;
        eprintln!(
            "outbox: table {:.1} MiB at most, {:.1} at the end; index {:.1} MiB at most, {:.1} at \
             the end",
            mib(self.most_bytes.0),
            mib(self.last_bytes.0),
            mib(self.most_bytes.1),
            mib(self.last_bytes.1),
        );
        eprintln!(
            "a replica's memory: {:.1} MiB at most\n",
            self.most_resident as f64 / 1_048_576.0
        );
        let mut faults = self.faults(&lines, judgement);
        let least = elapsed.as_secs() * FAULTS_A_MINUTE / 60;
        if (self.windows.len() as u64) < least {
            faults.push(format!(
                "{} faults, and at least {least} were to come",
                self.windows.len()
            ));
        }
        if tally.stale.load(Relaxed) == 0 {
            faults.push("no write with If-Match was too late, so it proves nothing".to_owned());
        }
        let overwriting = tally.overwriting.load(Relaxed);
        if overwriting > 0 {
            faults.push(format!(
                "{overwriting} writes with If-Match changed another version"
            ));
        }
        let least = rate * elapsed.as_secs() * LEAST_PERCENT / 100;
        if (judgement.committed.len() as u64) < least {
            faults.push(format!(
                "{} events, and at least {least} were to be made",
                judgement.committed.len()
            ));
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(faults.join("; "))
        }
    }

    fn lines(&self, judgement: &Judgement) -> BTreeMap<Option<Fault>, Line> {
        let mut lines: BTreeMap<Option<Fault>, Line> = BTreeMap::new();
        for window in &self.windows {
            let line = lines.entry(Some(window.fault)).or_default();
            line.times += 1;
            line.writes += window.writes;
            line.slowest = line.slowest.max(window.recovery.unwrap_or(RECOVERY_LIMIT));
        }
        let mut count = |moments: &[SystemTime], cell: fn(&mut Line) -> &mut usize| {
            for moment in moments {
                let window = self
                    .windows
                    .iter()
                    .rev()
                    .find(|window| window.at <= *moment);
                *cell(lines.entry(window.map(|window| window.fault)).or_default()) += 1;
            }
        };
        count(&judgement.committed, |line| &mut line.events);
        count(&judgement.lost, |line| &mut line.lost);
        count(&judgement.phantom, |line| &mut line.phantom);
        count(&judgement.inverted, |line| &mut line.inverted);
        count(&judgement.repeated, |line| &mut line.repeated);
        count(&judgement.unlogged, |line| &mut line.unlogged);
        lines
    }

    /// Whether one of `faults` explains that an event of this moment, which takes so long to
    /// arrive, did not.
    fn explains(&self, faults: &[Fault], at: SystemTime, takes: Duration) -> bool {
        self.windows.iter().enumerate().any(|(index, window)| {
            let is_before_the_end = self.windows.get(index + 1).is_none_or(|next| at < next.at);
            faults.contains(&window.fault) && at + takes >= window.at && is_before_the_end
        })
    }

    fn faults(&self, lines: &BTreeMap<Option<Fault>, Line>, judgement: &Judgement) -> Vec<String> {
        let mut faults = Vec::new();
        if !judgement.altered.is_empty() {
            faults.push(format!(
                "{} events say something else than what was committed",
                judgement.altered.len()
            ));
        }
        if !judgement.is_exact() {
            faults.push("events and changes do not agree".to_owned());
        }
        for (fault, line) in lines {
            if line.repeated > 0 && !fault.is_some_and(Fault::explains_repeats) {
                faults.push(format!(
                    "{} repeats that `{}` does not explain",
                    line.repeated,
                    fault.map_or("none", Fault::name)
                ));
            }
            if self.windows.len() >= THREE_ROUNDS && fault.is_some() && line.times < 3 {
                faults.push(format!(
                    "`{}` came {} times",
                    fault.map_or("none", Fault::name),
                    line.times
                ));
            }
        }
        let unseen = |at: &&SystemTime| !self.explains(&[Fault::ExchangeDeleted], **at, ON_THE_WAY);
        let unseen = judgement.unseen.iter().filter(unseen).count();
        if unseen > 0 {
            faults.push(format!(
                "{unseen} events that the collector never saw, and the exchange was there"
            ));
        }
        let deletions = [Fault::ExchangeDeleted, Fault::QueueDeleted];
        let unlogged = |at: &&SystemTime| !self.explains(&deletions, **at, IN_THE_QUEUE);
        let unlogged = judgement.unlogged.iter().filter(unlogged).count();
        if unlogged > 0 {
            faults.push(format!(
                "{unlogged} events that the consumer never logged, and its queue was there"
            ));
        }
        for window in self
            .windows
            .iter()
            .filter(|window| window.recovery.is_none())
        {
            let after = window
                .at
                .duration_since(self.began)
                .unwrap_or_default()
                .as_secs();
            faults.push(format!(
                "`{}` after {after} s was never over",
                window.fault.name()
            ));
        }
        if self.most_bytes.0 + self.most_bytes.1 > OUTBOX_BOUND {
            faults.push("the outbox grew out of bounds".to_owned());
        }
        faults
    }
}

impl Line {
    fn add(&mut self, other: &Self) {
        self.times += other.times;
        self.writes += other.writes;
        self.events += other.events;
        self.lost += other.lost;
        self.phantom += other.phantom;
        self.inverted += other.inverted;
        self.repeated += other.repeated;
        self.unlogged += other.unlogged;
        self.slowest = self.slowest.max(other.slowest);
    }
}

fn print(name: &str, line: &Line) {
    let Line {
        times,
        writes,
        events,
        lost,
        phantom,
        inverted,
        repeated,
        unlogged,
        slowest,
    } = line;
    let slowest = slowest.as_secs_f64();
    eprintln!(
        "{name:30} {times:>5} {writes:>8} {events:>8} {lost:>5} {phantom:>8} {inverted:>9} \
         {repeated:>10} {unlogged:>8} {slowest:>15.1} s"
    );
}
