//! Moments as the database holds them.

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use serde::{Serialize, Serializer};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgTypeInfo, PgValueRef};
use sqlx::{Decode, Postgres, Type};

use crate::domain::timestamp::Timestamp;

/// A `timestamptz`. `infinity` and years outside 1 to 9999 have no form in RFC 3339, so the nearest
/// valid time is read instead: the driver panics on some of them, and a single row must not fail a
/// list or a committed change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredTime {
    moment: DateTime<Utc>,
    pub is_exact: bool,
}

impl StoredTime {
    /// Converts from PostgreSQL's binary form: microseconds since the year 2000.
    /// <https://www.postgresql.org/docs/current/datatype-datetime.html>
    fn from_micros(stored: i64) -> Self {
        let day = |year, month, day| NaiveDate::from_ymd_opt(year, month, day).unwrap_or_default();
        let first = day(1, 1, 1).and_time(NaiveTime::MIN).and_utc();
        let last = day(10_000, 1, 1).and_time(NaiveTime::MIN).and_utc()
            - chrono::Duration::milliseconds(1);
        let epoch = day(2000, 1, 1).and_time(NaiveTime::MIN).and_utc();
        let moment = epoch
            .timestamp_micros()
            .checked_add(stored)
            .and_then(DateTime::from_timestamp_micros);
        let nearest = moment
            .unwrap_or(if stored < 0 { first } else { last })
            .clamp(first, last);
        Self {
            moment: nearest,
            is_exact: moment == Some(nearest),
        }
    }
}

impl From<StoredTime> for Timestamp {
    fn from(stored: StoredTime) -> Self {
        stored.moment.into()
    }
}

impl Serialize for StoredTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Timestamp::from(*self).serialize(serializer)
    }
}

impl Type<Postgres> for StoredTime {
    fn type_info() -> PgTypeInfo {
        <DateTime<Utc> as Type<Postgres>>::type_info()
    }
}

impl Decode<'_, Postgres> for StoredTime {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        Ok(Self::from_micros(<i64 as Decode<Postgres>>::decode(value)?))
    }
}

#[cfg(test)]
mod tests {
    use super::{StoredTime, Timestamp};

    #[test]
    fn a_time_outside_rfc_3339_is_read_as_the_nearest_within_it() {
        let read = |stored| {
            let stored = StoredTime::from_micros(stored);
            (Timestamp::from(stored).to_string(), stored.is_exact)
        };
        let first = "0001-01-01T00:00:00.000Z".to_owned();
        let last = "9999-12-31T23:59:59.999Z".to_owned();
        assert_eq!(read(i64::MAX), (last.clone(), false));
        assert_eq!(read(i64::MIN), (first.clone(), false));
        assert_eq!(read(i64::MAX - 1), (last, false));
        assert_eq!(read(i64::MIN + 1), (first, false));
        assert_eq!(read(0), ("2000-01-01T00:00:00.000Z".to_owned(), true));
        assert_eq!(
            read(786_623_400_123_000),
            ("2024-12-04T10:30:00.123Z".to_owned(), true)
        );
    }
}
