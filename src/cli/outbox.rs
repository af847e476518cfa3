//! `outbox`: look at the events that wait, and decide what becomes of those that were given up.

use clap::{Args, Subcommand};
use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{error::CommandError, report::Report};
use crate::{
    database::{DatabaseUrl, connect, schema},
    repository::{outbox, outbox_dead},
};

#[derive(Subcommand)]
pub enum OutboxCommand {
    /// What waits to be published, who publishes it, and the room it takes
    Status,
    /// Events given up, because publishing them closed the channel again and again
    #[command(subcommand)]
    Dead(DeadCommand),
}

#[derive(Subcommand)]
pub enum DeadCommand {
    /// What they are, and what the broker said
    List,
    /// Put events back at the end of the outbox
    Retry(Which),
    /// Delete events for ever: no subscriber will hear of these changes
    Drop(Which),
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct Which {
    /// Event ids, as in `outbox dead list`
    #[arg(value_name = "ID")]
    ids: Vec<Uuid>,
    /// All events of this type, such as `user.deleted`
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// All events
    #[arg(long)]
    all: bool,
}

#[derive(Serialize)]
struct Dead {
    count: usize,
    events: Vec<outbox_dead::DeadEvent>,
}

#[derive(Serialize)]
struct Decided {
    done: u64,
    not_found: Vec<Uuid>,
}

/// # Errors
/// When PostgreSQL is away, or its schema is older than the binary.
pub async fn run(command: OutboxCommand, database: &DatabaseUrl) -> Result<Report, CommandError> {
    let mut connection = connect(&database.options()).await?;
    if !schema::is_current(&mut connection).await? {
        return Err(CommandError::Migrations);
    }
    match command {
        OutboxCommand::Status => Ok(Report::new(&outbox::state(&mut connection).await?, true)),
        OutboxCommand::Dead(DeadCommand::List) => {
            let events = outbox_dead::list(&mut connection).await?;
            Ok(Report::new(&Dead { count: events.len(), events }, true))
        }
        OutboxCommand::Dead(DeadCommand::Retry(Which { ids, .. })) if !ids.is_empty() => {
            decide(ids, &mut connection, async |connection, id| outbox_dead::retry(connection, id).await).await
        }
        OutboxCommand::Dead(DeadCommand::Drop(Which { ids, .. })) if !ids.is_empty() => {
            decide(ids, &mut connection, async |connection, id| outbox_dead::drop(connection, id).await).await
        }
        OutboxCommand::Dead(DeadCommand::Retry(Which { event_type, .. })) => {
            Ok(decided(outbox_dead::retry_all(&mut connection, event_type.as_deref()).await?))
        }
        OutboxCommand::Dead(DeadCommand::Drop(Which { event_type, .. })) => {
            Ok(decided(outbox_dead::drop_all(&mut connection, event_type.as_deref()).await?))
        }
    }
}

fn decided(done: u64) -> Report {
    Report::new(&Decided { done, not_found: Vec::new() }, true)
}

async fn decide(
    ids: Vec<Uuid>,
    connection: &mut PgConnection,
    decision: impl AsyncFn(&mut PgConnection, Uuid) -> sqlx::Result<bool>,
) -> Result<Report, CommandError> {
    let mut decided = Decided { done: 0, not_found: Vec::new() };
    for id in ids {
        if decision(connection, id).await? {
            decided.done += 1;
        } else {
            decided.not_found.push(id);
        }
    }
    Ok(Report::new(&decided, decided.not_found.is_empty()))
}
