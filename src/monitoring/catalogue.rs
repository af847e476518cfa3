//! Every metric: name, description, and the labels of counters. They are recorded under these names
//! where things happen; `tests/walls.rs` checks that both agree.

use metrics::{counter, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};

use crate::domain::event::EventType;

/// Upper bounds of the histograms' buckets, in seconds.
const BUCKETS: [f64; 13] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];

enum Kind {
    Counter(Labels),
    Gauge,
    Histogram,
}

struct Metric {
    kind: Kind,
    name: &'static str,
    description: &'static str,
}

/// Each label with its possible values.
type Labels = &'static [(&'static str, &'static [&'static str])];

const fn counter(name: &'static str, description: &'static str, labels: Labels) -> Metric {
    Metric {
        kind: Kind::Counter(labels),
        name,
        description,
    }
}

const fn gauge(name: &'static str, description: &'static str) -> Metric {
    Metric {
        kind: Kind::Gauge,
        name,
        description,
    }
}

const fn histogram(name: &'static str, description: &'static str) -> Metric {
    Metric {
        kind: Kind::Histogram,
        name,
        description,
    }
}

const CLOSED_CONNECTIONS: Labels = &[(
    "reason",
    &[
        "malformed_request",
        "head_too_large",
        "keep_alive_timeout",
        "header_read_timeout",
        "write_timeout",
        "displaced",
    ],
)];
const EVENT_TYPES: Labels = &[(
    "type",
    &[
        EventType::Created.as_str(),
        EventType::Updated.as_str(),
        EventType::Deleted.as_str(),
    ],
)];
const CONSUMED: Labels = &[("result", &["new", "duplicate", "stale", "dead_letter"])];
const LOST_SESSIONS: Labels = &[
    ("session", &["relay", "consumer"]),
    ("cause", &["broker", "timeout", "event", "database"]),
];

const METRICS: [Metric; 32] = [
    histogram(
        "http_request_duration_seconds",
        "Requests by method, route template and status",
    ),
    gauge("http_connections", "Connections of clients that are open"),
    counter(
        "http_connections_refused_total",
        "Connections closed before they were served: no place became free in time",
        &[],
    ),
    counter(
        "http_connections_closed_total",
        "Connections that the service ended, by reason",
        CLOSED_CONNECTIONS,
    ),
    counter(
        "http_accept_errors_total",
        "Connections that could not be accepted",
        &[],
    ),
    gauge(
        "outbox_pending",
        "Events that the broker has not confirmed, counted up to 100,000; not a number while the \
         database is away",
    ),
    gauge(
        "outbox_oldest_age_seconds",
        "Age of the oldest of them; 0 where there is none",
    ),
    gauge(
        "outbox_held",
        "Those that were moved out of the way of others, counted up to 100,000",
    ),
    gauge(
        "outbox_quarantined",
        "Events in quarantine, neither put back nor dropped yet",
    ),
    histogram("outbox_read_seconds", "The relay's read of its next batch"),
    gauge("relay_leader", "1 in the replica that publishes"),
    counter(
        "relay_leads_total",
        "Times that this replica began to lead",
        &[],
    ),
    counter(
        "events_published_total",
        "Events that the broker confirmed, by type",
        EVENT_TYPES,
    ),
    counter(
        "events_nacked_total",
        "Events that the broker nacked; they stay in the outbox",
        &[],
    ),
    counter(
        "events_returned_total",
        "Events that no queue wanted; they stay in the outbox",
        &[],
    ),
    counter(
        "events_quarantined_total",
        "Events quarantined: each closed the channel again and again",
        &[],
    ),
    histogram(
        "events_lag_seconds",
        "From an event's commit to the broker's confirm",
    ),
    histogram(
        "events_confirm_seconds",
        "From the publish of an event to its confirm",
    ),
    counter(
        "events_consumed_total",
        "Messages by result: new, duplicate, stale, dead_letter",
        CONSUMED,
    ),
    counter(
        "sessions_lost_total",
        "Connections of relay or consumer that were lost, by cause",
        LOST_SESSIONS,
    ),
    gauge(
        "topology_mismatch",
        "1 where an exchange or a queue is there with other arguments",
    ),
    gauge(
        "dead_letters",
        "Messages in the dead-letter queue; not a number while the broker is away",
    ),
    gauge(
        "broker_connected",
        "1 while the connection, of publisher or consumer, is up",
    ),
    gauge(
        "broker_blocked",
        "1 while the broker, short of memory or disk, takes no publishes",
    ),
    gauge(
        "database_read_only",
        "1 while the database takes no writes; not a number while it is away",
    ),
    gauge(
        "database_connections",
        "Connections of the requests' pool, by state",
    ),
    counter(
        "coalesced_reads_total",
        "Reads of users by id that the lanes took from their queue",
        &[],
    ),
    counter("coalesced_queries_total", "Queries that answered them", &[]),
    counter(
        "grouped_writes_total",
        "Updates and deletions of users that the lanes took from their queues",
        &[],
    ),
    counter("write_groups_total", "Statements that wrote them", &[]),
    gauge("password_hash_slots", "Hashing slots by state"),
    counter(
        "log_lines_dropped_total",
        "Log lines lost because the reader of stdout is too slow",
        &[],
    ),
];

/// Starts collecting.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets(&BUCKETS)?
        .install_recorder()?;
    for Metric {
        kind,
        name,
        description,
    } in METRICS
    {
        match kind {
            Kind::Counter(labels) => {
                describe_counter!(name, description);
                start_at_zero(name, labels);
            }
            Kind::Gauge => describe_gauge!(name, description),
            Kind::Histogram => describe_histogram!(name, description),
        }
    }
    metrics_process::Collector::default().describe();
    Ok(handle)
}

/// A counter that appears with its first event has no rate until the second, so alerts would miss
/// the first.
fn start_at_zero(name: &'static str, labels: Labels) {
    let mut combinations = vec![Vec::new()];
    for (label, values) in labels {
        let with_each = |combination: Vec<_>| {
            values
                .iter()
                .map(move |value| [combination.clone(), vec![(*label, *value)]].concat())
                .collect::<Vec<_>>()
        };
        combinations = combinations.into_iter().flat_map(with_each).collect();
    }
    for combination in combinations {
        counter!(name, &combination).absolute(0);
    }
}
