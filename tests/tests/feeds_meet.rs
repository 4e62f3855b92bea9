//! Sessions that change bars, refresh and switch live mode at the same moment, in the orders that once went wrong.

mod common;
mod two_pairs;

use std::thread;

use bqx_tests::Db;
use common::backfilled::faults;
use common::{attempt, row, rows, run, run_each, wait_for_waiting};
use two_pairs::filled;

/// A database with both pairs live.
fn live(name: &str) -> Db<'static> {
    let db = filled(name);
    run(&mut db.connect(), "CALL bqx.enable_live()");
    db
}

fn assert_sound(db: &Db) {
    let mut session = db.connect();
    assert_eq!(rows(&mut session, "SELECT * FROM bqx.stale()"), [""; 0]);
    assert_eq!(rows(&mut session, "SELECT * FROM bqx.bar_changes"), [""; 0]);
    assert_eq!(faults(&mut session), [""; 0]);
}

#[test]
fn a_bar_that_others_deleted_since_the_snapshot_cannot_be_inserted_into_it() {
    for isolation in ["REPEATABLE READ", "SERIALIZABLE"] {
        let db = live(&format!("deleted_since_{}", isolation.to_lowercase().replace(' ', "_")));
        let (mut early, mut other) = (db.connect(), db.connect());
        run(&mut early, &format!("BEGIN ISOLATION LEVEL {isolation}"));
        run(&mut early, "SELECT count(*) FROM bqx.m1_eurusd");
        run(&mut other, "DELETE FROM bqx.m1_eurusd WHERE time = '2024-08-07 12:00+00'");
        let insert = "INSERT INTO bqx.m1_eurusd (time, open, high, low, close) \
                      VALUES ('2024-08-07 12:00+00', 1.08, 1.08, 1.08, 1.08)";
        let error = attempt(&mut early, insert).expect_err("its snapshot is old");
        assert_eq!(error.code, "40001", "{isolation}: {error:?}");
        run_each(&mut early, &["ROLLBACK", insert]);
        assert_sound(&db);
    }
}

#[test]
fn live_mode_ends_though_a_feed_reads_bars_before_it_writes_some() {
    let db = live("read_then_write");
    let mut feed = db.connect();
    run(&mut feed, "BEGIN; SELECT max(time) FROM bqx.m1_eurusd");
    thread::scope(|scope| {
        let ending = scope.spawn(|| attempt(&mut db.connect(), "CALL bqx.disable_live('{eurusd}')"));
        wait_for_waiting(&db, 1, || ending.is_finished());
        let update = "UPDATE bqx.m1_eurusd SET close = close * 1.001 WHERE time = '2024-08-07 12:00+00'";
        assert_eq!(attempt(&mut feed, update), Ok(()));
        run(&mut feed, "COMMIT");
        assert_eq!(ending.join().expect("no panic"), Ok(()));
    });
    run(&mut db.connect(), "CALL bqx.refresh()");
    assert_sound(&db);
}

/// Makers of the coming month's partitions.
const MAKERS: [&str; 4] = [
    "CALL bqx.refresh()",
    "CALL bqx.refresh('{eurusd}')",
    "CALL bqx.create_tables(to_month => '2024-10-01')",
    "CALL bqx.create_m1('{eurusd}', '2024-10-01', '2024-10-01')",
];

#[test]
fn makers_of_the_coming_months_partitions_are_not_in_each_others_way_nor_in_readers() {
    let tables = ["m1_eurusd", "bqx_eurusd", "reg_eurusd"];
    for held in tables {
        let db = live(&format!("coming_months_{held}"));
        let mut holder = db.connect();
        run_each(&mut holder, &tables.map(|table| format!("DROP TABLE bqx.{table}_2024_10")));
        run(&mut holder, &format!("BEGIN; LOCK TABLE bqx.{held} IN SHARE UPDATE EXCLUSIVE MODE"));
        thread::scope(|scope| {
            let start = |call| {
                let mut session = db.connect();
                scope.spawn(move || (call, attempt(&mut session, call)))
            };
            let makers = MAKERS.map(start);
            wait_for_waiting(&db, MAKERS.len(), || makers.iter().any(|maker| maker.is_finished()));
            let mut reader = db.connect();
            run(&mut reader, "SET lock_timeout = '5s'");
            let counts = tables.map(|table| format!("(SELECT count(*) FROM bqx.{table})"));
            run(&mut reader, &format!("SELECT {}", counts.join(", ")));
            run(&mut holder, "COMMIT");
            for maker in makers {
                let (call, ended) = maker.join().expect("no panic");
                assert_eq!(ended, Ok(()), "{held}: {call}");
            }
        });
        let made = "SELECT count(*) FROM pg_class WHERE relname ~ '^(m1|bqx|reg)_eurusd_2024_10$' AND relispartition";
        assert_eq!(row(&mut db.connect(), made), "3");
        assert_sound(&db);
    }
}
