//! `bqx.rolling_corr(y, x)` and `bqx.vwap(price, volume)`: other results of the states of `bqx.quadratic_reg(y, x)`, which have all
//! sums that these want.

use bqx_core::scatter_aggregate::ScatterAggregate;
use pgrx::Internal;
use pgrx::prelude::*;

/// Pearson's correlation; NULL if one of the two does not vary, of fewer than two points, and where one is NaN or infinite.
#[pg_extern(immutable, parallel_safe)]
fn _rolling_corr_final(state: Internal) -> Option<f64> {
    // Safety: a state is that of quadratic_reg_xy (see `state_or`), and only read.
    unsafe { state.get::<ScatterAggregate>() }?.correlation()
}

/// The mean of y with the weights x; NULL if they sum to 0, of no points, where one is NaN or infinite, and where it overflows.
#[pg_extern(immutable, parallel_safe)]
fn _vwap_final(state: Internal) -> Option<f64> {
    // Safety: as above.
    unsafe { state.get::<ScatterAggregate>() }?.weighted_mean().filter(|mean| mean.is_finite())
}
