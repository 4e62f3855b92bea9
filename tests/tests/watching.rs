//! What those see who watch a run: figures that are true at every moment, before anything is committed, and only
//! what is theirs to see.

mod common;
mod two_pairs;

use std::thread;

use bqx_tests::{Db, error_of};
use common::backfilled::wait_until;
use common::{row, rows, run, run_each};
use postgres::Client;
use two_pairs::{filled, prepared};

/// A run of one worker that has done July of eurusd and written August, and can't commit it until the session
/// that comes with it ends.
fn at_the_last_act(name: &str) -> (Db<'static>, Client) {
    let db = prepared(name);
    let mut session = db.connect();
    run(
        &mut session,
        "CALL bqx.create_tables(pairs => '{eurusd}', from_month => '2024-07-01', to_month => '2024-07-01')",
    );
    let mut brake = db.connect();
    // ATTACH PARTITION waits for this, readers and the month that has its partition don't
    run(&mut brake, "BEGIN; LOCK TABLE ONLY bqx.bqx_eurusd IN SHARE UPDATE EXCLUSIVE MODE");
    run(&mut session, "CALL bqx.backfill(pairs => '{eurusd}', workers => 1, wait => false)");
    until_locked_out(&mut session);
    (db, brake)
}

fn until_locked_out(session: &mut Client) {
    wait_until(
        session,
        "SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND locktype = 'relation' \
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    );
}

/// Bars of eurusd in a month.
fn bars(session: &mut Client, month: &str) -> i64 {
    let count = format!(
        "SELECT count(*) FROM bqx.m1_eurusd WHERE to_char(time AT TIME ZONE 'UTC', 'YYYY-MM') = '{month}'"
    );
    row(session, &count).parse().unwrap()
}

#[test]
fn rows_are_seen_before_they_are_committed() {
    let (db, brake) = at_the_last_act("live_rows");
    let mut session = db.connect();
    let (july, august, september) =
        (bars(&mut session, "2024-07"), bars(&mut session, "2024-08"), bars(&mut session, "2024-09"));
    assert_eq!(
        row(&mut session, "SELECT count(*) FROM bqx.bqx_eurusd"),
        july.to_string(),
        "the rest is not committed"
    );

    let progress = "SELECT family, state, jobs_total, jobs_done, jobs_failed, percent, rows_written, bar FROM bqx.progress";
    let both = |of: &str| ["bqx", "reg"].map(|family| format!("{family}|{of}"));
    let so_far = both(&format!("running|3|1|0|66.7|{}|#############.......", july + august));
    assert_eq!(rows(&mut session, progress), so_far);
    assert_eq!(
        rows(
            &mut session,
            "SELECT family, months_done, rows_written, percent, status FROM bqx.pair_progress"
        ),
        both(&format!("1|{}|66.7|in progress", july + august))
    );
    let running = "SELECT family, month, rows_written, worker, seconds > 0, finished_at FROM bqx.jobs WHERE state = 'running'";
    assert_eq!(rows(&mut session, running), both(&format!("2024-08-01|{august}|1|t|NULL")));
    let promising = "SELECT bool_and(eta > interval '0' AND rows_per_second > 0 AND elapsed > interval '0') FROM bqx.progress";
    assert_eq!(row(&mut session, promising), "t");
    let now = "SELECT line FROM bqx.dashboard WHERE line ~ '^now +[[]W01[]] eurusd 2024-08 bqx +[0-9],[0-9]{3} rows +[0-9.]+ s$'";
    assert_eq!(rows(&mut session, now).len(), 1, "{:?}", rows(&mut session, "SELECT * FROM bqx.dashboard"));

    drop(brake);
    wait_until(&mut session, "SELECT state = 'done' FROM bqx.runs");
    let all = both(&format!("done|3|3|0|100|{}|####################", july + august + september));
    assert_eq!(rows(&mut session, progress), all);
    assert_eq!(
        row(&mut session, "SELECT bool_and(eta IS NULL AND rows_per_second > 0) FROM bqx.progress"),
        "t"
    );
}

#[test]
fn rows_that_are_compared_are_no_rows_written() {
    let db = filled("live_comparison");
    let mut session = db.connect();
    // holds up whoever inserts, after all has been computed
    let mut brake = db.connect();
    run(&mut brake, "SELECT pg_advisory_lock(4711)");
    run(
        &mut session,
        "CREATE FUNCTION public.hold_up() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             PERFORM pg_catalog.pg_advisory_xact_lock_shared(4711); RETURN NEW; END $$",
    );
    run(
        &mut session,
        "CREATE TRIGGER hold_up BEFORE INSERT ON bqx.reg_eurusd FOR EACH ROW EXECUTE FUNCTION public.hold_up()",
    );
    run(&mut session, "UPDATE bqx.m1_eurusd SET close = close + 0.001 WHERE time = '2024-07-15 10:00+00'");
    run(
        &mut session,
        "CALL bqx.backfill('{reg}', '{eurusd}', '2024-07-01', '2024-07-31', workers => 1, wait => false)",
    );
    wait_until(
        &mut session,
        "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()",
    );
    assert_eq!(
        rows(&mut session, "SELECT state, rows_written, percent FROM bqx.progress WHERE run_id = 2"),
        ["running|0|100"]
    );
    drop(brake);
    wait_until(&mut session, "SELECT state = 'done' FROM bqx.runs WHERE run_id = 2");
    // the row of the bar itself, and those whose windows it is in
    assert_eq!(row(&mut session, "SELECT rows_written FROM bqx.progress WHERE run_id = 2"), "631");
}

#[test]
fn what_was_undone_is_counted_no_more() {
    let (db, brake) = at_the_last_act("undone");
    let mut session = db.connect();
    run(&mut session, "SELECT bqx.cancel(1)");
    let mut caller = db.connect();
    let works = thread::spawn(move || {
        (error_of(&mut caller, "CALL bqx.backfill('{bqx}', '{eurusd}', workers => 0)"), caller)
    });
    let written =
        "SELECT count(*) = 1 FROM bqx.jobs WHERE run_id = 2 AND state = 'running' AND rows_written > 0";
    wait_until(&mut session, written);
    let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity \
                   WHERE datname = current_database() AND query LIKE 'bqx run 2 worker 0: %'";
    assert_eq!(row(&mut session, cancel), "t");
    let (error, _idle) = works.join().unwrap();
    assert_eq!(error.code, "57014");
    drop(brake);
    // the error is sent before what was begun is undone
    wait_until(&mut session, "SELECT state = 'interrupted' FROM bqx.runs WHERE run_id = 2");
    // its text stays in pg_stat_activity
    assert_eq!(
        rows(&mut session, "SELECT month, state, rows_written FROM bqx.jobs WHERE run_id = 2 ORDER BY month"),
        ["2024-07-01|done|0", "2024-08-01|pending|NULL", "2024-09-01|pending|NULL"]
    );
    assert_eq!(
        row(&mut session, "SELECT state, percent, rows_written FROM bqx.progress WHERE run_id = 2"),
        "interrupted|33.3|0"
    );
}

#[test]
fn nobody_talks_of_a_run_that_is_not_theirs() {
    let (db, _brake) = at_the_last_act("gossip");
    let (mut session, notices) = db.connect_with_notices();
    run(&mut session, "CREATE ROLE gossip_stranger LOGIN");
    let truth = "SELECT family, state, percent, rows_written, bar FROM bqx.progress";
    let before = rows(&mut session, truth);
    let later = row(&mut session, "SELECT min(job_id) FROM bqx.job_ledger WHERE month = '2024-09-01'");
    let mut stranger = db.connect_as("gossip_stranger");
    for lock in ["job', '".to_owned() + &later, "run', '2".into(), "work', '1".into()] {
        run(&mut stranger, &format!("SELECT pg_advisory_lock_shared(bqx._lock_key('{lock}'))"));
    }
    let says = format!("bqx run 1 worker 9: eurusd 2024-09, job {later} bqx: 999999999999 of 1 rows written");
    assert_eq!(error_of(&mut stranger, &says).code, "42601");
    assert_eq!(rows(&mut session, truth), before);
    assert_eq!(
        rows(&mut session, "SELECT line FROM bqx.dashboard WHERE line LIKE '%2024-09%'"),
        [""; 0],
        "nobody works on it"
    );
    // nor do their locks keep anyone from ending the run
    assert_eq!(row(&mut session, "SELECT bqx.cancel(1)"), "t");
    assert_eq!(notices.take(), [""; 0], "nobody is still at work");
    assert_eq!(row(&mut session, "SELECT state FROM bqx.runs"), "cancelled");
    run(&mut stranger, "SELECT pg_advisory_lock_shared(bqx._lock_key('run', '1'))");
    run(&mut session, "UPDATE bqx.run_ledger SET finished_at = NULL");
    assert_eq!(row(&mut session, "SELECT state FROM bqx.runs"), "interrupted");
}

#[test]
fn a_transaction_that_looks_twice_sees_what_has_begun_in_between() {
    let db = prepared("looks_twice");
    let mut session = db.connect();
    run(&mut session, "CALL bqx.create_tables(pairs => '{eurusd}')");
    let mut watcher = db.connect();
    run(&mut watcher, "BEGIN");
    assert_eq!(
        row(
            &mut watcher,
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'bqx worker' \
                                    AND datname = current_database()"
        ),
        "0"
    );
    let mut brake = db.connect();
    run(&mut brake, "BEGIN; LOCK TABLE bqx.bqx_eurusd IN SHARE ROW EXCLUSIVE MODE");
    run(&mut session, "CALL bqx.backfill(pairs => '{eurusd}', workers => 1, wait => false)");
    until_locked_out(&mut session);
    assert_eq!(
        rows(&mut watcher, "SELECT family, state, worker FROM bqx.jobs WHERE state = 'running'"),
        ["bqx|running|1", "reg|running|1"]
    );
    // and can end it
    assert_eq!(row(&mut watcher, "SELECT bqx.cancel(1)"), "t");
    run(&mut watcher, "COMMIT");
    let workers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'bqx worker' AND datname = current_database()";
    assert_eq!(row(&mut session, workers), "0");
}

#[test]
fn figures_never_go_back() {
    let db = prepared("figures");
    let mut session = db.connect();
    run(&mut session, "CALL bqx.create_tables(from_month => '2024-07-01', to_month => '2024-08-31')");
    run(&mut session, "CALL bqx.backfill(workers => 2, wait => false)");
    let figures = "SELECT sum(rows_written), sum(percent), sum(jobs_done), sum(length(rtrim(bar, '.'))) FROM bqx.progress";
    let mut last = vec![0.0; 4];
    loop {
        let ended = row(&mut session, "SELECT state <> 'running' FROM bqx.runs") == "t";
        let now: Vec<f64> = row(&mut session, figures).split('|').map(|n| n.parse().unwrap()).collect();
        assert!(now.iter().zip(&last).all(|(now, last)| now >= last), "{now:?} after {last:?}");
        last = now;
        if ended {
            break;
        }
    }
    assert_eq!(row(&mut session, "SELECT state FROM bqx.runs"), "done");
    let rows: f64 = row(&mut session, "SELECT sum(bars) FROM bqx.month_ledger").parse().unwrap();
    assert_eq!(last, [rows, 200.0, 12.0, 40.0]);
}

#[test]
fn sessions_at_work_are_told_by_name() {
    let (db, brake) = at_the_last_act("names");
    let mut session = db.connect();
    let worker = "SELECT application_name, query ~ '^bqx run 1 worker 1: eurusd 2024-08, job \\d+ bqx: (\\d+) of \\1 rows written, job \\d+ reg: ' \
                    FROM pg_stat_activity WHERE backend_type = 'bqx worker' AND datname = current_database()";
    assert_eq!(row(&mut session, worker), "bqx run 1 worker 1: eurusd 2024-08 bqx+reg|t");
    // workers and the session that asks; a call that waits would be one more
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    assert_eq!(row(&mut session, sessions), "2", "one worker, and the session with the lock");

    // A calling session that works itself says so in its query, and keeps its name.
    let mut caller = db.connect();
    run(&mut caller, "SET application_name = 'mine'");
    let works = thread::spawn(move || {
        run(&mut caller, "CALL bqx.backfill('{bqx}', '{eurusd}', workers => 0)");
        caller
    });
    let itself = "SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'mine' AND datname = current_database() \
                     AND query LIKE 'bqx run 2 worker 0: eurusd 2024-0%'";
    wait_until(&mut session, itself);
    drop(brake);
    let _caller = works.join().unwrap();
    let afterwards =
        "SELECT query FROM pg_stat_activity WHERE application_name = 'mine' AND datname = current_database()";
    assert_eq!(row(&mut session, afterwards), "CALL bqx.backfill('{bqx}', '{eurusd}', workers => 0)");
}

#[test]
fn a_role_sees_its_own_runs_and_who_may_see_statistics_all() {
    let (db, brake) = at_the_last_act("who_sees");
    let mut admin = db.connect();
    run_each(
        &mut admin,
        &[
            "CREATE ROLE watch_nobody LOGIN",
            "CREATE ROLE watch_monitor LOGIN IN ROLE pg_monitor",
            "CREATE ROLE watch_owner LOGIN",
        ],
    );
    let views = ["runs", "jobs", "progress", "pair_progress", "recent"];
    let mut nobody = db.connect_as("watch_nobody");
    for view in views {
        assert_eq!(row(&mut nobody, &format!("SELECT count(*) FROM bqx.{view}")), "0", "{view}");
    }
    assert_eq!(
        row(&mut nobody, "SELECT line FROM bqx.dashboard"),
        "bqx     no run yet, or none of yours: CALL bqx.backfill();"
    );
    for function in ["_live_jobs()", "_jobs_now(1)", "_runs_now()"] {
        assert_eq!(row(&mut nobody, &format!("SELECT count(*) FROM bqx.{function}")), "0", "{function}");
    }
    for table in ["run_ledger", "job_ledger", "month_ledger"] {
        let error = error_of(&mut nobody, &format!("SELECT * FROM bqx.{table}"));
        assert_eq!(error.code, "42501", "{table}");
    }
    let seen = |session: &mut Client| rows(session, "SELECT family, state, rows_written FROM bqx.progress");
    let all = seen(&mut admin);
    assert_eq!(seen(&mut db.connect_as("watch_monitor")), all);
    drop(brake);
    wait_until(&mut admin, "SELECT state = 'done' FROM bqx.runs");
    run(&mut admin, "ALTER TABLE bqx.run_ledger OWNER TO watch_owner");
    let runs = "SELECT run_id, called_by, arguments ->> 'pairs', state FROM bqx.runs";
    assert_eq!(row(&mut db.connect_as("watch_owner"), runs), "1|postgres|[\"eurusd\"]|done");
}

#[test]
fn old_runs_are_forgotten() {
    let db = filled("retention");
    let mut session = db.connect();
    let age = |session: &mut Client, run: u32, days: u32| {
        run_each(
            session,
            &[format!(
                "UPDATE bqx.run_ledger SET started_at = now() - interval '{days} days' WHERE run_id = {run}"
            )],
        );
    };
    let again = "CALL bqx.backfill('{bqx}', '{eurusd}', workers => 0)";
    let kept = "SELECT string_agg(DISTINCT r.run_id::text, ' '), count(DISTINCT j.run_id) FROM bqx.runs AS r, bqx.jobs AS j";
    run(&mut session, "SELECT bqx.rate_index(1, 2)"); // a session knows the setting once it has used the library
    assert_eq!(row(&mut session, "SHOW bqx.ledger_retention"), "90d");
    age(&mut session, 1, 89);
    run(&mut session, again);
    assert_eq!(row(&mut session, kept), "1 2|2");
    age(&mut session, 1, 91);
    run(&mut session, again);
    assert_eq!(row(&mut session, kept), "2 3|2");
    // what the tables were computed from is no history
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.jobs WHERE rows_written > 0"), "0");

    run(&mut session, "ALTER DATABASE retention SET bqx.ledger_retention = -1");
    let mut session = db.connect();
    age(&mut session, 2, 9000);
    run(&mut session, again);
    assert_eq!(row(&mut session, kept), "2 3 4|3");
    // an old run that goes on
    run(&mut session, "SET bqx.ledger_retention = '1h'");
    let mut works = db.connect();
    run(&mut works, "BEGIN; SELECT pg_advisory_xact_lock_shared(bqx._lock_key('run', '2'))");
    age(&mut session, 3, 2);
    run(&mut session, again);
    assert_eq!(row(&mut session, kept), "2 4 5|3");

    run(&mut session, "CREATE ROLE retention_user LOGIN");
    let mut user = db.connect_as("retention_user");
    run(&mut user, "SELECT bqx.rate_index(1, 2)");
    assert_eq!(error_of(&mut user, "SET bqx.ledger_retention = 0").code, "42501");
    assert_eq!(error_of(&mut user, "SET bqx.ledger_retentoin = 0").code, "42602");
}
