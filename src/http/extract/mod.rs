//! What requests are read from: JSON bodies and query strings.

pub mod client;
pub mod context;
pub mod json;
pub mod query;
pub mod raw_body;
