//! What a handler gets from its request besides path and body.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::query::{FromQuery, NoQuery, Parameters};
use crate::domain::actor::Actor;
use crate::domain::context::Context;
use crate::http::problem::Problem;
use crate::http::problem::responses::Fallible;
use crate::trace_id::TraceId;

/// Whose call it is, and its query; by default, a route takes no query.
pub(crate) struct Call<Q = NoQuery> {
    pub context: Context,
    pub query: Q,
}

impl<Q: FromQuery> Fallible for Call<Q> {
    fn problems() -> Vec<Problem> {
        Parameters::<Q>::problems()
    }
}

impl<Q: FromQuery, S: Send + Sync> FromRequestParts<S> for Call<Q> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Parameters(query) = Parameters::from_request_parts(parts, state).await?;
        let trace_id = parts.extensions.get::<TraceId>().cloned();
        let context = Context {
            trace_id: trace_id.ok_or_else(Problem::internal)?,
            actor: parts.extensions.get::<Actor>().cloned(),
        };
        Ok(Self { context, query })
    }
}
