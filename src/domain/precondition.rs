//! What a caller expects of a user's version.

use super::user::Version;

/// Some versions of a user, or all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Versions {
    All,
    /// May be empty.
    These(Vec<Version>),
}

impl Versions {
    fn contain(&self, version: Option<Version>) -> bool {
        version.is_some_and(|version| match self {
            Self::All => true,
            Self::These(versions) => versions.contains(&version),
        })
    }
}

/// Holds for a user whose version is one of `one_of`, if given, and none of `none_of`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Precondition {
    pub one_of: Option<Versions>,
    pub none_of: Option<Versions>,
}

impl Precondition {
    /// `None` stands for a user who does not exist: they have none of the versions.
    pub(crate) fn holds(&self, version: Option<Version>) -> bool {
        self.allows(version) && !self.refuses(version)
    }

    /// Whether it is one of `one_of`, if given.
    pub(crate) fn allows(&self, version: Option<Version>) -> bool {
        let one_of = self.one_of.as_ref();
        one_of.is_none_or(|versions| versions.contain(version))
    }

    /// Whether it is one of `none_of`.
    pub(crate) fn refuses(&self, version: Option<Version>) -> bool {
        let none_of = self.none_of.as_ref();
        none_of.is_some_and(|versions| versions.contain(version))
    }
}

#[cfg(test)]
mod tests {
    use super::{Precondition, Version, Versions};

    fn these(versions: &[i64]) -> Versions {
        Versions::These(versions.iter().copied().map(Version::stored).collect())
    }

    #[test]
    fn a_version_must_be_one_of_these_and_none_of_those() {
        let holds = |one_of, none_of, version: Option<i64>| {
            Precondition { one_of, none_of }.holds(version.map(Version::stored))
        };
        assert!(holds(None, None, Some(3)));
        assert!(holds(Some(Versions::All), None, Some(3)));
        assert!(holds(Some(these(&[2, 3])), None, Some(3)));
        assert!(!holds(Some(these(&[2])), None, Some(3)));
        assert!(!holds(Some(these(&[])), None, Some(3)));
        assert!(holds(None, Some(these(&[2])), Some(3)));
        assert!(!holds(None, Some(these(&[2, 3])), Some(3)));
        assert!(!holds(None, Some(Versions::All), Some(3)));
        assert!(!holds(Some(these(&[3])), Some(these(&[3])), Some(3)));
    }

    #[test]
    fn a_user_who_does_not_exist_has_no_version() {
        let holds = |one_of, none_of| Precondition { one_of, none_of }.holds(None);
        assert!(holds(None, None));
        assert!(holds(None, Some(Versions::All)));
        assert!(!holds(Some(Versions::All), None));
        assert!(!holds(Some(these(&[1])), None));
    }
}
