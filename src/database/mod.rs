//! How to reach PostgreSQL and for how long: the pool, connections of their own, the time limits, and the schema. What is said to
//! it about users and events stands in `repository`.

pub(crate) mod caller;
pub(crate) mod dangers;
mod error;
pub(crate) mod lane;
mod pool;
pub(crate) mod preflight;
pub(crate) mod schema;
mod url;

pub use self::error::DatabaseError;
pub use self::pool::{Database, OPERATION_TIMEOUT, Route, connect, run_once};
pub use self::url::DatabaseUrl;
