//! What is measured, and against what it is held.

use std::fmt;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Candidate {
    /// The service as it is shipped.
    Service,
    /// The same, with `LOG_LEVEL=error`.
    Quiet,
    /// An axum handler that does nothing.
    Empty,
    /// axum and sqlx, one query a request, no log.
    Sqlx,
    /// `pgbench -M prepared` with the service's statement.
    Pgbench,
}

impl Candidate {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "the service",
            Self::Quiet => "the service, LOG_LEVEL=error",
            Self::Empty => "empty axum handler",
            Self::Sqlx => "axum + sqlx, no log",
            Self::Pgbench => "pgbench, 64 clients",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Live,
    Get,
    Put,
}

/// One kind of request, from so many connections at once.
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
        };
        write!(f, "{call}, {} connection{}", self.connections, if self.connections == 1 { "" } else { "s" })
    }
}

/// What two candidates are compared by, and what the first is to reach.
#[derive(Clone, Copy)]
pub enum Aim {
    ThroughputAtLeast(f64),
    MedianLatencyAtMost(f64),
}

/// Candidates under the same load, in turns. The first is held against each of the others.
pub struct Comparison {
    pub load: Load,
    pub candidates: &'static [Candidate],
    /// One for each of the others.
    pub aims: &'static [Option<Aim>],
}

const fn load(call: Call, connections: u32) -> Load {
    Load { call, connections }
}

pub static COMPARISONS: [Comparison; 5] = [
    Comparison {
        load: load(Call::Live, 64),
        candidates: &[Candidate::Service, Candidate::Quiet],
        aims: &[Some(Aim::ThroughputAtLeast(0.85))],
    },
    Comparison {
        load: load(Call::Get, 256),
        candidates: &[Candidate::Service, Candidate::Empty, Candidate::Pgbench],
        aims: &[Some(Aim::ThroughputAtLeast(0.45)), Some(Aim::ThroughputAtLeast(1.1))],
    },
    Comparison {
        load: load(Call::Get, 64),
        candidates: &[Candidate::Service, Candidate::Sqlx],
        aims: &[Some(Aim::ThroughputAtLeast(1.8))],
    },
    Comparison {
        load: load(Call::Get, 1),
        candidates: &[Candidate::Service, Candidate::Sqlx],
        aims: &[Some(Aim::MedianLatencyAtMost(1.15))],
    },
    Comparison { load: load(Call::Put, 256), candidates: &[Candidate::Service, Candidate::Pgbench], aims: &[None] },
];
