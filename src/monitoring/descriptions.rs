//! Metrics: what is counted anywhere by the `metrics` macros is collected here, as Prometheus text.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};

use crate::domain::event::EventType;

/// Upper bounds of the histograms' buckets, in seconds.
const BUCKETS: [f64; 13] = [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Why sessions with the broker end.
const CAUSES: [&str; 4] = ["broker", "timeout", "event", "database"];

/// Collects from now on.
///
/// # Errors
/// When the process has a collector already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new().set_buckets(&BUCKETS)?.install_recorder()?;
    describe_histogram!(
        "http_request_duration_seconds",
        Unit::Seconds,
        "Requests by method, route template and status"
    );
    describe_gauge!("http_connections", "Connections of clients that are open");
    describe_counter!(
        "http_connections_refused_total",
        "Connections closed before they were served: no place became free in time"
    );
    describe_counter!("http_connections_closed_total", "Connections that the service ended, by reason");
    describe_counter!("http_accept_errors_total", "Connections that could not be accepted");
    describe_gauge!(
        "outbox_pending",
        "Events that the broker has not confirmed, counted up to 100,000; not a number while the database is away"
    );
    describe_gauge!("outbox_oldest_age_seconds", Unit::Seconds, "Age of the oldest of them; 0 where there is none");
    describe_gauge!("relay_leader", "1 in the replica that publishes");
    describe_counter!("events_published_total", "Events that the broker confirmed, by type");
    describe_counter!("events_nacked_total", "Events that the broker refused; they stay in the outbox");
    describe_counter!("events_returned_total", "Events that no queue wanted; they stay in the outbox");
    describe_counter!("events_dead_total", "Events given up: each closed the channel again and again");
    describe_gauge!("outbox_dead", "Events given up and neither put back nor dropped yet");
    describe_histogram!("outbox_read_seconds", Unit::Seconds, "The relay's read of its next batch");
    describe_histogram!("events_lag_seconds", Unit::Seconds, "From an event's commit to the broker's confirm");
    describe_counter!("relay_leads_total", "Times that this replica began to lead");
    describe_counter!("sessions_lost_total", "Connections of relay or consumer that were lost, by cause");
    describe_gauge!("topology_mismatch", "1 where an exchange or a queue is there with other arguments");
    describe_gauge!("dead_letters", "Messages in the dead-letter queue; not a number while the broker is away");
    describe_histogram!("events_confirm_seconds", Unit::Seconds, "From the publish of an event to its confirm");
    describe_counter!("events_consumed_total", "Messages by result: new, duplicate, stale, dead_letter");
    describe_gauge!("broker_connected", "1 while the connection, of publisher or consumer, is up");
    describe_gauge!("broker_blocked", "1 while the broker, short of memory or disk, takes no publishes");
    describe_gauge!("database_connections", "Connections of the requests' pool, by state");
    describe_counter!("coalesced_reads_total", "Reads of users by id that the lanes took from their queue");
    describe_counter!("coalesced_queries_total", "Queries that answered them");
    describe_counter!("grouped_writes_total", "Updates and deletions of users that the lanes took from their queues");
    describe_counter!("write_groups_total", "Statements that wrote them");
    describe_gauge!("password_hash_slots", "Hashing slots by state");
    describe_counter!("log_lines_dropped_total", "Log lines lost because the reader of stdout is too slow");
    metrics_process::Collector::default().describe();
    start_counters_at_zero();
    Ok(handle)
}

/// A counter that appears with its first event has no rate before the second one, and no alert sees the first.
fn start_counters_at_zero() {
    for name in [
        "http_connections_refused_total",
        "http_accept_errors_total",
        "events_nacked_total",
        "events_returned_total",
        "events_dead_total",
        "coalesced_reads_total",
        "coalesced_queries_total",
        "grouped_writes_total",
        "write_groups_total",
        "relay_leads_total",
        "log_lines_dropped_total",
    ] {
        counter!(name).absolute(0);
    }
    for event_type in [EventType::Created, EventType::Updated, EventType::Deleted] {
        counter!("events_published_total", "type" => event_type.as_str()).absolute(0);
    }
    for result in ["new", "duplicate", "stale", "dead_letter"] {
        counter!("events_consumed_total", "result" => result).absolute(0);
    }
    for (session, cause) in ["relay", "consumer"].into_iter().flat_map(|session| CAUSES.map(|cause| (session, cause))) {
        counter!("sessions_lost_total", "session" => session, "cause" => cause).absolute(0);
    }
    for reason in [
        "malformed_request",
        "head_too_large",
        "keep_alive_timeout",
        "header_read_timeout",
        "write_timeout",
        "displaced",
    ] {
        counter!("http_connections_closed_total", "reason" => reason).absolute(0);
    }
}
