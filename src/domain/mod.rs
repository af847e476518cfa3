//! The domain types and their rules. Values are valid by construction, so inner layers never check
//! again. Of this crate's modules, imports only `trace_id`.

pub(crate) mod actor;
pub(crate) mod context;
pub(crate) mod event;
pub(crate) mod name;
pub(crate) mod page;
pub(crate) mod password;
pub(crate) mod precondition;
pub(crate) mod scope;
pub(crate) mod timestamp;
pub(crate) mod user;
pub(crate) mod violation;
