//! What the handlers share.

use std::{ops::Deref, sync::Arc};

use crate::{
    domain::user::PasswordPolicy,
    monitoring::{health::HealthService, metrics::MetricsService},
    service::users::UserService,
};

/// One pointer, for it is cloned for each request.
#[derive(Clone)]
pub struct AppState(Arc<Shared>);

pub struct Shared {
    pub users: UserService,
    pub health: HealthService,
    pub metrics: MetricsService,
    pub password_policy: PasswordPolicy,
    /// The OpenAPI document, rendered once.
    pub openapi: String,
}

impl From<Shared> for AppState {
    fn from(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }
}

impl Deref for AppState {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}
