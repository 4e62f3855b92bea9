//! `bqx.last_known(value)`: the newest value that is there.

use pgrx::prelude::*;

/// Strict, so PostgreSQL calls it for values only, from the second on.
#[pg_extern(immutable, parallel_safe, strict)]
fn _last_known(_before: f64, value: f64) -> f64 {
    value
}
