//! Extractors: JSON bodies, query strings, the client and the trace id.

pub(crate) mod call;
pub(crate) mod client;
pub(crate) mod json;
pub(crate) mod query;
pub(crate) mod raw_body;
