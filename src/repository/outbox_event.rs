//! A row of the outbox, as the relay handles it. Nothing here does I/O: the scheduler works on
//! these rows without a database.

use serde_json::value::RawValue;
use uuid::Uuid;

use crate::domain::timestamp::Timestamp;

/// An event that waits in the outbox. Its text fields are not validated: the row may have been
/// inserted by hand.
#[derive(Clone, Debug)]
pub struct OutboxEvent {
    /// Its position in the outbox. Positions of a user's events increase.
    pub seq: i64,
    /// Whether earlier events of its user are held.
    pub is_behind: bool,
    pub id: Uuid,
    /// Why it cannot be published, if so.
    pub fault: Option<&'static str>,
    pub event_type: String,
    pub user_id: i64,
    /// The user's version after the change.
    pub version: i64,
    pub trace_id: String,
    pub occurred_at: Timestamp,
    /// `{"name","surname"}`, or `null` for a deleted user.
    pub data: Box<RawValue>,
    /// Who made the change, such as `key:front-end`.
    pub actor: Option<String>,
}
