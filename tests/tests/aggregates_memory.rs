//! The aggregates' states live in memory that PostgreSQL does not see. They must not outlive their group,
//! partition or frame, however the query ends, and must not grow with more than the frame.
//!
//! The rows are mostly as many as it takes to tell a leak from noise: 200,000 states are at least 60 MB. One test has a
//! million partitions, and one a partition of ten million rows.

mod common;
mod reference;

use std::path::Path;

use bqx_tests::{Db, error_of, skipped};
use common::{row, rows, run, run_each};
use postgres::{Client, NoTls};
use reference::AGGREGATES;

const MB: i64 = 1024;

/// A session whose queries keep little in memory beside the aggregates' states. None where the system does
/// not tell what a process holds in memory.
fn session(db: &Db) -> Option<Client> {
    if !Path::new("/proc/self/status").exists() {
        let thread = std::thread::current();
        skipped(thread.name().unwrap_or("a test"), "no /proc/<pid>/status here");
        return None;
    }
    let mut session = db.connect();
    run(&mut session, "SET jit = off; SET work_mem = '1MB'; SET max_parallel_workers_per_gather = 0");
    Some(session)
}

/// A line of the session's `/proc/<pid>/status`, in kB.
fn status(session: &mut Client, name: &str) -> i64 {
    let pid = row(session, "SELECT pg_backend_pid()");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the server runs here");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let size = line.and_then(|line| line.trim().strip_suffix(" kB")).expect("a size");
    size.parse().expect("a number")
}

/// By how much `work` raises the most that the session's process ever held, in kB.
fn rise(session: &mut Client, work: impl FnOnce(&mut Client)) -> i64 {
    let before = status(session, "VmHWM");
    work(session);
    status(session, "VmHWM") - before
}

/// So many rows with the aggregates' arguments.
fn series(number_of_rows: u64) -> String {
    format!(
        "SELECT i, 100 + i % 1000 * 0.01::float8 AS v, 2 AS width, i::float8 AS x \
         FROM generate_series(1, {number_of_rows}) AS i"
    )
}

/// Counts the results of all aggregates over a series; `over` comes after each call, `grouping` after FROM.
fn counted(series: &str, over: &str, grouping: &str) -> String {
    let calls = AGGREGATES.map(|aggregate| format!("bqx.{}({}) {over}", aggregate.name, aggregate.arguments));
    let names: Vec<_> = (0..calls.len()).map(|index| format!("a{index}")).collect();
    let counts: Vec<_> = names.iter().map(|name| format!("count({name})")).collect();
    format!(
        "SELECT {} FROM (SELECT {} FROM ({series}) AS s {grouping}) AS s ({})",
        counts.join(", "),
        calls.join(", "),
        names.join(", ")
    )
}

/// The [`rise`] of [`counted`] over so many rows, when the code has been loaded.
fn rise_of(session: &mut Client, number_of_rows: u64, over: &str, grouping: &str) -> i64 {
    run(session, &counted(&series(100), over, grouping));
    rise(session, |session| run(session, &counted(&series(number_of_rows), over, grouping)))
}

#[test]
fn states_end_with_their_partition() {
    let db = Db::new("memory_partitions");
    for frame in ["ROWS 1 PRECEDING", "ROWS UNBOUNDED PRECEDING", "ROWS BETWEEN CURRENT ROW AND 1 FOLLOWING"]
    {
        let Some(mut session) = session(&db) else { return };
        let over = format!("OVER (PARTITION BY i / 2 ORDER BY i {frame})");
        let rise = rise_of(&mut session, 200_000, &over, "");
        assert!(rise < 8 * MB, "{frame}: {rise} kB");
    }
}

#[test]
fn a_million_partitions_leave_nothing() {
    let db = Db::new("memory_million");
    let Some(mut session) = session(&db) else { return };
    let over = "OVER (PARTITION BY i / 2 ORDER BY i ROWS 1 PRECEDING)";
    let rise = rise_of(&mut session, 2_000_000, over, "");
    assert!(rise < 8 * MB, "{rise} kB");
}

/// Where PostgreSQL computes every frame anew.
#[test]
fn states_end_with_their_frame() {
    let db = Db::new("memory_frames");
    for frame in
        ["ROWS 3 PRECEDING EXCLUDE TIES", "ROWS BETWEEN 1 FOLLOWING AND 3 FOLLOWING EXCLUDE CURRENT ROW"]
    {
        let Some(mut session) = session(&db) else { return };
        let rise = rise_of(&mut session, 100_000, &format!("OVER (ORDER BY i {frame})"), "");
        assert!(rise < 8 * MB, "{frame}: {rise} kB");
    }
}

#[test]
fn states_end_with_their_group() {
    let db = Db::new("memory_groups");
    let Some(mut session) = session(&db) else { return };
    run(&mut session, "SET enable_hashagg = off");
    assert_eq!(node(&mut session, &counted(&series(200_000), "", "GROUP BY i")), "GroupAggregate");
    let rise = rise_of(&mut session, 200_000, "", "GROUP BY i");
    assert!(rise < 8 * MB, "{rise} kB");
}

/// A hash table has as many groups at a time as fit work_mem, which counts but a part of a state.
#[test]
fn states_end_with_their_batch_of_groups() {
    let db = Db::new("memory_batches");
    let Some(mut session) = session(&db) else { return };
    run(&mut session, "SET enable_sort = off");
    assert_eq!(node(&mut session, &counted(&series(200_000), "", "GROUP BY i")), "HashAggregate");
    let rise = rise_of(&mut session, 200_000, "", "GROUP BY i");
    assert!(rise < 24 * MB, "{rise} kB");
}

/// The node of a plan that makes the groups.
fn node(session: &mut Client, query: &str) -> String {
    let plan = rows(session, &format!("EXPLAIN (COSTS off) {query}"));
    let node = plan.iter().find(|line| line.contains("->") && line.contains("Aggregate"));
    node.expect("groups").trim_start_matches([' ', '-', '>']).to_owned()
}

#[test]
fn states_that_workers_sent_end_with_being_combined() {
    let db = Db::new("memory_combined");
    let Some(mut session) = session(&db) else { return };
    let statements = [
        "CREATE TABLE points AS SELECT i % 20000 AS part, i::float8 AS x, 100 + i % 997 * 0.01::float8 AS y \
         FROM generate_series(1, 250000) AS i",
        "ANALYZE points",
        "SET max_parallel_workers_per_gather = 2; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0.1",
        "SET min_parallel_table_scan_size = 0; SET enable_sort = off",
        // pages of the table would count, too
        "SET parallel_leader_participation = off",
    ];
    run_each(&mut session, &statements);
    let query = |condition: &str| {
        format!(
            "SELECT count(fit) FROM (SELECT bqx.quadratic_reg(y, x) AS fit FROM points {condition} GROUP BY \
             part) AS s"
        )
    };
    assert_eq!(node(&mut session, &query("")), "Finalize HashAggregate");
    run(&mut session, &query("WHERE part < 10"));
    let rise = rise(&mut session, |session| run(session, &query("")));
    assert!(rise < 8 * MB, "{rise} kB");
}

#[test]
fn states_do_not_grow_with_the_partition() {
    let db = Db::new("memory_long");
    for frame in ["ROWS 630 PRECEDING", "ROWS UNBOUNDED PRECEDING"] {
        let Some(mut session) = session(&db) else { return };
        let rise = rise_of(&mut session, 300_000, &format!("OVER (ORDER BY i {frame})"), "");
        assert!(rise < 5 * MB, "{frame}: {rise} kB");
    }
}

#[test]
fn ten_million_rows_leave_nothing() {
    let db = Db::new("memory_ten_million");
    let Some(mut session) = session(&db) else { return };
    let query = |number_of_rows: u64| {
        // The rows come as they are made: neither kept nor sorted.
        format!(
            "SELECT count(m), count(f) FROM (SELECT bqx.bqx_window_metrics(v) OVER w AS m, \
             bqx.quadratic_reg(v) OVER w AS f FROM (SELECT 100 + i % 1000 * 0.01::float8 AS v FROM (SELECT \
             generate_series(1, {number_of_rows}) AS i) AS g) AS s WINDOW w AS (ROWS 630 PRECEDING)) AS r"
        )
    };
    run(&mut session, &query(10_000));
    let rise = rise(&mut session, |session| run(session, &query(10_000_000)));
    assert!(rise < 2 * MB, "{rise} kB");
}

/// By less than 64 bytes a value.
#[test]
fn states_grow_with_the_frame() {
    const FRAME: i64 = 60_000;
    let db = Db::new("memory_wide");
    let Some(mut session) = session(&db) else { return };
    // so that PostgreSQL's own copy of the rows stays in memory: on disk it takes a pass over the frame for
    // each row
    run(&mut session, "SET work_mem = '64MB'");
    let over = format!("OVER (ORDER BY i ROWS {FRAME} PRECEDING)");
    let rows_alone =
        format!("EXPLAIN ANALYZE SELECT sum(i) {over}, v, width, x FROM ({}) AS s", series(70_000));
    run(&mut session, &rows_alone);
    let rise = rise_of(&mut session, 70_000, &over, "");
    assert!(rise * 1024 < FRAME * 64 * AGGREGATES.len() as i64, "{rise} kB");
}

/// Repeats a failing statement within a transaction.
fn fail_repeatedly(session: &mut Client, times: u32, statement: &str, condition: &str) {
    let loop_of_failures = format!(
        "DO $$ BEGIN FOR i IN 1 .. {times} LOOP \
           BEGIN EXECUTE $sql${statement}$sql$; RAISE 'it was to fail'; \
           EXCEPTION WHEN {condition} THEN NULL; END; \
         END LOOP; END $$"
    );
    run(session, &loop_of_failures);
}

#[test]
fn states_end_with_an_error() {
    let db = Db::new("memory_errors");
    let source = series(12_000);
    let failing = [
        // in an argument, and in a transition function
        (source.replace("AS v", "/ (11900 - i) AS v"), "division_by_zero"),
        (source.replace("2 AS width", "11901 - i AS width"), "invalid_parameter_value"),
    ];
    for (source, condition) in failing {
        for (over, grouping) in [("OVER (ORDER BY i ROWS 10000 PRECEDING)", ""), ("", "GROUP BY i % 1000")] {
            let Some(mut session) = session(&db) else { return };
            let statement = counted(&source, over, grouping);
            fail_repeatedly(&mut session, 2, &statement, condition);
            let rise = rise(&mut session, |session| fail_repeatedly(session, 20, &statement, condition));
            assert!(rise < 2 * MB, "{statement}: {rise} kB");
        }
    }
}

#[test]
fn states_end_with_a_cancellation() {
    let db = Db::new("memory_cancel");
    let Some(mut session) = session(&db) else { return };
    let source = format!("{} UNION ALL SELECT 0, 0, 2, 0 FROM pg_sleep(60)", series(20_000));
    let query = counted(&source, "OVER (ROWS 20000 PRECEDING)", "");
    let cancel = |session: &mut Client| {
        let pid = row(session, "SELECT pg_backend_pid()");
        let token = session.cancel_token();
        std::thread::scope(|scope| {
            let cancelled = scope.spawn(|| error_of(session, &query));
            let asleep = format!("SELECT wait_event FROM pg_stat_activity WHERE pid = {pid}");
            let mut observer = db.connect();
            while !cancelled.is_finished() && row(&mut observer, &asleep) != "PgSleep" {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            token.cancel_query(NoTls).expect("a server that listens");
            assert_eq!(cancelled.join().expect("no panic").code, "57014");
        });
    };
    cancel(&mut session);
    let rise = rise(&mut session, |session| (0..10).for_each(|_| cancel(session)));
    assert!(rise < 3 * MB, "{rise} kB");
}
