//! The words of the business and their rules. Values of these types are valid by construction; the inner layers never
//! check again. Imports nothing of ours but `trace_id`.

pub(crate) mod event;
pub mod name;
pub(crate) mod page;
pub(crate) mod timestamp;
pub mod user;
pub(crate) mod violation;
