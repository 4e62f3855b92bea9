//! The simulated market of `bqx_core::market`, as rows.

use bqx_core::calendar::Month;
use bqx_core::market;
use pgrx::prelude::*;

use crate::errors::Failure;

const TYPES: [pg_sys::Oid; 6] = [
    pg_sys::TIMESTAMPTZOID,
    pg_sys::FLOAT8OID,
    pg_sys::FLOAT8OID,
    pg_sys::FLOAT8OID,
    pg_sys::FLOAT8OID,
    pg_sys::FLOAT8OID,
];

/// One month of a simulated pair, in time order.
#[pg_extern(
    immutable,
    strict,
    parallel_safe,
    sql = "
CREATE FUNCTION bqx._simulated_bars(base text, quote text, month date, seed bigint) RETURNS TABLE (
    \"time\" timestamp with time zone, open double precision, high double precision, low double precision,
    close double precision, volume double precision)
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
"
)]
fn _simulated_bars(base: &str, quote: &str, month: Date, seed: i64, fcinfo: pg_sys::FunctionCallInfo) {
    let Some(month) = Month::new(month.year(), month.month().into()) else {
        Failure::new(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("month {month} is out of range"),
        )
        .raise()
    };
    // Safety: it is this function's own call.
    let mut rows = unsafe { crate::rows::ResultSet::start(fcinfo, &TYPES) };
    for bar in market::bars(base, quote, month, seed as u64) {
        rows.put(&[
            Some(pg_sys::Datum::from(bar.time)),
            bar.open.into_datum(),
            bar.high.into_datum(),
            bar.low.into_datum(),
            bar.close.into_datum(),
            bar.volume.into_datum(),
        ]);
    }
}
