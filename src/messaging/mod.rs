//! From the outbox to the broker and back: the relay publishes, the consumer reads. Knows nothing
//! of HTTP; the outbox table is all they share.

pub(crate) mod broker;
pub(crate) mod consumer;
pub(crate) mod dead_letters;
mod message;
pub(crate) mod preflight;
pub(crate) mod relay;
mod schedule;
pub(crate) mod session;
pub(crate) mod topology;
pub(crate) mod transport;
mod watermark;
