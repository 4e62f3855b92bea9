//! A backfill among others who drop, alter, vacuum and lock what it works on: nobody gets into a deadlock, what could
//! not be done is named, every month is whole or as it was, and the next call does the rest.

mod common;

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bqx_tests::{Db, SqlError};
use common::backfilled::{Prepared, checksums, failures, faults};
use common::{attempt, row, rows, run, run_each, wait_for_waiting};
use postgres::Client;

/// The server of all tests here.
fn server() -> &'static Prepared {
    static SERVER: OnceLock<Prepared> = OnceLock::new();
    SERVER.get_or_init(|| Prepared::start("disturbances", &[("max_worker_processes", "60")]))
}

/// A new database with bars and empty derived tables.
fn with_tables(name: &str) -> Db<'static> {
    let db = server().db(name);
    run(&mut db.connect(), "CALL bqx.create_tables()");
    db
}

/// The same with filled derived tables.
fn filled(name: &str) -> Db<'static> {
    let db = with_tables(name);
    run(&mut db.connect(), "CALL bqx.backfill(workers => 0)");
    db
}

/// A session that holds what a statement locks until it says COMMIT.
fn holder(db: &Db, statement: &str) -> Client {
    let mut session = db.connect();
    run(&mut session, &format!("BEGIN; {statement}"));
    session
}

/// Makes whoever gets to a month of a pair wait before it; all other months come first.
fn hold_month(pair: &str, month: &str) -> String {
    format!("SELECT pg_advisory_xact_lock(bqx._lock_key('month', '{pair} {month}'))")
}

/// Runs statements one after the other, each as soon as the ones before it wait for a lock that `hold` took (or have
/// ended, needing none); then lets them go. How each ended.
fn behind(db: &Db, hold: &str, statements: &[&str]) -> Vec<Result<(), SqlError>> {
    let mut holder = holder(db, hold);
    thread::scope(|scope| {
        let mut running = Vec::new();
        for (statement, waiting) in statements.iter().zip(1..) {
            let mut session = db.connect();
            let started = scope.spawn(move || attempt(&mut session, statement));
            wait_for_waiting(db, waiting, || started.is_finished());
            running.push(started);
        }
        run(&mut holder, "COMMIT");
        running.into_iter().map(|statement| statement.join().expect("no panic")).collect()
    })
}

/// The hints that the latest run recorded.
fn hints(session: &mut Client) -> Vec<String> {
    let hints = "SELECT DISTINCT error_hint FROM bqx.job_ledger \
                 WHERE run_id = (SELECT max(run_id) FROM bqx.run_ledger) AND state = 'failed' ORDER BY 1";
    rows(session, hints)
}

/// All is as an undisturbed backfill leaves it, and nobody got into a deadlock on the way.
fn assert_undisturbed(db: &Db, what: &str) {
    assert_eq!(checksums(db), server().expected(), "{what}");
    assert_sound(db, what);
}

fn assert_sound(db: &Db, what: &str) {
    assert_eq!(faults(&mut db.connect()), [""; 0], "{what}");
    assert_eq!(server().deadlocks(), [""; 0], "{what}");
}

// ---------------------------------------------------------------------------------------------------------
// Tables that go
// ---------------------------------------------------------------------------------------------------------

#[test]
fn a_table_that_was_dropped_meanwhile_fails_its_own_jobs() {
    let drops = ["DROP TABLE bqx.reg_eurusd", "CALL bqx.drop_tables('{reg}', '{eurusd}')"];
    for (drop, workers) in drops.iter().zip([2, 0]) {
        let waiting = if workers == 0 { 1 } else { workers };
        let db = with_tables(&format!("dropped_{workers}"));
        let mut session = db.connect();
        let mut brake = holder(&db, &hold_month("eurusd", "2024-08"));
        let call = format!("CALL bqx.backfill(workers => {workers})");
        let ended = thread::scope(|scope| {
            let caller = scope.spawn(|| attempt(&mut db.connect(), &call));
            wait_for_waiting(&db, waiting, || caller.is_finished());
            run(&mut session, drop);
            run(&mut brake, "COMMIT");
            caller.join().expect("no panic")
        });
        let error = ended.expect_err("a table is gone");
        assert_eq!(error.code, "42P01", "{error:?}");
        assert_eq!(failures(&mut session), ["reg eurusd 2024-08 failed 42P01"]);
        assert_eq!(hints(&mut session), ["CALL bqx.create_tables(ARRAY['reg'], ARRAY['eurusd']);"]);
        assert!(error.hint.contains("CALL bqx.create_tables(ARRAY['reg'], ARRAY['eurusd']);"), "{error:?}");
        run_each(&mut session, &["CALL bqx.create_tables()", &call]);
        assert_undisturbed(&db, drop);
    }
}

#[test]
fn bars_that_were_dropped_meanwhile_fail_their_pairs_jobs() {
    let db = with_tables("dropped_bars");
    let mut session = db.connect();
    run(&mut session, "CREATE TABLE public.bars AS SELECT * FROM bqx.m1_eurusd");
    let mut brake = holder(&db, &hold_month("eurusd", "2024-08"));
    let ended = thread::scope(|scope| {
        let caller = scope.spawn(|| attempt(&mut db.connect(), "CALL bqx.backfill(workers => 2)"));
        wait_for_waiting(&db, 2, || caller.is_finished());
        run(&mut session, "DROP TABLE bqx.m1_eurusd");
        run(&mut brake, "COMMIT");
        caller.join().expect("no panic")
    });
    let error = ended.expect_err("bars are gone");
    assert_eq!(error.code, "42P01", "{error:?}");
    assert!(error.hint.contains("CALL bqx.load_m1('eurusd'"), "{error:?}");
    assert_eq!(
        failures(&mut session),
        ["bqx eurusd 2024-08 failed 42P01", "reg eurusd 2024-08 failed 42P01"]
    );
    run_each(
        &mut session,
        &[
            "CALL bqx.create_m1('{eurusd}', '2024-07-01', '2024-09-01')",
            "INSERT INTO bqx.m1_eurusd SELECT * FROM public.bars",
            "CALL bqx.index_m1('{eurusd}')",
            "CALL bqx.backfill(workers => 0)",
        ],
    );
    assert_undisturbed(&db, "bars dropped");
}

/// DROP comes while a month of the table is being written, and waits for it.
#[test]
fn a_drop_waits_for_the_month_in_work_and_the_rest_is_named() {
    for (drop, workers) in
        [("DROP TABLE bqx.reg_eurusd", 1), ("CALL bqx.drop_tables('{reg}', '{eurusd}')", 0)]
    {
        let db = with_tables(&format!("drop_waits_{workers}"));
        let mut session = db.connect();
        let call = format!("CALL bqx.backfill(pairs => '{{eurusd}}', workers => {workers})");
        // SHARE: the partition may be read, but not written.
        let ended = behind(&db, "LOCK TABLE bqx.reg_eurusd_2024_08 IN SHARE MODE", &[&call, drop]);
        assert_eq!(ended[1], Ok(()), "{drop}");
        // drop_tables gives its lock back after a trial, and may come last.
        let may_be_last = drop.starts_with("CALL") && ended[0].is_ok();
        if !may_be_last {
            let error = ended[0].clone().expect_err("a table is gone");
            assert_eq!(error.code, "42P01", "{error:?}");
            assert_eq!(failures(&mut session), ["reg eurusd 2024-09 failed 42P01"], "{error:?}");
        }
        run_each(&mut session, &["CALL bqx.create_tables()", "CALL bqx.backfill(workers => 2)"]);
        assert_undisturbed(&db, drop);
    }
}

#[test]
fn drop_tables_against_two_overlapping_backfills() {
    let db = with_tables("drop_against_two");
    for round in 0..4 {
        let outcomes = thread::scope(|scope| {
            let calls = [
                "CALL bqx.backfill(workers => 2)".to_owned(),
                "CALL bqx.backfill('{reg,bqx}', '{usdjpy,eurusd}', workers => 0)".to_owned(),
                // at another moment each time
                format!("DO $$ BEGIN PERFORM pg_sleep({round} * 0.3 + 0.2); END $$"),
            ];
            let running = calls.map(|call| {
                let mut session = db.connect();
                let drops = call.starts_with("DO");
                scope.spawn(move || {
                    attempt(&mut session, &call)?;
                    if drops { attempt(&mut session, "CALL bqx.drop_tables('{bqx,reg}')") } else { Ok(()) }
                })
            });
            running.map(|call| call.join().expect("no panic"))
        });
        assert_eq!(outcomes[2], Ok(()), "drop_tables");
        for backfill in &outcomes[..2] {
            if let Err(error) = backfill {
                assert_eq!(error.code, "42P01", "round {round}: {error:?}");
            }
        }
        assert_eq!(server().deadlocks(), [""; 0], "round {round}");
        run(&mut db.connect(), "CALL bqx.create_tables()");
    }
    run(&mut db.connect(), "CALL bqx.backfill(workers => 2)");
    assert_undisturbed(&db, "drop_tables");
}

// ---------------------------------------------------------------------------------------------------------
// Locks that don't come
// ---------------------------------------------------------------------------------------------------------

#[test]
fn a_lock_that_comes_too_late_fails_its_own_job() {
    for workers in [0, 2] {
        let db = with_tables(&format!("lock_timeout_{workers}"));
        let mut session = db.connect();
        // for workers, too
        run(&mut session, &format!("ALTER DATABASE {} SET lock_timeout = '100ms'", db.name()));
        let mut holder = holder(&db, "LOCK TABLE bqx.reg_eurusd_2024_08 IN SHARE MODE");
        let call = format!("CALL bqx.backfill(workers => {workers})");
        let error = attempt(&mut db.connect(), &call).expect_err("a lock is missing");
        assert_eq!(error.code, "55P03", "{error:?}");
        assert_eq!(failures(&mut session), ["reg eurusd 2024-08 failed 55P03"], "{error:?}");
        assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.reg_eurusd_2024_08"), "0");
        run(&mut holder, "COMMIT");
        run(&mut db.connect(), &call);
        assert_undisturbed(&db, &call);
    }
}

/// Whoever fills, vacuums or holds one month keeps nobody from another: be it new, empty or with rows.
#[test]
fn another_months_partition_is_not_waited_for() {
    let db = server().db("other_months");
    let mut session = db.connect();
    run(&mut session, "SET lock_timeout = '2s'");
    run(&mut session, "CALL bqx.create_tables(to_month => '2024-08-01')");
    let _holder = holder(
        &db,
        "LOCK TABLE bqx.bqx_eurusd_2024_07, bqx.reg_eurusd_2024_07, bqx.bqx_usdjpy_2024_07, bqx.reg_usdjpy_2024_07 \
         IN ACCESS EXCLUSIVE MODE",
    );
    run(&mut session, "CALL bqx.backfill(from_month => '2024-08-01', workers => 0)");
    run(&mut session, "UPDATE bqx.reg_eurusd_2024_08 SET w60_reg_a = 0");
    run(&mut session, "CALL bqx.backfill(from_month => '2024-08-01', workers => 0, force => true)");
    drop(_holder);
    run(&mut session, "CALL bqx.backfill(workers => 0)");
    assert_undisturbed(&db, "other months");
}

#[test]
fn readers_who_stay_are_not_waited_for() {
    let db = with_tables("idle_readers");
    run(&mut db.connect(), &format!("ALTER DATABASE {} SET lock_timeout = '2s'", db.name()));
    run(
        &mut db.connect(),
        &format!("ALTER DATABASE {} SET default_transaction_isolation = 'serializable'", db.name()),
    );
    let tables = ["bqx_eurusd", "reg_eurusd", "bqx_usdjpy", "reg_usdjpy"];
    let look =
        |reader: &mut Client| tables.map(|table| row(reader, &format!("SELECT count(*) FROM bqx.{table}")));
    let mut reader = db.connect();
    run(&mut reader, "BEGIN");
    assert_eq!(row(&mut reader, "SHOW transaction_isolation"), "serializable");
    // Locks all partitions for reading, until the transaction ends.
    assert_eq!(look(&mut reader), ["0"; 4]);
    run(&mut db.connect(), "CALL bqx.backfill(pairs => '{eurusd}', workers => 2)");
    run(&mut db.connect(), "CALL bqx.backfill(pairs => '{usdjpy}', workers => 0)");
    assert_eq!(look(&mut reader), ["0"; 4], "what came later is not seen");
    run(&mut reader, "COMMIT");
    assert_undisturbed(&db, "idle readers");
}

// ---------------------------------------------------------------------------------------------------------
// Tables that change
// ---------------------------------------------------------------------------------------------------------

/// Changes of tables, what undoes them, and whether jobs may fail for them.
struct Change {
    change: &'static str,
    undo: &'static str,
    may_fail: &'static str,
}

const fn change(change: &'static str, undo: &'static str) -> Change {
    Change { change, undo, may_fail: "" }
}

const CHANGES: &[Change] = &[
    change(
        "ALTER TABLE bqx.reg_eurusd ADD COLUMN note text DEFAULT 'mine'",
        "ALTER TABLE bqx.reg_eurusd DROP COLUMN note",
    ),
    change(
        "ALTER TABLE bqx.reg_eurusd DROP COLUMN w60_reg_r2",
        "ALTER TABLE bqx.reg_eurusd ADD COLUMN w60_reg_r2 double precision",
    ),
    change(
        "ALTER TABLE bqx.reg_eurusd ALTER COLUMN w60_reg_a TYPE numeric",
        "ALTER TABLE bqx.reg_eurusd ALTER COLUMN w60_reg_a TYPE double precision",
    ),
    change(
        "ALTER TABLE bqx.reg_eurusd RENAME COLUMN w60_reg_a TO formerly_a",
        "ALTER TABLE bqx.reg_eurusd RENAME COLUMN formerly_a TO w60_reg_a",
    ),
    Change {
        change: "ALTER TABLE bqx.reg_eurusd RENAME TO formerly_reg",
        undo: "ALTER TABLE bqx.formerly_reg RENAME TO reg_eurusd",
        may_fail: "42P01",
    },
    change(
        "ALTER TABLE bqx.reg_eurusd ADD CONSTRAINT positive CHECK (rate_index > 0) NOT VALID; \
         ALTER TABLE bqx.reg_eurusd VALIDATE CONSTRAINT positive",
        "ALTER TABLE bqx.reg_eurusd DROP CONSTRAINT positive",
    ),
    change(
        "ALTER TABLE bqx.reg_eurusd_2024_08 SET UNLOGGED",
        "ALTER TABLE bqx.reg_eurusd_2024_08 SET LOGGED",
    ),
    change("CREATE INDEX by_index ON bqx.reg_eurusd (rate_index)", "DROP INDEX bqx.by_index"),
    change(
        "ALTER TABLE bqx.reg_eurusd DETACH PARTITION bqx.reg_eurusd_2024_09; DROP TABLE bqx.reg_eurusd_2024_09",
        "",
    ),
    change(
        "CREATE TABLE bqx.later (LIKE bqx.reg_eurusd INCLUDING ALL); ALTER TABLE bqx.reg_eurusd ATTACH PARTITION \
         bqx.later FOR VALUES FROM ('2024-12-01 00:00+00') TO ('2025-01-01 00:00+00')",
        "DROP TABLE bqx.later",
    ),
    change(
        "ALTER TABLE bqx.m1_eurusd ADD COLUMN note text DEFAULT 'mine'",
        "ALTER TABLE bqx.m1_eurusd DROP COLUMN note",
    ),
    change(
        "ALTER TABLE bqx.m1_eurusd ALTER COLUMN volume TYPE numeric",
        "ALTER TABLE bqx.m1_eurusd ALTER COLUMN volume TYPE double precision",
    ),
    Change {
        change: "ALTER TABLE bqx.m1_eurusd RENAME TO formerly_m1",
        undo: "ALTER TABLE bqx.formerly_m1 RENAME TO m1_eurusd",
        may_fail: "42P01",
    },
];

/// How a backfill ended that a change came across, and that the next one, with the change undone, does the rest.
fn assert_change_is_survived(db: &Db, change: &Change, ended: &Result<(), SqlError>, how: &str) {
    let what = format!("{how}: {}", change.change);
    match ended {
        Ok(()) => (),
        Err(error) => assert_eq!(error.code, change.may_fail, "{what}: {error:?}"),
    }
    let mut session = db.connect();
    if change.may_fail.is_empty() {
        // also with the change
        run(&mut session, "CALL bqx.backfill(pairs => '{eurusd}', workers => 0)");
    }
    if !change.undo.is_empty() {
        run(&mut session, change.undo);
    }
    run(&mut session, "CALL bqx.backfill(pairs => '{eurusd}', workers => 0)");
    assert_eq!(checksums(db), server().expected(), "{what}");
}

/// For a change, the states in which it comes: months that are empty, and months with rows.
fn before_change(session: &mut Client, empty: bool) -> &'static str {
    if empty {
        run(session, "TRUNCATE bqx.bqx_eurusd, bqx.reg_eurusd");
        "CALL bqx.backfill(pairs => '{eurusd}', workers => 1)"
    } else {
        "CALL bqx.backfill(pairs => '{eurusd}', workers => 1, force => true)"
    }
}

#[test]
fn a_change_of_a_table_that_waits_for_a_backfill() {
    let db = filled("change_waits");
    for change in CHANGES {
        let call = before_change(&mut db.connect(), false);
        let ended = behind(&db, "LOCK TABLE bqx.reg_eurusd_2024_08 IN SHARE MODE", &[call, change.change]);
        assert_eq!(ended[1], Ok(()), "{}", change.change);
        assert_change_is_survived(&db, change, &ended[0], "the change waits");
    }
    assert_sound(&db, "changes that wait");
}

#[test]
fn a_change_of_a_table_that_a_backfill_waits_for() {
    let db = filled("change_first");
    for (change, empty) in CHANGES.iter().zip([true, false].into_iter().cycle()) {
        let mut session = db.connect();
        let call = before_change(&mut session, empty);
        // The change comes when the run has been planned, which looks at the bars, too.
        let mut brake = holder(&db, &hold_month("eurusd", "2024-07"));
        let ended = thread::scope(|scope| {
            let caller = scope.spawn(|| attempt(&mut db.connect(), call));
            wait_for_waiting(&db, 1, || caller.is_finished());
            let mut changing = holder(&db, change.change);
            run(&mut brake, "COMMIT");
            // The month's lock is given to the worker at once.
            wait_for_waiting(&db, 1, || caller.is_finished());
            run(&mut changing, "COMMIT");
            caller.join().expect("no panic")
        });
        assert_change_is_survived(&db, change, &ended, "the backfill waits");
    }
    assert_sound(&db, "changes that are waited for");
}

// ---------------------------------------------------------------------------------------------------------
// Housekeeping
// ---------------------------------------------------------------------------------------------------------

/// Repeats statements, one after the other, until `done`.
fn keep_at_it(db: &Db, statements: &[&str], done: impl Fn() -> bool) -> u32 {
    let mut session = db.connect();
    let mut times = 0;
    while !done() {
        for statement in statements {
            run(&mut session, statement);
        }
        times += 1;
    }
    times
}

#[test]
fn vacuum_cluster_and_reindex_change_no_bit() {
    let db = filled("housekeeping");
    let housekeeping: [&[&str]; 3] = [
        &["VACUUM bqx.bqx_eurusd, bqx.reg_eurusd, bqx.m1_eurusd", "ANALYZE bqx.reg_eurusd, bqx.bqx_usdjpy"],
        &[
            "VACUUM FULL bqx.reg_eurusd",
            "CLUSTER bqx.reg_usdjpy_2024_08 USING reg_usdjpy_2024_08_pkey",
            "REINDEX TABLE bqx.bqx_usdjpy",
        ],
        // not what is truncated, which REINDEX CONCURRENTLY has deadlocks with of its own
        &[
            "REINDEX TABLE CONCURRENTLY bqx.bqx_eurusd_2024_09",
            "REINDEX TABLE CONCURRENTLY bqx.reg_usdjpy_2024_07",
        ],
    ];
    let rounds: &[&[&str]] = &[
        &["CALL bqx.backfill(workers => 2, force => true)"],
        &[
            "TRUNCATE bqx.bqx_eurusd_2024_07",
            "TRUNCATE bqx.reg_eurusd_2024_08",
            "TRUNCATE bqx.reg_usdjpy_2024_09",
            "CALL bqx.backfill(workers => 2)",
        ],
        &[
            "UPDATE bqx.bqx_eurusd SET w15_bqx_return = 0 WHERE w15_bqx_return > 0.001",
            "CALL bqx.backfill(workers => 0, force => true)",
        ],
        &["CALL bqx.backfill('{bqx}', workers => 1, force => true)"],
    ];
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (db, done) = (&db, &done);
        let busy = housekeeping.map(|statements| {
            scope.spawn(move || keep_at_it(db, statements, || done.load(Ordering::Relaxed)))
        });
        let work = scope.spawn(|| rounds.iter().for_each(|round| run_each(&mut db.connect(), round)));
        let worked = work.join();
        done.store(true, Ordering::Relaxed);
        worked.expect("no error");
        for kept in busy {
            assert!(kept.join().expect("no error") > 0, "it was done meanwhile");
        }
    });
    assert_undisturbed(&db, "housekeeping");
}

// ---------------------------------------------------------------------------------------------------------
// Readers
// ---------------------------------------------------------------------------------------------------------

/// A checksum of each month of each derived table, as `table month rows checksum`.
const MONTHS: &str = "SELECT concat_ws(' ', name, to_char(ts_utc AT TIME ZONE 'UTC', 'YYYY-MM'), count(*), sum(hash)) FROM ( \
         SELECT 'bqx' AS name, ts_utc, hash_record_extended(t, 0) AS hash FROM bqx.bqx_eurusd AS t UNION ALL \
         SELECT 'reg', ts_utc, hash_record_extended(ROW(ts_utc, rate_index, w60_reg_a, w630_reg_rmse), 0) \
           FROM bqx.reg_eurusd) AS rows \
     GROUP BY name, to_char(ts_utc AT TIME ZONE 'UTC', 'YYYY-MM') ORDER BY 1";

/// Looks at all months, again and again until `done`, within one snapshot or each time with a new one. Which pictures
/// of months it saw.
fn watch(db: &Db, snapshot: bool, done: impl Fn() -> bool) -> BTreeSet<String> {
    let mut session = db.connect();
    let mut seen = BTreeSet::new();
    loop {
        let last = done();
        if snapshot {
            run(&mut session, "BEGIN ISOLATION LEVEL REPEATABLE READ");
        }
        let found = rows(&mut session, MONTHS);
        if snapshot {
            assert_eq!(rows(&mut session, MONTHS), found, "a snapshot does not change");
            run(&mut session, "COMMIT");
        }
        seen.extend(found);
        if last {
            return seen;
        }
    }
}

/// What readers of all kinds see while `work` is going on.
fn seen_during(db: &Db, work: impl FnOnce() + Send) -> BTreeSet<String> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let done = &done;
        let readers = [false, false, true]
            .map(|snapshot| scope.spawn(move || watch(db, snapshot, || done.load(Ordering::Relaxed))));
        let worked = scope.spawn(work).join();
        done.store(true, Ordering::Relaxed);
        worked.expect("no error");
        readers.into_iter().flat_map(|reader| reader.join().expect("no error")).collect()
    })
}

#[test]
fn readers_see_whole_months_only_old_or_new() {
    let db = with_tables("readers");
    let mut session = db.connect();
    let backfill = "CALL bqx.backfill(pairs => '{eurusd}', workers => 2)";
    let seen = seen_during(&db, || run(&mut db.connect(), backfill));
    let old: BTreeSet<String> = rows(&mut session, MONTHS).into_iter().collect();
    assert_eq!(old.len(), 6, "{old:?}");
    assert_eq!(seen, old, "a first fill shows a month as it will stay, or not at all");

    let correction = |sign| {
        format!(
            "UPDATE bqx.m1_eurusd SET rate_index = rate_index {sign} 1 WHERE rate_index <> 100 \
             AND time >= '2024-07-20 00:00+00' AND time < '2024-08-31 00:00+00'"
        )
    };
    // Sums and differences of 1 are exact enough to come back to the same doubles, which is looked at below.
    run(&mut session, "ALTER TABLE bqx.m1_eurusd DISABLE TRIGGER bqx_set_rate_index");
    for month in ["07", "08", "09"] {
        run(
            &mut session,
            &format!("ALTER TABLE bqx.m1_eurusd_2024_{month} DISABLE TRIGGER bqx_set_rate_index"),
        );
    }
    run(
        &mut session,
        "UPDATE bqx.m1_eurusd SET rate_index = round(rate_index::numeric, 5)::float8 WHERE rate_index <> 100",
    );
    run(&mut session, backfill);
    let old: BTreeSet<String> = rows(&mut session, MONTHS).into_iter().collect();
    run_each(&mut session, &[&correction("+"), backfill]);
    let new: BTreeSet<String> = rows(&mut session, MONTHS).into_iter().collect();
    assert_eq!(new.len(), 6, "{new:?}");
    assert!(new.is_disjoint(&old), "each month is another: {new:?}");
    let either: BTreeSet<String> = old.union(&new).cloned().collect();
    let seen = seen_during(&db, || {
        let mut session = db.connect();
        for sign in ["-", "+", "-"] {
            run_each(&mut session, &[correction(sign).as_str(), backfill]);
        }
    });
    assert_eq!(seen, either, "never another, never an empty one");
    assert_eq!(server().deadlocks(), [""; 0]);
}
