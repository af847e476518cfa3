//! The process's state, health and metrics.

pub(crate) mod catalogue;
pub(crate) mod connections;
pub(crate) mod health;
mod in_turn;
pub(crate) mod metrics;
pub(crate) mod state;
