//! The SQL about users and events, as functions over a connection.

/// Calls one of sqlx's query macros, replacing a bare word between SQL literals with columns:
/// `event` with those of `outbox` except its position, `user` with those of `users` except the
/// password, `read_user` with the same as typed output columns, `judged` with the query that says of
/// each row of `current` whether the precondition of its row in `change` holds.
macro_rules! table_query {
    (@ $query:ident ($($row:ident)?) ($($sql:literal)*) event $($rest:tt)*) => {
        table_query!(@ $query ($($row)?) ($($sql)* "event_id, event_type, user_id, user_version, \
                                                    trace_id, occurred_at, payload, actor") $($rest)*)
    };
    (@ $query:ident ($($row:ident)?) ($($sql:literal)*) user $($rest:tt)*) => {
        table_query!(@ $query ($($row)?) ($($sql)* "id, name, surname, version, created_at, \
                                                    updated_at") $($rest)*)
    };
    (@ $query:ident ($($row:ident)?) ($($sql:literal)*) read_user $($rest:tt)*) => {
        table_query!(@ $query ($($row)?) ($($sql)* r#"id AS "id!", name AS "name!",
            surname AS "surname!", version AS "version!", created_at AS "created_at!: StoredTime",
            updated_at AS "updated_at!: StoredTime""#) $($rest)*)
    };
    (@ $query:ident ($($row:ident)?) ($($sql:literal)*) judged $($rest:tt)*) => {
        table_query!(@ $query ($($row)?) ($($sql)* "SELECT *, \
            (allowed IS NULL OR version = ANY(allowed)) \
            AND (refused IS NULL OR version <> ALL(refused)) AS holds \
            FROM current JOIN change USING (id)") $($rest)*)
    };
    (@ $query:ident ($($row:ident)?) ($($sql:literal)*) + $($rest:tt)*) => {
        table_query!(@ $query ($($row)?) ($($sql)*) $($rest)*)
    };
    (@ $query:ident ($($row:ident)?) ($($sql:literal)*) $more:literal $($rest:tt)*) => {
        table_query!(@ $query ($($row)?) ($($sql)* $more) $($rest)*)
    };
    (@ $query:ident ($($row:ident)?) ($($sql:literal)*) $(, $($arguments:tt)*)?) => {
        sqlx::$query!($($row,)? "" $(+ $sql)* $(, $($arguments)*)?)
    };
    ($query:ident!($row:ident, $($rest:tt)*)) => {
        table_query!(@ $query ($row) () $($rest)*)
    };
    ($query:ident!($($rest:tt)*)) => {
        table_query!(@ $query () () $($rest)*)
    };
}

pub(crate) mod api_keys;
pub(crate) mod held;
pub(crate) mod lifts;
pub(crate) mod outbox;
pub(crate) mod outbox_event;
pub(crate) mod quarantine;
mod stored_time;
pub(crate) mod users;
