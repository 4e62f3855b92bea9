//! Bars to backfill from, and what a backfill made of them.

use std::thread;
use std::time::{Duration, Instant};

use bqx_tests::{Db, own_server};
use pgcluster::Cluster;
use postgres::Client;

pub use super::checksums;
use super::{row, rows, run, run_each};

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

pub fn prepare(db: &Db) {
    run_each(&mut db.connect(), PREPARED);
}

/// What `verify()` does not find right.
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

/// A server with the prepared bars in a database that others are copied from.
pub struct Prepared {
    cluster: Cluster,
    expected: Vec<String>,
}

impl Prepared {
    /// `name` is the server's.
    pub fn start(name: &str, options: &[(&str, &str)]) -> Prepared {
        let cluster = own_server(name, options);
        prepare(&Db::on(&cluster, "prepared"));
        let mut prepared = Prepared { cluster, expected: Vec::new() };
        let filled = prepared.db("expected");
        run_each(&mut filled.connect(), &["CALL bqx.create_tables()", "CALL bqx.backfill(workers => 0)"]);
        prepared.expected = checksums(&filled);
        assert_eq!(prepared.expected.len(), 6, "{:?}", prepared.expected);
        prepared
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// A new database with the bars, without derived tables.
    pub fn db(&self, name: &str) -> Db<'_> {
        let db = Db::on(&self.cluster, name);
        let mut session = self.cluster.connect("postgres").unwrap();
        run(&mut session, &format!("DROP DATABASE {name}"));
        run(&mut session, &format!("CREATE DATABASE {name} TEMPLATE prepared"));
        db
    }

    /// [`checksums`] of what an undisturbed backfill gives.
    pub fn expected(&self) -> &[String] {
        &self.expected
    }

    /// Errors that no disturbance may lead to, as the server's log has them.
    pub fn deadlocks(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.cluster.log_file()).expect("a log");
        let grave = |line: &&str| {
            ["deadlock detected", "PANIC:", "terminated by signal"].iter().any(|w| line.contains(w))
        };
        log.lines().filter(grave).map(str::to_owned).collect()
    }
}

/// The jobs of the latest run that did not end well, as `family pair month state code`.
pub fn failures(session: &mut Client) -> Vec<String> {
    rows(
        session,
        "SELECT concat_ws(' ', family, pair, to_char(month, 'YYYY-MM'), state, error_code) FROM bqx.job_ledger \
          WHERE run_id = (SELECT max(run_id) FROM bqx.run_ledger) AND state <> 'done' ORDER BY pair, month, family",
    )
}
