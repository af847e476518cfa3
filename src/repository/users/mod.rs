//! The `users` table. A user and its event are written by one statement: both are committed, or
//! neither is. Where to find the SQL: a file a verb.

mod change;
mod changed_row;
mod delete;
mod get;
mod insert;
mod list;
mod row;
mod update;
mod write;

pub use self::change::{Change, Deletion, Group, GroupOutcome, Outcome, Update};
pub use self::get::{get, get_all};
pub use self::insert::{draw_past_taken_ids, insert};
pub use self::list::list;
pub use self::write::{write, write_group};
