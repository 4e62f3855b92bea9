//! Feeds, refresh, backfill and readers at once, disturbed now and then: see [`feeding`].
//!
//! `BQX_SEED` and `BQX_SOAK_MINUTES` as for the crash test (`cargo xtask soak` sets both); `BQX_KEEP_CLUSTERS` leaves the
//! server for whoever has to find out what happened.

mod common;
mod feeding;
mod soak;

use bqx_tests::own_server;
use feeding::soak_feeds;
use soak::Limits;
use soak::site::Site;

#[test]
fn derived_rows_follow_bars_whatever_feeds_refreshes_backfills_and_accidents_meet() {
    let limits = Limits::from_environment().unwrap();
    let server = own_server(
        "feeds",
        &[
            ("log_error_verbosity", "verbose"),
            ("log_statement", "all"),
            ("max_worker_processes", "20"),
            // deadlocks over several pairs are wanted, waiting for their end is not
            ("deadlock_timeout", "100ms"),
        ],
    );
    let site = Site::new(&server, "fed");
    let counts = soak_feeds(&site, &limits).unwrap_or_else(|error| panic!("{error:#}"));
    println!("{counts}result: derived rows are those of the bars, and verify() holds");
}
