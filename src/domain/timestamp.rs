//! The one way this service writes a moment down.

use std::{fmt, ops::Range};

use chrono::{DateTime, Datelike, Timelike, Utc};
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
        let (date, time) = (self.0.date_naive(), self.0.time());
        let year = date.year();
        if !(0..=9999).contains(&year) {
            return self.0.format("%Y-%m-%dT%H:%M:%S%.3fZ").fmt(f);
        }
        // Digit by digit: chrono reads a format string anew each time, and each log line holds a timestamp.
        let mut text = *b"0000-00-00T00:00:00.000Z";
        let mut put = |place: Range<usize>, mut number: u32| {
            for digit in text[place].iter_mut().rev() {
                *digit = b'0' + (number % 10) as u8;
                number /= 10;
            }
        };
        put(0..4, year.unsigned_abs());
        put(5..7, date.month());
        put(8..10, date.day());
        put(11..13, time.hour());
        put(14..16, time.minute());
        put(17..19, time.second());
        // A leap second is written as the last one: chrono counts it as a second of 2,000 ms.
        put(20..23, time.nanosecond() / 1_000_000 % 1000);
        f.write_str(str::from_utf8(&text).unwrap_or_default())
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
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
