//! Derived rows as a set: what `bqx_metrics` and `reg_metrics` return, and what the plain way of writing a
//! month compares with and inserts.

use std::collections::TryReserveError;

use bqx_core::columns::{Column, Family};
use bqx_core::frame_rows::{FrameRows, RunError};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;

use crate::errors::Failure;
use crate::live_progress;
use crate::metric_columns::family;
use crate::rows::ResultSet;
use crate::series::{self, Fingerprint, Series};

/// Rows computed at a time.
pub const BLOCK: usize = 512;

/// Columns of ours by name; 42703 for a name that is none.
pub fn own_columns<'a>(family: Family, names: impl IntoIterator<Item = &'a str>) -> Vec<Column> {
    let parse = |name: &str| {
        Column::parse(family, name).unwrap_or_else(|| {
            Failure::new(
                PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
                format!("family '{}' has no column \"{name}\"", family.name()),
            )
            .raise()
        })
    };
    names.into_iter().map(parse).collect()
}

/// The columns among them that are computed from bars.
pub fn value_columns(columns: &[Column]) -> Vec<Column> {
    columns.iter().copied().filter(|c| !matches!(c, Column::Time | Column::CreatedAt)).collect()
}

/// Bars that the columns look back over.
pub fn lookback(columns: &[Column]) -> usize {
    columns.iter().map(|column| column.window()).max().unwrap_or(0)
}

/// A derived row.
pub struct ComputedRow<'a> {
    /// Microseconds since 2000-01-01 UTC.
    pub time: i64,
    values: &'a [f64],
    windows: &'a [usize],
    /// Bars before the row's own, as far as they were read.
    preceding: usize,
}

impl ComputedRow<'_> {
    /// The value of a column, None where fewer than the column's window of bars precede.
    #[inline]
    pub fn value(&self, column: usize) -> Option<f64> {
        (self.preceding >= self.windows[column]).then_some(self.values[column])
    }
}

/// Shows each row of a series' range. 22003 where a value overflows.
///
/// # Errors
/// If there is no memory for the series' integers or a block of rows.
pub fn for_each_computed_row(
    series: &Series,
    columns: &[Column],
    mut show: impl FnMut(&ComputedRow),
) -> Result<(), TryReserveError> {
    let mut frames = match FrameRows::new(&series.values, columns) {
        Ok(frames) => frames,
        Err(RunError::OutOfMemory(error)) => return Err(error),
        Err(RunError::NotFinite(error)) => error!("a series holds finite values, but {error}"),
    };
    let windows: Vec<usize> = columns.iter().map(|column| column.window()).collect();
    let mut block = Vec::new();
    let rows_at_once = series.rows().len().min(BLOCK);
    block.try_reserve_exact(rows_at_once * columns.len())?;
    block.resize(rows_at_once * columns.len(), 0.0);
    let mut start = series.first;
    while start < series.times.len() {
        pg_sys::check_for_interrupts!();
        let end = series.times.len().min(start + BLOCK);
        frames.fill(start..end, &mut block[..(end - start) * columns.len()]);
        for i in start..end {
            let values = &block[(i - start) * columns.len()..][..columns.len()];
            let row = ComputedRow { time: series.times[i], values, windows: &windows, preceding: i };
            if !values.iter().all(|value| value.is_finite()) {
                check_no_overflow(&row, columns);
            }
            show(&row);
        }
        start = end;
    }
    Ok(())
}

/// An error if there is a value that is not finite. (Where there is no value, there may be anything in its place.)
#[cold]
fn check_no_overflow(row: &ComputedRow, columns: &[Column]) {
    for (i, column) in columns.iter().enumerate() {
        if row.value(i).is_some_and(|value| !value.is_finite()) {
            overflow(column, row.time);
        }
    }
}

fn overflow(column: &Column, time: i64) -> ! {
    Failure::new(
        PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
        format!("{column} is out of range at {}", series::utc(time)),
    )
    .detail("The bars of its window differ by more than a double can express.")
    .raise()
}

/// Computed rows as the result of a set-returning function: `ts_utc`, and so many values.
pub struct ComputedSet {
    rows: ResultSet,
    row: Vec<Option<pg_sys::Datum>>,
}

impl ComputedSet {
    /// # Safety
    /// As [`ResultSet::start`].
    pub unsafe fn start(fcinfo: pg_sys::FunctionCallInfo, values: usize) -> ComputedSet {
        let mut types = vec![pg_sys::FLOAT8OID; values + 1];
        types[0] = pg_sys::TIMESTAMPTZOID;
        // Safety: the caller's.
        ComputedSet { rows: unsafe { ResultSet::start(fcinfo, &types) }, row: vec![None; values + 1] }
    }

    pub fn put(&mut self, computed: &ComputedRow) {
        self.row[0] = Some(pg_sys::Datum::from(computed.time));
        for (i, slot) in self.row[1..].iter_mut().enumerate() {
            *slot = computed.value(i).map(|v| pg_sys::Datum::from(v.to_bits()));
        }
        self.rows.put(&self.row);
    }
}

/// The rows of `[from_ts, to_ts)` with columns `ts_utc` and then `columns` (values only), as the caller's column
/// definition list must say. Pieces of the range are read and computed one after the other: no range is too
/// long. The estimate of rows is a month's.
#[pg_extern(sql = "
CREATE FUNCTION bqx._computed_rows(
    family text, m1 regclass, from_ts timestamp with time zone, to_ts timestamp with time zone, columns text[])
RETURNS SETOF record LANGUAGE c STABLE STRICT PARALLEL RESTRICTED ROWS 30000 SET search_path = pg_catalog, pg_temp
AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
")]
fn _computed_rows(
    family: &str,
    m1: pg_sys::Oid,
    from_ts: TimestampWithTimeZone,
    to_ts: TimestampWithTimeZone,
    columns: Vec<String>,
    fcinfo: pg_sys::FunctionCallInfo,
) {
    let family = self::family(family);
    let columns = own_columns(family, columns.iter().map(String::as_str));
    // Safety: it is this function's own call.
    let mut rows = unsafe { ComputedSet::start(fcinfo, columns.len()) };
    let mut done = 0;
    series::for_each_piece(m1, from_ts.into(), to_ts.into(), lookback(&columns), |piece| {
        for_each_computed_row(piece, &columns, |computed| {
            rows.put(computed);
            done += 1;
            if done % BLOCK == 0 {
                live_progress::advance(family, done);
            }
        })
    });
    live_progress::advance(family, done);
}

/// What the rows of `[from_ts, to_ts)` are computed from, and how many bars there are.
#[pg_extern(sql = "
CREATE FUNCTION bqx._input_fingerprint(
    m1 regclass, from_ts timestamp with time zone, to_ts timestamp with time zone, lookback int, shape text,
    OUT input_fingerprint text, OUT bars bigint)
RETURNS SETOF record LANGUAGE c STRICT SET search_path = pg_catalog, pg_temp
AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
")]
fn _input_fingerprint(
    m1: pg_sys::Oid,
    from_ts: TimestampWithTimeZone,
    to_ts: TimestampWithTimeZone,
    lookback: i32,
    shape: &str,
    fcinfo: pg_sys::FunctionCallInfo,
) {
    let lookback = lookback.max(0) as usize;
    let mut fingerprint = Fingerprint::new(lookback, shape);
    series::for_each_piece(m1, from_ts.into(), to_ts.into(), lookback, |piece| {
        fingerprint.add(piece);
        Ok(())
    });
    // Safety: it is this function's own call.
    let mut rows = unsafe { ResultSet::start(fcinfo, &[pg_sys::TEXTOID, pg_sys::INT8OID]) };
    rows.put(&[fingerprint.to_string().into_datum(), fingerprint.bars().into_datum()]);
}
