//! Runs that end before their time, however they do: their workers end, what they were at is undone, nothing stays
//! locked, and what is left can be taken up again.
//!
//! In every test the jobs of usdjpy are held up by a lock, so that workers can't have ended by themselves.

mod common;
mod two_pairs;

use std::process::Stdio;
use std::thread::{self, JoinHandle};

use bqx_tests::{Db, SqlError, error_of, own_server};
use common::backfilled::{faults, prepare, wait_until};
use common::{attempt, checksums, row, rows, run};
use postgres::Client;
use rustix::process::{Signal, kill_process};
use two_pairs::{expected, prepared};

/// A lock that no writer of usdjpy's months gets past, until the session ends.
const HOLD_UP: &str = "BEGIN; LOCK TABLE bqx.bqx_usdjpy IN SHARE ROW EXCLUSIVE MODE";

const WORKERS: &str =
    "FROM pg_stat_activity WHERE backend_type = 'bqx worker' AND datname = current_database()";

/// A database whose backfills will do eurusd, and then stand still; and the session that holds them up.
fn held_up(name: &str) -> (Db<'static>, Client) {
    let db = prepared(name);
    run(&mut db.connect(), "CALL bqx.create_tables()");
    let mut brake = db.connect();
    run(&mut brake, HOLD_UP);
    (db, brake)
}

/// Calls in a session of its own; returns when usdjpy's months are waited for by so many sessions.
fn call(
    db: &Db<'static>,
    setting: &str,
    call: &'static str,
    waiting: usize,
) -> JoinHandle<Result<(), SqlError>> {
    let mut session = db.connect();
    run(&mut session, setting);
    let called = thread::spawn(move || attempt(&mut session, call));
    until_held_up(db, waiting);
    called
}

fn until_held_up(db: &Db<'_>, waiting: usize) {
    let waits = format!(
        "SELECT count(*) = {waiting} FROM pg_locks WHERE NOT granted AND locktype = 'relation' \
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    );
    wait_until(&mut db.connect(), &waits);
}

/// All that worked for a run ends although it is still held up; eurusd is done, usdjpy is as it was, with its jobs
/// in this state; nothing is locked.
fn assert_ended(db: &Db<'_>, jobs_state: &str, run_state: &str) {
    let mut session = db.connect();
    wait_until(&mut session, &format!("SELECT count(*) = 0 {WORKERS}"));
    wait_until(
        &mut session,
        "SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'advisory' \
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    );
    assert_eq!(
        rows(
            &mut session,
            "SELECT pair, state, count(*), count(rows_written) FROM bqx.jobs GROUP BY 1, 2 ORDER BY 1"
        ),
        ["eurusd|done|6|6".to_owned(), format!("usdjpy|{jobs_state}|6|0")]
    );
    assert_eq!(row(&mut session, "SELECT state FROM bqx.runs"), run_state);
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.bqx_usdjpy"), "0");
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.reg_usdjpy"), "0");
}

/// What was left undone can be done, and then all is as if nothing had happened.
fn assert_can_be_finished(db: &Db<'_>, brake: Client, how: &str) {
    drop(brake);
    let mut session = db.connect();
    run(&mut session, how);
    assert_eq!(checksums(db), *expected(), "{how}");
    assert_eq!(faults(&mut session), [""; 0], "{how}");
    assert_eq!(
        row(&mut session, "SELECT state, finished_at IS NOT NULL FROM bqx.runs ORDER BY run_id DESC LIMIT 1"),
        "done|t",
        "{how}"
    );
}

const CALLS: &str =
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'CALL bqx.%'";

fn caller_pid(db: &Db<'_>) -> String {
    row(&mut db.connect(), CALLS)
}

#[test]
fn a_cancelled_call_ends_its_workers() {
    let (db, brake) = held_up("cancelled_call");
    let called = call(&db, "", "CALL bqx.backfill(workers => 2)", 2);
    let pid = caller_pid(&db);
    assert_eq!(row(&mut db.connect(), &format!("SELECT pg_cancel_backend({pid})")), "t");
    assert_eq!(called.join().unwrap().unwrap_err().code, "57014");
    assert_ended(&db, "pending", "interrupted");
    assert_can_be_finished(&db, brake, "CALL bqx.backfill(workers => 2)");
}

#[test]
fn a_call_that_times_out_ends_its_workers() {
    let (db, brake) = held_up("timed_out_call");
    let called = call(&db, "SET statement_timeout = '10 s'", "CALL bqx.backfill(workers => 2)", 2);
    let error = called.join().unwrap().unwrap_err();
    assert_eq!((error.code.as_str(), error.message.contains("timeout")), ("57014", true), "{error:?}");
    assert_ended(&db, "pending", "interrupted");
    assert_can_be_finished(&db, brake, "CALL bqx.resume(1)");
}

#[test]
fn a_terminated_session_ends_its_workers() {
    let (db, brake) = held_up("terminated_session");
    let mut session = db.connect();
    let called = thread::spawn(move || session.batch_execute("CALL bqx.backfill(workers => 2)").is_err());
    until_held_up(&db, 2);
    let pid = caller_pid(&db);
    assert_eq!(row(&mut db.connect(), &format!("SELECT pg_terminate_backend({pid})")), "t");
    assert!(called.join().unwrap(), "the call ended");
    assert_ended(&db, "pending", "interrupted");
    assert_can_be_finished(&db, brake, "CALL bqx.backfill(workers => 0)");
}

#[test]
fn a_lost_client_ends_its_workers() {
    // A server that isn't to notice by itself.
    let (db, brake) = held_up("lost_client");
    run(&mut db.connect(), "ALTER DATABASE lost_client SET client_connection_check_interval = 0");
    for call in ["CALL bqx.backfill(workers => 2)", "CALL bqx.resume(1, workers => 1)"] {
        let mut psql = db.psql_command();
        psql.args(["-c", call]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut psql = psql.spawn().expect("psql runs");
        until_held_up(&db, if call.contains("backfill") { 2 } else { 1 });
        psql.kill().unwrap();
        psql.wait().unwrap();
        assert_ended(&db, "pending", "interrupted");
    }
    assert_eq!(rows(&mut db.connect(), CALLS), [""; 0]);
    assert_can_be_finished(&db, brake, "CALL bqx.resume(1, workers => 0)");
}

#[test]
fn cancel_ends_a_run_wherever_it_works() {
    let calls = [
        ("waits", "CALL bqx.backfill(workers => 2)", 2, "was cancelled: 6 of its 12 jobs are done"),
        ("works_itself", "CALL bqx.backfill(workers => 0)", 1, "canceling statement due to user request"),
    ];
    for (name, calling, sessions, says) in calls {
        let (db, brake) = held_up(&format!("cancel_{name}"));
        let called = call(&db, "", calling, sessions);
        let mut session = db.connect();
        assert_eq!(row(&mut session, "SELECT bqx.cancel(1)"), "t", "{calling}");
        let error = called.join().unwrap().unwrap_err();
        assert_eq!(
            (error.code.as_str(), error.message.contains(says)),
            ("57014", true),
            "{calling}: {error:?}"
        );
        // they were gone when cancel returned
        assert_eq!(row(&mut session, &format!("SELECT count(*) {WORKERS}")), "0", "{calling}");
        assert_ended(&db, "cancelled", "cancelled");
        assert_eq!(row(&mut session, "SELECT bqx.cancel(1)"), "f", "{calling}");
        assert_can_be_finished(&db, brake, "CALL bqx.resume(1)");
        assert_eq!(row(&mut session, "SELECT bqx.cancel(1)"), "f", "{calling}");
    }
}

#[test]
fn cancel_ends_a_run_that_nobody_waits_for_and_one_that_nobody_works_for() {
    let (db, brake) = held_up("cancel_detached");
    let mut session = db.connect();
    run(&mut session, "CALL bqx.backfill(workers => 2, wait => false)");
    until_held_up(&db, 2);
    // taken back, it has ended the workers all the same
    run(&mut session, "BEGIN; SELECT bqx.cancel(1); ROLLBACK");
    assert_ended(&db, "pending", "interrupted");
    assert_eq!(row(&mut session, "SELECT bqx.cancel(1)"), "t");
    assert_ended(&db, "cancelled", "cancelled");
    assert_can_be_finished(&db, brake, "CALL bqx.resume(1, workers => 1)");
}

#[test]
fn a_worker_that_is_ended_leaves_its_jobs_to_the_others() {
    let (db, brake) = held_up("ended_worker");
    let called = call(&db, "", "CALL bqx.backfill(workers => 2)", 2);
    let mut session = db.connect();
    run(&mut session, &format!("SELECT pg_terminate_backend(pid) {WORKERS} ORDER BY pid LIMIT 1"));
    wait_until(&mut session, &format!("SELECT count(*) = 1 {WORKERS}"));
    drop(brake);
    called.join().unwrap().expect("the other worker does it all");
    assert_eq!(checksums(&db), *expected());
    assert_eq!(
        row(&mut session, "SELECT string_agg(DISTINCT state, ' '), count(*) FROM bqx.jobs"),
        "done|12"
    );
}

#[test]
fn a_call_whose_workers_all_end_says_so() {
    let (db, brake) = held_up("ended_workers");
    let called = call(&db, "", "CALL bqx.backfill(workers => 2)", 2);
    run(&mut db.connect(), &format!("SELECT pg_terminate_backend(pid) {WORKERS}"));
    let error = called.join().unwrap().unwrap_err();
    assert_eq!(error.code, "55000");
    assert_eq!(error.message, "6 of 12 jobs of run 1 were not done: their worker ended early");
    assert!(error.hint.contains("CALL bqx.resume(1);"), "{error:?}");
    assert_ended(&db, "pending", "interrupted");
    assert_can_be_finished(&db, brake, "CALL bqx.resume(1);");
}

#[test]
fn a_call_says_both_what_failed_and_what_was_not_done() {
    let (db, brake) = held_up("failed_and_ended");
    let mut session = db.connect();
    run(
        &mut session,
        "UPDATE bqx.m1_eurusd SET close = -1 WHERE time = (SELECT max(time) FROM bqx.m1_eurusd)",
    );
    let called = call(&db, "", "CALL bqx.backfill(workers => 1)", 1);
    run(&mut session, &format!("SELECT pg_terminate_backend(pid) {WORKERS}"));
    let error = called.join().unwrap().unwrap_err();
    assert_eq!(error.code, "22003");
    assert_eq!(error.message, "2 of 12 jobs of run 1 failed; 6 were not done: their worker ended early");
    drop(brake);
    // both at once can be taken up again
    run(&mut session, "UPDATE bqx.m1_eurusd SET close = open WHERE close < 0");
    run(&mut session, "CALL bqx.resume(1)");
    assert_eq!(faults(&mut session), [""; 0]);
}

#[test]
fn only_members_of_its_role_end_or_resume_a_run() {
    let (db, brake) = held_up("cancel_rights");
    let mut admin = db.connect();
    for statement in [
        "CREATE ROLE cancel_owner LOGIN",
        "CREATE ROLE cancel_member LOGIN IN ROLE cancel_owner",
        "CREATE ROLE cancel_other LOGIN",
        "GRANT SELECT ON bqx.m1_eurusd, bqx.m1_usdjpy TO cancel_owner",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON bqx.bqx_eurusd, bqx.reg_eurusd, bqx.bqx_usdjpy, bqx.reg_usdjpy TO cancel_owner",
    ] {
        run(&mut admin, statement);
    }
    let mut owner = db.connect_as("cancel_owner");
    run(&mut owner, "CALL bqx.backfill(workers => 2, wait => false)");
    until_held_up(&db, 2);

    let mut other = db.connect_as("cancel_other");
    for call in ["SELECT bqx.cancel(1)", "CALL bqx.resume(1)"] {
        let error = error_of(&mut other, call);
        assert_eq!(
            (error.code.as_str(), error.message.contains("cancel_other")),
            ("42501", true),
            "{call} {error:?}"
        );
        let error = error_of(&mut other, &call.replace('1', "77"));
        assert_eq!((error.code.as_str(), error.message.as_str()), ("22023", "there is no run 77"), "{call}");
    }
    let error = error_of(&mut owner, "CALL bqx.resume(1)");
    assert_eq!((error.code.as_str(), error.hint.contains("bqx.cancel(1)")), ("55000", true), "{error:?}");
    assert_eq!(row(&mut admin, &format!("SELECT count(*) {WORKERS}")), "2");

    assert_eq!(row(&mut db.connect_as("cancel_member"), "SELECT bqx.cancel(1)"), "t");
    assert_ended(&db, "cancelled", "cancelled");
    run(&mut admin, "GRANT cancel_owner TO cancel_other");
    drop(brake);
    run(&mut other, "CALL bqx.resume(1)");
    assert_eq!(checksums(&db), *expected());
}

#[test]
fn a_role_can_cancel_its_run_whoever_took_it_up() {
    let (db, brake) = held_up("taken_up");
    let mut admin = db.connect();
    for statement in [
        "CREATE ROLE taken_up_owner LOGIN",
        "GRANT SELECT ON bqx.m1_eurusd, bqx.m1_usdjpy TO taken_up_owner",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON bqx.bqx_eurusd, bqx.reg_eurusd, bqx.bqx_usdjpy, bqx.reg_usdjpy TO taken_up_owner",
    ] {
        run(&mut admin, statement);
    }
    let mut owner = db.connect_as("taken_up_owner");
    run(&mut owner, "CALL bqx.backfill(workers => 1, wait => false)");
    until_held_up(&db, 1);
    assert_eq!(row(&mut owner, "SELECT bqx.cancel(1)"), "t");
    run(&mut admin, "CALL bqx.resume(1, workers => 1, wait => false)");
    until_held_up(&db, 1);
    // PostgreSQL lets it end no superuser's session
    let (mut owner, notices) = db.connect_with_notices();
    run(&mut owner, "SET ROLE taken_up_owner");
    assert_eq!(row(&mut owner, "SELECT bqx.cancel(1)"), "t");
    let warned = notices.take().join(" ");
    assert!(warned.contains("1 session(s) of run 1 are still at work"), "{warned}");
    drop(brake);
    assert_ended(&db, "cancelled", "cancelled");
}

#[test]
fn a_resumed_run_does_what_failed_before() {
    let db = prepared("resume_failed");
    let mut session = db.connect();
    run(&mut session, "CALL bqx.create_tables()");
    run(&mut session, "UPDATE bqx.m1_usdjpy SET close = -1 WHERE time = '2024-08-15 10:00+00'");
    assert_eq!(error_of(&mut session, "CALL bqx.backfill(workers => 1)").code, "22003");
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.jobs WHERE state = 'failed'"), "2");
    let done_before =
        rows(&mut session, "SELECT family, pair, month, finished_at FROM bqx.jobs WHERE state = 'done'");
    run(&mut session, "UPDATE bqx.m1_usdjpy SET close = open WHERE time = '2024-08-15 10:00+00'");
    run(&mut session, "CALL bqx.resume(1, workers => 1)");
    assert_eq!(
        row(&mut session, "SELECT string_agg(DISTINCT state, ' '), count(*) FROM bqx.jobs"),
        "done|12"
    );
    let done_after = rows(&mut session, "SELECT family, pair, month, finished_at FROM bqx.jobs");
    assert!(done_before.iter().all(|job| done_after.contains(job)), "finished jobs are left alone");
    assert_eq!(faults(&mut session), [""; 0]);
    // nothing left
    for call in ["CALL bqx.resume(1)", "CALL bqx.resume(1, wait => false)"] {
        let (mut session, notices) = db.connect_with_notices();
        run(&mut session, call);
        assert_eq!(notices.take().first().unwrap(), "NOTICE: run 1: nothing to do", "{call}");
    }
}

#[test]
fn a_resumed_run_tells_and_counts_what_it_does_itself() {
    let db = prepared("resume_tells");
    run(&mut db.connect(), "CALL bqx.create_tables()");
    let mut session = db.connect();
    run(
        &mut session,
        "UPDATE bqx.m1_usdjpy SET close = -1 WHERE time = (SELECT max(time) FROM bqx.m1_usdjpy)",
    );
    assert_eq!(error_of(&mut session, "CALL bqx.backfill(workers => 1)").code, "22003");
    run(&mut session, "UPDATE bqx.m1_usdjpy SET close = open WHERE close < 0");
    let (mut session, notices) = db.connect_with_notices();
    run(&mut session, "CALL bqx.resume(1, workers => 1)");
    let told: Vec<String> = notices.take().iter().map(|n| n.rsplit_once(':').unwrap().0.to_owned()).collect();
    assert_eq!(
        told,
        ["[1/2] usdjpy 2024-09 bqx", "[2/2] usdjpy 2024-09 reg", "run 1"].map(|n| format!("NOTICE: {n}"))
    );
}

#[test]
fn a_cancelled_run_can_be_resumed_at_once() {
    let (db, brake) = held_up("resume_at_once");
    let mut session = db.connect();
    run(&mut session, "CALL bqx.backfill(workers => 1, wait => false)");
    until_held_up(&db, 1);
    // stands for the call that waits for the run, on its way out
    let mut leaving = db.connect();
    run(&mut leaving, "SELECT pg_advisory_lock_shared(bqx._lock_key('run', '1'))");
    assert_eq!(row(&mut session, "SELECT bqx.cancel(1)"), "t");
    drop(brake);
    let resumes = thread::spawn(move || attempt(&mut session, "CALL bqx.resume(1)"));
    wait_until(
        &mut leaving,
        "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()",
    );
    drop(leaving);
    resumes.join().unwrap().unwrap();
    assert_eq!(checksums(&db), *expected());
}

#[test]
fn a_worker_that_never_gets_to_work_is_no_run_in_the_background() {
    let own = own_server("no-start", &[]);
    let db = Db::on(&own, "no_start");
    prepare(&db);
    let mut admin = db.connect();
    run(&mut admin, "CREATE ROLE no_start LOGIN SUPERUSER");
    let mut session = db.connect_as("no_start");
    run(&mut session, "CALL bqx.create_tables()");
    // The postmaster starts the worker only when the role may not log in any more.
    let postmaster = own.postmaster_pid().unwrap();
    kill_process(postmaster, Signal::STOP).unwrap();
    let called = thread::spawn(move || {
        (error_of(&mut session, "CALL bqx.backfill(workers => 1, wait => false)"), session)
    });
    let awaits = "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'Extension' AND query LIKE 'CALL bqx.%'";
    wait_until(&mut admin, awaits);
    run(&mut admin, "ALTER ROLE no_start NOLOGIN");
    kill_process(postmaster, Signal::CONT).unwrap();
    let (error, mut session) = called.join().unwrap();
    assert_eq!(error.code, "55000", "{error:?}");
    assert_eq!(error.message, "12 of 12 jobs of run 1 were not done: their worker ended early");
    assert_eq!(row(&mut session, "SELECT state FROM bqx.runs"), "interrupted");
    run(&mut session, "CALL bqx.resume(1)");
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.jobs WHERE run_id = 1 AND state = 'done'"), "12");
}
