//! A REST API over user records in PostgreSQL. Every change is committed together with its event,
//! and the events reach RabbitMQ as they were committed.
//!
//! # The path of one POST
//!
//! 1. `listener` accepts the connection and reads the head. `http::layers` take `X-Request-Id` or
//!    make a trace id, and log `Request started`; `http::extract` parses the body into domain types
//!    and reports every error at once.
//! 2. `service` has the password hashed on a low-priority thread (`password`). Each use case is one
//!    statement.
//! 3. `repository`: the statement inserts the user **and** the event's row in `outbox`. The
//!    handler answers 201; it never waits for RabbitMQ.
//! 4. `messaging::relay`, woken by the commit, reads the row, publishes it with the trace id, waits
//!    for the broker's confirm, deletes the row, and logs `Event published`.
//! 5. `messaging::consumer` receives the message and logs `Event received`, with the same trace id.
//!
//! # Walls
//!
//! `main → cli → app → all` · `http → service, monitoring, domain` · `service → batching,
//! repository, database, domain, password` · `batching → repository, database, monitoring, domain` ·
//! `messaging → repository, database, monitoring, domain` · `monitoring → repository, database,
//! domain, password` · `repository → database, domain` · `telemetry → monitoring, domain` ·
//! `password → domain` · `access → repository, database, domain` · `http → access`. `config` fills the settings of every module. `trace_id`, `backoff`,
//! `error_chain`, `server_url` and the other leaves import no other module of the crate. `axum` is
//! used in `http`, `app` and `cli`, `utoipa` in `http`, `lapin` in `messaging`, SQL in `repository`
//! and `database`, metric names in `monitoring`. `tests/walls.rs` checks this, and that there are
//! no import cycles. Where a wall matters most, it is a crate: `listener` and `logline`.
//!
//! Only what the binary and the tests use is public.

#![warn(clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

mod access;
mod app;
mod backoff;
mod batching;
mod cli;
mod config;
mod database;
mod domain;
mod error_chain;
mod http;
mod messaging;
mod monitoring;
mod password;
mod repository;
mod server_url;
mod service;
mod shutdown;
mod telemetry;
mod trace_id;

pub use cli::main;

/// Internals that tests and benches use.
#[doc(hidden)]
pub mod testing {
    pub use crate::batching::user_reads::UserReads;
    pub use crate::batching::user_writes::UserWrites;
    pub use crate::database::pool::{Database, Route, TimeLimits};
    pub use crate::database::schema::MIGRATOR;
    pub use crate::database::{DatabaseError, DatabaseUrl};
    pub use crate::domain::actor::Client;
    pub use crate::domain::context::Context;
    pub use crate::domain::event::EventHeader;
    pub use crate::domain::name::Name;
    pub use crate::domain::password::{PasswordHash, PasswordPolicy};
    pub use crate::domain::precondition::{Precondition, Versions};
    pub use crate::domain::user::{User, UserId, Version};
    pub use crate::messaging::broker::Broker;
    pub use crate::messaging::topology::QueueType;
    pub use crate::messaging::transport::screen::Returned;
    pub use crate::password::{Caller, PasswordHasher};
    pub use crate::repository::users::change::{Change, Deletion, Outcome, Update};
    pub use crate::telemetry::{LogFormat, LogLevel, subscriber};
    pub use crate::trace_id::TraceId;

    /// The relay's statements.
    pub mod outbox {
        pub use crate::repository::outbox::{
            Election, ReadFrom, connect_relay, keeps_relay_settings, read, try_lead,
        };
    }
}
