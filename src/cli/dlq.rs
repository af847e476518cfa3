//! `dlq`: look at dead letters, hand them back, or delete them.

use clap::Subcommand;
use serde_json::json;

use super::error::CommandError;
use super::report::Report;
use crate::messaging::broker::Broker;
use crate::messaging::dead_letters::{self, Taken};

#[derive(Subcommand)]
pub(crate) enum DlqCommand {
    /// Messages that the consumer could not read, and why; they stay where they are
    List {
        /// Messages to look at
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        max: u32,
    },
    /// Move messages back into the service's queue, the oldest first
    Redrive {
        /// Messages to move
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        max: u32,
    },
    /// Delete messages permanently, the oldest first
    Drop {
        /// Messages to delete
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        max: u32,
    },
}

pub(crate) async fn run(command: DlqCommand, broker: &Broker) -> Result<Report, CommandError> {
    Ok(match command {
        DlqCommand::List { max } => Report::new(&dead_letters::list(broker, max).await?, true),
        DlqCommand::Redrive { max } => {
            let Taken {
                count,
                left,
                failure,
            } = dead_letters::redrive(broker, max).await?;
            Report::new(
                &json!({"moved": count, "left": left, "failure": failure}),
                failure.is_none(),
            )
        }
        DlqCommand::Drop { max } => {
            let Taken {
                count,
                left,
                failure,
            } = dead_letters::drop(broker, max).await?;
            Report::new(
                &json!({"deleted": count, "left": left, "failure": failure}),
                failure.is_none(),
            )
        }
    })
}
