//! What the process knows of itself: the state that its parts report, its health, and its metrics.

pub mod catalogue;
pub mod health;
mod in_turn;
pub mod metrics;
pub mod state;
