//! Reading bars: the ones of a time range, and the lookback before it.

use bqx_core::calendar;
use pgrx::datum::{DatumWithOid, TimestampWithTimeZone};
use pgrx::prelude::*;
use pgrx::spi::SpiClient;
use twox_hash::XxHash3_128;

use crate::errors::Failure;
use crate::rows::{QueryRow, for_each_row};

/// Changes when the same bars would give other rows, so that every month is recomputed.
const FINGERPRINT_VERSION: &[u8] = b"bqx 1 ";

/// How far back the lookback is sought before all of the table is: a bound on time keeps the query off older
/// partitions. In days.
const LOOKBACK_SPANS: [i64; 2] = [7, 60];

const MICROS_PER_DAY: i64 = 86_400_000_000;

/// `MIN_TIMESTAMP` and `DT_NOBEGIN` (-infinity), macros that the bindings leave out.
const FIRST_INSTANT: i64 = -211_813_488_000_000_000;
const MINUS_INFINITY: i64 = i64::MIN;

/// Bars shown at a time, beside their lookback: bounds the memory of a range of any length.
const PIECE: usize = 16_384;

/// Consecutive bars of one pair, oldest first.
pub struct Series {
    /// Microseconds since 2000-01-01 UTC, strictly ascending.
    pub times: Vec<i64>,
    /// `rate_index`, positive and finite.
    pub values: Vec<f64>,
    /// Where the range asked for begins: the bars before it are lookback.
    pub first: usize,
}

/// Bars of `[from, to)`, in microseconds since 2000-01-01 UTC, of an M1 table, with up to `lookback` bars before.
///
/// 22003 for a bar whose close or rate_index is NULL, not finite or not positive, or whose time is infinite;
/// 23505 for two bars of one minute (a table without a key may hold them).
pub fn read(m1: pg_sys::Oid, from: i64, to: i64, lookback: usize) -> Series {
    Spi::connect(|client| {
        let source = Source::of(client, m1);
        let mut series = source.before(client, from, lookback);
        source.for_each_bar(client, from, to, |bar| source.append(&mut series, &bar));
        series
    })
}

/// Shows the bars that [`read`] returns in consecutive pieces, each with the lookback that all of the bars
/// before it give, in memory that does not grow with the range.
pub fn for_each_piece(m1: pg_sys::Oid, from: i64, to: i64, lookback: usize, mut show: impl FnMut(&Series)) {
    if from >= to {
        return;
    }
    Spi::connect(|client| {
        let source = Source::of(client, m1);
        let mut piece = source.before(client, from, lookback);
        source.for_each_bar(client, from, to, |bar| {
            if piece.rows().len() == PIECE {
                show(&piece);
                piece.pass_on(lookback);
            }
            source.append(&mut piece, &bar);
        });
        if !piece.rows().is_empty() {
            show(&piece);
        }
    });
}

impl Series {
    /// Bars of the range itself.
    pub fn rows(&self) -> std::ops::Range<usize> {
        self.first..self.times.len()
    }

    /// Makes its newest bars the lookback of the bars that will follow.
    fn pass_on(&mut self, lookback: usize) {
        // at least one, which tells whether the next bar is of the same minute
        let passed = self.times.len().saturating_sub(lookback.max(1));
        self.times.drain(..passed);
        self.values.drain(..passed);
        self.first = self.times.len();
    }

    /// What the rows of a table are computed from: the shape of the table (its columns and their types, as
    /// `bqx._own_columns` has it), the bars, and as much lookback as the columns need. Equal fingerprints mean equal
    /// rows. XXH3, 128 bits, in hexadecimal.
    pub fn fingerprint(&self, lookback: usize, shape: &str) -> String {
        let start = self.first.saturating_sub(lookback);
        let mut bytes = FINGERPRINT_VERSION.to_vec();
        bytes.extend(shape.bytes());
        bytes.extend((self.first - start).to_le_bytes());
        for (time, value) in self.times[start..].iter().zip(&self.values[start..]) {
            bytes.extend(time.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        format!("{:032x}", XxHash3_128::oneshot(&bytes))
    }
}

struct Bar {
    time: i64,
    rate_index: Option<f64>,
    close: Option<f64>,
}

impl Bar {
    fn from_row(row: &QueryRow) -> Bar {
        let Some(time) = row.get::<TimestampWithTimeZone>(1) else {
            Failure::new(PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED, "a bar has no time").raise()
        };
        Bar { time: time.into(), rate_index: row.get(2), close: row.get(3) }
    }
}

/// An M1 table and the SQL that reads it, whatever the types of its columns.
struct Source {
    name: String,
    select: String,
    at_or_after: String,
    before: String,
}

impl Source {
    fn of(client: &SpiClient<'_>, m1: pg_sys::Oid) -> Source {
        let query = "SELECT $1::oid::regclass::text, bqx._as_instant($1::oid::regclass, 'time'::text), \
                     bqx._as_key($1::oid::regclass, 'time'::text, '$1'::text), \
                     bqx._as_key($1::oid::regclass, 'time'::text, '$2'::text)";
        let mut source = None;
        for_each_row(client, query, &[m1.into()], |row| {
            let text = |i| row.get::<String>(i).unwrap_or_default();
            source = Some(Source {
                name: text(1),
                select: format!(
                    "SELECT ({})::timestamptz, rate_index::double precision, close::double precision FROM {} AS t",
                    text(2),
                    text(1)
                ),
                at_or_after: format!("t.time >= {}", text(3)),
                before: format!("t.time < {}", text(4)),
            });
        });
        source.expect("a query without FROM has one row")
    }

    fn for_each_bar(&self, client: &SpiClient<'_>, from: i64, to: i64, mut show: impl FnMut(Bar)) {
        let query = format!("{} WHERE {} AND {} ORDER BY t.time", self.select, self.at_or_after, self.before);
        for_each_row(client, &query, &[instant(from), instant(to)], |row| show(Bar::from_row(row)));
    }

    /// A series without rows of its own: up to `bars` bars before an instant.
    fn before(&self, client: &SpiClient<'_>, instant: i64, bars: usize) -> Series {
        let mut series = Series { times: Vec::new(), values: Vec::new(), first: 0 };
        for bar in self.newest_first(client, instant, bars).iter().rev() {
            self.append(&mut series, bar);
        }
        series.first = series.times.len();
        series
    }

    /// Up to `bars` bars before an instant, newest first.
    fn newest_first(&self, client: &SpiClient<'_>, before: i64, bars: usize) -> Vec<Bar> {
        let mut found = Vec::new();
        if bars == 0 {
            return found;
        }
        let query = format!(
            "{} WHERE {} AND {} ORDER BY t.time DESC LIMIT {bars}",
            self.select, self.at_or_after, self.before
        );
        for since in LOOKBACK_SPANS.map(|days| days_before(before, days)).into_iter().chain([MINUS_INFINITY])
        {
            found.clear();
            for_each_row(client, &query, &[instant(since), instant(before)], |row| {
                found.push(Bar::from_row(row));
            });
            if found.len() == bars || since == MINUS_INFINITY {
                break;
            }
        }
        found
    }

    /// Adds a bar that is one, and is newer than all before.
    fn append(&self, series: &mut Series, bar: &Bar) {
        if bar.time == MINUS_INFINITY {
            self.refuse_infinite_time();
        }
        for (name, value) in [("close", bar.close), ("rate_index", bar.rate_index)] {
            if !value.is_some_and(|v| v.is_finite() && v > 0.0) {
                self.refuse(bar, name, value);
            }
        }
        if series.times.last().is_some_and(|&last| last >= bar.time) {
            self.refuse_second_bar(bar.time);
        }
        series.times.push(bar.time);
        series.values.push(bar.rate_index.unwrap_or(f64::NAN));
    }

    fn refuse_infinite_time(&self) -> ! {
        Failure::new(
            PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
            format!("{} has a bar whose time is infinite", self.name),
        )
        .hint(format!("DELETE FROM {} WHERE NOT isfinite(time);", self.name))
        .raise()
    }

    fn refuse_second_bar(&self, time: i64) -> ! {
        Failure::new(
            PgSqlErrorCode::ERRCODE_UNIQUE_VIOLATION,
            format!("{} has more than one bar at {}", self.name, utc(time)),
        )
        .hint(format!("Delete the surplus bars, then: ALTER TABLE {} ADD PRIMARY KEY (time);", self.name))
        .raise()
    }

    fn refuse(&self, bar: &Bar, column: &str, value: Option<f64>) -> ! {
        let value = value.map_or("NULL".to_string(), |v| v.to_string());
        let failure = Failure::new(
            PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
            format!("{} has {column} {value} at {}", self.name, utc(bar.time)),
        )
        .detail("A bar must be a positive finite number; rows that look back at it can't be computed.");
        if column == "close" {
            failure.hint("Correct or delete the bar, then try again.").raise()
        } else {
            failure.hint("CALL bqx.index_m1();  sets rate_index on every bar.").raise()
        }
    }
}

fn instant(pg_micros: i64) -> DatumWithOid<'static> {
    // Safety: a timestamptz datum is this integer.
    unsafe { DatumWithOid::new(pg_sys::Datum::from(pg_micros), pg_sys::TIMESTAMPTZOID) }
}

/// The instant so many days earlier, -infinity where there is none.
fn days_before(pg_micros: i64, days: i64) -> i64 {
    let earlier = pg_micros.saturating_sub(days * MICROS_PER_DAY);
    if earlier < FIRST_INSTANT { MINUS_INFINITY } else { earlier }
}

/// An instant as messages show it, in UTC.
pub fn utc(pg_micros: i64) -> String {
    match calendar::from_pg_micros(pg_micros) {
        Some(time) => format!("{} UTC", time.format("%Y-%m-%d %H:%M:%S%.f")),
        None => "an infinite time".to_string(),
    }
}
