//! `bqx.bqx_window_metrics(value [, width])`.

use bqx_core::window::WindowMetrics;
use bqx_core::window_aggregate::WindowAggregate;
use pgrx::Internal;
use pgrx::prelude::*;

use super::{Composite, out_of_memory, state_or};
use crate::errors::Failure;

struct State {
    frame: WindowAggregate,
    /// The past values that the frame's last row asks for.
    width: Option<usize>,
}

impl State {
    fn growing() -> State {
        State { frame: WindowAggregate::growing(), width: None }
    }

    fn moving() -> State {
        State { frame: WindowAggregate::moving(), width: None }
    }

    fn metrics(&mut self) -> Option<WindowMetrics> {
        match self.width {
            Some(width) if width != self.frame.past_len() => None,
            _ => self.frame.metrics(),
        }
    }
}

/// 22023 for a width that no window has.
fn check_width(width: Option<i32>) -> usize {
    match width.map(usize::try_from) {
        Some(Ok(width)) if width >= 2 => width,
        _ => {
            let width = width.map_or("NULL".to_string(), |width| width.to_string());
            Failure::new(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("a window's width must be at least 2, not {width}"),
            )
            .detail("The width is the number of values that precede the current one.")
            .hint("bqx.bqx_window_metrics(value) takes whatever the frame holds.")
            .raise()
        }
    }
}

/// Adds a row to a frame that only grows.
#[pg_extern(immutable, parallel_safe)]
fn _window_metrics_grow(
    mut state: Internal,
    value: Option<f64>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    // Safety: it is this function's own call, and all of this file's functions have the same kind of state.
    unsafe { state_or(&mut state, fcinfo, State::growing) }.frame.push(value).unwrap_or_else(out_of_memory);
    state
}

/// Adds a row to a frame whose oldest rows leave.
#[pg_extern(immutable, parallel_safe)]
fn _window_metrics_enter(
    mut state: Internal,
    value: Option<f64>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    // Safety: as above.
    unsafe { state_or(&mut state, fcinfo, State::moving) }.frame.push(value).unwrap_or_else(out_of_memory);
    state
}

/// Takes the oldest row out; NULL if it is not the oldest, and the frame has to be computed anew.
#[pg_extern(immutable, parallel_safe)]
fn _window_metrics_leave(
    mut state: Internal,
    value: Option<f64>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    // Safety: as above.
    let known = unsafe { state_or(&mut state, fcinfo, State::moving) }.frame.drop_oldest(value);
    if known { state } else { Internal::default() }
}

/// [`_window_metrics_grow`] for windows of a given width.
#[pg_extern(immutable, parallel_safe)]
fn _sized_window_metrics_grow(
    mut state: Internal,
    value: Option<f64>,
    width: Option<i32>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    // Safety: as above.
    let frame = unsafe { state_or(&mut state, fcinfo, State::growing) };
    frame.width = Some(check_width(width));
    frame.frame.push(value).unwrap_or_else(out_of_memory);
    state
}

/// [`_window_metrics_enter`] for windows of a given width.
#[pg_extern(immutable, parallel_safe)]
fn _sized_window_metrics_enter(
    mut state: Internal,
    value: Option<f64>,
    width: Option<i32>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    // Safety: as above.
    let frame = unsafe { state_or(&mut state, fcinfo, State::moving) };
    frame.width = Some(check_width(width));
    frame.frame.push(value).unwrap_or_else(out_of_memory);
    state
}

/// [`_window_metrics_leave`] for windows of a given width.
#[pg_extern(immutable, parallel_safe)]
fn _sized_window_metrics_leave(
    state: Internal,
    value: Option<f64>,
    _width: Option<i32>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Internal {
    _window_metrics_leave(state, value, fcinfo)
}

/// The metrics of the frame; of no rows, n = 0.
#[pg_extern(
    sql = "
CREATE FUNCTION bqx._window_metrics_final(state internal) RETURNS bqx.window_metrics
LANGUAGE c IMMUTABLE PARALLEL SAFE AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
",
    requires = ["aggregate_types"]
)]
fn _window_metrics_final(mut state: Internal, fcinfo: pg_sys::FunctionCallInfo) -> Composite {
    // Safety: a state is this file's (see `state_or`), and it is this function's own call.
    unsafe {
        let (n, metrics) = match state.get_mut::<State>() {
            Some(state) => (state.frame.past_len(), state.metrics()),
            None => (0, None),
        };
        Composite::of_metrics(fcinfo, n, metrics.map(WindowMetrics::to_array))
    }
}
