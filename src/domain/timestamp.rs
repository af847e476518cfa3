//! Timestamps, as the service writes them everywhere.

use std::fmt;
use std::ops::Range;

use chrono::{DateTime, Datelike, Timelike, Utc};
use serde::{Serialize, Serializer};

/// A moment in UTC; written as RFC 3339 with milliseconds and `Z`, `2024-12-04T10:30:00.123Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(DateTime<Utc>);

impl Timestamp {
    pub fn now() -> Self {
        Self(Utc::now())
    }

    /// Seconds since this moment; 0 if it is in the future, by another machine's clock.
    pub fn age_seconds(self) -> f64 {
        (Utc::now() - self.0).as_seconds_f64().max(0.0)
    }
}

impl From<DateTime<Utc>> for Timestamp {
    fn from(moment: DateTime<Utc>) -> Self {
        Self(moment)
    }
}

impl Timestamp {
    /// Formats digit by digit, because each log line holds a timestamp: chrono's RFC 3339 writer
    /// would add a fifth to a line's cost. `None` if the year is not between 0 and 9999.
    fn digits(self) -> Option<[u8; 24]> {
        let moment = self.0.naive_utc();
        let year = u32::try_from(moment.year())
            .ok()
            .filter(|year| *year <= 9999)?;
        let mut text = *b"0000-00-00T00:00:00.000Z";
        let mut put = |place: Range<usize>, mut number: u32| {
            for digit in text[place].iter_mut().rev() {
                *digit = b'0' + (number % 10) as u8;
                number /= 10;
            }
        };
        put(0..4, year);
        put(5..7, moment.month());
        put(8..10, moment.day());
        put(11..13, moment.hour());
        put(14..16, moment.minute());
        put(17..19, moment.second());
        // chrono counts a leap second as a second of 2,000 ms: its second half is written like the
        // first.
        put(20..23, moment.nanosecond() / 1_000_000 % 1000);
        Some(text)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.digits() {
            Some(text) => f.write_str(str::from_utf8(&text).unwrap_or_default()),
            None => self.0.format("%Y-%m-%dT%H:%M:%S%.3fZ").fmt(f),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.digits() {
            Some(text) => serializer.serialize_str(str::from_utf8(&text).unwrap_or_default()),
            None => serializer.collect_str(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};

    use super::Timestamp;

    #[test]
    fn a_whole_second_keeps_its_three_zeros() {
        let moment = "2024-12-04T10:30:00Z".parse::<DateTime<Utc>>().unwrap();
        assert_eq!(
            Timestamp::from(moment).to_string(),
            "2024-12-04T10:30:00.000Z"
        );
    }

    #[test]
    fn every_timestamp_is_formatted_as_chrono_formats_it() {
        let written_by_chrono =
            |moment: DateTime<Utc>| moment.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
        let random = |_| {
            DateTime::from_timestamp_millis(fastrand::i64(-70_000_000_000_000..300_000_000_000_000))
        };
        let bounds = [
            DateTime::UNIX_EPOCH,
            DateTime::<Utc>::MIN_UTC,
            DateTime::<Utc>::MAX_UTC,
        ];
        for moment in (0..10_000).filter_map(random).chain(bounds) {
            assert_eq!(
                Timestamp::from(moment).to_string(),
                written_by_chrono(moment)
            );
        }
    }
}
