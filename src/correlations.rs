//! Correlations of a query's columns with its last one, all in one pass.

use std::collections::TryReserveError;

use bqx_core::correlation::Reference;
use pgrx::prelude::*;

use crate::errors::Failure;
use crate::rows::{Cursor, FETCH};

/// Of each column of a query but the last, by position: how many rows have both, and the two correlations. The query's parameters are
/// four instants, and all of its columns `double precision`. It runs as the caller. 53200 where there is no memory for the rows.
#[pg_extern(sql = "
CREATE FUNCTION bqx._correlations(query text, instants timestamp with time zone[])
RETURNS TABLE (\"position\" int, n bigint, pearson double precision, spearman double precision)
LANGUAGE c STABLE STRICT SET search_path = pg_catalog, pg_temp AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
")]
#[allow(clippy::type_complexity, reason = "pgrx makes the row type of it")]
fn _correlations(
    query: &str,
    instants: Vec<TimestampWithTimeZone>,
) -> TableIterator<
    'static,
    (name!(position, i32), name!(n, i64), name!(pearson, Option<f64>), name!(spearman, Option<f64>)),
> {
    let columns = read_columns(query, &instants).unwrap_or_else(out_of_memory);
    let Some((target, features)) = columns.split_last() else { error!("a query without columns") };
    let target = Reference::new(target).unwrap_or_else(out_of_memory);
    let correlations = features.iter().zip(1..).map(|(feature, position)| {
        pg_sys::check_for_interrupts!();
        let found = target.correlation(feature).unwrap_or_else(out_of_memory);
        (position, found.n as i64, found.pearson, found.spearman)
    });
    TableIterator::new(correlations.collect::<Vec<_>>())
}

/// The values of a query's rows by column; NaN for NULL.
fn read_columns(query: &str, instants: &[TimestampWithTimeZone]) -> Result<Vec<Vec<f64>>, TryReserveError> {
    let arguments: Vec<_> = instants.iter().map(|&instant| instant.into()).collect();
    Spi::connect(|client| {
        let mut cursor = Cursor::open(client, query, &arguments);
        if cursor.types().iter().any(|&column| column != pg_sys::FLOAT8OID) {
            error!("a column is not of type double precision");
        }
        let mut columns: Vec<Vec<f64>> = vec![Vec::new(); cursor.types().len()];
        let mut more = true;
        while more {
            columns.iter_mut().try_for_each(|column| column.try_reserve(FETCH))?;
            more = cursor.fetch(FETCH, |row| {
                let (values, nulls) = row.from(1);
                for ((column, value), is_null) in columns.iter_mut().zip(values).zip(nulls) {
                    column.push(if *is_null { f64::NAN } else { f64::from_bits(value.value() as u64) });
                }
            });
        }
        cursor.close();
        Ok(columns)
    })
}

fn out_of_memory<T>(_: TryReserveError) -> T {
    Failure::out_of_memory("The rows to correlate do not fit into memory.").raise()
}
