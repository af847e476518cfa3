//! The SQL about users and events: functions over a connection, and the tasks that combine waiting reads and writes.

mod asides;
pub mod outbox;
pub(crate) mod quarantine;
pub mod user_changes;
mod user_lists;
pub mod user_reads;
pub mod user_writes;
pub(crate) mod users;
