//! What the handlers share.

use std::sync::Arc;

use crate::{
    domain::user::PasswordPolicy,
    service::{health::HealthService, metrics::MetricsService, users::UserService},
};

#[derive(Clone)]
pub struct AppState {
    pub users: UserService,
    pub health: HealthService,
    pub metrics: MetricsService,
    pub password_policy: PasswordPolicy,
    /// The OpenAPI document, rendered once.
    pub openapi: Arc<str>,
}
