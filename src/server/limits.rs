//! What clients may take.

use std::time::Duration;

/// What a connection may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// For the head of a request, from the first byte that comes after the answer to the one before; for the first one from the
    /// accept.
    pub header_read: Duration,
    /// Between an answer and the next request.
    pub keep_alive: Duration,
    /// For a client to make room for more of an answer.
    pub write: Duration,
    /// Open at once.
    pub max_connections: usize,
}
