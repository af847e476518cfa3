//! Log lines: events and spans of `tracing` as flat JSON objects, and a writer behind a bounded
//! buffer. A stalled reader loses lines; it never blocks the threads that log them.

#![warn(clippy::unwrap_used, clippy::expect_used)]

mod invisible;
mod json;
mod writer;

pub use self::invisible::{escaped, is_invisible};
pub use self::json::JsonLines;
pub use self::writer::LogWriter;
