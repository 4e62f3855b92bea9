//! `bqx.candlesticks(open, high, low, close)`: the candlestick patterns that end at a bar.

use bqx_core::candlesticks::{Candle, Candlesticks, Patterns};
use pgrx::Internal;
use pgrx::prelude::*;

use super::{Composite, state_or};

/// A series, and the patterns that end at its last bar.
#[derive(Default)]
struct State {
    candles: Candlesticks,
    patterns: Patterns,
}

/// The names of the patterns, in the order of the columns that `bqx.candlesticks` gives.
#[pg_extern(immutable, parallel_safe)]
fn _candle_pattern_names() -> Vec<&'static str> {
    Patterns::NAMES.to_vec()
}

/// Adds a bar. One with a NULL is skipped: the last patterns stand.
#[pg_extern(immutable, parallel_safe)]
fn _candlesticks(
    mut state: Internal,
    open: Option<f64>,
    high: Option<f64>,
    low: Option<f64>,
    close: Option<f64>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    if let (Some(open), Some(high), Some(low), Some(close)) = (open, high, low, close) {
        // Safety: it is this function's own call, and both of this file's functions have the same kind of state.
        let state = unsafe { state_or(&mut state, fcinfo, State::default) };
        state.patterns = state.candles.push(Candle { open, high, low, close });
    }
    state
}

/// The patterns at the last bar; NULL for those that need more bars.
#[pg_extern(
    sql = "
CREATE FUNCTION bqx._candlesticks_final(state internal) RETURNS bqx.candle_patterns
LANGUAGE c IMMUTABLE PARALLEL SAFE AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
",
    requires = ["candle_patterns"]
)]
fn _candlesticks_final(state: Internal, fcinfo: pg_sys::FunctionCallInfo) -> Composite {
    // Safety: a state is this file's (see `state_or`), and only read; it is this function's own call.
    unsafe {
        let patterns = state.get::<State>().map_or_else(Patterns::default, |state| state.patterns);
        let cells = patterns.to_array().map(|pattern| (pg_sys::INT2OID, pattern.map(pg_sys::Datum::from)));
        Composite::of_cells(fcinfo, cells.into_iter())
    }
}
