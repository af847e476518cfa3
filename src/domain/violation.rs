//! Reasons why a value is invalid.

/// The rule that a value breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The value has no visible character.
    Blank,
    ControlCharacter,
    /// A bidirectional control character.
    BidiControl,
    TooShort,
    TooLong,
}

/// A broken rule, and a sentence that never repeats the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub rule: Rule,
    pub detail: String,
}

impl Violation {
    pub fn new(rule: Rule, detail: impl Into<String>) -> Self {
        Self {
            rule,
            detail: detail.into(),
        }
    }
}
