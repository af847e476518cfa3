//! Writes changes, one or many per statement.

use std::collections::HashMap;

use sqlx::PgConnection;

use super::change::{Change, Group, GroupOutcome, Outcome};
use super::changed_row::ChangedRow;
use super::row::stored_id;
use super::{delete, update};
use crate::domain::user::UserId;

/// Writes one change. Waits if another transaction has locked the row.
pub(crate) async fn write(connection: &mut PgConnection, change: &Change) -> sqlx::Result<Outcome> {
    let row = match change {
        Change::Update(change) => update::one(connection, change).await?,
        Change::UpdateWithPassword(change, hash) => {
            update::one_with_password(connection, change, hash).await?
        }
        Change::Deletion(change) => delete::one(connection, change).await?,
    };
    match row.map(ChangedRow::outcome).transpose()? {
        Some(GroupOutcome::Settled(outcome)) => Ok(outcome),
        Some(GroupOutcome::Locked) => Err(sqlx::Error::Decode("waited, and left out".into())),
        None => Ok(Outcome::NotFound),
    }
}

/// Writes a group in one statement and returns the outcomes in the group's order. Never waits for
/// row locks, so that no change delays the others and no two statements deadlock.
pub(crate) async fn write_group(
    connection: &mut PgConnection,
    group: &Group,
) -> sqlx::Result<Vec<GroupOutcome>> {
    let rows = match group {
        Group::Updates(updates) => update::many(connection, updates).await?,
        Group::UpdatesWithPasswords(updates) => {
            update::many_with_passwords(connection, updates).await?
        }
        Group::Deletions(deletions) => delete::many(connection, deletions).await?,
    };
    let outcomes = rows
        .into_iter()
        .map(|row| Ok((stored_id(row.id)?, row.outcome()?)));
    let mut outcomes: HashMap<UserId, GroupOutcome> = outcomes.collect::<sqlx::Result<_>>()?;
    let outcome = |id| {
        outcomes
            .remove(&id)
            .unwrap_or(GroupOutcome::Settled(Outcome::NotFound))
    };
    Ok(group.ids().into_iter().map(outcome).collect())
}
