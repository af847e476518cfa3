//! What a change carries from its request to its event.

use super::actor::Actor;
use crate::trace_id::TraceId;

/// The request that a change belongs to. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Context {
    pub trace_id: TraceId,
    /// `None` for a caller without a credential.
    pub actor: Option<Actor>,
}
