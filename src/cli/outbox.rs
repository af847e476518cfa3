//! `outbox`: shows waiting events, and lists, retries or drops quarantined ones.

use clap::{Args, Subcommand};
use serde::Serialize;
use uuid::Uuid;

use super::error::CommandError;
use super::report::Report;
use crate::database::{DatabaseUrl, connect, schema};
use crate::repository::outbox;
use crate::repository::quarantine::{self, QuarantinedEvent};

#[derive(Subcommand)]
pub(crate) enum OutboxCommand {
    /// Show what waits to be published, which replica publishes it, and the disk space used
    Status,
    /// Events that RabbitMQ rejects: publishing them closed the channel again and again
    #[command(subcommand, alias = "dead")]
    Quarantine(QuarantineCommand),
}

#[derive(Subcommand)]
pub(crate) enum QuarantineCommand {
    /// List the events, and why the broker rejected them
    List,
    /// Put events back at the end of the outbox
    Retry(Which),
    /// Delete events permanently: no subscriber will learn of these changes
    Drop(Which),
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Which {
    /// Event ids, as in `outbox quarantine list`
    #[arg(value_name = "ID")]
    ids: Option<Vec<Uuid>>,
    /// All events of this type, such as `user.deleted`
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// All events
    #[arg(long)]
    all: bool,
}

#[derive(Serialize)]
struct Quarantine {
    count: usize,
    events: Vec<QuarantinedEvent>,
}

#[derive(Serialize)]
struct Decided {
    done: usize,
    not_found: Vec<Uuid>,
}

pub(crate) async fn run(
    command: OutboxCommand,
    database: &DatabaseUrl,
) -> Result<Report, CommandError> {
    let mut connection = connect(&database.options()).await?;
    if !schema::is_current(&mut connection).await? {
        return Err(CommandError::Migrations);
    }
    let (asked_for, done) = match command {
        OutboxCommand::Status => {
            return Ok(Report::new(&outbox::state(&mut connection).await?, true));
        }
        OutboxCommand::Quarantine(QuarantineCommand::List) => {
            let events = quarantine::list(&mut connection).await?;
            return Ok(Report::new(
                &Quarantine {
                    count: events.len(),
                    events,
                },
                true,
            ));
        }
        OutboxCommand::Quarantine(QuarantineCommand::Retry(Which {
            ids, event_type, ..
        })) => {
            let done =
                quarantine::retry(&mut connection, ids.as_deref(), event_type.as_deref()).await?;
            (ids, done)
        }
        OutboxCommand::Quarantine(QuarantineCommand::Drop(Which {
            ids, event_type, ..
        })) => {
            let done =
                quarantine::drop(&mut connection, ids.as_deref(), event_type.as_deref()).await?;
            (ids, done)
        }
    };
    let mut not_found = asked_for.unwrap_or_default();
    not_found.retain(|id| !done.contains(id));
    let complete = not_found.is_empty();
    Ok(Report::new(
        &Decided {
            done: done.len(),
            not_found,
        },
        complete,
    ))
}
