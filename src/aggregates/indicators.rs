//! The technical indicators: aggregates over a series, oldest value first. What they have read last is their result, so over
//! `OVER (ORDER BY time)` each row gets its own.

use std::any::Any;
use std::collections::TryReserveError;

use bqx_core::indicators::*;
use pgrx::Internal;
use pgrx::prelude::*;

use super::{Cell, Composite, cell, out_of_memory, state_or};
use crate::errors::Failure;

/// The most numbers that an indicator's reading has.
const MOST: usize = 5;

/// The state of all of them: an indicator, `None` before the first value, and its last reading.
#[derive(Default)]
struct State {
    indicator: Option<Box<dyn Any>>,
    cells: [Cell; MOST],
    /// How many of them the reading has; 0 if there is none.
    len: usize,
}

impl State {
    /// # Errors
    /// If there is no memory.
    fn push<I>(&mut self, parameters: I::Parameters, input: I::Input) -> Result<(), TryReserveError>
    where
        I: Indicator + 'static,
    {
        let indicator = match &mut self.indicator {
            Some(indicator) => indicator,
            none => none.insert(Box::new(Running::<I>::new(parameters))),
        };
        let running = indicator.downcast_mut::<Running<I>>().expect("an aggregate has one kind of indicator");
        if running.parameters() != parameters {
            raise_invalid("the parameters of an indicator must be the same for all rows".into(), None);
        }
        self.len = 0;
        if let Some(reading) = running.push(input)? {
            let values = reading.values();
            self.len = values.as_ref().len();
            self.cells.iter_mut().zip(values.as_ref()).for_each(|(last, &value)| *last = cell(value));
        }
        Ok(())
    }

    fn last(&self) -> &[Cell] {
        &self.cells[..self.len]
    }
}

/// Adds a row. One with a NULL is skipped: the last reading stands.
fn advance<I: Indicator + 'static>(
    mut state: Internal,
    fcinfo: pg_sys::FunctionCallInfo,
    parameters: I::Parameters,
    input: Option<I::Input>,
) -> Internal {
    if let Some(input) = input {
        // Safety: it is the call of a transition function of this file, all of which have this kind of state.
        let state = unsafe { state_or(&mut state, fcinfo, State::default) };
        state.push::<I>(parameters, input).unwrap_or_else(out_of_memory);
    }
    state
}

/// 22023.
fn raise_invalid(message: String, detail: Option<String>) -> ! {
    let failure = Failure::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message);
    match detail {
        Some(detail) => failure.detail(detail).raise(),
        None => failure.raise(),
    }
}

/// A period of at least so many rows.
fn period(name: &str, least: usize, period: Option<i32>) -> usize {
    match period.map(usize::try_from) {
        Some(Ok(period)) if (least..=MAX_PERIOD).contains(&period) => period,
        _ => {
            let period = period.map_or("NULL".into(), |period| period.to_string());
            raise_invalid(format!("{name} must be between {least} and {MAX_PERIOD}, not {period}"), None)
        }
    }
}

fn bar(high: Option<f64>, low: Option<f64>, close: Option<f64>) -> Option<HighLowClose> {
    Some(HighLowClose { high: high?, low: low?, close: close? })
}

/// Simple moving average.
#[pg_extern(immutable, parallel_safe)]
fn _sma(
    state: Internal,
    value: Option<f64>,
    rows: Option<i32>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    advance::<Sma>(state, fcinfo, period("period", 1, rows), value)
}

/// Exponential moving average.
#[pg_extern(immutable, parallel_safe)]
fn _ema(
    state: Internal,
    value: Option<f64>,
    rows: Option<i32>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    advance::<Ema>(state, fcinfo, period("period", 1, rows), value)
}

/// Weighted moving average.
#[pg_extern(immutable, parallel_safe)]
fn _wma(
    state: Internal,
    value: Option<f64>,
    rows: Option<i32>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    advance::<Wma>(state, fcinfo, period("period", 1, rows), value)
}

/// Relative strength index.
#[pg_extern(immutable, parallel_safe)]
fn _rsi(
    state: Internal,
    value: Option<f64>,
    rows: Option<i32>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    advance::<Rsi>(state, fcinfo, period("period", 2, rows), value)
}

/// Moving average convergence/divergence.
#[pg_extern(immutable, parallel_safe)]
fn _macd(
    state: Internal,
    value: Option<f64>,
    fast: Option<i32>,
    slow: Option<i32>,
    signal: Option<i32>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    let periods = [period("fast", 2, fast), period("slow", 2, slow), period("signal", 1, signal)];
    if periods[0] >= periods[1] {
        raise_invalid(
            format!("fast must be less than slow, not {} and {}", periods[0], periods[1]),
            Some("The line is the fast average minus the slow one.".into()),
        );
    }
    advance::<Macd>(state, fcinfo, periods, value)
}

/// Bollinger bands.
#[pg_extern(immutable, parallel_safe)]
fn _bollinger(
    state: Internal,
    value: Option<f64>,
    rows: Option<i32>,
    deviations: Option<f64>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    let rows = period("period", 2, rows);
    match deviations {
        Some(deviations) if deviations > 0.0 && deviations.is_finite() => {
            advance::<Bollinger>(state, fcinfo, (rows, deviations), value)
        }
        _ => {
            let deviations = deviations.map_or("NULL".into(), |deviations| deviations.to_string());
            raise_invalid(format!("deviations must be positive and finite, not {deviations}"), None)
        }
    }
}

/// Average true range.
#[pg_extern(immutable, parallel_safe)]
fn _atr(
    state: Internal,
    high: Option<f64>,
    low: Option<f64>,
    close: Option<f64>,
    rows: Option<i32>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    advance::<Atr>(state, fcinfo, period("period", 1, rows), bar(high, low, close))
}

/// Stochastic oscillator.
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "the aggregate's, and the state")]
fn _stochastic(
    state: Internal,
    high: Option<f64>,
    low: Option<f64>,
    close: Option<f64>,
    rows: Option<i32>,
    slow_k: Option<i32>,
    slow_d: Option<i32>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    let periods = [period("period", 1, rows), period("slow_k", 1, slow_k), period("slow_d", 1, slow_d)];
    advance::<Stochastic>(state, fcinfo, periods, bar(high, low, close))
}

/// Williams' %R.
#[pg_extern(immutable, parallel_safe)]
fn _williams_r(
    state: Internal,
    high: Option<f64>,
    low: Option<f64>,
    close: Option<f64>,
    rows: Option<i32>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    advance::<WilliamsR>(state, fcinfo, period("period", 2, rows), bar(high, low, close))
}

/// Commodity channel index.
#[pg_extern(immutable, parallel_safe)]
fn _cci(
    state: Internal,
    high: Option<f64>,
    low: Option<f64>,
    close: Option<f64>,
    rows: Option<i32>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    advance::<Cci>(state, fcinfo, period("period", 2, rows), bar(high, low, close))
}

/// Rate of change.
#[pg_extern(immutable, parallel_safe)]
fn _roc(
    state: Internal,
    value: Option<f64>,
    rows: Option<i32>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    advance::<Roc>(state, fcinfo, period("period", 1, rows), value)
}

/// Momentum.
#[pg_extern(immutable, parallel_safe)]
fn _momentum(
    state: Internal,
    value: Option<f64>,
    rows: Option<i32>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    advance::<Momentum>(state, fcinfo, period("period", 1, rows), value)
}

/// On-balance volume.
#[pg_extern(immutable, parallel_safe)]
fn _obv(
    state: Internal,
    price: Option<f64>,
    volume: Option<f64>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    advance::<Obv>(state, fcinfo, (), price.zip(volume))
}

/// Realized volatility.
#[pg_extern(immutable, parallel_safe)]
fn _realized_volatility(
    state: Internal,
    value: Option<f64>,
    rows: Option<i32>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    advance::<RealizedVolatility>(state, fcinfo, period("period", 1, rows), value)
}

/// The last reading of an indicator that reads one number; NULL in the warm-up and where it is NaN or infinite.
#[pg_extern(immutable, parallel_safe)]
fn _indicator_final(state: Internal) -> Option<f64> {
    // Safety: a state is this file's (see `state_or`), and only read.
    let number = (*unsafe { state.get::<State>() }?.last().first()?)?;
    Some(f64::from_bits(number.value() as u64))
}

/// The last reading of an indicator that reads several numbers, as columns; NULLs in the warm-up.
///
/// # Safety
/// `fcinfo` must be that of the function being called, which returns a type of so many doubles.
unsafe fn reading<const N: usize>(state: Internal, fcinfo: pg_sys::FunctionCallInfo) -> Composite {
    // Safety: a state is this file's, and only read; the rest is the caller's.
    unsafe {
        let last = state.get::<State>().map_or(&[][..], State::last);
        let cells = (0..N).map(|i| (pg_sys::FLOAT8OID, last.get(i).copied().flatten()));
        Composite::of_cells(fcinfo, cells)
    }
}

/// The last reading of macd; NULLs in the warm-up.
#[pg_extern(
    sql = "
CREATE FUNCTION bqx._macd_final(state internal) RETURNS bqx.macd_reading
LANGUAGE c IMMUTABLE PARALLEL SAFE AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
",
    requires = ["aggregate_types"]
)]
fn _macd_final(state: Internal, fcinfo: pg_sys::FunctionCallInfo) -> Composite {
    // Safety: it is the call of that function, whose type has these columns.
    unsafe { reading::<3>(state, fcinfo) }
}

/// The last reading of bollinger; NULLs in the warm-up.
#[pg_extern(
    sql = "
CREATE FUNCTION bqx._bollinger_final(state internal) RETURNS bqx.bollinger_reading
LANGUAGE c IMMUTABLE PARALLEL SAFE AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
",
    requires = ["aggregate_types"]
)]
fn _bollinger_final(state: Internal, fcinfo: pg_sys::FunctionCallInfo) -> Composite {
    // Safety: it is the call of that function, whose type has these columns.
    unsafe { reading::<5>(state, fcinfo) }
}

/// The last reading of stochastic; NULLs in the warm-up.
#[pg_extern(
    sql = "
CREATE FUNCTION bqx._stochastic_final(state internal) RETURNS bqx.stochastic_reading
LANGUAGE c IMMUTABLE PARALLEL SAFE AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
",
    requires = ["aggregate_types"]
)]
fn _stochastic_final(state: Internal, fcinfo: pg_sys::FunctionCallInfo) -> Composite {
    // Safety: it is the call of that function, whose type has these columns.
    unsafe { reading::<2>(state, fcinfo) }
}
