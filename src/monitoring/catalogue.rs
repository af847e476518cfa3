//! Every metric, declared once: the function that returns it, its name, its description, and the
//! labels of counters.

use metrics::{Counter, Gauge, Histogram, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};

use crate::domain::event::EventType;

/// Upper bounds of the histograms' buckets, in seconds.
const BUCKETS: [f64; 13] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];

#[derive(Clone, Copy)]
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

/// Each label of a counter with its possible values.
type Labels = &'static [(&'static str, &'static [&'static str])];

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
const AUTH_FAILURES: Labels = &[("reason", &["missing", "invalid", "expired", "scope"])];
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

/// The labels of a counter, if it has any.
macro_rules! labels {
    () => {
        &[]
    };
    ($labels:ident) => {
        $labels
    };
}

/// Declares metrics: the description, then `kind function(parameter: Type as "label") = "name" in
/// LABELS`.
macro_rules! declare {
    (@ counter) => { Counter };
    (@ gauge) => { Gauge };
    (@ histogram) => { Histogram };
    (@ counter $labels:expr) => { Kind::Counter($labels) };
    (@ gauge $labels:expr) => { Kind::Gauge };
    (@ histogram $labels:expr) => { Kind::Histogram };
    ($(
        $(#[doc = $description:literal])+
        $kind:ident $function:ident($($parameter:ident: $type:ty as $label:literal),*)
            = $name:literal $(in $labels:ident)?;
    )*) => {
        $(
            $(#[doc = $description])+
            pub(crate) fn $function($($parameter: $type),*) -> declare!(@ $kind) {
                metrics::$kind!($name $(, $label => $parameter)*)
            }
        )*

        const METRICS: &[Metric] = &[$(Metric {
            kind: declare!(@ $kind labels!($($labels)?)),
            name: $name,
            description: concat!($($description),+),
        }),*];
    };
}

declare! {
    /// Requests by method, route template and status
    histogram request_duration(
        method: &'static str as "method",
        route: String as "route",
        status: String as "status"
    ) = "http_request_duration_seconds";

    /// Open client connections
    gauge client_connections() = "http_connections";

    /// Connections closed before they were served, because the connection limit was reached
    counter connections_refused() = "http_connections_refused_total";

    /// Connections closed by the service, by reason
    counter connections_closed(reason: &'static str as "reason")
        = "http_connections_closed_total" in CLOSED_CONNECTIONS;

    /// Connections that could not be accepted
    counter accept_errors() = "http_accept_errors_total";

    /// Requests that were not let in, by reason
    counter auth_failures(reason: &'static str as "reason") = "auth_failures_total" in AUTH_FAILURES;

    /// When the API keys were last read, in seconds since 1970; 0 before the first read
    gauge api_keys_read() = "api_keys_read_timestamp_seconds";

    /// Events that the broker has not confirmed, counted up to 100,000; NaN while the database is
    /// unavailable
    gauge outbox_pending() = "outbox_pending";

    /// Age of the oldest event that the broker has not confirmed; 0 if there is none
    gauge outbox_oldest_age() = "outbox_oldest_age_seconds";

    /// Unconfirmed events that were moved out of the way of others, counted up to 100,000
    gauge outbox_held() = "outbox_held";

    /// Events in quarantine, counted up to 100,000
    gauge outbox_quarantined() = "outbox_quarantined";

    /// Duration of the relay's read of its next batch
    histogram outbox_read() = "outbox_read_seconds";

    /// 1 in the replica that publishes
    gauge relay_leader() = "relay_leader";

    /// How often this replica became the leader
    counter relay_leads() = "relay_leads_total";

    /// Events that the broker confirmed, by type
    counter events_published(event_type: String as "type")
        = "events_published_total" in EVENT_TYPES;

    /// Events that the broker nacked; they stay in the outbox
    counter events_nacked() = "events_nacked_total";

    /// Events returned as unroutable: no queue is bound for them; they stay in the outbox
    counter events_returned() = "events_returned_total";

    /// Events quarantined because each repeatedly closed the channel
    counter events_quarantined() = "events_quarantined_total";

    /// Time from an event's commit to the broker's confirm
    histogram events_lag() = "events_lag_seconds";

    /// Time from publishing an event to its confirm
    histogram events_confirm() = "events_confirm_seconds";

    /// Messages by result: new, duplicate, stale, dead letter
    counter events_consumed(result: &'static str as "result") = "events_consumed_total" in CONSUMED;

    /// Lost connections of the relay or the consumer, by cause
    counter sessions_lost(session: &'static str as "session", cause: &'static str as "cause")
        = "sessions_lost_total" in LOST_SESSIONS;

    /// 1 if an exchange or a queue exists with different arguments
    gauge topology_mismatch(name: String as "name") = "topology_mismatch";

    /// Messages in the dead-letter queue; NaN while the broker is unavailable
    gauge dead_letters() = "dead_letters";

    /// 1 while the publisher's or the consumer's connection is up
    gauge broker_connected(connection: &'static str as "connection") = "broker_connected";

    /// 1 while the broker, short of memory or disk, blocks the publisher
    gauge broker_blocked() = "broker_blocked";

    /// 1 while the database is read-only; NaN while it is unavailable
    gauge database_read_only() = "database_read_only";

    /// Connections of the requests' pool, by state
    gauge database_connections(state: &'static str as "state") = "database_connections";

    /// Reads of users by id that the lanes took from their queue
    counter coalesced_reads() = "coalesced_reads_total";

    /// Queries that answered coalesced reads
    counter coalesced_queries() = "coalesced_queries_total";

    /// Updates and deletions of users that the lanes took from their queues
    counter grouped_writes() = "grouped_writes_total";

    /// Statements that wrote grouped updates and deletions
    counter write_groups() = "write_groups_total";

    /// Hashing slots by state
    gauge password_hash_slots(state: &'static str as "state") = "password_hash_slots";

    /// Log lines lost because the reader of stdout is too slow
    counter log_lines_dropped() = "log_lines_dropped_total";
}

/// Installs the recorder and describes every metric.
pub(crate) fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets(&BUCKETS)?
        .install_recorder()?;
    for &Metric {
        kind,
        name,
        description,
    } in METRICS
    {
        match kind {
            Kind::Counter(labels) => {
                describe_counter!(name, description.trim_start());
                start_at_zero(name, labels);
            }
            Kind::Gauge => describe_gauge!(name, description.trim_start()),
            Kind::Histogram => describe_histogram!(name, description.trim_start()),
        }
    }
    metrics_process::Collector::default().describe();
    Ok(handle)
}

/// Creates a counter with the value 0 for each combination of labels. A counter that appears only
/// with its first event has no rate until the second, so alerts would miss the first.
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
        metrics::counter!(name, &combination).absolute(0);
    }
}
