//! Log lines: events and spans of `tracing` as flat JSON objects, and a writer behind a bounded
//! buffer. A reader that stalls costs lines, never the threads that write them.

#![warn(clippy::unwrap_used, clippy::expect_used)]

mod invisible;
mod json;
mod writer;

pub use self::invisible::{escaped, is_invisible};
pub use self::json::JsonLines;
pub use self::writer::LogWriter;
