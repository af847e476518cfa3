//! Metrics of client connections.

use listener::{Closed, Event};

use super::catalogue;

/// Counts the listener's events.
pub(crate) fn record(event: Event) {
    match event {
        Event::Opened => catalogue::client_connections().increment(1.0),
        Event::Ended => catalogue::client_connections().decrement(1.0),
        Event::Refused => catalogue::connections_refused().increment(1),
        Event::AcceptFailed => catalogue::accept_errors().increment(1),
        Event::Closed(why) => {
            catalogue::connections_closed(reason(why)).increment(1);
        }
    }
}

const fn reason(why: Closed) -> &'static str {
    match why {
        Closed::MalformedRequest => "malformed_request",
        Closed::HeadTooLarge => "head_too_large",
        Closed::KeepAliveTimeout => "keep_alive_timeout",
        Closed::HeaderReadTimeout => "header_read_timeout",
        Closed::WriteTimeout => "write_timeout",
        Closed::Displaced => "displaced",
    }
}
