//! The candidates, started and filled with users, and one measurement of one of them.

use std::path::{Path, PathBuf};

use serde::Serialize;
use sqlx::AssertSqlSafe;
use tokio::process::Command;

use crate::{
    Outcome, Plan,
    comparison::{Call, Candidate, Load},
    harness::{World, eventually},
    load::{self, Run},
    process::Served,
};

pub const USERS: u32 = 100_000;

/// One measurement.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    /// Requests a second.
    pub throughput: f64,
    /// Microseconds.
    pub p50: f64,
    pub p99: f64,
    /// Processor time of the candidate's own process for a request, in microseconds.
    pub cpu: Option<f64>,
    /// Largest resident memory of that process, in bytes.
    pub peak_memory: Option<u64>,
}

pub struct Stage {
    world: World,
    /// Nobody publishes the events that `pgbench` writes.
    pgbench_world: World,
    _quiet_world: World,
    service: Served,
    quiet: Served,
    empty: Served,
    sqlx: Served,
    scratch: PathBuf,
}

impl Stage {
    /// Everything started, on databases of its own; logs go to `folder`.
    pub async fn set(folder: &Path) -> Outcome<Self> {
        let (world, quiet_world, pgbench_world) = (World::new().await, World::new().await, World::new().await);
        for world in [&world, &pgbench_world] {
            fill(world).await?;
        }
        let plain = |candidate: &str| -> Outcome<Command> {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["--serve", candidate, "--database", &world.database_url]);
            Ok(command)
        };
        let quiet_settings = [&quiet_world.settings()[..], &[("LOG_LEVEL", "error")]].concat();
        Ok(Self {
            service: Served::service(&world.settings(), &folder.join("service.log")).await?,
            quiet: Served::service(&quiet_settings, &folder.join("quiet.log")).await?,
            empty: Served::saying_where(plain("empty")?).await?,
            sqlx: Served::saying_where(plain("sqlx")?).await?,
            world,
            pgbench_world,
            _quiet_world: quiet_world,
            scratch: folder.to_owned(),
        })
    }

    pub async fn measure(&self, candidate: Candidate, load: Load, plan: Plan) -> Outcome<Sample> {
        let served = match candidate {
            Candidate::Service => &self.service,
            Candidate::Quiet => &self.quiet,
            Candidate::Empty => &self.empty,
            Candidate::Sqlx => &self.sqlx,
            Candidate::Pgbench => return self.measure_pgbench(load.call, plan).await,
        };
        load::wrk(&served.address, load, plan.warm_up).await?;
        served.start_anew()?;
        let before = served.cpu()?;
        let run = load::wrk(&served.address, load, plan.measured).await?;
        let cpu = (served.cpu()? - before) * 1e6 / run.requests;
        let peak_memory = served.peak_memory()?;
        served.start_anew()?;
        if load.call == Call::Put {
            // Events on their way would be the next candidate's burden.
            eventually("an empty outbox", async || self.world.outbox_is_empty().await.then_some(())).await;
            served.until_idle().await?;
            sqlx::raw_sql("CHECKPOINT").execute(&self.world.pool).await?;
        }
        Ok(sample(run, Some(cpu), Some(peak_memory)))
    }

    async fn measure_pgbench(&self, call: Call, plan: Plan) -> Outcome<Sample> {
        let url = &self.pgbench_world.database_url;
        load::pgbench(url, call, plan.warm_up, &self.scratch).await?;
        let run = load::pgbench(url, call, plan.measured, &self.scratch).await?;
        sqlx::raw_sql("TRUNCATE outbox").execute(&self.pgbench_world.pool).await?;
        if call == Call::Put {
            sqlx::raw_sql("CHECKPOINT").execute(&self.pgbench_world.pool).await?;
        }
        Ok(sample(run, None, None))
    }

    /// The service's setting of that name, as the environment has it; empty for the default.
    pub fn coalesce_reads(&self) -> String {
        let setting = self.world.settings().into_iter().find(|(name, _)| *name == "COALESCE_READS");
        setting.map(|(_, value)| value.to_owned()).unwrap_or_default()
    }

    /// What `SHOW name` says.
    pub async fn database_setting(&self, name: &str) -> Outcome<String> {
        let shown = sqlx::query_scalar(AssertSqlSafe(format!("SHOW {name}"))).fetch_one(&self.world.pool).await?;
        Ok(shown)
    }
}

fn sample(run: Run, cpu: Option<f64>, peak_memory: Option<u64>) -> Sample {
    Sample { throughput: run.requests / run.seconds, p50: run.p50, p99: run.p99, cpu, peak_memory }
}

async fn fill(world: &World) -> Outcome<()> {
    let insert = format!(
        "INSERT INTO users (name, surname, password)
         SELECT 'Имя' || n, 'Фамилия' || n, '$argon2id$v=19$m=19456,t=2,p=1$' || repeat('x', 66)
         FROM generate_series(1, {USERS}) AS n"
    );
    sqlx::raw_sql(AssertSqlSafe(insert)).execute(&world.pool).await?;
    sqlx::raw_sql("VACUUM ANALYZE users").execute(&world.pool).await?;
    Ok(())
}
