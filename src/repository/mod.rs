//! SQL and nothing else: functions over a connection, and the guarded way to get one. The only place that holds SQL text.

mod asides;
pub mod outbox;
pub(crate) mod quarantine;
pub mod user_changes;
mod user_lists;
pub mod user_reads;
pub mod user_writes;
pub(crate) mod users;
