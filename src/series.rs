//! Reading bars: the ones of a time range, and the lookback before it.

use std::collections::TryReserveError;
use std::fmt;
use std::rc::Rc;

use bqx_core::calendar;
use bqx_core::changed_ranges::{AffectedRows, ChangedRange};
use pgrx::datum::{DatumWithOid, TimestampWithTimeZone};
use pgrx::prelude::*;
use pgrx::spi::SpiClient;
use twox_hash::xxhash3_128::{DEFAULT_SECRET_LENGTH, RawHasher, SecretBuffer};

use crate::bar_scan::IndexedBars;
use crate::errors::Failure;
use crate::memory;
use crate::rows::{Cursor, QueryRow, for_each_row};

/// Changes when the same bars would give other rows, so that every month is recomputed.
const FINGERPRINT_VERSION: &[u8] = b"bqx 1 ";

/// How far back the lookback is sought before all of the table is: a bound on time keeps the query off older
/// partitions. In days.
const LOOKBACK_SPANS: [i64; 2] = [7, 60];

const MICROS_PER_DAY: i64 = 86_400_000_000;

/// `MIN_TIMESTAMP`, `END_TIMESTAMP`, `DT_NOBEGIN` (-infinity) and `DT_NOEND` (infinity), macros that the bindings leave out.
const FIRST_INSTANT: i64 = -211_813_488_000_000_000;
const END_OF_INSTANTS: i64 = 9_223_371_331_200_000_000;
pub const MINUS_INFINITY: i64 = i64::MIN;
pub const INFINITY: i64 = i64::MAX;

/// The columns of a bar after its time, for [`Bar::from_row`].
pub const BAR_VALUES: &str = "rate_index::double precision, close::double precision";

/// Bars shown at a time, beside their lookback: bounds the memory of a range of any length.
const PIECE: usize = 16_384;

/// Bars fetched at a time where it is not known how many are affected.
const AFFECTED_FETCH: usize = 1_024;

/// Consecutive bars of one pair, oldest first.
#[derive(Default)]
pub struct Series {
    /// Microseconds since 2000-01-01 UTC, strictly ascending.
    pub times: Vec<i64>,
    /// `rate_index`, positive and finite.
    pub values: Vec<f64>,
    /// Where the range asked for begins: the bars before it are lookback.
    pub first: usize,
}

/// Shows the bars of `[from, to)`, in microseconds since 2000-01-01 UTC, of an M1 table in consecutive pieces, each with
/// up to `lookback` of the bars before it: memory does not grow with the range. The last piece may have no bars of
/// the range.
///
/// 22003 for a bar whose close or rate_index is NULL, not finite or not positive, or whose time is infinite;
/// 23505 for two bars of one minute (a table without a key may hold them); 53200 where there is no memory for a
/// piece, or `show` finds none.
pub fn for_each_piece(
    m1: pg_sys::Oid,
    from: i64,
    to: i64,
    lookback: usize,
    mut show: impl FnMut(&Series) -> Result<(), TryReserveError>,
) {
    if from >= to {
        return;
    }
    Spi::connect(|client| {
        let source = Source::of(client, m1);
        let mut piece = Series::default();
        let shown = source.show_pieces(client, from, to, lookback, &mut piece, &mut show);
        shown.unwrap_or_else(|_| source.refuse_without_memory(from, to, piece.times.len()));
    });
}

/// Shows the bars whose rows some changes affect, in consecutive pieces, each with up to `lookback` of the bars before it.
/// The ranges must be ascending and apart. `indexed` is the table, if its bars can be read by an index. Errors as in
/// [`for_each_piece`].
pub fn for_each_affected_piece(
    m1: pg_sys::Oid,
    indexed: Option<&IndexedBars>,
    ranges: &[ChangedRange],
    lookback: usize,
    mut show: impl FnMut(&Rc<Series>) -> Result<(), TryReserveError>,
) {
    let reader = BarReader { m1, indexed };
    let mut affected = AffectedRows::of(ranges, lookback);
    while let Some(range) = affected.next_range() {
        let more = reader.show_stretch(range, &mut affected, lookback, &mut show);
        if !more.unwrap_or_else(|_| reader.refuse_without_memory(range)) {
            break;
        }
    }
}

/// For each instant, the time of the first of so many bars before it; -infinity where there are fewer.
pub fn lookback_starts(
    m1: pg_sys::Oid,
    indexed: Option<&IndexedBars>,
    instants: impl Iterator<Item = i64>,
    lookback: usize,
) -> Vec<i64> {
    let reader = BarReader { m1, indexed };
    let start = |instant| {
        let bars = reader.newest_first(instant, lookback).unwrap_or_else(|_| {
            let range = ChangedRange { from: instant, to: instant, removed: false };
            reader.refuse_without_memory(range)
        });
        bars.last().filter(|_| bars.len() == lookback).map_or(MINUS_INFINITY, |bar| bar.time)
    };
    instants.map(start).collect()
}

/// Reads some bars at a time: by an index where that can be, or else by queries.
struct BarReader<'a> {
    m1: pg_sys::Oid,
    indexed: Option<&'a IndexedBars>,
}

impl BarReader<'_> {
    fn with_source<T>(&self, act: impl FnOnce(&SpiClient<'_>, &Source) -> T) -> T {
        Spi::connect(|client| act(client, &Source::of(client, self.m1)))
    }

    /// Up to `bars` bars before an instant, newest first.
    fn newest_first(&self, before: i64, bars: usize) -> Result<Vec<Bar>, TryReserveError> {
        let found = self.indexed.and_then(|indexed| indexed.newest_first(before, bars));
        found.unwrap_or_else(|| {
            self.with_source(|client, source| source.newest_first(client, before, bars, BAR_VALUES))
        })
    }

    /// Up to `bars` bars from an instant on, oldest first.
    fn oldest_first(&self, from: i64, bars: usize) -> Result<Vec<Bar>, TryReserveError> {
        let found = self.indexed.and_then(|indexed| indexed.oldest_first(from, bars));
        found.unwrap_or_else(|| self.with_source(|client, source| source.oldest_first(client, from, bars)))
    }

    /// Adds a bar that is one, and is newer than all before.
    fn append(&self, series: &mut Series, bar: &Bar) -> Result<(), TryReserveError> {
        match fault(series, bar) {
            None => series.push(bar.time, bar.rate_index.unwrap_or(f64::NAN)),
            Some(fault) => self.with_source(|_, source| source.refuse(bar, fault)),
        }
    }

    /// Shows the affected bars from the beginning of a range to the first bar that is not; false if there is none.
    fn show_stretch(
        &self,
        range: ChangedRange,
        affected: &mut AffectedRows,
        lookback: usize,
        show: &mut impl FnMut(&Rc<Series>) -> Result<(), TryReserveError>,
    ) -> Result<bool, TryReserveError> {
        memory::secure()?;
        let mut piece = Series::default();
        // at least one, which tells whether the next bar is of the same minute
        for bar in self.newest_first(range.from, lookback.max(1))?.iter().rev() {
            self.append(&mut piece, bar)?;
        }
        piece.first = piece.times.len();
        let (mut since, mut seen) = (range.from, 0); // so many bars at that instant
        loop {
            let bars = self.oldest_first(since, AFFECTED_FETCH)?;
            for bar in bars.iter().skip(seen) {
                if !affected.is_affected(bar.time) {
                    show_piece(piece, show)?;
                    return Ok(true);
                }
                self.append(&mut piece, bar)?;
            }
            if bars.len() < AFFECTED_FETCH {
                show_piece(piece, show)?;
                return Ok(false);
            }
            (since, seen) = (bars[bars.len() - 1].time, 1);
            if piece.rows().len() >= PIECE {
                piece = show_piece(piece, show)?;
                piece.pass_on(lookback);
                memory::secure()?;
            }
        }
    }

    fn refuse_without_memory(&self, range: ChangedRange) -> ! {
        self.with_source(|_, source| source.refuse_without_memory(range.from, range.to, PIECE))
    }
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

    fn push(&mut self, time: i64, value: f64) -> Result<(), TryReserveError> {
        self.times.try_reserve(1)?;
        self.values.try_reserve(1)?;
        self.times.push(time);
        self.values.push(value);
        Ok(())
    }
}

/// What the rows of a table are computed from: the shape of the table (its columns and their types, as
/// `bqx._own_columns` has it), the bars, and as much lookback as the columns need. Equal fingerprints mean equal
/// rows. XXH3, 128 bits; displayed in hexadecimal.
pub struct Fingerprint {
    hasher: RawHasher<&'static [u8; DEFAULT_SECRET_LENGTH]>,
    lookback: usize,
    /// Bars of the range so far; None before the first piece.
    bars: Option<i64>,
}

impl Fingerprint {
    pub fn new(lookback: usize, shape: &str) -> Fingerprint {
        let mut hasher = RawHasher::new(SecretBuffer::default());
        hasher.write(FINGERPRINT_VERSION);
        hasher.write(shape.as_bytes());
        Fingerprint { hasher, lookback, bars: None }
    }

    /// Adds the next piece of a range, as [`for_each_piece`] shows them, with at least as much lookback as the columns
    /// need where there is as much. Just the first piece's counts: the others' are bars of the pieces before.
    pub fn add(&mut self, piece: &Series) {
        let mut rows = piece.rows();
        if rows.is_empty() {
            return; // no row looks back
        }
        let bars = self.bars.get_or_insert_with(|| {
            rows.start = piece.first.saturating_sub(self.lookback);
            self.hasher.write(&(piece.first - rows.start).to_le_bytes());
            0
        });
        *bars += piece.rows().len() as i64;
        for (time, value) in piece.times[rows.clone()].iter().zip(&piece.values[rows]) {
            self.hasher.write(&time.to_le_bytes());
            self.hasher.write(&value.to_le_bytes());
        }
    }

    /// Bars of the range, without lookback.
    pub fn bars(&self) -> i64 {
        self.bars.unwrap_or(0)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.hasher.finish_128())
    }
}

/// A bar as it is stored, NULLs and all.
pub struct Bar {
    pub time: i64,
    pub rate_index: Option<f64>,
    pub close: Option<f64>,
}

/// What every close and rate_index must be: positive and finite.
pub fn is_price(value: Option<f64>) -> bool {
    value.is_some_and(|v| v.is_finite() && v > 0.0)
}

impl Bar {
    pub fn from_row(row: &QueryRow) -> Bar {
        let Some(time) = row.get::<TimestampWithTimeZone>(1) else {
            Failure::new(PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED, "a bar has no time").raise()
        };
        Bar { time: time.into(), rate_index: row.get(2), close: row.get(3) }
    }
}

/// An M1 table and the SQL that reads it, whatever the types of its columns.
pub struct Source {
    name: String,
    /// A bar's time as an instant.
    time: String,
    /// `$1` and `$2` as times of the table.
    from: String,
    to: String,
}

impl Source {
    pub fn of(client: &SpiClient<'_>, m1: pg_sys::Oid) -> Source {
        let query = "SELECT $1::oid::regclass::text, bqx._as_instant($1::oid::regclass, 'time'::text), \
                     bqx._as_key($1::oid::regclass, 'time'::text, '$1'::text), \
                     bqx._as_key($1::oid::regclass, 'time'::text, '$2'::text)";
        let mut source = None;
        for_each_row(client, query, &[m1.into()], |row| {
            let text = |i| row.get::<String>(i).unwrap_or_default();
            source = Some(Source {
                name: text(1),
                time: format!("({})::timestamptz", text(2)),
                from: text(3),
                to: text(4),
            });
        });
        source.expect("a query without FROM has one row")
    }

    /// A query for the bars of `[$1, $2)`: their times and these values of each.
    fn select(&self, values: &str) -> String {
        let Source { name, time, from, to } = self;
        format!("SELECT {time}, {values} FROM {name} AS t WHERE t.time >= {from} AND t.time < {to}")
    }

    /// The same, in order of time.
    pub fn in_order(&self, values: &str) -> String {
        format!("{} ORDER BY t.time", self.select(values))
    }

    /// Does what [`for_each_piece`] says, with a piece that is empty at first.
    fn show_pieces(
        &self,
        client: &SpiClient<'_>,
        from: i64,
        to: i64,
        lookback: usize,
        piece: &mut Series,
        show: &mut impl FnMut(&Series) -> Result<(), TryReserveError>,
    ) -> Result<(), TryReserveError> {
        memory::secure()?;
        for bar in self.newest_first(client, from, lookback, BAR_VALUES)?.iter().rev() {
            self.append(piece, bar)?;
        }
        piece.first = piece.times.len();
        let query = self.in_order(BAR_VALUES);
        let mut bars = Vec::new();
        bars.try_reserve_exact(PIECE)?;
        let mut cursor = Cursor::open(client, &query, &[instant(from), instant(to)]);
        loop {
            bars.clear();
            let more = cursor.fetch(PIECE, |row| bars.push(Bar::from_row(row)));
            for bar in &bars {
                self.append(piece, bar)?;
            }
            show(piece)?;
            if !more {
                break;
            }
            piece.pass_on(lookback);
            memory::secure()?;
        }
        cursor.close();
        Ok(())
    }

    /// Up to `bars` bars from an instant on, oldest first.
    fn oldest_first(
        &self,
        client: &SpiClient<'_>,
        from: i64,
        bars: usize,
    ) -> Result<Vec<Bar>, TryReserveError> {
        let mut found = Vec::new();
        found.try_reserve_exact(bars)?;
        let Source { name, time, from: since, to } = self;
        // both ends included: a bar whose time is infinite is to be seen
        let query = format!(
            "SELECT {time}, {BAR_VALUES} FROM {name} AS t WHERE t.time >= {since} AND t.time <= {to} \
             ORDER BY t.time LIMIT {bars}"
        );
        for until in LOOKBACK_SPANS.map(|days| days_after(from, days)).into_iter().chain([INFINITY]) {
            found.clear();
            for_each_row(client, &query, &[instant(from), instant(until)], |row| {
                found.push(Bar::from_row(row));
            });
            if found.len() == bars {
                break;
            }
        }
        Ok(found)
    }

    /// Up to `bars` bars before an instant, newest first, with these values ([`BAR_VALUES`], or others in their place).
    pub fn newest_first(
        &self,
        client: &SpiClient<'_>,
        before: i64,
        bars: usize,
        values: &str,
    ) -> Result<Vec<Bar>, TryReserveError> {
        let mut found = Vec::new();
        if bars == 0 {
            return Ok(found);
        }
        found.try_reserve_exact(bars)?;
        let query = format!("{} ORDER BY t.time DESC LIMIT {bars}", self.select(values));
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
        Ok(found)
    }

    /// Adds a bar that is one, and is newer than all before.
    fn append(&self, series: &mut Series, bar: &Bar) -> Result<(), TryReserveError> {
        match fault(series, bar) {
            None => series.push(bar.time, bar.rate_index.unwrap_or(f64::NAN)),
            Some(fault) => self.refuse(bar, fault),
        }
    }

    fn refuse(&self, bar: &Bar, fault: Fault) -> ! {
        match fault {
            Fault::InfiniteTime => self.refuse_infinite_time(),
            Fault::NoPrice(column, value) => self.refuse_price(bar, column, value),
            Fault::SecondBar => self.refuse_second_bar(bar.time),
        }
    }

    fn refuse_without_memory(&self, from: i64, to: i64, bars_read: usize) -> ! {
        Failure::out_of_memory(format!(
            "The rows of {} from {} to {} take more than there is, with {} bars read at a time.",
            self.name,
            if from == MINUS_INFINITY { "its first bar".to_string() } else { utc(from) },
            if to == INFINITY { "its last".to_string() } else { utc(to) },
            bars_read
        ))
        .hint("Let the server have more memory (ulimit -v, vm.overcommit_memory), or use fewer workers.")
        .raise()
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

    fn refuse_price(&self, bar: &Bar, column: &str, value: Option<f64>) -> ! {
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

/// Why nothing can be computed from a bar.
enum Fault {
    InfiniteTime,
    /// The column, and what it holds.
    NoPrice(&'static str, Option<f64>),
    SecondBar,
}

/// What is wrong with a bar that is to follow a series.
fn fault(series: &Series, bar: &Bar) -> Option<Fault> {
    if bar.time == MINUS_INFINITY || bar.time == INFINITY {
        Some(Fault::InfiniteTime)
    } else if !is_price(bar.close) {
        Some(Fault::NoPrice("close", bar.close))
    } else if !is_price(bar.rate_index) {
        Some(Fault::NoPrice("rate_index", bar.rate_index))
    } else {
        series.times.last().is_some_and(|&last| last >= bar.time).then_some(Fault::SecondBar)
    }
}

/// Shows a piece, if it has bars of the range, and returns it.
fn show_piece(
    piece: Series,
    show: &mut impl FnMut(&Rc<Series>) -> Result<(), TryReserveError>,
) -> Result<Series, TryReserveError> {
    if piece.rows().is_empty() {
        return Ok(piece);
    }
    let piece = Rc::new(piece);
    show(&piece)?;
    Ok(Rc::try_unwrap(piece).unwrap_or_else(|_| error!("a piece is looked at only while it is shown")))
}

/// An argument of a query.
pub fn instant(pg_micros: i64) -> DatumWithOid<'static> {
    // Safety: a timestamptz datum is this integer.
    unsafe { DatumWithOid::new(pg_sys::Datum::from(pg_micros), pg_sys::TIMESTAMPTZOID) }
}

/// The instant so many days earlier: a time that PostgreSQL has, before infinity too; -infinity where there is none.
fn days_before(pg_micros: i64, days: i64) -> i64 {
    let earlier = pg_micros.saturating_sub(days * MICROS_PER_DAY).min(END_OF_INSTANTS - 1);
    if earlier < FIRST_INSTANT { MINUS_INFINITY } else { earlier }
}

/// The instant so many days later: a time that PostgreSQL has, after -infinity too; infinity where there is none.
fn days_after(pg_micros: i64, days: i64) -> i64 {
    let later = pg_micros.saturating_add(days * MICROS_PER_DAY).max(FIRST_INSTANT);
    if later >= END_OF_INSTANTS { INFINITY } else { later }
}

/// An instant as messages show it, in UTC.
pub fn utc(pg_micros: i64) -> String {
    match calendar::from_pg_micros(pg_micros) {
        Some(time) => format!("{} UTC", time.format("%Y-%m-%d %H:%M:%S%.f")),
        None => "an infinite time".to_string(),
    }
}
