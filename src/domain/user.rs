//! A user, and the rules a new or changed one must meet.

use std::fmt;

use super::name::Name;
use super::password::Password;
use super::timestamp::Timestamp;

/// A positive integer chosen by the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(i64);

impl UserId {
    /// `None` if it is not positive.
    pub const fn new(id: i64) -> Option<Self> {
        if id > 0 { Some(Self(id)) } else { None }
    }

    /// Takes the canonical decimal form of a positive 64-bit integer: no sign, no leading zero.
    pub fn parse(raw: &str) -> Option<Self> {
        canonical(raw).map(Self)
    }

    pub const fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Counts the changes of a user: 1 for a new one, and one more with each change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(i64);

impl Version {
    /// A version from the database.
    pub const fn stored(version: i64) -> Self {
        Self(version)
    }

    /// Takes the same form as [`UserId::parse`].
    pub fn parse(raw: &str) -> Option<Self> {
        canonical(raw).map(Self)
    }

    pub const fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The positive integer that `raw` is the canonical decimal form of.
fn canonical(raw: &str) -> Option<i64> {
    let is_canonical = !raw.starts_with('0') && raw.bytes().all(|byte| byte.is_ascii_digit());
    is_canonical.then(|| raw.parse().ok()).flatten()
}

#[derive(Debug)]
pub(crate) struct NewUser {
    pub name: Name,
    pub surname: Name,
    pub password: Password,
}

/// The new values of a partial update; `None` leaves a field unchanged.
#[derive(Debug)]
pub(crate) struct UserChanges {
    pub name: Option<Name>,
    pub surname: Option<Name>,
    pub password: Option<Password>,
}

/// A user as stored, without the password's hash.
#[derive(Clone)]
pub struct User {
    pub id: UserId,
    pub name: Name,
    pub surname: Name,
    pub version: Version,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// One page of users, by id.
#[derive(Debug)]
pub struct UserPage {
    pub users: Vec<User>,
    /// Number of all users.
    pub total: i64,
}

#[cfg(test)]
mod tests {
    use super::UserId;

    #[test]
    fn a_user_id_is_a_canonical_positive_integer() {
        assert_eq!(UserId::parse("1"), Some(UserId(1)));
        assert_eq!(UserId::parse("9223372036854775807"), Some(UserId(i64::MAX)));
        for raw in [
            "",
            "0",
            "01",
            "-1",
            "+1",
            "1.0",
            "abc",
            "9223372036854775808",
            "١",
            " 1",
        ] {
            assert_eq!(UserId::parse(raw), None, "{raw:?}");
        }
    }
}
