//! What the listener tells of, for metrics.

/// Something that happened to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Opened,
    Ended,
    /// The service has closed it.
    Closed(Closed),
    /// A new one found no place.
    Refused,
    /// A new one could not be accepted.
    AcceptFailed,
}

/// Why the service has closed a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    MalformedRequest,
    HeadTooLarge,
    KeepAliveTimeout,
    HeaderReadTimeout,
    WriteTimeout,
    /// To make room for another.
    Displaced,
}
