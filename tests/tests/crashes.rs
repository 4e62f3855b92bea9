//! Backfills that are killed, cancelled and abandoned, and servers that crash under them: see [`disturbance`].
//!
//! `BQX_SEED` repeats what a seed led to; `BQX_SOAK_MINUTES` goes on for so long (`cargo xtask soak` sets both);
//! `BQX_KEEP_CLUSTERS` leaves the server for whoever has to find out what happened.

mod common;
mod disturbance;
mod soak;

use bqx_tests::own_server;
use disturbance::scene::Scene;
use disturbance::{are_reached, run};
use soak::Limits;

#[test]
fn a_disturbed_backfill_leaves_whole_months_and_the_next_call_completes_them() {
    let limits = Limits::from_environment().unwrap();
    // Slots for the workers of two calls, beside PostgreSQL's own.
    let server = own_server("crashes", &[("log_error_verbosity", "verbose"), ("max_worker_processes", "20")]);
    let scene = Scene::new(&server, "disturbed");
    let tally = run(&scene, &limits).unwrap_or_else(|error| panic!("{error:#}"));
    println!("{tally}");
    assert!(are_reached(&limits, &tally), "too few disturbances came in time");
}
