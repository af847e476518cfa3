//! From the outbox to the broker and back: the relay publishes, the consumer reads. Knows nothing
//! of HTTP; the outbox table is all they share.

pub mod broker;
pub mod consumer;
pub mod dead_letters;
mod message;
pub mod preflight;
pub mod relay;
mod schedule;
pub mod session;
pub mod topology;
pub mod transport;
