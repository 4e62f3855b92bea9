//! UTC calendar months, and instants as PostgreSQL counts them.
//!
//! A month here is a UTC month whatever a session's time zone says; partition bounds, jobs and the simulated
//! market all speak of the same [`Month`]. Instants are *pg micros*: the content of a `timestamptz`,
//! microseconds since 2000-01-01 00:00 UTC as an `i64`. The calendar arithmetic itself is chrono's.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime};

/// 2000-01-01 00:00 UTC, PostgreSQL's epoch, in microseconds of the Unix epoch.
const PG_EPOCH_UNIX_MICROS: i64 = 946_684_800_000_000;

/// Microseconds in a minute.
pub const MICROS_PER_MINUTE: i64 = 60_000_000;

/// A UTC calendar month from 1900-01 to 2999-12. Ordered by time; displayed as `2024-07`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Month {
    /// Months since January of year 0. Private, so that the range holds.
    index: i32,
}

impl Month {
    /// The first month there is, 1900-01.
    pub const MIN: Month = Month { index: 1900 * 12 };
    /// The last month there is, 2999-12.
    pub const MAX: Month = Month { index: 2999 * 12 + 11 };

    /// The month of a year and a month number (1 to 12). `None` outside [`Month::MIN`]..=[`Month::MAX`].
    pub fn new(year: i32, month: u32) -> Option<Month> {
        let date = NaiveDate::from_ymd_opt(year, month, 1)?;
        Month::from_date(date)
    }

    /// The month that a day lies in. `None` outside [`Month::MIN`]..=[`Month::MAX`].
    pub fn from_date(day: NaiveDate) -> Option<Month> {
        Month::from_index(day.year().checked_mul(12)?.checked_add(day.month0() as i32)?)
    }

    /// The month that an instant lies in. `None` outside [`Month::MIN`]..=[`Month::MAX`], so for
    /// `infinity` and `-infinity` too.
    pub fn from_pg_micros(instant: i64) -> Option<Month> {
        Month::from_date(from_pg_micros(instant)?.date())
    }

    /// Inverse of [`Month::index`].
    pub fn from_index(index: i32) -> Option<Month> {
        (Month::MIN.index..=Month::MAX.index).contains(&index).then_some(Month { index })
    }

    /// Months since January of year 0: consecutive months have consecutive numbers.
    pub fn index(self) -> i32 {
        self.index
    }

    /// The calendar year.
    pub fn year(self) -> i32 {
        self.index.div_euclid(12)
    }

    /// The number of the month in its year, 1 to 12.
    pub fn month(self) -> u32 {
        self.index.rem_euclid(12) as u32 + 1
    }

    /// The month after this one.
    pub fn next(self) -> Option<Month> {
        Month::from_index(self.index + 1)
    }

    /// The month before this one.
    pub fn prev(self) -> Option<Month> {
        Month::from_index(self.index - 1)
    }

    /// The months `self..=last` in order; none if `last` is before `self`.
    pub fn through(self, last: Month) -> impl DoubleEndedIterator<Item = Month> + ExactSizeIterator + Clone {
        (self.index..last.index + 1).map(|index| Month { index })
    }

    /// The first day of the month.
    pub fn first_day(self) -> NaiveDate {
        first_day(self.index)
    }

    /// The month's first instant, in pg micros: the lower bound of its partition, inclusive.
    pub fn start_pg_micros(self) -> i64 {
        midnight_pg_micros(first_day(self.index))
    }

    /// The next month's first instant, in pg micros: the upper bound of its partition, exclusive. The last
    /// month has one too.
    pub fn end_pg_micros(self) -> i64 {
        midnight_pg_micros(first_day(self.index + 1))
    }

    /// The end of a partition's name, as in `bqx.reg_eurusd_2024_07`: `2024_07`.
    pub fn partition_suffix(self) -> String {
        format!("{:04}_{:02}", self.year(), self.month())
    }
}

/// `2024-07`
impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:04}-{:02}", self.year(), self.month()))
    }
}

/// Text that is no month between 1900-01 and 2999-12.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAMonth(String);

impl fmt::Display for NotAMonth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" is not a month from {} to {}", self.0, Month::MIN, Month::MAX)
    }
}

impl std::error::Error for NotAMonth {}

/// Reads what [`Month`]'s `Display` writes.
impl FromStr for Month {
    type Err = NotAMonth;

    fn from_str(text: &str) -> Result<Month, NotAMonth> {
        let month = || {
            let digits = |s: &str, n| s.len() == n && s.bytes().all(|b| b.is_ascii_digit());
            let (year, month) = text.split_once('-').filter(|(y, m)| digits(y, 4) && digits(m, 2))?;
            Month::new(year.parse().ok()?, month.parse().ok()?)
        };
        month().ok_or_else(|| NotAMonth(text.into()))
    }
}

/// An instant, given as UTC date and time, in pg micros. `None` where a `timestamptz` of 64 bits ends
/// (years outside about ±292,000) or would mean `infinity`. Parts of a microsecond are dropped.
pub fn to_pg_micros(utc: NaiveDateTime) -> Option<i64> {
    let micros = utc.and_utc().timestamp_micros().checked_sub(PG_EPOCH_UNIX_MICROS)?;
    (micros != i64::MIN && micros != i64::MAX).then_some(micros)
}

/// The UTC date and time of an instant in pg micros. `None` for `infinity`, `-infinity` and years that chrono
/// has not (outside about ±262,000).
pub fn from_pg_micros(instant: i64) -> Option<NaiveDateTime> {
    if instant == i64::MIN || instant == i64::MAX {
        return None;
    }
    let unix = instant.checked_add(PG_EPOCH_UNIX_MICROS)?;
    Some(DateTime::from_timestamp_micros(unix)?.naive_utc())
}

/// The first day of the month with this number. Total over `Month::MIN.index..=Month::MAX.index + 1`.
fn first_day(index: i32) -> NaiveDate {
    NaiveDate::from_ymd_opt(index.div_euclid(12), index.rem_euclid(12) as u32 + 1, 1)
        .expect("months from 1900-01 to 3000-01 are dates")
}

fn midnight_pg_micros(day: NaiveDate) -> i64 {
    day.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_micros() - PG_EPOCH_UNIX_MICROS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn month(text: &str) -> Month {
        text.parse().unwrap()
    }

    #[test]
    fn months_are_made_from_dates_and_numbers_in_range_only() {
        let july = Month::new(2024, 7).unwrap();
        assert_eq!(Month::from_date(NaiveDate::from_ymd_opt(2024, 7, 31).unwrap()), Some(july));
        assert_eq!(Month::from_index(july.index()), Some(july));
        assert_eq!((july.year(), july.month()), (2024, 7));
        assert_eq!((july.to_string(), july.partition_suffix()), ("2024-07".into(), "2024_07".into()));
        assert_eq!(format!("[{july:>9}]"), "[  2024-07]");
        for (y, m) in [(1899, 12), (3000, 1), (2024, 0), (2024, 13), (i32::MAX, 1), (i32::MIN, 1)] {
            assert_eq!(Month::new(y, m), None, "{y}-{m}");
        }
        assert_eq!(Month::from_index(i32::MAX), None);
        for text in ["2024-7", "2024-07-01", "", "+024-07", "2024-00", "1899-12"] {
            assert!(text.parse::<Month>().is_err(), "{text}");
        }
        assert_eq!(
            "July".parse::<Month>().unwrap_err().to_string(),
            "\"July\" is not a month from 1900-01 to 2999-12"
        );
    }

    #[test]
    fn neighbours_cross_years_and_end_at_the_range() {
        assert_eq!(month("2024-12").next(), Some(month("2025-01")));
        assert_eq!(month("2024-01").prev(), Some(month("2023-12")));
        assert_eq!(Month::MAX.next(), None);
        assert_eq!(Month::MIN.prev(), None);
        assert!(month("2023-12") < month("2024-01"));
    }

    #[test]
    fn through_is_inclusive() {
        let year: Vec<_> = month("2024-07").through(month("2025-06")).collect();
        assert_eq!(year.len(), 12);
        assert_eq!((year[0], year[6], year[11]), (month("2024-07"), month("2025-01"), month("2025-06")));
        assert_eq!(month("2024-07").through(month("2024-06")).len(), 0);
        assert_eq!(Month::MAX.through(Month::MAX).len(), 1);
    }

    #[test]
    fn bounds_are_postgresql_instants() {
        assert_eq!(month("2000-01").start_pg_micros(), 0);
        assert_eq!(month("1999-12").end_pg_micros(), 0);
        // select (extract(epoch from timestamptz '2024-07-01 00:00+00') - 946684800) * 1000000
        assert_eq!(month("2024-07").start_pg_micros(), 773_107_200_000_000);
        assert_eq!(
            month("2024-02").end_pg_micros() - month("2024-02").start_pg_micros(),
            29 * 86_400_000_000
        );
        for m in Month::MIN.through(Month::MAX) {
            assert_eq!(Month::from_pg_micros(m.start_pg_micros()), Some(m));
            assert_eq!(Month::from_pg_micros(m.end_pg_micros() - 1), Some(m));
            assert_eq!(Month::from_pg_micros(m.end_pg_micros()), m.next());
        }
        assert_eq!(Month::from_pg_micros(i64::MAX), None);
        assert_eq!(Month::from_pg_micros(i64::MIN), None);
    }

    #[test]
    fn instants_go_both_ways() {
        let time = NaiveDate::from_ymd_opt(1969, 12, 31).unwrap().and_hms_micro_opt(23, 59, 59, 999_999);
        assert_eq!(from_pg_micros(-946_684_800_000_001), time);
        assert_eq!(to_pg_micros(time.unwrap()), Some(-946_684_800_000_001));
        assert_eq!(from_pg_micros(i64::MAX), None);
        assert_eq!(from_pg_micros(i64::MAX - 1), None);
        assert_eq!(from_pg_micros(i64::MIN), None);
        assert_eq!(from_pg_micros(i64::MIN + 1), None);
        assert_eq!(from_pg_micros(0).and_then(to_pg_micros), Some(0));
    }
}
