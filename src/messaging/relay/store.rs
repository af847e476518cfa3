//! The leader's connection to PostgreSQL, which does one unit of work at a time while events are in
//! flight.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::PgConnection;
use tokio::time::Instant;
use tracing::error;
use uuid::Uuid;

use crate::messaging::schedule::lane;
use crate::messaging::session::{SessionError, with_timeout};
use crate::monitoring::catalogue;
use crate::repository::outbox::{self, ReadFrom, Snapshot};
use crate::repository::outbox_event::OutboxEvent;
use crate::repository::{held, quarantine};

/// Time limit for one statement, as long as the lease: by then, a leader that PostgreSQL does not
/// hear from has lost it.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit for a patient read, which may scan hours of dead rows that vacuum cannot remove
/// because of an old snapshot.
const PATIENCE: Duration = Duration::from_mins(10);

/// PostgreSQL times out first and reports it, which tells a slow read from a lost connection.
const GRACE: Duration = Duration::from_secs(1);

/// What to do next.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// Positions and ids of events that the broker has confirmed, to be deleted.
    pub published: Vec<(i64, Uuid)>,
    /// Events to be quarantined, and the broker's reason.
    pub quarantined: Vec<(Arc<OutboxEvent>, String)>,
    /// Positions of events to be held.
    pub held: Vec<i64>,
    pub read: Option<Read>,
}

impl Work {
    /// The lowest position of the rows that it removes.
    pub(crate) fn lowest_position(&self) -> Option<i64> {
        let published = self.published.iter().map(|(position, _)| position);
        let quarantined = self.quarantined.iter().map(|(event, _)| &event.seq);
        published
            .chain(quarantined)
            .chain(&self.held)
            .min()
            .copied()
    }
}

/// Which rows to read, at most `limit`, without those that are `known`.
#[derive(Debug)]
pub(crate) enum Read {
    New {
        from: ReadFrom,
        known: Vec<i64>,
        /// Users who may have other events held.
        holders: Vec<i64>,
        limit: usize,
        /// From the first row on.
        is_whole: bool,
        /// Whether it may take longer than the lease.
        is_patient: bool,
        /// Transactions to check before the read: have they written to the outbox?
        long_running: Vec<i64>,
    },
    /// Held rows of a lane, after this position.
    Held {
        lane: usize,
        after: i64,
        known: Vec<i64>,
        holders: Vec<i64>,
        limit: usize,
    },
    /// The first held rows of some users, at most `of_each` per user.
    Followers { users: Vec<i64>, of_each: usize },
}

#[derive(Debug)]
pub(crate) struct ReadDone {
    pub read: Read,
    pub events: Vec<OutboxEvent>,
    /// Only for a read of new rows.
    pub snapshot: Snapshot,
    /// The `long_running` ones that still ran and had not written to the outbox.
    pub idle: Vec<i64>,
    pub took: Duration,
}

impl ReadDone {
    /// Whether there were more rows than it read.
    pub(crate) const fn is_cut(&self) -> bool {
        match self.read {
            Read::New { limit, .. } | Read::Held { limit, .. } => self.events.len() == limit,
            Read::Followers { .. } => false,
        }
    }
}

/// The connection, and what was read.
pub(crate) type Done = Result<(PgConnection, Option<ReadDone>), SessionError>;

/// Does the work, and returns the connection.
pub(crate) fn begin(mut connection: PgConnection, work: Work) -> BoxFuture<'static, Done> {
    Box::pin(async move {
        let Work {
            published,
            quarantined,
            held,
            read,
        } = work;
        let is_idle =
            published.is_empty() && quarantined.is_empty() && held.is_empty() && read.is_none();
        if is_idle {
            let keeping = outbox::keep_lease(&mut connection);
            with_timeout(TIMEOUT, "keep the lease", keeping).await?;
        }
        if !published.is_empty() {
            let (positions, ids): (Vec<_>, Vec<_>) = published.into_iter().unzip();
            let deleting = outbox::delete(&mut connection, &positions, &ids);
            with_timeout(TIMEOUT, "delete from the outbox", deleting).await?;
        }
        for (event, reason) in quarantined {
            let moving = quarantine::quarantine(&mut connection, event.seq, event.id, &reason);
            with_timeout(TIMEOUT, "quarantine an event", moving).await?;
            catalogue::events_quarantined().increment(1);
            let trace_id = &event.trace_id;
            let event_id = &event.id;
            error!(trace_id, %event_id, reason, "Event quarantined: see `outbox quarantine list`");
        }
        // Before the read, which tells whose rows are held.
        if !held.is_empty() {
            with_timeout(TIMEOUT, "hold events", held::hold(&mut connection, &held)).await?;
        }
        let read = match read {
            Some(wanted) => Some(self::read(&mut connection, wanted).await?),
            None => None,
        };
        Ok((connection, read))
    })
}

async fn read(connection: &mut PgConnection, read: Read) -> Result<ReadDone, SessionError> {
    let began = Instant::now();
    let limit = |limit: usize| i64::try_from(limit).unwrap_or(i64::MAX);
    let mut snapshot = Snapshot::default();
    let mut idle = Vec::new();
    let events = match &read {
        Read::New {
            from,
            known,
            holders,
            limit: rows,
            is_patient,
            long_running,
            ..
        } => {
            if !long_running.is_empty() {
                let asking = outbox::idle(connection, long_running);
                idle =
                    with_timeout(TIMEOUT, "look at transactions that run for long", asking).await?;
            }
            if *is_patient {
                let allowing = outbox::limit_statements(connection, PATIENCE);
                with_timeout(TIMEOUT, "allow a long read", allowing).await?;
            }
            let reading = outbox::read(connection, from, known, holders, limit(*rows));
            let limit_of_server = if *is_patient { PATIENCE } else { TIMEOUT };
            let (new, seen) =
                with_timeout(limit_of_server + GRACE, "read the outbox", reading).await?;
            snapshot = seen;
            if *is_patient {
                let limiting = outbox::limit_statements(connection, TIMEOUT);
                with_timeout(TIMEOUT, "limit reads", limiting).await?;
            }
            new
        }
        Read::Held {
            lane,
            after,
            known,
            holders,
            limit: rows,
        } => {
            let reading = held::read(
                connection,
                lane::name(*lane),
                *after,
                known,
                holders,
                limit(*rows),
            );
            with_timeout(TIMEOUT + GRACE, "read held events", reading).await?
        }
        Read::Followers { users, of_each } => {
            let reading = held::read_of(connection, users, limit(*of_each));
            with_timeout(TIMEOUT + GRACE, "read held events of users", reading).await?
        }
    };
    let took = began.elapsed();
    catalogue::outbox_read().record(took);
    Ok(ReadDone {
        read,
        events,
        snapshot,
        idle,
        took,
    })
}
