//! The `outbox` table as the relay uses it: read in order, delete what the broker has confirmed,
//! one leader at a time. Events that wait longer are [held](super::held) in a table that inherits
//! from it: `outbox` means the rows of both, `ONLY outbox` only the new ones.

use std::num::ParseIntError;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use sqlx::types::Json;
use uuid::Uuid;

use super::outbox_event::OutboxEvent;
use super::stored_time::StoredTime;
use crate::database::{DatabaseError, connect};

/// The key of the relay's lock among the database's advisory locks; an arbitrary constant. See
/// [`relay_lock`].
const RELAY_LOCK: i64 = 0x7573_6572_6576_7473;
/// A leader that sends nothing for this long is frozen or cut off: the server ends its session,
/// which releases the lock.
const LEASE: &str = "10s";

/// Opens the relay's own connection.
pub async fn connect_relay(options: &PgConnectOptions) -> Result<PgConnection, DatabaseError> {
    let options = options.clone().options([
        ("idle_session_timeout", LEASE),
        ("statement_timeout", LEASE),
        // The two limits above do not end a session whose server is blocked sending a large result
        // to a frozen or cut-off reader.
        ("tcp_user_timeout", "8s"),
        ("tcp_keepalives_idle", "5"),
        ("tcp_keepalives_interval", "2"),
        ("tcp_keepalives_count", "3"),
        // They do not end a session that waits for a lock when its leader dies either, so the
        // server checks meanwhile whether its client is still there.
        ("client_connection_check_interval", "2s"),
        // Plan once, with the index: for an empty outbox a sequential scan is cheaper, but that
        // plan would stay in use at 300,000 rows.
        ("plan_cache_mode", "force_generic_plan"),
        ("enable_seqscan", "off"),
        ("enable_bitmapscan", "off"),
        // A lost DELETE only publishes an event again, with the same id.
        ("synchronous_commit", "off"),
    ]);
    let mut connection = connect(&options).await?;
    // Exists since PostgreSQL 17. A limit set for the server or the login would end a long first
    // read.
    sqlx::query_scalar!(
        "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'transaction_timeout' AND setting <> '0'"
    )
    .fetch_optional(&mut connection)
    .await?;
    Ok(connection)
}

/// Whether the settings of [`connect_relay`] took effect. A pooler in between drops them.
pub async fn keeps_relay_settings(connection: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT current_setting('idle_session_timeout') = $1 AND current_setting('statement_timeout') = $1
                  AND current_setting('plan_cache_mode') = 'force_generic_plan' AS "taken!""#,
        LEASE
    )
    .fetch_one(connection)
    .await
}

/// Changes the time limit of the session's statements.
pub(crate) async fn limit_statements(
    connection: &mut PgConnection,
    limit: Duration,
) -> sqlx::Result<()> {
    let limit = format!("{}ms", limit.as_millis());
    sqlx::query_scalar!("SELECT set_config('statement_timeout', $1, false)", limit)
        .fetch_one(connection)
        .await
        .map(|_set| ())
}

/// Returns when the server started. A different or restored server numbers rows and transactions
/// differently.
pub(crate) async fn server_started(connection: &mut PgConnection) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar!(r#"SELECT pg_postmaster_start_time() AS "started!""#)
        .fetch_one(connection)
        .await
}

/// Result of asking for the leader's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Election {
    /// The lock is held for as long as the connection lives.
    Won,
    /// Another replica has it.
    Lost,
    /// The server takes no writes, so no replica may lead on it: published events could not be
    /// deleted. Checked, because a standby grants advisory locks too.
    ReadOnly,
}

/// Returns the key of this outbox's lock. A database may hold several outboxes in different
/// schemas, each with its own leader.
async fn relay_lock(connection: &mut PgConnection) -> sqlx::Result<i64> {
    let key = sqlx::query_scalar!(
        r#"SELECT hashtextextended(relnamespace::regnamespace::text, $1) AS "key!"
           FROM pg_class WHERE oid = to_regclass('outbox') AND relnamespace <> 'public'::regnamespace"#,
        RELAY_LOCK
    );
    Ok(key.fetch_optional(connection).await?.unwrap_or(RELAY_LOCK))
}

/// Takes the leader's lock if it is free.
pub async fn try_lead(connection: &mut PgConnection) -> sqlx::Result<Election> {
    let lock = relay_lock(connection).await?;
    let locked = sqlx::query_scalar!(
        "SELECT CASE WHEN current_setting('transaction_read_only') = 'off' THEN \
         pg_try_advisory_lock($1) END",
        lock
    );
    Ok(match locked.fetch_one(connection).await? {
        Some(true) => Election::Won,
        Some(false) => Election::Lost,
        None => Election::ReadOnly,
    })
}

/// Returns how many values of the outbox's sequence a session caches. More than one would put a
/// user's events out of order.
pub(crate) async fn sequence_cache(connection: &mut PgConnection) -> sqlx::Result<i64> {
    let cache = sqlx::query_scalar!(
        r#"SELECT seqcache AS "cache!" FROM pg_sequence WHERE seqrelid = pg_get_serial_sequence('outbox', 'seq')::regclass"#
    );
    Ok(cache.fetch_optional(connection).await?.unwrap_or(1))
}

/// Lifts the outbox's sequence above the waiting rows, if a restore or a manual change has left it
/// below: later events would be read before them. Returns the new value, or `None` if nothing was
/// changed or the login may not change it.
pub(crate) async fn lift_sequence(connection: &mut PgConnection) -> sqlx::Result<Option<i64>> {
    let lifted = sqlx::query_scalar!(
        r#"WITH sequence AS (
               SELECT id, coalesce(pg_sequence_last_value(id), 0) AS last
               FROM CAST(pg_get_serial_sequence('outbox', 'seq') AS regclass) AS id
               WHERE has_sequence_privilege(id, 'SELECT') AND has_sequence_privilege(id, 'UPDATE')
           ), waiting AS (
               SELECT id, (SELECT max(seq) FROM outbox WHERE seq > last) AS highest FROM sequence
           )
           SELECT setval(id, highest) AS "lifted!" FROM waiting WHERE highest IS NOT NULL"#
    );
    lifted.fetch_optional(connection).await
}

/// Where to start reading.
#[derive(Clone, Debug)]
pub struct ReadFrom {
    pub after: i64,
    /// Numbers of transactions. If one has ended, rows after its entry in `starts` are read too.
    pub running: Vec<i64>,
    pub starts: Vec<i64>,
}

impl ReadFrom {
    pub const fn position(after: i64) -> Self {
        Self {
            after,
            running: Vec::new(),
            starts: Vec::new(),
        }
    }
}

/// Returns those of these transactions that still run and have written nothing to the outbox. A
/// transaction that writes to it holds a lock on it until its end.
pub(crate) async fn idle(connection: &mut PgConnection, numbers: &[i64]) -> sqlx::Result<Vec<i64>> {
    sqlx::query_scalar!(
        r#"WITH locks AS MATERIALIZED (SELECT * FROM pg_locks WHERE granted)
           SELECT number AS "number!" FROM unnest($1::bigint[]) AS number
           JOIN locks AS own ON locktype = 'transactionid' AND transactionid = number::text::xid8::xid
           -- One that is being prepared has its locks under two names.
           WHERE own.pid IS NOT NULL AND own.virtualtransaction NOT LIKE '%/0'
                 AND NOT EXISTS (SELECT FROM locks WHERE relation = 'outbox'::regclass
                                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                                 AND virtualtransaction = own.virtualtransaction)"#,
        numbers
    )
    .fetch_all(connection)
    .await
}

/// PostgreSQL's snapshot of a read: which transactions it could see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Transactions from this number on had not ended, though they may have begun.
    pub next: i64,
    /// Earlier transactions that had not ended.
    pub running: Vec<i64>,
    /// If rows were read, a transaction number assigned after the snapshot was taken. All
    /// transactions that ran at that time have lower numbers.
    pub given_later: Option<i64>,
}

impl Snapshot {
    /// Reads `xmin:xmax:xip,…`.
    /// <https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT-PARTS>
    fn parse(text: &str, given_later: Option<i64>) -> Result<Self, ParseIntError> {
        let mut parts = text.split(':').skip(1);
        let next = parts.next().unwrap_or_default().parse()?;
        let running = parts
            .next()
            .unwrap_or_default()
            .split(',')
            .filter(|number| !number.is_empty());
        Ok(Self {
            next,
            running: running.map(str::parse).collect::<Result<_, _>>()?,
            given_later,
        })
    }

    pub fn is_running(&self, number: i64) -> bool {
        number >= self.next || self.running.contains(&number)
    }

    /// Returns all transactions that may have been running.
    pub fn all_running(&self) -> impl Iterator<Item = i64> {
        self.running
            .iter()
            .copied()
            .chain(self.next..self.given_later.unwrap_or(self.next))
    }
}

/// Reads at most `limit` new events in order, without those in `known`, and the read's snapshot.
/// Events of users in `holders` are marked as behind: other events of these users are held.
pub async fn read(
    connection: &mut PgConnection,
    from: &ReadFrom,
    known: &[i64],
    holders: &[i64],
    limit: i64,
) -> sqlx::Result<(Vec<OutboxEvent>, Snapshot)> {
    // One statement, so that rows and snapshot belong together.
    let mut rows = table_query!(query!(
        r#"SELECT NULL::bigint AS seq, NULL::uuid AS event_id, pg_current_snapshot()::text AS event_type,
                  NULL::bigint AS user_id, NULL::bigint AS user_version, NULL AS trace_id,
                  NULL::timestamptz AS "occurred_at: StoredTime", NULL::json AS "payload: Json<Box<RawValue>>",
                  NULL AS actor, NULL::bigint AS given_later, false AS "is_behind!"
           UNION ALL
           (SELECT seq, "# event r#",
                   pg_current_xact_id()::text::bigint,
                   CASE WHEN user_id IN (SELECT unnest($6::bigint[])) THEN true ELSE
                       -- As `held` says.
                       coalesce((SELECT held.seq FROM outbox_held AS held
                                 WHERE held.user_id BETWEEN outbox.user_id AND outbox.user_id
                                 ORDER BY held.user_id, held.seq LIMIT 1) < seq, false)
                   END
            FROM ONLY outbox
            WHERE seq > (SELECT least(min(start), $1)
                         FROM unnest($2::bigint[], $3::bigint[]) AS earlier (number, start)
                         WHERE pg_visible_in_snapshot(number::text::xid8, pg_current_snapshot()))
                  AND seq NOT IN (SELECT unnest($4::bigint[]))
            ORDER BY seq LIMIT $5)"#,
        from.after,
        &from.running,
        &from.starts,
        known,
        limit,
        holders
    ))
    .fetch_all(connection)
    .await?
    .into_iter()
    .peekable();
    let missing = || sqlx::Error::RowNotFound;
    let text = rows
        .next()
        .and_then(|row| row.event_type)
        .ok_or_else(missing)?;
    let given_later = rows.peek().and_then(|row| row.given_later);
    let snapshot = Snapshot::parse(&text, given_later)
        .map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    let events = rows.map(|row| {
        let stored = Stored {
            seq: row.seq?,
            event_id: row.event_id?,
            event_type: row.event_type?,
            user_id: row.user_id?,
            user_version: row.user_version?,
            trace_id: row.trace_id?,
            occurred_at: row.occurred_at?,
            payload: row.payload?,
            actor: row.actor,
            is_behind: row.is_behind,
        };
        Some(stored.into())
    });
    Ok((events.collect::<Option<_>>().ok_or_else(missing)?, snapshot))
}

/// A row of `outbox` or `outbox_held`.
pub(super) struct Stored {
    pub seq: i64,
    pub event_id: Uuid,
    pub event_type: String,
    pub user_id: i64,
    pub user_version: i64,
    pub trace_id: String,
    pub occurred_at: StoredTime,
    pub payload: Json<Box<RawValue>>,
    pub actor: Option<String>,
    pub is_behind: bool,
}

impl From<Stored> for OutboxEvent {
    fn from(row: Stored) -> Self {
        Self {
            seq: row.seq,
            is_behind: row.is_behind,
            id: row.event_id,
            fault: fault(&row.event_type, &row.trace_id, row.occurred_at),
            event_type: row.event_type,
            user_id: row.user_id,
            version: row.user_version,
            trace_id: row.trace_id,
            occurred_at: row.occurred_at.into(),
            data: row.payload.0,
            actor: row.actor,
        }
    }
}

/// Why a row inserted by hand cannot be published as an event. Constraints keep such rows out
/// unless they were dropped.
fn fault(event_type: &str, trace_id: &str, occurred_at: StoredTime) -> Option<&'static str> {
    // The limit of AMQP's short strings.
    const LONGEST: usize = 255;
    if event_type.len() > LONGEST {
        Some("its event_type is longer than 255 bytes")
    } else if trace_id.len() > LONGEST {
        Some("its trace_id is longer than 255 bytes")
    } else if !occurred_at.is_exact {
        Some("its occurred_at is not between the years 1 and 9999")
    } else {
        None
    }
}

/// Deletes events that the broker has confirmed, held or not, by position and id. The position
/// alone is not unique after the sequence was set back.
pub(crate) async fn delete(
    connection: &mut PgConnection,
    seqs: &[i64],
    ids: &[Uuid],
) -> sqlx::Result<()> {
    sqlx::query!(
        "DELETE FROM outbox USING unnest($1::bigint[], $2::uuid[]) AS done (seq, id)
         WHERE outbox.seq = done.seq AND event_id = id",
        seqs,
        ids
    )
    .execute(connection)
    .await
    .map(|_done| ())
}

/// Counting stops here, because a scrape must not read an outbox that has grown for hours.
pub(crate) const COUNTED: i64 = 100_000;

/// What waits in the outbox, for metrics.
pub(crate) struct Backlog {
    /// At most [`COUNTED`].
    pub pending: f64,
    /// 0 if nothing waits.
    pub oldest_age_seconds: f64,
    /// At most [`COUNTED`]; included in `pending`.
    pub held: f64,
    /// At most [`COUNTED`].
    pub quarantined: f64,
}

/// Counts what waits, up to [`COUNTED`].
pub(crate) async fn backlog(connection: &mut PgConnection) -> sqlx::Result<Backlog> {
    sqlx::query_as!(
        Backlog,
        r#"SELECT (SELECT count(*) FROM (SELECT FROM outbox LIMIT $1) AS counted)::float8 AS "pending!",
                  coalesce((SELECT extract(epoch FROM clock_timestamp() - occurred_at) FROM outbox ORDER BY seq LIMIT 1),
                           0)::float8 AS "oldest_age_seconds!",
                  (SELECT count(*) FROM (SELECT FROM outbox_held LIMIT $1) AS counted)::float8 AS "held!",
                  (SELECT count(*) FROM (SELECT FROM outbox_quarantine LIMIT $1) AS counted)::float8 AS "quarantined!""#,
        COUNTED
    )
    .fetch_one(connection)
    .await
}

/// The outbox, for operators.
#[derive(Debug, Serialize)]
pub(crate) struct OutboxState {
    pub pending: i64,
    pub oldest_age_seconds: f64,
    /// How many of the pending events were moved out of the way of others.
    pub held: i64,
    pub quarantined: i64,
    /// Size of both tables, including deleted rows until they are vacuumed.
    pub table_bytes: i64,
    pub index_bytes: i64,
    /// PostgreSQL process of the replica that publishes, and that replica's address.
    pub leader_pid: Option<i32>,
    pub leader_address: Option<String>,
}

/// Returns the numbers of waiting and quarantined events, the disk space used, and the leader.
pub(crate) async fn state(connection: &mut PgConnection) -> sqlx::Result<OutboxState> {
    let lock = relay_lock(connection).await?;
    sqlx::query_as!(
        OutboxState,
        r#"SELECT waiting.pending AS "pending!", waiting.oldest_age_seconds AS "oldest_age_seconds!",
                  (SELECT count(*) FROM outbox_held) AS "held!", (SELECT count(*) FROM outbox_quarantine) AS "quarantined!",
                  pg_table_size('outbox') + pg_table_size('outbox_held') AS "table_bytes!",
                  pg_indexes_size('outbox') + pg_indexes_size('outbox_held') AS "index_bytes!",
                  leader.pid AS "leader_pid?", host(leader.client_addr) AS "leader_address?"
           FROM (SELECT count(*) AS pending,
                        coalesce(extract(epoch FROM clock_timestamp() - min(occurred_at)), 0)::float8
                            AS oldest_age_seconds
                 FROM outbox) AS waiting
           LEFT JOIN (SELECT pid, client_addr FROM pg_locks JOIN pg_stat_activity USING (pid)
                      WHERE locktype = 'advisory' AND granted AND objsubid = 1
                            AND pg_locks.database = pg_stat_activity.datid AND datname = current_database()
                            AND (classid::bigint << 32) | objid::bigint = $1) AS leader ON true"#,
        lock
    )
    .fetch_one(connection)
    .await
}

/// Renews the lease when no other statement is due.
pub(crate) async fn keep_lease(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query_scalar!(r#"SELECT 1 AS "one!""#)
        .fetch_one(connection)
        .await
        .map(|_one| ())
}
