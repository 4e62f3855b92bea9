//! Internal functions called by hand, by roles with few rights, and settings that pull locks apart: nothing crashes,
//! nothing is forged, nothing is done twice.

mod common;

use std::thread;

use bqx_tests::{Db, error_of};
use common::{row, rows, run};

const DAY: &str = "'2024-07-01 00:00+00', '2024-07-02 00:00+00'";

/// One simulated pair and month with its tables, empty, and a role that may only read the bars.
fn prepared(name: &str) -> Db<'static> {
    let db = Db::new(name);
    let mut session = db.connect();
    for statement in [
        "CALL bqx.simulate_m1('{eurusd}', '2024-07-01', '2024-07-01')",
        "CALL bqx.set_baselines()",
        "CALL bqx.index_m1()",
        "CALL bqx.create_tables()",
        "DO $$ BEGIN CREATE ROLE mallory LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$",
        "GRANT SELECT ON bqx.m1_eurusd TO mallory",
    ] {
        run(&mut session, statement);
    }
    db
}

#[test]
fn column_definition_lists_of_other_types_are_refused() {
    let db = prepared("misuse_types");
    let mut mallory = db.connect_as("mallory");
    for list in
        ["ts timestamptz, r text", "ts text, r float8", "ts timestamptz", "ts timestamptz, r float8, x int"]
    {
        let sql = format!(
            "SELECT * FROM bqx._computed_rows('bqx', 'bqx.m1_eurusd', {DAY}, '{{rate_index}}') AS c ({list})"
        );
        assert_eq!(error_of(&mut mallory, &sql).code, "42804", "{sql}");
    }
    let good = format!(
        "SELECT count(r) > 1000 FROM bqx._computed_rows('bqx', 'bqx.m1_eurusd', {DAY}, '{{rate_index}}') \
         AS c (ts timestamptz, r float8)"
    );
    assert_eq!(row(&mut mallory, &good), "t");
}

#[test]
fn tables_of_other_types_are_not_written_past_the_executor() {
    let db = prepared("misuse_targets");
    let mut mallory = db.connect_as("mallory");
    run(&mut mallory, "CREATE TEMP TABLE m (time timestamptz, rate_index float8, close float8)");
    run(&mut mallory, "INSERT INTO m VALUES ('2024-07-01 00:00+00', 1, 1)");
    for columns in [
        "ts_utc timestamptz, rate_index text",
        "ts_utc date, rate_index float8",
        "ts_utc timestamptz, other int",
    ] {
        run(&mut mallory, "BEGIN");
        run(&mut mallory, &format!("CREATE TEMP TABLE target ({columns})"));
        let sql = format!(
            "SELECT * FROM bqx._fill_partitions('{{bqx}}', 'm'::regclass, {DAY}, ARRAY['target'::regclass]::oid[], '{{x}}')"
        );
        let code = error_of(&mut mallory, &sql).code;
        assert!(code == "42804" || code == "42703", "{columns}: {code}");
        run(&mut mallory, "ROLLBACK");
    }
    // storage that is not this transaction's own
    run(&mut mallory, "CREATE TEMP TABLE target (ts_utc timestamptz, rate_index float8)");
    let sql = format!(
        "SELECT * FROM bqx._fill_partitions('{{bqx}}', 'm'::regclass, {DAY}, ARRAY['target'::regclass]::oid[], '{{x}}')"
    );
    assert_eq!(error_of(&mut mallory, &sql).code, "42501");
}

#[test]
fn staged_lines_of_another_shape_are_read_as_text() {
    let db = prepared("misuse_lines");
    let mut mallory = db.connect_as("mallory");
    run(&mut mallory, "CREATE TEMP TABLE bqx_lines (line bigint, line_no int)");
    run(&mut mallory, "INSERT INTO bqx_lines VALUES (4096, 1)");
    assert_eq!(
        rows(&mut mallory, "SELECT line_no, reason IS NOT NULL FROM bqx._parse_lines('csv')"),
        ["1|t"]
    );
}

#[test]
fn the_ledger_believes_only_who_may_write_the_table() {
    let db = prepared("misuse_ledger");
    let mut owner = db.connect();
    run(&mut owner, "CALL bqx.backfill(workers => 0)");
    let mut mallory = db.connect_as("mallory");
    let run_id = row(&mut mallory, "SELECT bqx._open_run('{}')");
    let add = format!("SELECT bqx._add_jobs({run_id}, 'eurusd', '{{bqx}}', '{{2024-07-01}}')");
    assert_eq!(error_of(&mut mallory, &add).code, "42501");
    let finish = format!(
        "SELECT bqx._finish_job({run_id}, 'bqx', 'eurusd', '2024-07-01', 'done', 1, now(), 1, 1, 0, 'forged', 'forged', NULL, NULL, NULL, NULL)"
    );
    assert_eq!(error_of(&mut mallory, &finish).code, "42501");
    // neither does it take a job that is not open, from anyone
    assert_eq!(error_of(&mut owner, &finish.replace(&run_id, "1")).code, "55000");
    assert_eq!(error_of(&mut mallory, "SELECT bqx._start_workers(1, 100)").code, "42501");
    assert_eq!(
        row(&mut owner, "SELECT count(*) FROM bqx.month_ledger WHERE input_fingerprint = 'forged'"),
        "0"
    );
}

#[test]
fn runs_of_sessions_with_other_date_styles_meet_at_the_same_lock() {
    let db = prepared("misuse_datestyle");
    let mut session = db.connect();
    // without a key, a month done twice at once would have every row twice
    run(&mut session, "ALTER TABLE bqx.bqx_eurusd DROP CONSTRAINT bqx_eurusd_pkey");
    let bars = row(&mut session, "SELECT count(*) FROM bqx.m1_eurusd");
    thread::scope(|scope| {
        for style in ["ISO", "German", "SQL, DMY"] {
            let mut session = db.connect();
            scope.spawn(move || {
                run(&mut session, &format!("SET DateStyle = '{style}'"));
                run(&mut session, "CALL bqx.backfill('{bqx}', workers => 0)");
            });
        }
    });
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.bqx_eurusd"), bars);
    assert_eq!(row(&mut session, "SELECT sum(rows_written) FROM bqx.jobs"), bars);
}

#[test]
fn equal_rows_of_a_table_without_a_key_become_one() {
    let db = prepared("misuse_duplicates");
    let mut session = db.connect();
    run(&mut session, "ALTER TABLE bqx.reg_eurusd DROP CONSTRAINT reg_eurusd_pkey");
    run(&mut session, "CALL bqx.backfill(workers => 0)");
    run(&mut session, "INSERT INTO bqx.reg_eurusd SELECT * FROM bqx.reg_eurusd ORDER BY ts_utc LIMIT 10");
    run(&mut session, "CALL bqx.backfill(workers => 0)");
    assert_eq!(row(&mut session, "SELECT count(*) - count(DISTINCT ts_utc) FROM bqx.reg_eurusd"), "0");
    assert_eq!(
        row(
            &mut session,
            "SELECT (SELECT count(*) FROM bqx.reg_eurusd) = (SELECT count(*) FROM bqx.m1_eurusd)"
        ),
        "t"
    );
}

#[test]
fn a_column_made_anew_is_filled_again() {
    let db = prepared("misuse_column");
    let mut session = db.connect();
    run(&mut session, "CALL bqx.backfill(workers => 0)");
    let filled = row(&mut session, "SELECT count(agg_bqx_volatility) FROM bqx.bqx_eurusd");
    run(&mut session, "ALTER TABLE bqx.bqx_eurusd DROP COLUMN agg_bqx_volatility");
    run(&mut session, "ALTER TABLE bqx.bqx_eurusd ADD COLUMN agg_bqx_volatility double precision");
    run(&mut session, "CALL bqx.backfill(workers => 0)");
    assert_eq!(row(&mut session, "SELECT count(agg_bqx_volatility) FROM bqx.bqx_eurusd"), filled);
}

#[test]
fn tables_that_anything_else_depends_on_stay_all() {
    let db = prepared("misuse_drop");
    let mut session = db.connect();
    run(&mut session, "CREATE TABLE public.t (x bqx.reg_eurusd)");
    assert_eq!(error_of(&mut session, "CALL bqx.drop_tables('{bqx,reg}')").code, "2BP01");
    assert_eq!(
        rows(&mut session, "SELECT to_regclass('bqx.bqx_eurusd'), to_regclass('bqx.reg_eurusd')"),
        ["bqx.bqx_eurusd|bqx.reg_eurusd"]
    );
}

#[test]
fn workers_end_with_the_call_that_waits_for_them_wherever_it_is() {
    let db = prepared("misuse_cancel");
    let mut session = db.connect();
    for statement in [
        "CALL bqx.simulate_m1('{eurusd,gbpusd,usdjpy}', '2024-07-01', '2024-12-01')",
        "CALL bqx.set_baselines()",
        "CALL bqx.index_m1()",
        "CALL bqx.create_tables()",
    ] {
        run(&mut session, statement);
    }
    let mut caller = db.connect();
    let cancel = caller.cancel_token();
    let call = thread::spawn(move || error_of(&mut caller, "CALL bqx.backfill(workers => 1)").code);
    let working = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'bqx worker' AND datname = current_database()";
    while row(&mut session, working) == "0" {
        thread::sleep(std::time::Duration::from_millis(5));
    }
    cancel.cancel_query(postgres::NoTls).expect("a server that listens");
    assert_eq!(call.join().expect("no panic"), "57014");
    while row(&mut session, working) != "0" {
        thread::sleep(std::time::Duration::from_millis(5));
    }
    let open = "SELECT count(*) > 0 FROM bqx.job_ledger WHERE state = 'pending'";
    assert_eq!(row(&mut session, open), "t", "the worker stopped before the end");
    run(&mut session, "CALL bqx.backfill(workers => 0)");
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.verify() WHERE NOT ok"), "0");
}
