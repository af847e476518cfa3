//! The use cases. Each change is written in one statement. They know neither HTTP nor RabbitMQ.

mod completion;
pub(crate) mod error;
pub(crate) mod users;
