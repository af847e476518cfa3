//! Timestamps, as the service writes them everywhere.

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};

/// A moment in UTC; written as RFC 3339 with milliseconds and `Z`, `2024-12-04T10:30:00.123Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(DateTime<Utc>);

impl Timestamp {
    pub fn now() -> Self {
        Self(Utc::now())
    }

    /// Seconds from then until now; 0 if another machine's clock is ahead.
    pub fn age_seconds(self) -> f64 {
        (Utc::now() - self.0).as_seconds_f64().max(0.0)
    }
}

impl From<DateTime<Utc>> for Timestamp {
    fn from(moment: DateTime<Utc>) -> Self {
        Self(moment)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};

    use super::Timestamp;

    #[test]
    fn a_whole_second_keeps_its_three_zeros() {
        let moment = "2024-12-04T10:30:00Z".parse::<DateTime<Utc>>().unwrap();
        assert_eq!(Timestamp::from(moment).to_string(), "2024-12-04T10:30:00.000Z");
    }

    #[test]
    fn every_moment_is_written_as_by_chrono() {
        let written_by_chrono = |moment: DateTime<Utc>| moment.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
        let random = |_| DateTime::from_timestamp_millis(fastrand::i64(-70_000_000_000_000..300_000_000_000_000));
        let bounds = [DateTime::UNIX_EPOCH, DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC];
        for moment in (0..10_000).filter_map(random).chain(bounds) {
            assert_eq!(Timestamp::from(moment).to_string(), written_by_chrono(moment));
        }
    }
}
