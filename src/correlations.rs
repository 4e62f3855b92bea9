//! Correlations of many columns with one, of tables that have a row per instant, all in one pass over each.

use std::collections::TryReserveError;

use bqx_core::correlation::Reference;
use pgrx::prelude::*;

use crate::errors::Failure;
use crate::rows::{Cursor, FETCH};

/// Of each column but the last, by position: in how many rows both have a value, and the two correlations.
///
/// Each query gives instants, ascending, and then values, `double precision`; its parameters are the instants given. The rows are those of the
/// first query, with what the others have at the same instants, if they have anything. (A join of wide tables in the executor takes as
/// long as all the rest.) All is read as the caller. 53200 where there is no memory for the rows.
#[pg_extern(sql = "
CREATE FUNCTION bqx._correlations(queries text[], instants timestamp with time zone[])
RETURNS TABLE (\"position\" int, n bigint, pearson double precision, spearman double precision)
LANGUAGE c STABLE STRICT SET search_path = pg_catalog, pg_temp AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
")]
#[allow(clippy::type_complexity, reason = "pgrx makes the row type of it")]
fn _correlations(
    queries: Vec<String>,
    instants: Vec<TimestampWithTimeZone>,
) -> TableIterator<
    'static,
    (name!(position, i32), name!(n, i64), name!(pearson, Option<f64>), name!(spearman, Option<f64>)),
> {
    let columns = side_by_side(&queries, &instants).unwrap_or_else(out_of_memory);
    let Some((target, features)) = columns.split_last() else { error!("queries without columns") };
    let target = Reference::new(target).unwrap_or_else(out_of_memory);
    let correlations = features.iter().zip(1..).map(|(feature, position)| {
        pg_sys::check_for_interrupts!();
        let found = target.correlation(feature).unwrap_or_else(out_of_memory);
        (position, found.n as i64, found.pearson, found.spearman)
    });
    TableIterator::new(correlations.collect::<Vec<_>>())
}

/// The columns of all queries, with the rows of the first.
fn side_by_side(
    queries: &[String],
    instants: &[TimestampWithTimeZone],
) -> Result<Vec<Vec<f64>>, TryReserveError> {
    let mut all = Vec::new();
    let mut times = None;
    for query in queries {
        let table = Table::read(query, instants)?;
        match &times {
            None => {
                all.extend(table.columns);
                times = Some(table.times);
            }
            Some(times) => all.extend(table.at(times)?),
        }
    }
    Ok(all)
}

/// A query's rows, by column.
struct Table {
    /// Ascending.
    times: Vec<i64>,
    /// NaN for NULL.
    columns: Vec<Vec<f64>>,
}

impl Table {
    fn read(query: &str, instants: &[TimestampWithTimeZone]) -> Result<Table, TryReserveError> {
        let arguments: Vec<_> = instants.iter().map(|&instant| instant.into()).collect();
        Spi::connect(|client| {
            let mut cursor = Cursor::open(client, query, &arguments);
            let is_usable = cursor.types().split_first().is_some_and(|(time, values)| {
                *time == pg_sys::TIMESTAMPTZOID && values.iter().all(|&column| column == pg_sys::FLOAT8OID)
            });
            if !is_usable {
                error!("a query does not give instants and values");
            }
            let mut times = Vec::new();
            let mut columns: Vec<Vec<f64>> = vec![Vec::new(); cursor.types().len() - 1];
            let mut more = true;
            while more {
                times.try_reserve(FETCH)?;
                columns.iter_mut().try_for_each(|column| column.try_reserve(FETCH))?;
                more = cursor.fetch(FETCH, |row| {
                    let (datums, nulls) = row.from(1);
                    times.push(datums[0].value() as i64);
                    for ((column, datum), is_null) in columns.iter_mut().zip(&datums[1..]).zip(&nulls[1..]) {
                        column.push(if *is_null { f64::NAN } else { f64::from_bits(datum.value() as u64) });
                    }
                });
            }
            cursor.close();
            Ok(Table { times, columns })
        })
    }

    /// The columns at other instants, ascending, too; NaN where there is no row.
    fn at(self, times: &[i64]) -> Result<Vec<Vec<f64>>, TryReserveError> {
        if self.times == times {
            return Ok(self.columns);
        }
        let mut rows = Vec::new();
        rows.try_reserve_exact(times.len())?;
        let mut row = 0;
        for &time in times {
            while self.times.get(row).is_some_and(|&known| known < time) {
                row += 1;
            }
            rows.push(self.times.get(row).is_some_and(|&known| known == time).then_some(row));
        }
        let aligned = self.columns.iter().map(|column| {
            let mut values = Vec::new();
            values.try_reserve_exact(times.len())?;
            values.extend(rows.iter().map(|row| row.map_or(f64::NAN, |row| column[row])));
            Ok(values)
        });
        aligned.collect()
    }
}

fn out_of_memory<T>(_: TryReserveError) -> T {
    Failure::out_of_memory("The rows to correlate do not fit into memory.").raise()
}
