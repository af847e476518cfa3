//! The use cases: each is one statement or transaction, and knows neither HTTP nor RabbitMQ.

mod completion;
pub(crate) mod error;
pub(crate) mod users;
