//! What a handler gets from its request besides path and body.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::query::{FromQuery, NoQuery, Parameters};
use crate::http::problem::Problem;
use crate::http::problem::responses::Fallible;
use crate::trace_id::TraceId;

/// The trace id and the query; by default, a route takes no query.
pub(crate) struct Context<Q = NoQuery> {
    pub trace_id: TraceId,
    pub query: Q,
}

impl<Q: FromQuery> Fallible for Context<Q> {
    fn problems() -> Vec<Problem> {
        Parameters::<Q>::problems()
    }
}

impl<Q: FromQuery, S: Send + Sync> FromRequestParts<S> for Context<Q> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Parameters(query) = Parameters::from_request_parts(parts, state).await?;
        let trace_id = parts.extensions.get::<TraceId>().cloned();
        let trace_id = trace_id.ok_or_else(Problem::internal)?;
        Ok(Self { trace_id, query })
    }
}
