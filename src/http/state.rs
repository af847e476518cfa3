//! What the handlers share.

use std::sync::Arc;

use super::contract::Contract;
use super::extract::raw_body::BodyLimits;
use super::layers::head::HeadRules;
use crate::monitoring::health::HealthService;
use crate::monitoring::metrics::MetricsService;
use crate::service::users::UserService;

/// One pointer, because it is cloned for each request.
pub(crate) type AppState = Arc<Shared>;

pub(crate) struct Shared {
    pub users: UserService,
    pub health: HealthService,
    pub metrics: MetricsService,
    pub contract: Contract,
    pub bodies: BodyLimits,
    pub head: HeadRules,
}
