//! What the layers share.

use std::time::Duration;

use tokio_util::task::TaskTracker;

use super::durations::RequestDurations;
use super::head::HeadRules;
use crate::access::Access;
use crate::http::routes::Entrance;

/// Shared by all requests.
pub(crate) struct Layers {
    /// Time limit for the whole request, including its body.
    pub time_limit: Duration,
    pub entrance: Entrance,
    pub head: HeadRules,
    pub access: Access,
    pub durations: RequestDurations,
    /// Work that outlives its request.
    pub tasks: TaskTracker,
}

impl Layers {
    pub(crate) fn new(
        time_limit: Duration,
        entrance: Entrance,
        head: HeadRules,
        access: Access,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            time_limit,
            entrance,
            head,
            access,
            durations: RequestDurations::default(),
            tasks,
        }
    }
}
