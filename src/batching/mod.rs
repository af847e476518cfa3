//! Combines waiting requests, so that many share a query or a commit. Decides which requests and
//! when; the SQL is in `repository`, connections are in `database`.

mod locked;
mod request;
pub(crate) mod user_lists;
pub(crate) mod user_reads;
pub(crate) mod user_writes;
