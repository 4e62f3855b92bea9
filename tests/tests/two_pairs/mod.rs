//! The bars that several test programs backfill, ready in a database of their own for each test.

#![allow(dead_code)] // each test program uses its part

use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use bqx_tests::{Db, own_server};
use pgcluster::Cluster;
use postgres::Client;

use crate::common::{checksums, row, rows, run, run_each};

/// Two pairs, three months, every tenth minute of a simulated market: about 3,100 bars a month, indexed. The baseline
/// of usdjpy lies in the second month. No derived tables.
pub const PREPARED: &[&str] = &[
    "CALL bqx.simulate_m1(ARRAY['eurusd', 'usdjpy'], '2024-07-01', '2024-09-01')",
    "DELETE FROM bqx.m1_eurusd WHERE extract(minute FROM time)::int % 10 <> 0",
    "DELETE FROM bqx.m1_usdjpy WHERE extract(minute FROM time)::int % 10 <> 0",
    "VACUUM FULL bqx.m1_eurusd, bqx.m1_usdjpy",
    "CALL bqx.set_baselines(pairs => ARRAY['eurusd'])",
    "CALL bqx.set_baselines('2024-08-10 00:00+00', ARRAY['usdjpy'])",
    "CALL bqx.index_m1()",
];

/// The server of all tests here but those that need one of their own; with slots for workers of many tests at once.
pub fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| own_server("two-pairs", &[("max_worker_processes", "100")]))
}

/// A new database with what [`PREPARED`] made.
pub fn prepared(name: &str) -> Db<'static> {
    static PREPARED_ONCE: OnceLock<()> = OnceLock::new();
    PREPARED_ONCE.get_or_init(|| prepare(&Db::on(cluster(), "prepared")));
    let db = Db::on(cluster(), name);
    let mut session = cluster().connect("postgres").unwrap();
    run(&mut session, &format!("DROP DATABASE {name}"));
    run(&mut session, &format!("CREATE DATABASE {name} TEMPLATE prepared"));
    db
}

pub fn prepare(db: &Db) {
    run_each(&mut db.connect(), PREPARED);
}

/// The same with filled derived tables.
pub fn filled(name: &str) -> Db<'static> {
    let db = prepared(name);
    run_each(&mut db.connect(), &["CALL bqx.create_tables()", "CALL bqx.backfill(workers => 0)"]);
    db
}

/// What a backfill of the prepared bars must give, however it is called.
pub fn expected() -> &'static Vec<String> {
    static EXPECTED: OnceLock<Vec<String>> = OnceLock::new();
    EXPECTED.get_or_init(|| {
        let found = checksums(&filled("expected"));
        assert_eq!(found.len(), 6, "{found:?}");
        found
    })
}

/// Checks of verify() that fail.
pub fn faults(session: &mut Client) -> Vec<String> {
    rows(session, "SELECT check_name, family, pair, month, detail FROM bqx.verify() WHERE ok IS NOT TRUE")
}

/// Waits until a query gives `t`.
pub fn wait_until(session: &mut Client, query: &str) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while row(session, query) != "t" {
        assert!(Instant::now() < give_up, "in vain: {query}");
        thread::sleep(Duration::from_millis(50));
    }
}
