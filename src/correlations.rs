//! Correlations of many columns with one, of tables that have a row per instant, all in one pass over each.

use std::collections::TryReserveError;

use bqx_core::correlation::{Correlation, Reference};
use pgrx::prelude::*;

use crate::errors::Failure;
use crate::rows::{Cursor, FETCH, QueryRow};

/// How each column of the queries goes with what one of the first query's will be so many minutes later, by position: in how many rows both
/// have a value, and the two correlations.
///
/// Each query gives instants, each but once, and then values, `double precision`; its parameters are the instants given. Rows of the same
/// instant stand beside each other. (To join wide tables, or to sort them, would take the executor as long as all the rest.) All is read as the
/// caller. 53200 where there is no memory for the rows of two queries.
#[pg_extern(sql = "
CREATE FUNCTION bqx._correlations(queries text[], instants timestamp with time zone[], target int, horizon int)
RETURNS TABLE (\"position\" int, n bigint, pearson double precision, spearman double precision)
LANGUAGE c STABLE STRICT SET search_path = pg_catalog, pg_temp AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
")]
#[allow(clippy::type_complexity, reason = "pgrx makes the row type of it")]
fn _correlations(
    queries: Vec<String>,
    instants: Vec<TimestampWithTimeZone>,
    target: i32,
    horizon: i32,
) -> TableIterator<
    'static,
    (name!(position, i32), name!(n, i64), name!(pearson, Option<f64>), name!(spearman, Option<f64>)),
> {
    let Some((first, others)) = queries.split_first() else { error!("there is no query") };
    let found =
        correlations(first, others, &instants, target as usize, horizon).unwrap_or_else(out_of_memory);
    TableIterator::new((1..).zip(found).map(|(position, c)| (position, c.n as i64, c.pearson, c.spearman)))
}

const MICROSECONDS_PER_MINUTE: i64 = 60_000_000;

/// `target` is a column's position, from 1, `horizon` in minutes.
fn correlations(
    first: &str,
    others: &[String],
    instants: &[TimestampWithTimeZone],
    target: usize,
    horizon: i32,
) -> Result<Vec<Correlation>, TryReserveError> {
    let mut table = Table::default();
    table.read(first, instants)?;
    let Some(column) = table.columns.get(target - 1) else { error!("the first query has no such column") };
    let has_target = || (0..column.len()).filter(|&row| !column[row].is_nan());
    let later = i64::from(horizon) * MICROSECONDS_PER_MINUTE;
    let target = Target {
        times: gathered(has_target().map(|row| table.times[row] - later), table.times.len())?,
        values: gathered(has_target().map(|row| column[row]), table.times.len())?,
    };
    let mut found = Vec::new();
    target.compare(&table, &mut found)?;
    for query in others {
        table.read(query, instants)?;
        target.compare(&table, &mut found)?;
    }
    Ok(found)
}

/// What other columns are compared with: values, and the instants at which they are still to come.
struct Target {
    /// Ascending.
    times: Vec<i64>,
    values: Vec<f64>,
}

impl Target {
    fn compare(&self, table: &Table, found: &mut Vec<Correlation>) -> Result<(), TryReserveError> {
        let (rows, rows_beside) = common_rows(&self.times, &table.times)?;
        let mut reference = Reference::new(values_in(&self.values, &rows))?;
        for column in &table.columns {
            pg_sys::check_for_interrupts!();
            found.push(reference.correlation(values_in(column, &rows_beside))?);
        }
        Ok(())
    }
}

fn values_in(column: &[f64], rows: &[u32]) -> impl ExactSizeIterator<Item = f64> {
    rows.iter().map(|&row| column[row as usize])
}

/// The rows of two tables that are of the same instants, which ascend in both.
fn common_rows(one: &[i64], other: &[i64]) -> Result<(Vec<u32>, Vec<u32>), TryReserveError> {
    let (mut rows, mut rows_beside) = (Vec::new(), Vec::new());
    rows.try_reserve_exact(one.len().min(other.len()))?;
    rows_beside.try_reserve_exact(one.len().min(other.len()))?;
    let (mut i, mut j) = (0, 0);
    while let (Some(time), Some(beside)) = (one.get(i), other.get(j)) {
        if time == beside {
            rows.push(i as u32);
            rows_beside.push(j as u32);
        }
        i += usize::from(time <= beside);
        j += usize::from(beside <= time);
    }
    Ok((rows, rows_beside))
}

/// A query's rows, by column. It is filled again and again: new memory for each would take a tenth of the time.
#[derive(Default)]
struct Table {
    /// Ascending.
    times: Vec<i64>,
    /// NaN for NULL.
    columns: Vec<Vec<f64>>,
}

impl Table {
    fn read(&mut self, query: &str, instants: &[TimestampWithTimeZone]) -> Result<(), TryReserveError> {
        let arguments: Vec<_> = instants.iter().map(|&instant| instant.into()).collect();
        self.times.clear();
        self.columns.iter_mut().for_each(Vec::clear);
        Spi::connect(|client| -> Result<(), TryReserveError> {
            let mut cursor = Cursor::open(client, query, &arguments);
            let is_usable = cursor.types().split_first().is_some_and(|(time, values)| {
                *time == pg_sys::TIMESTAMPTZOID && values.iter().all(|&column| column == pg_sys::FLOAT8OID)
            });
            if !is_usable {
                error!("a query does not give instants and values");
            }
            self.columns.resize_with(cursor.types().len() - 1, Vec::new);
            let mut more = true;
            while more {
                self.times.try_reserve(FETCH)?;
                self.columns.iter_mut().try_for_each(|column| column.try_reserve(FETCH))?;
                more = cursor.fetch(FETCH, |row| self.push(row));
            }
            cursor.close();
            Ok(())
        })?;
        self.put_in_order()
    }

    /// Adds a row, for which there is room.
    fn push(&mut self, row: &QueryRow) {
        let (datums, nulls) = row.from(1);
        self.times.push(datums[0].value() as i64);
        for ((column, datum), is_null) in self.columns.iter_mut().zip(&datums[1..]).zip(&nulls[1..]) {
            column.push(if *is_null { f64::NAN } else { f64::from_bits(datum.value() as u64) });
        }
    }

    /// By time, as tables that were written in that order are already.
    fn put_in_order(&mut self) -> Result<(), TryReserveError> {
        if self.times.is_sorted() {
            return Ok(());
        }
        let len = self.times.len();
        let mut order = gathered(0..len, len)?;
        order.sort_unstable_by_key(|&row| self.times[row]);
        for column in &mut self.columns {
            *column = gathered(order.iter().map(|&row| column[row]), len)?;
        }
        self.times = gathered(order.iter().map(|&row| self.times[row]), len)?;
        Ok(())
    }
}

/// At most so many values.
fn gathered<T>(values: impl Iterator<Item = T>, most: usize) -> Result<Vec<T>, TryReserveError> {
    let mut gathered = Vec::new();
    gathered.try_reserve_exact(most)?;
    gathered.extend(values.take(most));
    Ok(gathered)
}

fn out_of_memory<T>(_: TryReserveError) -> T {
    Failure::out_of_memory("The rows to correlate do not fit into memory.").raise()
}
