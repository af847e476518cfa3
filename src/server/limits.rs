//! Limits for clients' connections.

use std::time::Duration;

/// Time limits of a connection, and how many there may be.
#[derive(Clone, Debug)]
pub struct Limits {
    /// For the head of a request, from the first byte after the previous response; for the first request, from the accept.
    pub header_read: Duration,
    /// Between an answer and the next request.
    pub keep_alive: Duration,
    /// For a client to read more of a response.
    pub write: Duration,
    /// Open at once.
    pub max_connections: usize,
}
