//! The business types and their rules. Values are valid by construction, so inner layers never
//! check again. Imports nothing of ours but `trace_id`.

pub mod event;
pub mod name;
pub(crate) mod page;
pub mod password;
pub(crate) mod timestamp;
pub mod user;
pub(crate) mod violation;
