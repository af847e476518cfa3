//! The process's state, health and metrics.

pub mod catalogue;
pub mod connections;
pub mod health;
mod in_turn;
pub mod metrics;
pub mod state;
