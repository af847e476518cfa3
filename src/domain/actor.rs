//! Who makes a change.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

/// Longest name of a key, in characters.
const KEY_NAME_MAX: usize = 63;

/// The name of an API key: 1 to 63 of `a-z`, `0-9`, `.`, `_` and `-`, the first a letter or digit.
/// During a rotation two keys have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyName(String);

impl KeyName {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyName {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let is_valid = name.len() <= KEY_NAME_MAX
            && name.bytes().next().is_some_and(word)
            && name
                .bytes()
                .all(|byte| word(byte) || b"._-".contains(&byte));
        if is_valid {
            Ok(Self(name.to_owned()))
        } else {
            Err("must be 1 to 63 characters of a-z 0-9 . _ -, the first a letter or digit")
        }
    }
}

/// Who makes a request, as logs and events name it: `key:NAME`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Actor(Arc<str>);

impl Actor {
    pub(crate) fn key(name: &str) -> Self {
        Self(format!("key:{name}").into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who takes turns and has limits of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    Actor(Actor),
    /// Without an actor. `None` if there is no connection, as in tests.
    Address(Option<IpAddr>),
}

#[cfg(test)]
mod tests {
    use super::KeyName;

    #[test]
    fn a_key_has_a_plain_name() {
        for name in ["a", "0", "front-end.2_x", &"a".repeat(63)] {
            assert_eq!(name.parse::<KeyName>().unwrap().as_str(), name);
        }
        for name in ["", "-a", "A", "a b", "a\n", "ключ", &"a".repeat(64)] {
            assert!(name.parse::<KeyName>().is_err(), "{name:?}");
        }
    }
}
