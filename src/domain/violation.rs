//! Why a value is refused.

/// A stable `snake_case` word, and a sentence that never repeats the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub code: &'static str,
    pub detail: String,
}
