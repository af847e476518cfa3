//! The process's state, health and metrics.

pub(crate) mod catalogue;
pub(crate) mod connections;
pub(crate) mod health;
pub(crate) mod metrics;
mod single_flight;
pub(crate) mod state;
