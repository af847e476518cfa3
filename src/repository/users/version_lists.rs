//! Preconditions as the statements of changes take them.

use std::fmt::Write;

use crate::domain::precondition::{Precondition, Versions};
use crate::domain::user::Version;

/// The versions that may be changed, as the text of an array; `None` is all.
pub(crate) fn allowed(precondition: &Precondition) -> Option<String> {
    match (&precondition.one_of, &precondition.none_of) {
        (_, Some(Versions::All)) => Some(array(&[])),
        (Some(Versions::These(versions)), _) => Some(array(versions)),
        (Some(Versions::All) | None, _) => None,
    }
}

/// The versions that may not be changed, as the text of an array; `None` is none.
pub(crate) fn refused(precondition: &Precondition) -> Option<String> {
    match &precondition.none_of {
        Some(Versions::These(versions)) => Some(array(versions)),
        // Then none is allowed.
        Some(Versions::All) | None => None,
    }
}

/// The preconditions of several changes, one array per column. Of texts, because `unnest` would
/// flatten arrays of arrays.
#[derive(Default)]
pub(crate) struct VersionLists {
    pub allowed: Vec<Option<String>>,
    pub refused: Vec<Option<String>>,
}

impl VersionLists {
    pub(crate) fn push(&mut self, precondition: &Precondition) {
        self.allowed.push(allowed(precondition));
        self.refused.push(refused(precondition));
    }
}

/// The text of a `bigint[]`.
/// <https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO>
fn array(versions: &[Version]) -> String {
    let mut text = String::from("{");
    for (place, version) in versions.iter().enumerate() {
        let separator = if place == 0 { "" } else { "," };
        // Writing to a string cannot fail.
        _ = write!(text, "{separator}{version}");
    }
    text.push('}');
    text
}

#[cfg(test)]
mod tests {
    use super::{Precondition, Version, Versions, allowed, refused};

    #[test]
    fn a_precondition_becomes_two_lists() {
        let these = |versions: &[i64]| {
            Some(Versions::These(
                versions.iter().copied().map(Version::stored).collect(),
            ))
        };
        let all = Some(Versions::All);
        for (one_of, none_of, expected) in [
            (None, None, (None, None)),
            (all.clone(), None, (None, None)),
            (these(&[3]), None, (Some("{3}"), None)),
            (these(&[3, 7]), these(&[]), (Some("{3,7}"), Some("{}"))),
            (these(&[]), None, (Some("{}"), None)),
            (None, these(&[3]), (None, Some("{3}"))),
            (all.clone(), these(&[3]), (None, Some("{3}"))),
            (None, all.clone(), (Some("{}"), None)),
            (these(&[3]), all, (Some("{}"), None)),
        ] {
            let precondition = Precondition { one_of, none_of };
            let lists = (allowed(&precondition), refused(&precondition));
            assert_eq!((lists.0.as_deref(), lists.1.as_deref()), expected);
        }
    }
}
