//! One server of [`Prepared`] bars for all tests of a program.

#![allow(dead_code)] // each test program uses its part

use std::sync::OnceLock;

use bqx_tests::Db;
use pgcluster::Cluster;

use crate::common::backfilled::Prepared;
use crate::common::run_each;

/// With slots for workers of many tests at once.
fn server() -> &'static Prepared {
    static SERVER: OnceLock<Prepared> = OnceLock::new();
    SERVER.get_or_init(|| Prepared::start("two-pairs", &[("max_worker_processes", "100")]))
}

pub fn cluster() -> &'static Cluster {
    server().cluster()
}

/// A new database with the bars, without derived tables.
pub fn prepared(name: &str) -> Db<'static> {
    server().db(name)
}

/// The same with filled derived tables.
pub fn filled(name: &str) -> Db<'static> {
    let db = prepared(name);
    run_each(&mut db.connect(), &["CALL bqx.create_tables()", "CALL bqx.backfill(workers => 0)"]);
    db
}

/// What a backfill of the prepared bars must give, however it is called.
pub fn expected() -> &'static [String] {
    server().expected()
}
