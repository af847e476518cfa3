//! `./setup.sh bench`: the service and its upper bounds, measured in turns on one machine.
//!
//! Every candidate is a separate process, driven by the same load generator, and appears in the
//! same table: an empty axum handler (the cost of HTTP), axum and sqlx with one query per request
//! and no log (the cost of the obvious service), `pgbench` with the service's own statements (the
//! cost of PostgreSQL), and the service as shipped, with its log in a file.

mod candidates;
mod chart;
mod comparison;
mod events;
mod hashes;
mod load;
mod process;
mod report;
mod stage;

use std::error::Error;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use futures_util::FutureExt;

use self::comparison::{COMPARISONS, Comparison};
use self::report::Report;
use self::stage::Stage;

pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Parser)]
struct Cli {
    /// One round of two seconds per measurement instead of five rounds of five seconds
    #[arg(long)]
    quick: bool,
    /// Run only comparisons with this text in their name, such as `PUT` or `backlog`
    #[arg(long, default_value = "")]
    only: String,
    /// Where `report.json`, `report.md` and `report.svg` are written
    #[arg(long, default_value = ".local/bench")]
    output: PathBuf,
    /// Serve as one of the candidates; the bench starts itself with this option
    #[arg(long, hide = true)]
    serve: Option<candidates::Plain>,
    #[arg(long, hide = true, default_value = "")]
    database: String,
    /// Cargo passes this to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

/// Duration and number of the measurements.
#[derive(Clone, Copy)]
pub struct Plan {
    pub rounds: u32,
    pub measured: Duration,
    /// Load before each measurement, not counted.
    pub warm_up: Duration,
}

const FULL: Plan = Plan {
    rounds: 5,
    measured: Duration::from_secs(5),
    warm_up: Duration::from_secs(1),
};
const QUICK: Plan = Plan {
    rounds: 1,
    measured: Duration::from_secs(2),
    warm_up: Duration::from_secs(1),
};

#[tokio::main]
async fn main() -> Outcome<()> {
    let cli = Cli::parse();
    if let Some(candidate) = cli.serve {
        return candidates::serve(candidate, &cli.database).await;
    }
    std::fs::create_dir_all(&cli.output)?;
    let plan = if cli.quick { QUICK } else { FULL };
    eprintln!("  up to a million users, and the candidates …");
    let stage = Stage::set(&cli.output).await?;
    let mut report = Report::of_this_machine(plan, &stage).await?;
    let rounds = |comparison: &Comparison| comparison.rounds.min(plan.rounds) as usize;
    let chosen = || {
        COMPARISONS
            .iter()
            .filter(|comparison| comparison.load.to_string().contains(&cli.only))
    };
    let runs = chosen()
        .map(|comparison| comparison.candidates.len() * rounds(comparison))
        .sum::<usize>();
    for round in 1..=plan.rounds {
        for comparison in chosen().filter(|comparison| round <= comparison.rounds) {
            // Start with another candidate each round, because a measurement may affect the next.
            let candidates = comparison
                .candidates
                .iter()
                .cycle()
                .skip(round as usize - 1);
            for candidate in candidates.take(comparison.candidates.len()) {
                let measured = AssertUnwindSafe(stage.measure(*candidate, comparison.load, plan))
                    .catch_unwind()
                    .await;
                let measured =
                    measured.unwrap_or_else(|_panic| Err("it panicked, see above".into()));
                let result = match &measured {
                    Ok(sample) => format!("{:>9.0}/s", sample.throughput),
                    Err(error) => format!("FAILED: {error}"),
                };
                eprintln!(
                    "  {:>3} of {runs}  {:<34} {:<40} {result}",
                    report.samples() + 1,
                    comparison.load.to_string(),
                    candidate.name(),
                );
                report.add(comparison, *candidate, measured);
            }
        }
    }
    report.write(&cli.output)?;
    println!("{}", report.text());
    println!(
        "Written to {}: report.md, report.json, report.svg",
        cli.output.display()
    );
    Ok(())
}
