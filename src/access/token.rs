//! API tokens: `umapi_`, 30 random characters and 6 of a checksum, all of them letters and digits.
//! The prefix is for scanners of secrets; the checksum tells a token from noise without a look at
//! the database.

use std::hash::{Hash, Hasher};

use rand::distr::{Alphanumeric, SampleString};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const PREFIX: &str = "umapi_";
/// 178 bits.
const RANDOM_CHARS: usize = 30;
/// CRC-32 (IEEE) of the random characters, in base 62, most significant digit first.
const CHECKSUM_CHARS: usize = 6;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A token in the clear: shown once, to who made it.
pub(crate) struct Token(SecretString);

impl Token {
    /// A new one, from a cryptographically secure generator.
    pub(crate) fn generate() -> Self {
        let random = Alphanumeric.sample_string(&mut rand::rng(), RANDOM_CHARS);
        let checksum = checksum(&random);
        Self(format!("{PREFIX}{random}{checksum}").into())
    }

    /// For the terminal of who made it only.
    pub(crate) fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    pub(crate) fn digest(&self) -> TokenDigest {
        TokenDigest::new(self.expose())
    }
}

fn checksum(random: &str) -> String {
    let mut rest = crc32fast::hash(random.as_bytes());
    let mut digits = [0; CHECKSUM_CHARS];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[(rest % 62) as usize];
        rest /= 62;
    }
    digits.map(char::from).iter().collect()
}

/// The SHA-256 of a token, which is what is stored. Neither salted nor stretched: a token has 178
/// random bits, which nobody guesses.
#[derive(Clone, Copy)]
pub(crate) struct TokenDigest([u8; 32]);

impl TokenDigest {
    fn new(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    /// `None` if the text is no token.
    pub(crate) fn of(raw: &[u8]) -> Option<Self> {
        let raw = str::from_utf8(raw).ok()?;
        let body = raw.strip_prefix(PREFIX)?;
        let is_token = body.len() == RANDOM_CHARS + CHECKSUM_CHARS
            && body.bytes().all(|byte| byte.is_ascii_alphanumeric())
            && checksum(&body[..RANDOM_CHARS]) == body[RANDOM_CHARS..];
        is_token.then(|| Self::new(raw))
    }

    /// One from the database; `None` if it has another length.
    pub(crate) fn stored(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq for TokenDigest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for TokenDigest {}

impl Hash for TokenDigest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::{Token, TokenDigest, checksum};

    #[test]
    fn a_new_token_has_the_form_that_scanners_look_for() {
        let token = Token::generate();
        let body = token.expose().strip_prefix("umapi_").unwrap();
        assert_eq!(body.len(), 36);
        assert!(body.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert!(TokenDigest::of(token.expose().as_bytes()) == Some(token.digest()));
        assert!(Token::generate().digest() != token.digest());
    }

    #[test]
    fn the_checksum_is_crc_32_in_base_62() {
        // CRC-32 of "123456789" is cbf43926, the check value of its definition: 3,421,780,262.
        assert_eq!(checksum("123456789"), "3jZRME");
        assert_eq!(checksum(""), "000000");
    }

    #[test]
    fn what_is_no_token_is_known_without_the_database() {
        let token = Token::generate();
        let token = token.expose();
        let mut typo = token.to_owned().into_bytes();
        typo[10] = if typo[10] == b'a' { b'b' } else { b'a' };
        for raw in [
            &b""[..],
            b"umapi_",
            &typo,
            &token.as_bytes()[..41],
            format!("{token}0").as_bytes(),
            token.to_uppercase().as_bytes(),
            &[0xff; 42],
            "umapi_яяяяяяяяяяяяяяяяяя".as_bytes(),
        ] {
            assert!(TokenDigest::of(raw).is_none(), "{raw:?}");
        }
    }
}
