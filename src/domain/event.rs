//! Events: notify subscribers of a change.

use uuid::Uuid;

use super::actor::Actor;
use super::context::Context;
use crate::trace_id::TraceId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    Created,
    Updated,
    Deleted,
}

impl EventType {
    pub const ALL: [Self; 3] = [Self::Created, Self::Updated, Self::Deleted];

    /// The wire name; also the routing key.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "user.created",
            Self::Updated => "user.updated",
            Self::Deleted => "user.deleted",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// The parts of an event that do not follow from its change.
#[derive(Clone, Debug)]
pub struct EventHeader {
    /// A UUID version 7: unique, and roughly sorted by time.
    pub id: Uuid,
    pub trace_id: TraceId,
    /// `None` for a caller without a credential.
    pub actor: Option<Actor>,
}

impl EventHeader {
    pub fn new(context: Context) -> Self {
        let Context { trace_id, actor } = context;
        Self {
            id: Uuid::now_v7(),
            trace_id,
            actor,
        }
    }

    pub(crate) fn actor(&self) -> Option<&str> {
        self.actor.as_ref().map(Actor::as_str)
    }
}
