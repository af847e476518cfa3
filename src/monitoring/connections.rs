//! Metrics of clients' connections.

use listener::{Closed, Event};
use metrics::{counter, gauge};

/// Counts what the listener tells of.
pub fn record(event: Event) {
    match event {
        Event::Opened => gauge!("http_connections").increment(1.0),
        Event::Ended => gauge!("http_connections").decrement(1.0),
        Event::Refused => counter!("http_connections_refused_total").increment(1),
        Event::AcceptFailed => counter!("http_accept_errors_total").increment(1),
        Event::Closed(why) => {
            counter!("http_connections_closed_total", "reason" => reason(why)).increment(1);
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
