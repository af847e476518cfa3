//! A user, and the rules a new or changed one must meet.

use std::fmt;
use std::sync::OnceLock;

use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};

use super::name::Name;
use super::timestamp::Timestamp;
use super::violation::Violation;

/// Longest password, in bytes: limits the work of one request.
pub const PASSWORD_MAX_BYTES: usize = 1024;

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
        let canonical = !raw.starts_with('0') && raw.bytes().all(|byte| byte.is_ascii_digit());
        canonical
            .then(|| raw.parse().ok())
            .flatten()
            .and_then(Self::new)
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

/// The rule that a new password must meet.
#[derive(Clone, Copy, Debug)]
pub struct PasswordPolicy {
    pub min_chars: usize,
}

impl PasswordPolicy {
    /// Takes a password exactly as it is: never trimmed or cut.
    ///
    /// # Errors
    /// `too_short` or `too_long`.
    pub fn check(self, password: SecretString) -> Result<SecretString, Violation> {
        let raw = password.expose_secret();
        if raw.chars().count() < self.min_chars {
            let detail = format!("Must be at least {} characters long.", self.min_chars);
            Err(Violation {
                code: "too_short",
                detail,
            })
        } else if raw.len() > PASSWORD_MAX_BYTES {
            let detail = format!("Must be at most {PASSWORD_MAX_BYTES} bytes long in UTF-8.");
            Err(Violation {
                code: "too_long",
                detail,
            })
        } else {
            Ok(password)
        }
    }
}

#[derive(Debug)]
pub struct NewUser {
    pub name: Name,
    pub surname: Name,
    pub password: SecretString,
}

/// What a partial update asks for; `None` leaves a field as it is.
#[derive(Debug)]
pub struct UserChanges {
    pub name: Option<Name>,
    pub surname: Option<Name>,
    pub password: Option<SecretString>,
}

/// A user as stored, without the password's hash.
#[derive(Clone)]
pub struct User {
    pub id: UserId,
    pub name: Name,
    pub surname: Name,
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

/// One page of users, by id; may be shared by several requests.
#[derive(Debug)]
pub struct UserPage {
    pub users: Vec<User>,
    /// Number of all users.
    pub total: i64,
    shown: OnceLock<Bytes>,
}

impl UserPage {
    pub fn new(users: Vec<User>, total: i64) -> Self {
        Self {
            users,
            total,
            shown: OnceLock::new(),
        }
    }

    /// The result of `show`, which runs once for all requests that share the page.
    pub fn shown(&self, show: impl FnOnce(&[User]) -> Bytes) -> Bytes {
        self.shown.get_or_init(|| show(&self.users)).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::{PasswordPolicy, UserId};

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

    #[test]
    fn a_password_is_measured_in_characters_below_and_bytes_above() {
        let policy = PasswordPolicy { min_chars: 8 };
        let code = |raw: &str| {
            policy
                .check(raw.into())
                .map_err(|violation| violation.code)
                .err()
        };
        assert_eq!(code("пароль12"), None);
        assert_eq!(code("пароль1"), Some("too_short"));
        assert_eq!(code("        "), None);
        assert_eq!(code(&"x".repeat(1024)), None);
        assert_eq!(code(&"ж".repeat(513)), Some("too_long"));
    }
}
