//! `bqx.quadratic_reg(y, x)`: the fit of points with any x, also in parts by parallel workers.

use bqx_core::quadratic::QuadraticFit;
use bqx_core::scatter_aggregate::ScatterAggregate;
use pgrx::Internal;
use pgrx::prelude::*;

use super::{Composite, out_of_memory, state_or};

/// Adds a point to a frame that only grows; skipped if y or x is NULL.
#[pg_extern(immutable, parallel_safe)]
fn _quadratic_reg_xy_grow(
    mut state: Internal,
    y: Option<f64>,
    x: Option<f64>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    // Safety: it is this function's own call, and all of this file's functions have the same kind of state.
    let frame = unsafe { state_or(&mut state, fcinfo, ScatterAggregate::growing) };
    frame.push(x.zip(y)).unwrap_or_else(out_of_memory);
    state
}

/// Adds a point to a frame whose oldest rows leave; skipped if y or x is NULL.
#[pg_extern(immutable, parallel_safe)]
fn _quadratic_reg_xy_enter(
    mut state: Internal,
    y: Option<f64>,
    x: Option<f64>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    // Safety: as above.
    let frame = unsafe { state_or(&mut state, fcinfo, ScatterAggregate::moving) };
    frame.push(x.zip(y)).unwrap_or_else(out_of_memory);
    state
}

/// Takes the oldest row out; NULL if it is not the oldest, and the frame has to be computed anew.
#[pg_extern(immutable, parallel_safe)]
fn _quadratic_reg_xy_leave(
    mut state: Internal,
    y: Option<f64>,
    x: Option<f64>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    // Safety: as above.
    let known = unsafe { state_or(&mut state, fcinfo, ScatterAggregate::moving) }.drop_oldest(x.zip(y));
    if known { state } else { Internal::default() }
}

/// Joins two partial aggregates.
#[pg_extern(immutable, parallel_safe)]
fn _quadratic_reg_xy_combine(
    mut state: Internal,
    other: Internal,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    // Safety: as above; the other state is only read.
    unsafe {
        if let Some(other) = other.get::<ScatterAggregate>() {
            state_or(&mut state, fcinfo, ScatterAggregate::growing).merge(other);
        }
    }
    state
}

/// A partial aggregate on its way to another process of the same server: the format is nobody else's business.
#[pg_extern(immutable, parallel_safe, strict)]
fn _quadratic_reg_xy_serialize(state: Internal) -> Vec<u8> {
    // Safety: as above.
    let frame = unsafe { state.get::<ScatterAggregate>() }.expect("the function is strict");
    postcard::to_allocvec(frame).unwrap_or_else(|error| error!("cannot serialize quadratic_reg: {error}"))
}

/// Inverse of [`_quadratic_reg_xy_serialize`]. (The second argument keeps SQL from calling it.)
#[pg_extern(immutable, parallel_safe, strict)]
fn _quadratic_reg_xy_deserialize(bytes: &[u8], _unused: Internal) -> Internal {
    let frame = postcard::from_bytes::<ScatterAggregate>(bytes)
        .unwrap_or_else(|error| error!("cannot deserialize quadratic_reg: {error}"));
    // In the memory of the moment: it is needed until it is combined with another.
    Internal::new(frame)
}

/// The fit of the frame; of no rows, n = 0.
#[pg_extern(
    sql = "
CREATE FUNCTION bqx._quadratic_reg_xy_final(state internal) RETURNS bqx.quadratic_fit
LANGUAGE c IMMUTABLE PARALLEL SAFE AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
",
    requires = ["aggregate_types"]
)]
fn _quadratic_reg_xy_final(mut state: Internal, fcinfo: pg_sys::FunctionCallInfo) -> Composite {
    // Safety: a state is this file's (see `state_or`), and it is this function's own call.
    unsafe {
        let (n, fit) = match state.get_mut::<ScatterAggregate>() {
            Some(frame) => (frame.len(), frame.fit()),
            None => (0, None),
        };
        Composite::of_metrics(fcinfo, n, fit.map(QuadraticFit::to_array))
    }
}
