//! How many hashes the machine can compute: one after the other on every core, with the service's
//! own function.

use std::thread;
use std::time::{Duration, Instant};

use user_management_api::testing::{Caller, Client, PasswordHasher, PasswordPolicy};

use crate::stage::Sample;
use crate::{Outcome, Plan};

pub fn measure(plan: Plan) -> Outcome<Sample> {
    let cores = thread::available_parallelism()?.get();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..cores)
            .map(|_| scope.spawn(|| hash_for(plan.measured)))
            .collect();
        let mut times = Vec::new();
        for thread in threads {
            times.extend(thread.join().map_err(|_panic| "a hash panicked")??);
        }
        times.sort_unstable();
        let all = f64::from(u32::try_from(times.len())?);
        let total: Duration = times.iter().sum();
        let percentile = |percent: usize| times[times.len() * percent / 100].as_secs_f64() * 1e6;
        let throughput = all / total.as_secs_f64() * f64::from(u32::try_from(cores)?);
        Ok(Sample {
            throughput,
            p50: percentile(50),
            p99: percentile(99),
            cpu: None,
            peak_memory: None,
        })
    })
}

/// Hashes for `time`. Returns how long each hash took.
fn hash_for(time: Duration) -> Outcome<Vec<Duration>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let hasher = PasswordHasher::new(Duration::from_mins(1))?;
    let policy = PasswordPolicy { min_chars: 8 };
    let began = Instant::now();
    let mut times = Vec::new();
    while began.elapsed() < time {
        let password = policy
            .check("correct horse battery staple".into())
            .map_err(|violation| violation.detail)?;
        let start = Instant::now();
        runtime.block_on(hasher.hash(
            password,
            Caller {
                client: Client::Address(None),
                gone: std::future::pending(),
            },
        ))?;
        times.push(start.elapsed());
    }
    Ok(times)
}
