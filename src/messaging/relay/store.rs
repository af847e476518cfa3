//! The leader's connection to PostgreSQL, which does one work at a time, while events are in flight.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use metrics::{counter, histogram};
use sqlx::PgConnection;
use tokio::time::Instant;
use tracing::error;

use crate::domain::event::OutboxEvent;
use crate::messaging::session::{SessionError, with_timeout};
use crate::repository::outbox::{self, ReadFrom, Snapshot};
use crate::repository::quarantine;

/// For one statement. As long as the lease: a leader that PostgreSQL does not hear from has lost it by then.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// For a patient read, which may scan hours of dead rows that vacuum cannot remove because of an old snapshot.
const PATIENCE: Duration = Duration::from_mins(10);

/// PostgreSQL times out first and reports it, which tells a slow read from a lost connection.
const GRACE: Duration = Duration::from_secs(1);

/// What to do next.
#[derive(Debug, Default)]
pub struct Work {
    /// Places of events that the broker has confirmed, to be deleted.
    pub published: Vec<i64>,
    /// Events to be quarantined, and the broker's reason.
    pub quarantined: Vec<(Arc<OutboxEvent>, String)>,
    pub read: Option<Read>,
}

impl Work {
    /// Of the rows that it deletes.
    pub fn lowest_place(&self) -> Option<i64> {
        self.published.iter().copied().chain(self.quarantined.iter().map(|(event, _)| event.seq)).min()
    }
}

#[derive(Debug)]
pub struct Read {
    pub rows: Rows,
    pub from: ReadFrom,
    pub up_to: i64,
    /// Of these users alone, if there are any.
    pub users: Vec<i64>,
    /// Places already in memory.
    pub known: Vec<i64>,
    pub limit: usize,
    /// Whether it may take longer than the lease.
    pub is_patient: bool,
}

/// Which rows to read.
#[derive(Debug)]
pub enum Rows {
    New,
    /// The whole table.
    Whole,
    /// Rows of a lane that were left in the table.
    Deferred(usize),
}

#[derive(Debug)]
pub struct ReadDone {
    pub read: Read,
    pub events: Vec<OutboxEvent>,
    pub snapshot: Snapshot,
    pub took: Duration,
}

impl ReadDone {
    /// Whether there were more rows than it read.
    pub fn is_cut(&self) -> bool {
        self.events.len() == self.read.limit
    }

    pub fn is_deferred(&self) -> bool {
        matches!(self.read.rows, Rows::Deferred(_))
    }
}

/// The connection, and what was read.
pub type Done = Result<(PgConnection, Option<ReadDone>), SessionError>;

/// Does the work, and returns the connection.
pub fn begin(mut connection: PgConnection, work: Work) -> BoxFuture<'static, Done> {
    Box::pin(async move {
        let Work { published, quarantined, read } = work;
        let is_idle = published.is_empty() && quarantined.is_empty() && read.is_none();
        if is_idle {
            with_timeout(TIMEOUT, "keep the lease", outbox::keep_lease(&mut connection)).await?;
        }
        if !published.is_empty() {
            with_timeout(TIMEOUT, "delete from the outbox", outbox::delete(&mut connection, &published)).await?;
        }
        for (event, reason) in quarantined {
            let moving = quarantine::quarantine(&mut connection, event.seq, &reason);
            with_timeout(TIMEOUT, "quarantine an event", moving).await?;
            counter!("events_quarantined_total").increment(1);
            let (trace_id, event_id) = (&event.trace_id, &event.id);
            error!(trace_id, %event_id, reason, "Event quarantined: see `outbox quarantine list`");
        }
        let read = match read {
            Some(wanted) => Some(self::read(&mut connection, wanted).await?),
            None => None,
        };
        Ok((connection, read))
    })
}

async fn read(connection: &mut PgConnection, read: Read) -> Result<ReadDone, SessionError> {
    if read.is_patient {
        with_timeout(TIMEOUT, "allow a long read", outbox::limit_statements(connection, PATIENCE)).await?;
    }
    let began = Instant::now();
    let limit = i64::try_from(read.limit).unwrap_or(i64::MAX);
    let reading = outbox::read(connection, &read.from, read.up_to, &read.users, &read.known, limit);
    let limit_of_server = if read.is_patient { PATIENCE } else { TIMEOUT };
    let (events, snapshot) = with_timeout(limit_of_server + GRACE, "read the outbox", reading).await?;
    let took = began.elapsed();
    histogram!("outbox_read_seconds").record(took);
    if read.is_patient {
        with_timeout(TIMEOUT, "limit reads", outbox::limit_statements(connection, TIMEOUT)).await?;
    }
    Ok(ReadDone { read, events, snapshot, took })
}
