//! What an operator does by hand: look at the outbox, and decide what becomes of dead events and dead letters. Each
//! command yields one report, as a table or as JSON.

pub mod check;

use std::fmt::Write;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    database::{DatabaseError, DatabaseUrl, connect, schema},
    messaging::{
        broker::Broker,
        dead_letters::{self, Dropped, Redriven},
        session::SessionError,
    },
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

#[derive(Subcommand)]
pub enum DlqCommand {
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
    /// Delete messages for ever, the oldest first
    Drop {
        /// Messages to delete
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        max: u32,
    },
}

#[derive(Clone, Copy, Default, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Json,
}

#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    #[error("PostgreSQL: {0}")]
    Database(#[from] DatabaseError),
    #[error("migrations are pending: run `user-management-api migrate`")]
    Migrations,
    #[error(transparent)]
    Broker(#[from] SessionError),
    #[error("a report cannot be written as JSON: {0}")]
    Report(#[from] serde_json::Error),
}

impl From<sqlx::Error> for OperatorError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

/// What was done, and whether that is all that was asked for.
pub struct Report {
    value: Value,
    pub complete: bool,
}

impl Report {
    fn new(report: &impl Serialize, complete: bool) -> Result<Self, OperatorError> {
        Ok(Self { value: serde_json::to_value(report)?, complete })
    }

    /// The report as text, with a line break at its end.
    #[must_use]
    pub fn text(&self, format: Format) -> String {
        match format {
            Format::Json => format!("{}\n", self.value),
            Format::Table => table(&self.value),
        }
    }
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
pub async fn outbox(command: OutboxCommand, database: &DatabaseUrl) -> Result<Report, OperatorError> {
    let mut connection = connect(&database.options()).await?;
    if !schema::is_current(&mut connection).await? {
        return Err(OperatorError::Migrations);
    }
    match command {
        OutboxCommand::Status => Report::new(&outbox::state(&mut connection).await?, true),
        OutboxCommand::Dead(DeadCommand::List) => {
            let events = outbox_dead::list(&mut connection).await?;
            Report::new(&Dead { count: events.len(), events }, true)
        }
        OutboxCommand::Dead(DeadCommand::Retry(Which { ids, .. })) if !ids.is_empty() => {
            decide(ids, &mut connection, async |connection, id| outbox_dead::retry(connection, id).await).await
        }
        OutboxCommand::Dead(DeadCommand::Drop(Which { ids, .. })) if !ids.is_empty() => {
            decide(ids, &mut connection, async |connection, id| outbox_dead::drop(connection, id).await).await
        }
        OutboxCommand::Dead(DeadCommand::Retry(Which { event_type, .. })) => {
            decided(outbox_dead::retry_all(&mut connection, event_type.as_deref()).await?)
        }
        OutboxCommand::Dead(DeadCommand::Drop(Which { event_type, .. })) => {
            decided(outbox_dead::drop_all(&mut connection, event_type.as_deref()).await?)
        }
    }
}

fn decided(done: u64) -> Result<Report, OperatorError> {
    Report::new(&Decided { done, not_found: Vec::new() }, true)
}

async fn decide(
    ids: Vec<Uuid>,
    connection: &mut PgConnection,
    decision: impl AsyncFn(&mut PgConnection, Uuid) -> sqlx::Result<bool>,
) -> Result<Report, OperatorError> {
    let mut decided = Decided { done: 0, not_found: Vec::new() };
    for id in ids {
        if decision(connection, id).await? {
            decided.done += 1;
        } else {
            decided.not_found.push(id);
        }
    }
    Report::new(&decided, decided.not_found.is_empty())
}

/// # Errors
/// When RabbitMQ is away, or there is no such queue.
pub async fn dlq(command: DlqCommand, broker: &Broker) -> Result<Report, OperatorError> {
    match command {
        DlqCommand::List { max } => Report::new(&dead_letters::list(broker, max).await?, true),
        DlqCommand::Redrive { max } => {
            let redriven: Redriven = dead_letters::redrive(broker, max).await?;
            Report::new(&redriven, redriven.failure.is_none())
        }
        DlqCommand::Drop { max } => {
            let dropped: Dropped = dead_letters::drop(broker, max).await?;
            Report::new(&dropped, dropped.failure.is_none())
        }
    }
}

/// Single values as lines, then each list of objects as columns.
fn table(report: &Value) -> String {
    let mut text = String::new();
    let Value::Object(fields) = report else { return format!("{report}\n") };
    let width = fields.keys().map(String::len).max().unwrap_or(0);
    let (lists, singles): (Vec<_>, Vec<_>) =
        fields.iter().partition(|(_, value)| value.as_array().is_some_and(|rows| rows.iter().all(Value::is_object)));
    for (name, value) in singles {
        _ = writeln!(text, "{name:width$}  {}", cell(value));
    }
    for rows in lists.iter().filter_map(|(_, value)| value.as_array()) {
        columns(&mut text, rows);
    }
    text
}

fn columns(text: &mut String, rows: &[Value]) {
    let Some(Value::Object(first)) = rows.first() else { return };
    let header: Vec<String> = first.keys().map(|name| name.to_uppercase()).collect();
    let lines = rows.iter().map(|row| first.keys().map(|name| cell(&row[name])).collect());
    let lines: Vec<Vec<String>> = std::iter::once(header).chain(lines).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..first.len()).map(width).collect();
    for line in &lines {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
}

/// Of strangers' text, nothing reaches the terminal that could control it.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::table;

    #[test]
    fn a_table_has_single_values_as_lines_and_lists_as_columns() {
        let report = json!({"count": 2, "leader": null, "rows": [{"id": "a", "n": 1}, {"id": "longer", "n": 22}]});
        assert_eq!(table(&report), "count   2\nleader  -\nID      N\na       1\nlonger  22\n");
    }

    #[test]
    fn an_empty_list_of_rows_is_no_lines_and_control_characters_are_harmless() {
        assert_eq!(table(&json!({"count": 0, "rows": []})), "count  0\n");
        assert_eq!(table(&json!({"reason": "Ж\u{1b}[2J"})), "reason  Ж?[2J\n");
    }
}
