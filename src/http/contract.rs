//! What settings change about the contract with clients.

use crate::domain::password::PasswordPolicy;

/// Settings that change what clients may send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contract {
    pub password_policy: PasswordPolicy,
    /// Whether callers without a credential may read and change users.
    pub allow_anonymous: bool,
    /// Whether each change of a user needs `If-Match`.
    pub require_if_match: bool,
}
