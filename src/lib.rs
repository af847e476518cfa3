//! A small record of truth for users: a REST API on PostgreSQL whose every change is committed together with its event,
//! and whose events reach RabbitMQ exactly as they were committed.
//!
//! # The walk of one POST
//!
//! 1. [`server`] accepts the connection and reads the head; [`http`]: the trace layer takes `X-Request-Id` or makes a trace id and logs `Request started`; the handler parses
//!    the body into [`domain`] types, naming every fault at once.
//! 2. [`service`]: the password is hashed on a thread of low priority ([`password`]); one use case is one statement.
//! 3. [`repository`]: the statement inserts the user **and** the event's row in `outbox`; both are committed, or neither.
//!    The handler answers 201: the answer never waits for RabbitMQ.
//! 4. [`messaging::relay`], woken by the commit, reads the row, publishes it with the trace id, waits for the broker's
//!    confirm, deletes the row, and logs `Event published`.
//! 5. [`messaging::consumer`] receives the message and logs `Event received`, with the same trace id.
//!
//! # Walls
//!
//! `main → app → all` · `http → service, domain, server` · `service → repository, domain, password, status` ·
//! `messaging → repository, domain, status` · `repository → domain` · `operator → domain, repository, messaging` · `config` calls the
//! parsers of `repository`, `messaging` and `telemetry`, and fills the rules of `http` and `server`. [`trace_id`] is free to all; leaves import nothing of ours. `axum` lives in `http` and
//! `app`, `lapin` in `messaging`, SQL in `repository`. `tests/walls.rs` checks this.

#![warn(clippy::unwrap_used, clippy::expect_used)]

mod app;
mod backoff;
pub mod cli;
mod config;
pub mod database;
pub mod domain;
mod http;
mod messaging;
mod monitoring;
pub mod password;
pub mod repository;
mod server;
mod service;
mod shutdown;
pub mod telemetry;
pub mod trace_id;

pub use database::schema::MIGRATOR;
