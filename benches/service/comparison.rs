//! What is measured, and what it is compared with.

use std::fmt;

/// The candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Candidate {
    /// The service as it is shipped.
    Service,
    /// The same, with `LOG_LEVEL=error`.
    Quiet,
    /// The same, with `GROUP_COMMIT=false`.
    Ungrouped,
    /// The same, with no RabbitMQ: events only wait.
    Brokerless,
    /// The same, while POSTs ask for more hashes than the cores can make.
    AmidPosts,
    /// The same, with a thousand users.
    Thousand,
    /// The same, with a million users.
    Million,
    /// An axum handler that does nothing.
    Empty,
    /// axum and sqlx, one query per request, no log.
    Sqlx,
    /// `pgbench -M prepared` with the service's statement.
    Pgbench,
    /// The same, with a thousand users.
    PgbenchThousand,
    /// The same, with a million users.
    PgbenchMillion,
    /// The hash alone, on all cores simultaneously.
    Hashes,
    /// A lapin channel with confirms, and nothing else.
    Publisher,
    /// The same, with a consumer on another channel that reads and acknowledges the messages.
    PublisherAndConsumer,
}

impl Candidate {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "the service",
            Self::Quiet => "the service, LOG_LEVEL=error",
            Self::Ungrouped => "the service, GROUP_COMMIT=false",
            Self::Brokerless => "the service, RabbitMQ away",
            Self::AmidPosts => "the service, while POSTs fill the cores",
            Self::Thousand => "the service, 1,000 users",
            Self::Million => "the service, 1,000,000 users",
            Self::Empty => "empty axum handler",
            Self::Sqlx => "axum + sqlx, no log",
            Self::Pgbench => "pgbench, 64 clients",
            Self::PgbenchThousand => "pgbench, 64 clients, 1,000 users",
            Self::PgbenchMillion => "pgbench, 64 clients, 1,000,000 users",
            Self::Hashes => "argon2id on every core",
            Self::Publisher => "bare lapin publisher, with confirms",
            Self::PublisherAndConsumer => "bare lapin publisher and consumer",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Live,
    Get,
    Put,
    Post,
    List,
    /// A backlog of events, from the outbox to the broker's confirm.
    Backlog,
    /// A light load of PUTs; the time from each commit to the consumer's log line.
    Delivery,
}

/// One type of request, from a number of concurrent connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    pub call: Call,
    pub connections: u32,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let call = match self.call {
            Call::Live => "GET /health/live",
            Call::Get => "GET /users/{id}",
            Call::Put => "PUT /users/{id}",
            Call::Post => "POST /users",
            Call::List => "GET /users?limit=100",
            Call::Backlog => return f.write_str("events of a backlog"),
            Call::Delivery => {
                return f.write_str("commit to the consumer's log line, 100 PUTs a second");
            }
        };
        write!(
            f,
            "{call}, {} connection{}",
            self.connections,
            if self.connections == 1 { "" } else { "s" }
        )
    }
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    Throughput,
    P50,
    P99,
    Cpu,
}

impl Figure {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::Cpu => "CPU",
        }
    }
}

#[derive(Clone, Copy)]
pub enum Aim {
    AtLeast(f64),
    AtMost(f64),
}

/// One candidate compared with another.
pub struct Ratio {
    pub of: Candidate,
    pub against: Candidate,
    pub figure: Figure,
    pub aim: Option<Aim>,
}

/// An absolute limit for a candidate, in microseconds.
pub struct Limit {
    pub of: Candidate,
    pub figure: Figure,
    pub most: f64,
}

/// Candidates measured in turns under the same load.
pub struct Comparison {
    pub load: Load,
    pub candidates: &'static [Candidate],
    pub ratios: &'static [Ratio],
    pub limits: &'static [Limit],
    /// Most rounds, to limit the total time.
    pub rounds: u32,
}

const fn load(call: Call, connections: u32) -> Load {
    Load { call, connections }
}

/// The defaults of a comparison.
const COMPARISON: Comparison = Comparison {
    load: load(Call::Live, 1),
    candidates: &[],
    ratios: &[],
    limits: &[],
    rounds: 3,
};

const fn ratio(of: Candidate, against: Candidate, figure: Figure, aim: Aim) -> Ratio {
    Ratio {
        of,
        against,
        figure,
        aim: Some(aim),
    }
}

use Aim::{AtLeast, AtMost};
use Candidate::{
    AmidPosts, Brokerless, Empty, Hashes, Million, Pgbench, PgbenchMillion, PgbenchThousand,
    Publisher, PublisherAndConsumer, Quiet, Service, Sqlx, Thousand, Ungrouped,
};
use Figure::{Cpu, P50, P99, Throughput};

pub static COMPARISONS: [Comparison; 13] = [
    Comparison {
        load: load(Call::Live, 64),
        candidates: &[Service, Quiet],
        ratios: &[ratio(Service, Quiet, Throughput, AtLeast(0.85))],
        rounds: 5,
        ..COMPARISON
    },
    Comparison {
        load: load(Call::Get, 256),
        candidates: &[Service, Empty, Pgbench],
        ratios: &[
            ratio(Service, Empty, Throughput, AtLeast(0.45)),
            ratio(Service, Pgbench, Throughput, AtLeast(1.1)),
        ],
        rounds: 5,
        ..COMPARISON
    },
    Comparison {
        load: load(Call::Get, 64),
        candidates: &[Service, Sqlx],
        ratios: &[ratio(Service, Sqlx, Throughput, AtLeast(1.8))],
        rounds: 5,
        ..COMPARISON
    },
    Comparison {
        load: load(Call::Get, 1),
        candidates: &[Service, Sqlx],
        ratios: &[ratio(Service, Sqlx, P50, AtMost(1.15))],
        rounds: 5,
        ..COMPARISON
    },
    Comparison {
        load: load(Call::Put, 256),
        candidates: &[Service, Pgbench, Ungrouped, Brokerless],
        ratios: &[
            ratio(Service, Pgbench, Throughput, AtLeast(1.25)),
            ratio(Brokerless, Pgbench, Throughput, AtLeast(2.0)),
            ratio(Service, Ungrouped, Cpu, AtMost(0.5)),
        ],
        rounds: 5,
        ..COMPARISON
    },
    Comparison {
        load: load(Call::Put, 1),
        candidates: &[Service, Ungrouped],
        ratios: &[ratio(Service, Ungrouped, P50, AtMost(1.15))],
        ..COMPARISON
    },
    Comparison {
        load: load(Call::Post, 8),
        candidates: &[Service, Hashes],
        ratios: &[ratio(Service, Hashes, Throughput, AtLeast(0.93))],
        rounds: 5,
        ..COMPARISON
    },
    Comparison {
        load: load(Call::Get, 32),
        candidates: &[Service, AmidPosts],
        ratios: &[ratio(AmidPosts, Service, P99, AtMost(3.0))],
        rounds: 5,
        ..COMPARISON
    },
    Comparison {
        load: load(Call::List, 64),
        candidates: &[Thousand, PgbenchThousand, Million, PgbenchMillion],
        ratios: &[
            ratio(Thousand, PgbenchThousand, Throughput, AtLeast(0.5)),
            ratio(Million, PgbenchMillion, Throughput, AtLeast(0.5)),
            ratio(Million, Thousand, Throughput, AtLeast(0.85)),
        ],
        ..COMPARISON
    },
    Comparison {
        load: load(Call::Get, 128),
        candidates: &[Thousand, Million],
        ratios: &[ratio(Million, Thousand, Throughput, AtLeast(0.85))],
        ..COMPARISON
    },
    Comparison {
        load: load(Call::Put, 128),
        candidates: &[Thousand, Million],
        ratios: &[ratio(Million, Thousand, Throughput, AtLeast(0.85))],
        rounds: 5,
        ..COMPARISON
    },
    Comparison {
        load: load(Call::Backlog, 0),
        candidates: &[Service, Publisher, PublisherAndConsumer],
        ratios: &[
            Ratio {
                of: Service,
                against: Publisher,
                figure: Throughput,
                aim: None,
            },
            ratio(Service, PublisherAndConsumer, Throughput, AtLeast(0.75)),
        ],
        ..COMPARISON
    },
    Comparison {
        load: load(Call::Delivery, 1),
        candidates: &[Service],
        limits: &[
            Limit {
                of: Service,
                figure: P50,
                most: 5e3,
            },
            Limit {
                of: Service,
                figure: P99,
                most: 25e3,
            },
        ],
        rounds: 1,
        ..COMPARISON
    },
];
