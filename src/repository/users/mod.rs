//! The `users` table. One statement writes a user and its event: both are committed, or neither
//! is. Each verb's SQL has its own file.

pub(crate) mod change;
mod changed_row;
mod delete;
mod get;
mod insert;
mod list;
mod row;
mod update;
mod version_lists;
mod write;

pub(crate) use self::change::{Change, Deletion, Group, GroupOutcome, Outcome, Update};
pub(crate) use self::get::{get, get_all};
pub(crate) use self::insert::{draw_past_taken_ids, insert};
pub(crate) use self::list::list;
pub(crate) use self::write::{write, write_group};
