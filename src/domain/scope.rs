//! What a caller may do.

use std::str::FromStr;

/// A permission. The names are the contract's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    UsersRead,
    /// Includes [`Self::UsersRead`]: the answer to a change shows the user.
    UsersWrite,
    PasswordsVerify,
    MetricsRead,
}

impl Scope {
    pub(crate) const ALL: [Self; 4] = [
        Self::UsersRead,
        Self::UsersWrite,
        Self::PasswordsVerify,
        Self::MetricsRead,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::UsersRead => "users:read",
            Self::UsersWrite => "users:write",
            Self::PasswordsVerify => "passwords:verify",
            Self::MetricsRead => "metrics:read",
        }
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|scope| scope.as_str() == name);
        known.ok_or_else(|| {
            let all = Self::ALL.map(Self::as_str).join(", ");
            format!("not a scope; the scopes are {all}")
        })
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scopes(u8);

impl Scopes {
    pub(crate) const NONE: Self = Self(0);
    /// Of callers without a credential, where they are let in.
    pub(crate) const ANONYMOUS: Self = Self::NONE
        .with(Scope::UsersRead)
        .with(Scope::UsersWrite)
        .with(Scope::MetricsRead);

    pub(crate) const fn with(self, scope: Scope) -> Self {
        let included = match scope {
            Scope::UsersWrite => bit(Scope::UsersRead) | bit(Scope::UsersWrite),
            other => bit(other),
        };
        Self(self.0 | included)
    }

    pub(crate) const fn contains(self, scope: Scope) -> bool {
        self.0 & bit(scope) != 0
    }
}

const fn bit(scope: Scope) -> u8 {
    1 << scope as u8
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        scopes.into_iter().fold(Self::NONE, Self::with)
    }
}

#[cfg(test)]
mod tests {
    use super::{Scope, Scopes};

    #[test]
    fn writing_includes_reading_and_nothing_else_includes_anything() {
        let granted = |scope| Scope::ALL.map(|other| Scopes::NONE.with(scope).contains(other));
        assert_eq!(granted(Scope::UsersRead), [true, false, false, false]);
        assert_eq!(granted(Scope::UsersWrite), [true, true, false, false]);
        assert_eq!(granted(Scope::PasswordsVerify), [false, false, true, false]);
        assert_eq!(granted(Scope::MetricsRead), [false, false, false, true]);
    }

    #[test]
    fn anonymous_callers_verify_no_passwords() {
        let granted = Scope::ALL.map(|scope| Scopes::ANONYMOUS.contains(scope));
        assert_eq!(granted, [true, true, false, true]);
    }

    #[test]
    fn names_are_read_back() {
        for scope in Scope::ALL {
            assert_eq!(scope.as_str().parse(), Ok(scope));
        }
        assert!("users:*".parse::<Scope>().is_err());
    }
}
