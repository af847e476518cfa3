//! Events that the listener reports, for metrics.

/// Something that happened to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Opened,
    Ended,
    /// The service has closed it.
    Closed(Closed),
    /// A new connection was refused at the limit.
    Refused,
    /// A new connection could not be accepted.
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
    /// It was closed to make room for another.
    Displaced,
}
