//! Access to PostgreSQL: the pool, other connections, time limits, and the schema's version. The
//! SQL about users and events is in `repository`.

mod error;
pub(crate) mod identity;
pub(crate) mod lane;
pub(crate) mod pool;
pub(crate) mod preflight;
pub(crate) mod schema;
pub(crate) mod sqlstate;
mod trust;
mod url;
pub(crate) mod warnings;

pub use self::error::DatabaseError;
pub(crate) use self::pool::keeps_settings;
pub(crate) use self::pool::{Database, Route, TimeLimits, connect, run_once};
pub use self::url::DatabaseUrl;
