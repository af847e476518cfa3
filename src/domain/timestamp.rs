//! The one way this service writes a moment down.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};

/// A moment in UTC; written as RFC 3339 with milliseconds and `Z`, `2024-12-04T10:30:00.123Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(DateTime<Utc>);

impl Timestamp {
    #[must_use]
    pub fn now() -> Self {
        Self(Utc::now())
    }
}

impl From<DateTime<Utc>> for Timestamp {
    fn from(moment: DateTime<Utc>) -> Self {
        Self(moment)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.format("%Y-%m-%dT%H:%M:%S%.3fZ").fmt(f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::Timestamp;

    #[test]
    fn a_whole_second_keeps_its_three_zeros() {
        let moment = "2024-12-04T10:30:00Z".parse::<chrono::DateTime<chrono::Utc>>().unwrap();
        assert_eq!(Timestamp::from(moment).to_string(), "2024-12-04T10:30:00.000Z");
    }
}
