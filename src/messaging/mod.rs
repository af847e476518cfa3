//! From the outbox to the broker and back: the relay publishes, the consumer reads. Knows nothing of HTTP; meets it only
//! at the outbox table.

pub mod broker;
pub mod consumer;
pub mod dead_letter;
mod dead_letter_writer;
mod message;
pub mod preflight;
pub mod relay;
mod seen;
pub mod supervisor;
