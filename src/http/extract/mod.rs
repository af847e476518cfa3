//! What requests are read from: JSON bodies and query strings.

pub(crate) mod client;
pub(crate) mod context;
pub(crate) mod json;
pub(crate) mod query;
pub(crate) mod raw_body;
