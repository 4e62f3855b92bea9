//! Where the system refuses memory to a server process, the months that need it fail by themselves: nothing ends, and
//! no month is half done. And how much of it a worker takes when it is not refused.

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::thread;

use bqx_tests::{Db, error_of, own_server, skipped};
use common::backfilled::{failures, faults};
use common::{row, rows, run, run_each};
use pgcluster::Cluster;
use postgres::Client;

const MB: u64 = 1 << 20;

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| own_server("out-of-memory", &[("max_worker_processes", "20")]))
}

/// Two months of eurusd and usdjpy, every tenth minute, indexed. No derived tables. None where the system does not
/// tell what a process holds, or there is no program to limit it.
fn prepared(name: &str) -> Option<Db<'static>> {
    let limits = Command::new("prlimit").arg("--version").output().is_ok();
    if !limits || !Path::new("/proc/self/status").exists() {
        let reason = "no program prlimit or no /proc/<pid>/status here";
        skipped(thread::current().name().unwrap_or("a test"), reason);
        return None;
    }
    let db = Db::on(cluster(), name);
    run_each(
        &mut db.connect(),
        &[
            "CALL bqx.simulate_m1(ARRAY['eurusd', 'usdjpy'], '2024-07-01', '2024-08-01')",
            "DELETE FROM bqx.m1_eurusd WHERE extract(minute FROM time)::int % 10 <> 0",
            "DELETE FROM bqx.m1_usdjpy WHERE extract(minute FROM time)::int % 10 <> 0",
            "CALL bqx.set_baselines()",
            "CALL bqx.index_m1()",
        ],
    );
    Some(db)
}

/// A line of `/proc/<pid>/status` that is a size, in bytes. None for a process that has ended.
fn size(pid: i32, name: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let size = line.trim().strip_suffix(" kB").expect("a size in kB");
    Some(size.parse::<u64>().expect("a number") * 1024)
}

fn pid_of(session: &mut Client) -> i32 {
    row(session, "SELECT pg_backend_pid()").parse().expect("a process id")
}

/// Limits what a server process may have of memory (in bytes, or `unlimited`); the server's account may do that.
fn limit_memory(pid: i32, limit: &str) {
    let mut prlimit = cluster().account().command("prlimit");
    prlimit.args(["--pid", &pid.to_string(), &format!("--as={limit}:")]);
    assert!(prlimit.status().expect("prlimit runs").success(), "{prlimit:?}");
}

/// Runs `work` with a session that gets hardly more memory than it has.
fn with_little_more<R>(session: &mut Client, more: u64, work: impl FnOnce(&mut Client) -> R) -> R {
    let pid = limit_to_little_more(session, more);
    let result = work(session);
    limit_memory(pid, "unlimited");
    result
}

/// The same until the limit is lifted; returns the session's process.
fn limit_to_little_more(session: &mut Client, more: u64) -> i32 {
    let pid = pid_of(session);
    let present = size(pid, "VmSize").expect("a session's process");
    limit_memory(pid, &(present + more).to_string());
    pid
}

/// Where and by which transaction each row of a table was written.
fn row_versions(session: &mut Client, table: &str) -> String {
    let versions = format!(
        "SELECT count(*), sum(hashtextextended(concat_ws(' ', tableoid, ctid, xmin, t), 0)) FROM bqx.{table} AS t"
    );
    row(session, &versions)
}

/// A table that asks for much more memory than the usual one: of 200 long windows just the extremes, so that it is
/// the mathematics that takes it and not the rows.
fn create_demanding_table(session: &mut Client, pair: &str) {
    let columns: Vec<String> =
        (9_801..=10_000).map(|window| format!("w{window}_bqx_max_index float8")).collect();
    run(
        session,
        &format!(
            "CREATE TABLE bqx.bqx_{pair} (ts_utc timestamptz PRIMARY KEY, rate_index float8, {}) \
             PARTITION BY RANGE (ts_utc)",
            columns.join(", ")
        ),
    );
}

#[test]
fn months_that_find_no_memory_fail_alone() {
    let Some(db) = prepared("months") else { return };
    let mut session = db.connect();
    create_demanding_table(&mut session, "usdjpy");
    run_each(
        &mut session,
        &[
            "CALL bqx.create_tables()",
            // what the process takes once for all is taken
            "CALL bqx.backfill(pairs => '{eurusd}', to_month => '2024-07-01', workers => 0)",
        ],
    );
    let postmaster = cluster().postmaster_pid().unwrap();
    let error = with_little_more(&mut session, 3 * MB, |session| {
        let error = error_of(session, "CALL bqx.backfill(workers => 0)");
        assert_eq!(
            failures(session),
            ["bqx usdjpy 2024-07 failed 53200", "bqx usdjpy 2024-08 failed 53200"],
            "{error:?}"
        );
        error
    });
    assert_eq!(error.code, "53200", "{error:?}");
    for said in ["bqx.m1_usdjpy from 2024-08-01 00:00:00 UTC to 2024-09-01 00:00:00 UTC", "bars"] {
        assert!(error.detail.contains(said), "{error:?}");
    }
    assert!(
        error.hint.contains("vm.overcommit_memory") && error.hint.contains("CALL bqx.backfill()"),
        "{error:?}"
    );
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.bqx_usdjpy"), "0");
    let done = "SELECT count(*) FROM bqx.jobs WHERE state = 'done' AND rows_written > 0";
    assert_eq!(
        row(&mut session, done),
        "6",
        "two of eurusd before, two of it and two of usdjpy's other family"
    );
    assert_eq!(cluster().postmaster_pid().unwrap(), postmaster);

    run(&mut session, "CALL bqx.backfill(workers => 0)");
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.jobs WHERE rows_written > 0"), "8");
    assert_eq!(faults(&mut session), [""; 0]);

    // The same where months have rows, which are to stay as they are.
    let before = row_versions(&mut session, "bqx_usdjpy");
    run(&mut session, "UPDATE bqx.m1_usdjpy SET close = close * 1.001 WHERE time >= '2024-08-05 00:00+00'");
    run(&mut session, "SET work_mem = '256kB'");
    with_little_more(&mut session, 12 * MB, |session| {
        assert_eq!(error_of(session, "CALL bqx.backfill(workers => 0)").code, "53200");
        assert_eq!(failures(session), ["bqx usdjpy 2024-08 failed 53200"]);
    });
    assert_eq!(row_versions(&mut session, "bqx_usdjpy"), before);
    run(&mut session, "CALL bqx.backfill(workers => 0)");
    assert_ne!(row_versions(&mut session, "bqx_usdjpy"), before);
    assert_eq!(faults(&mut session), [""; 0]);
}

/// Whatever it is that finds no memory, from nothing on upwards.
#[test]
fn no_shortage_ends_the_process() {
    let Some(db) = prepared("shortage") else { return };
    let mut session = db.connect();
    run_each(&mut session, &["CALL bqx.create_tables()", "CALL bqx.backfill(workers => 0)"]);
    let whole = ["bqx_eurusd", "reg_eurusd"].map(|table| row_versions(&mut session, table));
    let postmaster = cluster().postmaster_pid().unwrap();
    let mut refused = 0;
    for step in 0..12 {
        // A session that has taken nothing so far, so that a little more is asked for at every turn.
        let mut fresh = db.connect();
        run(
            &mut fresh,
            "SELECT count(*) FROM bqx.bqx_metrics('eurusd', '2024-07-01 00:00+00', '2024-07-01 00:00+00')",
        );
        let pid = limit_to_little_more(&mut fresh, step * 400 * 1024);
        let mut try_all = |session: &mut Client| {
            for query in [
                "SELECT count(*) FROM bqx.reg_metrics('eurusd', NULL, NULL)",
                "SELECT count(*) FROM bqx.bqx_metrics('usdjpy', '2024-07-10 00:00+00', NULL)",
                "CALL bqx.backfill(workers => 0, force => true)",
            ] {
                if let Err(error) = common::attempt(session, query) {
                    refused += 1;
                    // PostgreSQL ends a session in which it finds no memory to begin a subtransaction of another.
                    if error.message.ends_with("unexpected state SUBBEGIN") {
                        return false;
                    }
                    assert_eq!(error.code, "53200", "{query}: {error:?}");
                }
            }
            true
        };
        if !try_all(&mut fresh) {
            continue;
        }
        limit_memory(pid, "unlimited");
        assert_eq!(
            row(&mut fresh, "SELECT count(*) FROM bqx.pairs WHERE pair = 'eurusd'"),
            "1",
            "step {step}"
        );
    }
    assert!(refused > 3, "the limits were none: {refused}");
    assert_eq!(cluster().postmaster_pid().unwrap(), postmaster);
    // Runs that did not even get as far as their jobs are left as they were interrupted; rows are not.
    run(&mut session, "CALL bqx.backfill(workers => 0, force => true)");
    assert_eq!(["bqx_eurusd", "reg_eurusd"].map(|table| row_versions(&mut session, table)), whole);
    assert_eq!(faults(&mut session), [""; 0]);
}

/// States of aggregates are small, and many.
#[test]
fn no_number_of_states_ends_the_process() {
    let Some(db) = prepared("states") else { return };
    let postmaster = cluster().postmaster_pid().unwrap();
    for step in 0..10 {
        let mut fresh = db.connect();
        run(&mut fresh, "SET work_mem = '1GB'; SET enable_sort = off; SET jit = off");
        let query = |groups: u32| {
            format!(
                "SELECT count(f) FROM (SELECT bqx.quadratic_reg(i::float8) AS f \
                   FROM (SELECT generate_series(1, (SELECT {groups}))) AS g (i) GROUP BY i) AS s"
            )
        };
        run(&mut fresh, &query(10));
        with_little_more(&mut fresh, 16 * MB + step * 300 * 1024, |session| {
            let error = error_of(session, &query(1_000_000));
            assert_eq!(error.code, "53200", "{error:?}");
        });
        assert_eq!(row(&mut fresh, &query(10)), "10", "step {step}");
    }
    assert_eq!(cluster().postmaster_pid().unwrap(), postmaster);
}

/// Bars of one month, one a second, with an index of their own.
fn insert_seconds(session: &mut Client, bars: u32) {
    run_each(
        session,
        &[
            "CALL bqx.create_m1('{gbpusd}', '2024-07-01', '2024-07-01')",
            &format!(
                "INSERT INTO bqx.m1_gbpusd (time, open, high, low, close, rate_index) \
                 SELECT '2024-07-01 00:00+00'::timestamptz + i * interval '1 second', r, r, r, r, r * 80 \
                   FROM (SELECT i, 1.25 + (i * 7919::bigint % 1000)::float8 / 1024 AS r FROM generate_series(0, {bars} - 1) AS i) AS b"
            ),
        ],
    );
}

#[test]
fn a_month_of_any_length_takes_no_more_memory_than_another() {
    const BARS: u32 = 300_000;
    let Some(db) = prepared("long_month") else { return };
    let mut session = db.connect();
    insert_seconds(&mut session, BARS);
    run_each(
        &mut session,
        &[
            "CALL bqx.create_tables()",
            "CALL bqx.backfill('{bqx}', '{eurusd}', to_month => '2024-07-01', workers => 0)",
        ],
    );
    // for sorting, which is PostgreSQL's
    run(&mut session, "SET work_mem = '1MB'; SET maintenance_work_mem = '1MB'");
    with_little_more(&mut session, 4 * MB, |session| {
        run(session, "CALL bqx.backfill('{bqx}', '{gbpusd}', workers => 0)");
    });
    with_little_more(&mut session, 4 * MB, |session| {
        let count = "SELECT count(*), count(agg_bqx_range) FROM bqx.bqx_metrics('gbpusd', NULL, NULL)";
        assert_eq!(row(session, count), format!("{BARS}|{}", BARS - 75));
    });
    let count = "SELECT count(*), count(agg_bqx_range) FROM bqx.bqx_gbpusd";
    assert_eq!(row(&mut session, count), format!("{BARS}|{}", BARS - 75));
}

/// What a backfill takes of the server at any time.
#[derive(Debug, Default)]
struct Taken {
    /// The most memory of its own that any worker held. (Pages of the shared buffers count for whoever touched them.)
    worker_memory: u64,
    workers: usize,
    sessions: usize,
}

/// Runs a call in a session of its own and looks meanwhile at what it takes.
fn taken_by(db: &Db, call: &str) -> Taken {
    let mut taken = Taken::default();
    let mut observer = db.connect();
    let backends = "SELECT pid, backend_type FROM pg_stat_activity WHERE datname = current_database() \
                    AND pid <> pg_backend_pid() AND backend_type IN ('bqx worker', 'client backend')";
    thread::scope(|scope| {
        let caller = scope.spawn(|| run(&mut db.connect(), call));
        while !caller.is_finished() {
            let backends = rows(&mut observer, backends);
            let (workers, sessions): (Vec<_>, Vec<_>) =
                backends.iter().partition(|backend| backend.ends_with("|bqx worker"));
            let own = workers.iter().filter_map(|worker| {
                size(worker.split('|').next()?.parse().expect("a process id"), "RssAnon")
            });
            taken.worker_memory = own.max().unwrap_or(0).max(taken.worker_memory);
            taken.workers = workers.len().max(taken.workers);
            taken.sessions = sessions.len().max(taken.sessions);
        }
    });
    taken
}

/// All columns, whole months, the fast way and the plain one.
#[test]
fn a_backfill_takes_its_workers_and_little_memory() {
    let Some(db) = prepared("footprint") else { return };
    let mut session = db.connect();
    run_each(
        &mut session,
        &[
            "CALL bqx.simulate_m1(ARRAY['gbpusd', 'audusd'], '2024-07-01', '2024-08-01')",
            "CALL bqx.set_baselines()",
            "CALL bqx.index_m1()",
            "CALL bqx.create_tables()",
        ],
    );
    drop(session);
    for change in
        ["", "UPDATE bqx.m1_gbpusd SET close = close * 1.001 WHERE extract(day FROM time) BETWEEN 5 AND 20"]
    {
        run(&mut db.connect(), change);
        let taken = taken_by(&db, "CALL bqx.backfill(workers => 2)");
        assert_eq!((taken.workers, taken.sessions), (2, 1), "{taken:?}");
        assert!((MB..100 * MB).contains(&taken.worker_memory), "{taken:?}");
    }
    assert_eq!(faults(&mut db.connect()), [""; 0]);
}
