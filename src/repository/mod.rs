//! The SQL about users and events, as functions over a connection.

/// One of sqlx's query macros. Puts the outbox's columns, except `seq`, where the SQL is
/// interrupted by `columns`.
macro_rules! outbox_query {
    (
        $query:ident!(
            $($row:ident,)?
            $sql:literal $(+ $more:literal)* $(columns $rest:literal)*
            $(, $($arguments:tt)*)?
        )
    ) => {
        sqlx::$query!(
            $($row,)?
            $sql $(+ $more)* $(+ "event_id, event_type, user_id, user_version, trace_id, \
                                  occurred_at, payload" + $rest)*
            $(, $($arguments)*)?
        )
    };
}

pub mod held;
pub(crate) mod lifts;
pub mod outbox;
pub(crate) mod outbox_event;
pub(crate) mod quarantine;
mod stored_time;
pub mod user_changes;
pub(crate) mod users;
