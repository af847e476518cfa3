//! A row of the outbox, as the relay carries it. Nothing here does I/O: what decides which event is
//! next knows these rows, and no database.

use serde_json::value::RawValue;
use uuid::Uuid;

use crate::domain::timestamp::Timestamp;

/// An event that waits in the outbox. Its texts are what the row has: somebody may have written it by
/// hand.
#[derive(Clone, Debug)]
pub struct OutboxEvent {
    /// Its position in the outbox. A user's events have increasing ones.
    pub seq: i64,
    /// Earlier events of its user are held.
    pub is_behind: bool,
    pub id: Uuid,
    /// Why it cannot be published.
    pub fault: Option<&'static str>,
    pub event_type: String,
    pub user_id: i64,
    /// The user's version after the change.
    pub version: i64,
    pub trace_id: String,
    pub occurred_at: Timestamp,
    /// `{"name","surname"}`, or `null` for a deleted user.
    pub data: Box<RawValue>,
}
