//! What the handlers share.

use std::sync::Arc;

use super::extract::raw_body::BodyLimits;
use super::layers::head::HeadRules;
use crate::domain::password::PasswordPolicy;
use crate::monitoring::health::HealthService;
use crate::monitoring::metrics::MetricsService;
use crate::service::users::UserService;

/// One pointer, because it is cloned for each request.
pub(crate) type AppState = Arc<Shared>;

pub(crate) struct Shared {
    pub users: UserService,
    pub health: HealthService,
    pub metrics: MetricsService,
    pub password_policy: PasswordPolicy,
    pub bodies: BodyLimits,
    pub head: HeadRules,
}
