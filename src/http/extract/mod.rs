//! Extractors: JSON bodies, query strings, preconditions, the client and the trace id.

pub(crate) mod call;
pub(crate) mod client;
pub(crate) mod json;
pub(crate) mod precondition;
pub(crate) mod query;
pub(crate) mod raw_body;
