//! The identifier that connects a request's log lines, outbox row and message, and the consumer's
//! log lines. A leaf: imports no other module of the crate.

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

/// Longest identifier taken from a client, in characters.
const MAX_LENGTH: usize = 128;

/// A trace id; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceId(Arc<str>);

impl TraceId {
    /// Its format, for messages and the documentation.
    pub const FORM: &str = "1 to 128 characters of A-Z a-z 0-9 . _ : / @ + = -";

    /// Parses a client's identifier; `None` if it is not safe to repeat in headers and logs.
    pub fn parse(raw: &[u8]) -> Option<Self> {
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"._:/@+=-".contains(byte);
        if raw.is_empty() || raw.len() > MAX_LENGTH || !raw.iter().all(allowed) {
            return None;
        }
        std::str::from_utf8(raw).ok().map(|id| Self(id.into()))
    }

    /// A fresh random identifier (UUID version 4).
    pub fn generate() -> Self {
        let mut buffer = Uuid::encode_buffer();
        Self(Arc::from(
            &*Uuid::new_v4().hyphenated().encode_lower(&mut buffer),
        ))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_LENGTH, TraceId};

    #[test]
    fn a_trace_id_may_have_128_of_the_allowed_characters() {
        let (length, alphabet) = TraceId::FORM.split_once(" characters of ").unwrap();
        assert_eq!(length, format!("1 to {MAX_LENGTH}"));
        let named = alphabet.replace(' ', "").replace("A-Z", "AZ");
        let named = named.replace("a-z", "az").replace("0-9", "09");
        for raw in ["a", &named, "AZaz09._:/@+=-", &"x".repeat(128)] {
            assert_eq!(TraceId::parse(raw.as_bytes()).unwrap().as_str(), raw);
        }
    }

    #[test]
    fn a_trace_id_that_could_break_a_header_or_log_line_is_refused() {
        for raw in [
            "",
            " ",
            "a b",
            "a\nb",
            "a\0",
            "ы",
            "\"",
            "{",
            &"x".repeat(129),
        ] {
            assert_eq!(TraceId::parse(raw.as_bytes()), None, "{raw:?}");
        }
    }

    #[test]
    fn generated_trace_ids_are_distinct_uuids() {
        let first = TraceId::generate();
        let second = TraceId::generate();
        assert_ne!(first, second);
        assert_eq!(
            uuid::Uuid::parse_str(first.as_str())
                .unwrap()
                .get_version_num(),
            4
        );
    }
}
