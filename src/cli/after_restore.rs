//! `after-restore`: reconciles a database that has lost changes with subscribers that have seen
//! them.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::time::Instant;

use super::error::CommandError;
use super::report::Report;
use crate::database::{DatabaseUrl, connect, identity, keeps_settings, schema};
use crate::repository::lifts::{self, Lift};
use crate::repository::outbox::{self, Election};
use crate::trace_id::TraceId;

#[derive(Args)]
pub(crate) struct HowFar {
    /// How far to lift versions and ids: more than the changes of any one user, and more than the
    /// new users, that can have been lost
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(i64).range(1..=1_000_000_000_000))]
    step: i64,
    /// Publish a `user.updated` for each user, so that subscribers take over the restored values
    #[arg(long)]
    republish: bool,
}

#[derive(Serialize)]
struct Done {
    #[serde(flatten)]
    lift: Lift,
    /// Id of the next new user.
    next_id: i64,
    remains: &'static str,
}

/// Pause between two progress reports.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// What remains to be done after the users were republished.
const AFTER_REPUBLISHING: &str = "start the service, which publishes the events; have each \
                                  subscriber delete the users that the list does not have \
                                  (docs/subscribers.md)";
/// What remains to be done if they were not.
const WITHOUT_EVENTS: &str = "start the service; have each subscriber read the list again and \
                              delete the users that it does not have (docs/subscribers.md)";

pub(crate) async fn run(asked: HowFar, database: &DatabaseUrl) -> Result<Report, CommandError> {
    lift(asked, database).await.map_err(|error| match error {
        CommandError::Database(cause) if cause.is_not_allowed() => CommandError::NotAllowed(cause),
        other => other,
    })
}

async fn lift(asked: HowFar, database: &DatabaseUrl) -> Result<Report, CommandError> {
    // A lock in a session that other clients share would exclude no one.
    if !keeps_settings(&database.options()).await? {
        return Err(CommandError::Shared);
    }
    let mut connection = connect(&database.options()).await?;
    if !schema::is_current(&mut connection).await? {
        return Err(CommandError::Migrations);
    }
    // Holds the lock until the end, so that no relay publishes meanwhile.
    match outbox::try_lead(&mut connection).await? {
        Election::Won => {}
        Election::Lost => return Err(CommandError::Running),
        Election::ReadOnly => return Err(CommandError::ReadOnly),
    }
    outbox::lift_sequence(&mut connection).await?;
    let mut lift = match lifts::unfinished(&mut connection).await? {
        Some(lift) => {
            let Lift {
                step, republish, ..
            } = lift;
            eprintln!("Resuming an earlier run, with --step {step} and republish: {republish}.");
            lift
        }
        None => {
            lifts::begin(
                &mut connection,
                asked.step,
                asked.republish,
                &TraceId::generate(),
            )
            .await?
        }
    };
    lifts::lift_ids(&mut connection, &lift).await?;
    let mut next_report = Instant::now();
    while lifts::lift_some(&mut connection, &mut lift).await? {
        if Instant::now() >= next_report {
            eprintln!(
                "{} users lifted, up to id {} …",
                lift.lifted, lift.lifted_to
            );
            next_report = Instant::now() + REPORT_INTERVAL;
        }
    }
    // Records this server: otherwise the next start would warn about it again.
    identity::has_changed(&database.options()).await?;
    let remains = if lift.republish {
        AFTER_REPUBLISHING
    } else {
        WITHOUT_EVENTS
    };
    Ok(Report::new(
        &Done {
            next_id: lift.last_id + 1,
            lift,
            remains,
        },
        true,
    ))
}
