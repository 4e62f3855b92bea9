//! `bqx.quadratic_reg(y)`: the fit on x = 0 … n-1.

use bqx_core::quadratic::QuadraticFit;
use bqx_core::quadratic_aggregate::QuadraticAggregate;
use pgrx::Internal;
use pgrx::prelude::*;

use super::{Composite, out_of_memory, state_or};

/// Adds a row to a frame that only grows; NULL is skipped.
#[pg_extern(immutable, parallel_safe)]
fn _quadratic_reg_grow(mut state: Internal, y: Option<f64>, fcinfo: pg_sys::FunctionCallInfo) -> Internal {
    // Safety: it is this function's own call, and all of this file's functions have the same kind of state.
    let frame = unsafe { state_or(&mut state, fcinfo, QuadraticAggregate::growing) };
    frame.push(y).unwrap_or_else(out_of_memory);
    state
}

/// Adds a row to a frame whose oldest rows leave; NULL is skipped.
#[pg_extern(immutable, parallel_safe)]
fn _quadratic_reg_enter(mut state: Internal, y: Option<f64>, fcinfo: pg_sys::FunctionCallInfo) -> Internal {
    // Safety: as above.
    let frame = unsafe { state_or(&mut state, fcinfo, QuadraticAggregate::moving) };
    frame.push(y).unwrap_or_else(out_of_memory);
    state
}

/// Takes the oldest row out; NULL if it is not the oldest, and the frame has to be computed anew.
#[pg_extern(immutable, parallel_safe)]
fn _quadratic_reg_leave(mut state: Internal, y: Option<f64>, fcinfo: pg_sys::FunctionCallInfo) -> Internal {
    // Safety: as above.
    let known = unsafe { state_or(&mut state, fcinfo, QuadraticAggregate::moving) }.drop_oldest(y);
    if known { state } else { Internal::default() }
}

/// The fit of the frame; of no rows, n = 0.
#[pg_extern(
    sql = "
CREATE FUNCTION bqx._quadratic_reg_final(state internal) RETURNS bqx.quadratic_fit
LANGUAGE c IMMUTABLE PARALLEL SAFE AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
",
    requires = ["aggregate_types"]
)]
fn _quadratic_reg_final(mut state: Internal, fcinfo: pg_sys::FunctionCallInfo) -> Composite {
    // Safety: a state is this file's (see `state_or`), and it is this function's own call.
    unsafe {
        let (n, fit) = match state.get_mut::<QuadraticAggregate>() {
            Some(frame) => (frame.len(), frame.fit()),
            None => (0, None),
        };
        Composite::of_metrics(fcinfo, n, fit.map(QuadraticFit::to_array))
    }
}
