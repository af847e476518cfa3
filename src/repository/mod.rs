//! SQL and nothing else: functions over a connection, and the guarded way to get one. The only place that holds SQL text.

pub mod database;
pub mod outbox;
pub mod outbox_dead;
pub mod schema;
pub mod users;
