//! The rows that a change's statement returns.

use sqlx::error::BoxDynError;
use sqlx::postgres::{PgTypeInfo, PgValueRef};
use sqlx::{Decode, Postgres, Type};

use super::change::{GroupOutcome, Outcome};
use super::row::UserRow;
use crate::domain::user::User;
use crate::repository::stored_time::StoredTime;

/// The outcome that the statement reports for a row.
#[derive(Clone, Copy)]
pub(crate) enum RowOutcome {
    Changed,
    Unchanged,
    Stale,
    Locked,
}

impl Type<Postgres> for RowOutcome {
    fn type_info() -> PgTypeInfo {
        <&str as Type<Postgres>>::type_info()
    }
}

impl<'r> Decode<'r, Postgres> for RowOutcome {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        match <&str as Decode<Postgres>>::decode(value)? {
            "changed" => Ok(Self::Changed),
            "unchanged" => Ok(Self::Unchanged),
            "stale" => Ok(Self::Stale),
            "locked" => Ok(Self::Locked),
            other => Err(format!("no outcome of a change: {other}").into()),
        }
    }
}

/// A row per requested user who exists.
pub(crate) struct ChangedRow {
    pub outcome: RowOutcome,
    pub id: i64,
    pub name: String,
    pub surname: String,
    pub version: i64,
    pub created_at: StoredTime,
    pub updated_at: StoredTime,
}

impl ChangedRow {
    pub(crate) fn outcome(self) -> sqlx::Result<GroupOutcome> {
        let user: User = UserRow {
            id: self.id,
            name: self.name,
            surname: self.surname,
            version: self.version,
            created_at: self.created_at.into(),
            updated_at: self.updated_at.into(),
        }
        .try_into()?;
        Ok(match self.outcome {
            RowOutcome::Changed => GroupOutcome::Settled(Outcome::Changed(user)),
            RowOutcome::Unchanged => GroupOutcome::Settled(Outcome::Unchanged(user)),
            RowOutcome::Stale => GroupOutcome::Settled(Outcome::Stale(user.version)),
            RowOutcome::Locked => GroupOutcome::Locked,
        })
    }
}
