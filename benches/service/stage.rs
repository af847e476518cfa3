//! Starts the candidates, fills their databases with users, and takes single measurements.

use std::path::{Path, PathBuf};

use serde::Serialize;
use sqlx::AssertSqlSafe;
use tokio::process::Command;

use crate::comparison::{Call, Candidate, Load};
use crate::load::{self, Run};
use crate::process::Served;
use crate::{Outcome, Plan, events, hashes};
use harness::{World, until};

/// Number of users unless stated otherwise.
pub const USERS: u32 = 100_000;
const THOUSAND: u32 = 1_000;
const MILLION: u32 = 1_000_000;
/// Concurrent POSTs: more hashes than the machine has cores.
const POSTS: Load = Load {
    call: Call::Post,
    connections: 8,
};

/// One measurement.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    /// Requests per second.
    pub throughput: f64,
    /// Microseconds.
    pub p50: f64,
    pub p99: f64,
    /// CPU time per request of the candidate's own process, in microseconds.
    pub cpu: Option<f64>,
    /// Largest resident memory of that process, in bytes.
    pub peak_memory: Option<u64>,
}

impl Sample {
    /// The sample of a failed measurement.
    pub const NONE: Self = Self {
        throughput: f64::NAN,
        p50: f64::NAN,
        p99: f64::NAN,
        cpu: None,
        peak_memory: None,
    };
}

/// A service and its database.
pub struct Place {
    pub world: World,
    pub service: Served,
    users: u32,
    /// Whether its events can be published.
    has_broker: bool,
}

impl Place {
    async fn set(name: &str, users: u32, changed: &[(&str, &str)], folder: &Path) -> Outcome<Self> {
        let world = World::new().await;
        fill(&world, users).await?;
        let has_broker = changed.iter().all(|(name, _)| *name != "RABBITMQ_URL");
        let settings = [&world.settings()[..], changed].concat();
        let service =
            Served::service(&settings, &folder.join(format!("{name}.log")), has_broker).await?;
        Ok(Self {
            world,
            service,
            users,
            has_broker,
        })
    }

    /// Waits until no work remains that would burden the next measurement.
    async fn clear_away(&self) -> Outcome<()> {
        if self.has_broker {
            until("an empty outbox", async || {
                self.world.outbox_is_empty().await
            })
            .await;
        } else {
            sqlx::raw_sql("TRUNCATE outbox")
                .execute(&self.world.pool)
                .await?;
        }
        self.service.until_idle().await?;
        sqlx::raw_sql("CHECKPOINT")
            .execute(&self.world.pool)
            .await?;
        Ok(())
    }
}

pub struct Stage {
    service: Place,
    quiet: Place,
    ungrouped: Place,
    brokerless: Place,
    thousand: Place,
    million: Place,
    /// The events that `pgbench` writes are not published.
    pgbench_world: World,
    empty: Served,
    sqlx: Served,
    scratch: PathBuf,
}

impl Stage {
    /// Starts everything, on separate databases; logs go to `folder`.
    pub async fn set(folder: &Path) -> Outcome<Self> {
        let pgbench_world = World::new().await;
        fill(&pgbench_world, USERS).await?;
        // Also logs probes, which the service does not log by default: their lines measure the cost
        // of a line.
        let settings = [("LOG_LEVEL", "info,lapin=off,probes=debug")];
        let service = Place::set("service", USERS, &settings, folder).await?;
        let plain = |candidate: &str| -> Outcome<Command> {
            let mut command = Command::new(std::env::current_exe()?);
            command.args([
                "--serve",
                candidate,
                "--database",
                &service.world.database_url,
            ]);
            Ok(command)
        };
        Ok(Self {
            quiet: Place::set("quiet", 1, &[("LOG_LEVEL", "error")], folder).await?,
            ungrouped: Place::set("ungrouped", USERS, &[("GROUP_COMMIT", "false")], folder).await?,
            brokerless: Place::set(
                "brokerless",
                USERS,
                &[("RABBITMQ_URL", "amqp://127.0.0.1:1")],
                folder,
            )
            .await?,
            thousand: Place::set("thousand", THOUSAND, &[], folder).await?,
            million: Place::set("million", MILLION, &[], folder).await?,
            pgbench_world,
            empty: Served::spawn(plain("empty")?).await?,
            sqlx: Served::spawn(plain("sqlx")?).await?,
            service,
            scratch: folder.to_owned(),
        })
    }

    pub async fn measure(&self, candidate: Candidate, load: Load, plan: Plan) -> Outcome<Sample> {
        match (load.call, candidate) {
            (Call::Backlog, Candidate::Publisher) => {
                return events::publish(&self.pgbench_world, plan, false).await;
            }
            (Call::Backlog, Candidate::PublisherAndConsumer) => {
                return events::publish(&self.pgbench_world, plan, true).await;
            }
            (Call::Backlog, _) => return events::drain(&self.service, plan).await,
            (Call::Delivery, _) => return events::deliver(&self.service, plan).await,
            _ => {}
        }
        match candidate {
            Candidate::Service => self.of_service(&self.service, load, plan).await,
            Candidate::Quiet => self.of_service(&self.quiet, load, plan).await,
            Candidate::Ungrouped => self.of_service(&self.ungrouped, load, plan).await,
            Candidate::Brokerless => self.of_service(&self.brokerless, load, plan).await,
            Candidate::Thousand => self.of_service(&self.thousand, load, plan).await,
            Candidate::Million => self.of_service(&self.million, load, plan).await,
            Candidate::AmidPosts => {
                let address = &self.service.service.address;
                // Runs from the start of the warm-up until after the end of the measurement.
                let posts = load::wrk(
                    address,
                    POSTS,
                    USERS,
                    plan.warm_up + plan.measured + plan.warm_up,
                );
                let (sample, posts) =
                    tokio::join!(self.of_service(&self.service, load, plan), posts);
                posts?;
                self.service.clear_away().await?;
                sample
            }
            Candidate::Empty => of_served(&self.empty, load, USERS, plan).await,
            Candidate::Sqlx => of_served(&self.sqlx, load, USERS, plan).await,
            Candidate::Pgbench => {
                self.of_pgbench(&self.pgbench_world, USERS, load.call, plan)
                    .await
            }
            Candidate::PgbenchThousand => {
                self.of_pgbench(&self.thousand.world, THOUSAND, load.call, plan)
                    .await
            }
            Candidate::PgbenchMillion => {
                self.of_pgbench(&self.million.world, MILLION, load.call, plan)
                    .await
            }
            Candidate::Hashes => hashes::measure(plan),
            Candidate::Publisher | Candidate::PublisherAndConsumer => {
                Err("the publisher serves no requests".into())
            }
        }
    }

    async fn of_service(&self, place: &Place, load: Load, plan: Plan) -> Outcome<Sample> {
        let sample = of_served(&place.service, load, place.users, plan).await?;
        if matches!(load.call, Call::Put | Call::Post) {
            place.clear_away().await?;
        }
        Ok(sample)
    }

    async fn of_pgbench(
        &self,
        world: &World,
        users: u32,
        call: Call,
        plan: Plan,
    ) -> Outcome<Sample> {
        let url = &world.database_url;
        let run = load::pgbench(url, call, users, plan.measured, &self.scratch).await?;
        if call == Call::Put {
            sqlx::raw_sql("TRUNCATE outbox")
                .execute(&world.pool)
                .await?;
            sqlx::raw_sql("CHECKPOINT").execute(&world.pool).await?;
        }
        Ok(sample(run, None, None))
    }

    /// Returns the service's settings that the environment overrides, as `NAME=value`.
    pub fn changed_settings(&self) -> Vec<String> {
        let settings = self.service.world.settings();
        let changed = settings.iter().filter(|(name, value)| {
            matches!(*name, "COALESCE_READS" | "GROUP_COMMIT") && !value.is_empty()
        });
        changed
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }

    /// Returns the result of `SHOW name`.
    pub async fn database_setting(&self, name: &str) -> Outcome<String> {
        let pool = &self.service.world.pool;
        let shown = sqlx::query_scalar(AssertSqlSafe(format!("SHOW {name}")))
            .fetch_one(pool)
            .await?;
        Ok(shown)
    }
}

async fn of_served(served: &Served, load: Load, users: u32, plan: Plan) -> Outcome<Sample> {
    load::wrk(&served.address, load, users, plan.warm_up).await?;
    served.reset_peak()?;
    let before = served.cpu()?;
    let run = load::wrk(&served.address, load, users, plan.measured).await?;
    let cpu = (served.cpu()? - before) * 1e6 / run.requests;
    let peak_memory = served.peak_memory()?;
    served.reset_peak()?;
    Ok(sample(run, Some(cpu), Some(peak_memory)))
}

fn sample(run: Run, cpu: Option<f64>, peak_memory: Option<u64>) -> Sample {
    Sample {
        throughput: run.requests / run.seconds,
        p50: run.p50,
        p99: run.p99,
        cpu,
        peak_memory,
    }
}

async fn fill(world: &World, users: u32) -> Outcome<()> {
    let insert = format!(
        "INSERT INTO users (name, surname, password)
         SELECT 'Имя' || n, 'Фамилия' || n, '$argon2id$v=19$m=19456,t=2,p=1$' || repeat('x', 66)
         FROM generate_series(1, {users}) AS n"
    );
    sqlx::raw_sql(AssertSqlSafe(insert))
        .execute(&world.pool)
        .await?;
    sqlx::raw_sql("VACUUM ANALYZE users")
        .execute(&world.pool)
        .await?;
    Ok(())
}
