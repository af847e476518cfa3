//! A row of the table, as queries return it.

use crate::domain::name::Name;
use crate::domain::timestamp::Timestamp;
use crate::domain::user::{User, UserId, Version};

pub struct UserRow {
    pub id: i64,
    pub name: String,
    pub surname: String,
    pub version: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl TryFrom<UserRow> for User {
    type Error = sqlx::Error;

    fn try_from(
        UserRow {
            id,
            name,
            surname,
            version,
            created_at,
            updated_at,
        }: UserRow,
    ) -> sqlx::Result<Self> {
        Ok(Self {
            id: stored_id(id)?,
            name: Name::stored(name),
            surname: Name::stored(surname),
            version: Version::stored(version),
            created_at,
            updated_at,
        })
    }
}

pub(crate) fn stored_id(id: i64) -> sqlx::Result<UserId> {
    UserId::new(id).ok_or_else(|| sqlx::Error::Decode(format!("a user's id is {id}").into()))
}
