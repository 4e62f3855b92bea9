//! A month as verify() looks at it: its bars as they are, and its stored rows beside them. Nothing is assumed of either:
//! a minute may have several bars or none, and rows may come in any order, more than once, or without a bar.

use std::collections::TryReserveError;
use std::ops::Range;

use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;

use crate::errors::Failure;
use crate::memory;
use crate::rows::{Cursor, FETCH, QueryRow, ResultSet};
use crate::series::{
    BAR_VALUES, Bar, Fingerprint, INFINITY, MINUS_INFINITY, Series, Source, instant, is_price,
};

/// The bars of `[from_ts, to_ts)` and up to `lookback` of those before, in order of time, however bad they are.
/// `sound`: rows could be computed from them. `index_fault` is SQL that is true for a bar whose rate_index is not that of
/// its close, with `$3` for the baseline; NULL where the table has no rate_index.
#[pg_extern(sql = "
CREATE FUNCTION bqx._month_bars(
    m1 regclass, from_ts timestamp with time zone, to_ts timestamp with time zone, lookback int,
    index_fault text, baseline double precision,
    OUT times timestamp with time zone[], OUT rate_index double precision[], OUT bars_before int, OUT sound boolean,
    OUT bad_closes bigint, OUT bad_close_at timestamp with time zone,
    OUT bad_indexes bigint, OUT bad_index_at timestamp with time zone)
RETURNS SETOF record LANGUAGE c STABLE ROWS 1 SET search_path = pg_catalog, pg_temp
AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
")]
fn _month_bars(
    m1: pg_sys::Oid,
    from_ts: TimestampWithTimeZone,
    to_ts: TimestampWithTimeZone,
    lookback: i32,
    index_fault: Option<&str>,
    baseline: Option<f64>,
    fcinfo: pg_sys::FunctionCallInfo,
) {
    let range = from_ts.into()..to_ts.into();
    let read = MonthBars::read(m1, range, lookback.max(0) as usize, index_fault, baseline);
    let MonthBars { bars, sound, bad_closes, bad_indexes } = read.unwrap_or_else(|_| refuse_without_memory());
    let types = [
        pg_sys::TIMESTAMPTZARRAYOID,
        pg_sys::FLOAT8ARRAYOID,
        pg_sys::INT4OID,
        pg_sys::BOOLOID,
        pg_sys::INT8OID,
        pg_sys::TIMESTAMPTZOID,
        pg_sys::INT8OID,
        pg_sys::TIMESTAMPTZOID,
    ];
    // Safety: it is this function's own call.
    let mut rows = unsafe { ResultSet::start(fcinfo, &types) };
    let times = bars.times.iter().map(|&time| Some(pg_sys::Datum::from(time)));
    let rate_index = bars.rate_index.iter().map(|value| value.map(|v| pg_sys::Datum::from(v.to_bits())));
    rows.put(&[
        Some(array(times, pg_sys::TIMESTAMPTZOID).unwrap_or_else(|_| refuse_without_memory())),
        Some(array(rate_index, pg_sys::FLOAT8OID).unwrap_or_else(|_| refuse_without_memory())),
        (bars.before as i32).into_datum(),
        sound.into_datum(),
        bad_closes.count.into_datum(),
        bad_closes.first_at.map(pg_sys::Datum::from),
        bad_indexes.count.into_datum(),
        bad_indexes.first_at.map(pg_sys::Datum::from),
    ]);
}

/// What the rows of a month are computed from, as `bqx._input_fingerprint` says it, given the sound bars that
/// `bqx._month_bars` read with at least this lookback.
#[pg_extern(immutable)]
fn _fingerprint_of_bars(
    times: Array<'_, TimestampWithTimeZone>,
    rate_index: Array<'_, f64>,
    bars_before: i32,
    lookback: i32,
    shape: &str,
) -> String {
    let read = Bars::from_arrays(&times, &rate_index, bars_before);
    let Bars { times, rate_index, before } = read.unwrap_or_else(|_| refuse_without_memory());
    let mut values = Vec::new();
    values.try_reserve_exact(times.len()).unwrap_or_else(|_| refuse_without_memory());
    values.extend(rate_index.into_iter().map(|value| value.unwrap_or(f64::NAN)));
    let mut fingerprint = Fingerprint::new(lookback.max(0) as usize, shape);
    fingerprint.add(&Series { times, values, first: before });
    fingerprint.to_string()
}

/// The month's rows beside its bars: all that one scan of them can tell. `stored` is a query that returns the rows of
/// `[$1, $2)`, each with its time and the columns that hold computed values, as doubles; `lookbacks` are those columns',
/// and `index_at` is which of them is the rate_index (NULL: none is compared). `first_bars` are the series' first times:
/// element W + 1 is that of the first bar that W bars precede. The bars are those of `bqx._month_bars`.
///
/// Where a minute has several bars, a row of that minute counts once for each of them, as in a join. Null faults and
/// index faults are those of rows with a bar: a row without one has no place in the series that could say what is to
/// be NULL.
#[pg_extern(sql = "
CREATE FUNCTION bqx._compared_with_bars(
    stored text, from_ts timestamp with time zone, to_ts timestamp with time zone, lookbacks int[], index_at int,
    first_bars timestamp with time zone[],
    times timestamp with time zone[], rate_index double precision[], bars_before int,
    OUT n bigint, OUT bars bigint, OUT without_bar bigint, OUT without_row bigint,
    OUT unlike_at timestamp with time zone, OUT different_times bigint,
    OUT null_faults bigint, OUT null_fault_at timestamp with time zone,
    OUT infinite bigint, OUT infinite_at timestamp with time zone,
    OUT index_faults bigint, OUT index_fault_at timestamp with time zone,
    OUT first_row timestamp with time zone, OUT last_row timestamp with time zone)
RETURNS SETOF record LANGUAGE c STABLE ROWS 1 SET search_path = pg_catalog, pg_temp
AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
")]
#[allow(clippy::too_many_arguments)]
fn _compared_with_bars(
    stored: &str,
    from_ts: TimestampWithTimeZone,
    to_ts: TimestampWithTimeZone,
    lookbacks: Vec<i32>,
    index_at: Option<i32>,
    first_bars: Vec<Option<TimestampWithTimeZone>>,
    times: Array<'_, TimestampWithTimeZone>,
    rate_index: Array<'_, f64>,
    bars_before: i32,
    fcinfo: pg_sys::FunctionCallInfo,
) {
    let read = Bars::from_arrays(&times, &rate_index, bars_before);
    let bars = read.unwrap_or_else(|_| refuse_without_memory());
    let columns = Columns::new(&lookbacks, &first_bars, index_at);
    let compared = Comparison::of(&bars, columns, stored, [from_ts.into(), to_ts.into()]);
    let Findings { rows, different_times, without_bar, without_row, null, infinite, index, first, last } =
        compared.unwrap_or_else(|_| refuse_without_memory());
    let unlike = [without_bar.first_at, without_row.first_at].into_iter().flatten().min();
    let count = |count: i64| count.into_datum();
    let at = |time: Option<i64>| time.map(pg_sys::Datum::from);
    let types = [
        [pg_sys::INT8OID; 4].as_slice(),
        &[pg_sys::TIMESTAMPTZOID, pg_sys::INT8OID],
        &[pg_sys::INT8OID, pg_sys::TIMESTAMPTZOID].repeat(3),
        &[pg_sys::TIMESTAMPTZOID; 2],
    ]
    .concat();
    // Safety: it is this function's own call.
    let mut result = unsafe { ResultSet::start(fcinfo, &types) };
    result.put(&[
        count(rows),
        count(bars.of_month().len() as i64),
        count(without_bar.count),
        count(without_row.count),
        at(unlike),
        count(different_times),
        count(null.count),
        at(null.first_at),
        count(infinite.count),
        at(infinite.first_at),
        count(index.count),
        at(index.first_at),
        at(first),
        at(last),
    ]);
}

fn refuse_without_memory() -> ! {
    Failure::out_of_memory("The bars of a month, and what is told of its rows, take more than there is.")
        .hint("Let the server have more memory (ulimit -v, vm.overcommit_memory).")
        .raise()
}

/// How often something was found, and the earliest instant.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Faults {
    count: i64,
    first_at: Option<i64>,
}

impl Faults {
    fn add(&mut self, times: usize, at: i64) {
        if times > 0 {
            self.count += times as i64;
            self.first_at = Some(self.first_at.map_or(at, |first| first.min(at)));
        }
    }
}

/// Bars in order of time, as they are.
#[derive(Debug, Default)]
struct Bars {
    times: Vec<i64>,
    rate_index: Vec<Option<f64>>,
    /// How many come before the month.
    before: usize,
}

impl Bars {
    fn from_arrays(
        times: &Array<'_, TimestampWithTimeZone>,
        rate_index: &Array<'_, f64>,
        before: i32,
    ) -> Result<Bars, TryReserveError> {
        memory::secure()?;
        let mut bars = Bars::default();
        bars.reserve(times.len())?;
        // no time is NULL: all are of a range
        bars.times.extend(times.iter().flatten().map(i64::from));
        bars.rate_index.extend(rate_index.iter());
        if bars.times.len() != times.len() || bars.rate_index.len() != times.len() {
            error!("there must be as many values as times");
        }
        bars.before = bars.times.len().min(before.max(0) as usize);
        Ok(bars)
    }

    fn reserve(&mut self, more: usize) -> Result<(), TryReserveError> {
        self.times.try_reserve(more)?;
        self.rate_index.try_reserve(more)
    }

    /// The month's own.
    fn of_month(&self) -> Range<usize> {
        self.before..self.times.len()
    }
}

/// What [`_month_bars`] returns.
struct MonthBars {
    bars: Bars,
    sound: bool,
    bad_closes: Faults,
    bad_indexes: Faults,
}

impl MonthBars {
    fn read(
        m1: pg_sys::Oid,
        range: Range<i64>,
        lookback: usize,
        index_fault: Option<&str>,
        baseline: Option<f64>,
    ) -> Result<MonthBars, TryReserveError> {
        memory::secure()?;
        let mut found = MonthBars {
            bars: Bars::default(),
            sound: true,
            bad_closes: Faults::default(),
            bad_indexes: Faults::default(),
        };
        let values = if index_fault.is_some() { BAR_VALUES } else { "NULL::float8, NULL::float8" };
        Spi::connect(|client| {
            let source = Source::of(client, m1);
            for bar in source.newest_first(client, range.start, lookback, values)?.iter().rev() {
                found.push(bar)?;
            }
            found.bars.before = found.bars.times.len();
            let query = source.in_order(&format!("{values}, {}", index_fault.unwrap_or("false")));
            let args = [instant(range.start), instant(range.end), baseline.into()];
            let mut cursor = Cursor::open(client, &query, &args);
            let mut piece = Vec::new();
            piece.try_reserve_exact(FETCH)?;
            let mut more = true;
            while more {
                more = cursor.fetch(FETCH, |row| piece.push((Bar::from_row(row), row.get::<bool>(4))));
                for (bar, bad_index) in piece.drain(..) {
                    found.push(&bar)?;
                    found.bad_closes.add(usize::from(!is_price(bar.close)), bar.time);
                    found.bad_indexes.add(usize::from(bad_index == Some(true)), bar.time);
                }
            }
            cursor.close();
            Ok(found)
        })
    }

    fn push(&mut self, bar: &Bar) -> Result<(), TryReserveError> {
        let newest = self.bars.times.last().copied().unwrap_or(MINUS_INFINITY);
        self.sound &= bar.time > newest && is_price(bar.close) && is_price(bar.rate_index);
        self.bars.reserve(1)?;
        self.bars.times.push(bar.time);
        self.bars.rate_index.push(bar.rate_index);
        Ok(())
    }
}

/// An array of a type whose values are 8 bytes long and passed by value.
fn array(
    elements: impl ExactSizeIterator<Item = Option<pg_sys::Datum>>,
    element_type: pg_sys::Oid,
) -> Result<pg_sys::Datum, TryReserveError> {
    let (mut values, mut nulls) = (Vec::new(), Vec::new());
    values.try_reserve_exact(elements.len())?;
    nulls.try_reserve_exact(elements.len())?;
    for element in elements {
        nulls.push(element.is_none());
        values.push(element.unwrap_or(pg_sys::Datum::null()));
    }
    let (mut length, mut lower_bound) = (values.len() as i32, 1);
    // Safety: there are so many values and flags, in one dimension, and they are of this kind.
    let array = unsafe {
        pg_sys::construct_md_array(
            values.as_mut_ptr(),
            nulls.as_mut_ptr(),
            1,
            &mut length,
            &mut lower_bound,
            element_type,
            8,
            true,
            pg_sys::TYPALIGN_DOUBLE as _,
        )
    };
    Ok(pg_sys::Datum::from(array))
}

/// What the values of a row are to be like.
struct Columns {
    /// For each column the instant from which it has a value, and before which it is NULL; None: either may be.
    filled_from: Vec<Option<i64>>,
    /// The instant from which all of them have values.
    all_filled_from: i64,
    /// The column that is the bar's rate_index.
    rate_index: Option<usize>,
}

impl Columns {
    fn new(
        lookbacks: &[i32],
        first_bars: &[Option<TimestampWithTimeZone>],
        index_at: Option<i32>,
    ) -> Columns {
        let first_after = |bars: usize| first_bars.get(bars).copied().flatten().map_or(INFINITY, i64::from);
        let filled_from: Vec<Option<i64>> =
            lookbacks.iter().map(|&w| (w > 0).then(|| first_after(w as usize))).collect();
        Columns {
            all_filled_from: filled_from.iter().copied().flatten().max().unwrap_or(MINUS_INFINITY),
            rate_index: index_at.map(|at| at as usize - 1).filter(|&at| at < lookbacks.len()),
            filled_from,
        }
    }

    /// Whether a value is NULL or not where it should be the other.
    fn null_fault(&self, at: i64, nulls: &[bool]) -> bool {
        if at >= self.all_filled_from && !nulls.contains(&true) {
            return false;
        }
        nulls
            .iter()
            .zip(&self.filled_from)
            .any(|(&is_null, filled_from)| filled_from.is_some_and(|from| is_null != (at < from)))
    }
}

/// Whether one of the doubles is NaN or infinite.
fn any_infinite(values: &[pg_sys::Datum], nulls: &[bool]) -> bool {
    // All at once, since hardly ever one is; the datum of a NULL may be anything.
    let infinite = |datum: &pg_sys::Datum| !f64::from_bits(datum.value() as u64).is_finite();
    values.iter().fold(false, |any, datum| any | infinite(datum))
        && values.iter().zip(nulls).any(|(datum, &is_null)| !is_null && infinite(datum))
}

/// IS DISTINCT FROM, for which a NaN is like another.
fn is_distinct(a: Option<f64>, b: Option<f64>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a != b && !(a.is_nan() && b.is_nan()),
        _ => a.is_some() != b.is_some(),
    }
}

/// What [`_compared_with_bars`] returns of the rows.
#[derive(Debug, Default, PartialEq)]
struct Findings {
    rows: i64,
    different_times: i64,
    without_bar: Faults,
    without_row: Faults,
    null: Faults,
    infinite: Faults,
    index: Faults,
    first: Option<i64>,
    last: Option<i64>,
}

/// A month's rows, added one by one in any order.
struct Comparison<'a> {
    columns: Columns,
    /// Of the month, in order.
    times: &'a [i64],
    rate_index: &'a [Option<f64>],
    /// Whether a row was found; for bars of one minute, the first one's entry counts.
    has_row: Vec<bool>,
    /// Where the next row's bar is, if rows come in order.
    next: usize,
    /// Times of rows without a bar.
    strays: Vec<i64>,
    findings: Findings,
}

impl<'a> Comparison<'a> {
    /// Compares the rows of a query.
    fn of(
        bars: &'a Bars,
        columns: Columns,
        stored: &str,
        range: [i64; 2],
    ) -> Result<Findings, TryReserveError> {
        let mut comparison = Comparison::new(bars, columns)?;
        Spi::connect(|client| {
            let mut cursor = Cursor::open(client, stored, &range.map(instant));
            let doubles = comparison.columns.filled_from.len();
            if cursor.types()[1..] != vec![pg_sys::FLOAT8OID; doubles] {
                error!("there must be a lookback for each double");
            }
            let mut more = true;
            while more {
                memory::secure()?;
                comparison.strays.try_reserve(FETCH)?;
                more = cursor.fetch(FETCH, |row| comparison.add_row(row));
            }
            cursor.close();
            Ok(comparison.findings())
        })
    }

    fn new(bars: &'a Bars, columns: Columns) -> Result<Comparison<'a>, TryReserveError> {
        let mut has_row = Vec::new();
        has_row.try_reserve_exact(bars.of_month().len())?;
        has_row.resize(bars.of_month().len(), false);
        Ok(Comparison {
            columns,
            times: &bars.times[bars.of_month()],
            rate_index: &bars.rate_index[bars.of_month()],
            has_row,
            next: 0,
            strays: Vec::new(),
            findings: Findings::default(),
        })
    }

    fn add_row(&mut self, row: &QueryRow) {
        let at = row.get::<TimestampWithTimeZone>(1).expect("a row of a range has a time");
        let (values, nulls) = row.from(2);
        self.add(at.into(), values, nulls);
    }

    /// Adds a row with these doubles. There must be room for a stray.
    fn add(&mut self, at: i64, values: &[pg_sys::Datum], nulls: &[bool]) {
        let bars = self.bars_at(at);
        let found = &mut self.findings;
        found.rows += bars.len().max(1) as i64;
        found.first = Some(found.first.map_or(at, |first| first.min(at)));
        found.last = Some(found.last.map_or(at, |last| last.max(at)));
        if any_infinite(values, nulls) {
            found.infinite.add(bars.len().max(1), at);
        }
        if bars.is_empty() {
            found.without_bar.add(1, at);
            self.strays.push(at);
            return;
        }
        self.next = bars.end;
        if !std::mem::replace(&mut self.has_row[bars.start], true) {
            found.different_times += 1;
        }
        if self.columns.null_fault(at, nulls) {
            found.null.add(bars.len(), at);
        }
        if let Some(column) = self.columns.rate_index {
            let stored = (!nulls[column]).then(|| f64::from_bits(values[column].value() as u64));
            let faults = self.rate_index[bars].iter().filter(|&&bar| is_distinct(stored, bar)).count();
            found.index.add(faults, at);
        }
    }

    /// The bars of an instant.
    fn bars_at(&self, at: i64) -> Range<usize> {
        let is_next = self.times.get(self.next) == Some(&at);
        let start = if is_next { self.next } else { self.times.partition_point(|&time| time < at) };
        let bars = self.times[start..].iter().take_while(|&&time| time == at).count();
        start..start + bars
    }

    fn findings(mut self) -> Findings {
        self.strays.sort_unstable();
        self.strays.dedup();
        self.findings.different_times += self.strays.len() as i64;
        let mut start = 0;
        while start < self.times.len() {
            let bars = self.bars_at(self.times[start]);
            if !self.has_row[start] {
                self.findings.without_row.add(bars.len(), self.times[start]);
            }
            start = bars.end;
        }
        self.findings
    }
}
