//! A password, the rule that a new one must meet, and its hash. `Debug` shows neither password nor
//! hash.

use secrecy::{ExposeSecret, SecretString};

use super::violation::{Rule, Violation};

/// Longest password, in bytes. Limits the work that one request can cause.
pub(crate) const PASSWORD_MAX_BYTES: usize = 1024;

/// A password that meets the policy; wiped from memory when dropped.
#[derive(Debug)]
pub struct Password(SecretString);

impl Password {
    /// The text, for hashing only.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

/// An argon2id hash as a PHC string.
/// <https://github.com/P-H-C/phc-string-format/blob/master/phc-sf-spec.md>
#[derive(Clone, Debug)]
pub struct PasswordHash(SecretString);

impl PasswordHash {
    pub fn from_phc(phc: impl Into<SecretString>) -> Self {
        Self(phc.into())
    }

    /// The PHC string, for the `password` column only.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

/// The rule that a new password must meet.
#[derive(Clone, Copy, Debug)]
pub struct PasswordPolicy {
    pub min_chars: usize,
}

impl Default for PasswordPolicy {
    fn default() -> Self {
        Self { min_chars: 8 }
    }
}

impl PasswordPolicy {
    /// Checks a password as it is, without trimming or truncating it.
    ///
    /// # Errors
    /// The rule that it breaks: too short or too long.
    pub fn check(self, password: SecretString) -> Result<Password, Violation> {
        let raw = password.expose_secret();
        if raw.chars().count() < self.min_chars {
            let detail = format!("Must be at least {} characters long.", self.min_chars);
            Err(Violation::new(Rule::TooShort, detail))
        } else if raw.len() > PASSWORD_MAX_BYTES {
            let detail = format!("Must be at most {PASSWORD_MAX_BYTES} bytes long in UTF-8.");
            Err(Violation::new(Rule::TooLong, detail))
        } else {
            Ok(Password(password))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{PasswordPolicy, Rule};

    #[test]
    fn passwords_have_a_minimum_in_characters_and_maximum_in_bytes() {
        let policy = PasswordPolicy { min_chars: 8 };
        let broken = |raw: &str| {
            policy
                .check(raw.into())
                .map_err(|violation| violation.rule)
                .err()
        };
        assert_eq!(broken("пароль12"), None);
        assert_eq!(broken("пароль1"), Some(Rule::TooShort));
        assert_eq!(broken("        "), None);
        assert_eq!(broken(&"x".repeat(1024)), None);
        assert_eq!(broken(&"ж".repeat(513)), Some(Rule::TooLong));
    }
}
