//! What each stage refuses: with which SQLSTATE, naming what, and with which CALL to go on. What is refused
//! leaves
//! everything as it was.

mod common;

use std::sync::{Arc, Mutex};

use bqx_tests::{Db, SqlError, error_of, server, transcript};
use common::{attempt, checksum, picture, row, rows, run};
use postgres::{Client, NoTls};

/// A pair with bars at every minute of the first 16 hours of July, August and September 2024.
fn make_bars(session: &mut Client, pair: &str) {
    run(session, &format!("CALL bqx.create_m1('{{{pair}}}', '2024-07-01', '2024-09-01')"));
    insert_bars(session, pair);
}

fn insert_bars(session: &mut Client, pair: &str) {
    run(
        session,
        &format!(
            "INSERT INTO bqx.m1_{pair} (time, open, high, low, close) \
             SELECT m + i * interval '1 minute', p, p, p, p \
               FROM unnest('{{2024-07-01 00:00+00,2024-08-01 00:00+00,2024-09-01 00:00+00}}'::timestamptz[]) AS m, \
                    generate_series(0, 959) AS i, LATERAL (SELECT 1 + i * 7919 % 1009 / 9973.0::float8) AS v (p)"
        ),
    );
}

/// A pair all of whose tables are made, and not filled.
fn make_ready(session: &mut Client, pair: &str) {
    make_bars(session, pair);
    make_tables(session, pair);
}

fn make_tables(session: &mut Client, pair: &str) {
    run(session, &format!("CALL bqx.set_baselines(pairs => '{{{pair}}}')"));
    run(session, &format!("CALL bqx.index_m1('{{{pair}}}')"));
    run(session, &format!("CALL bqx.create_tables(pairs => '{{{pair}}}')"));
}

/// A call that is refused.
struct Refused {
    call: String,
    code: &'static str,
    /// What the message names.
    says: Vec<&'static str>,
    hints: Vec<&'static str>,
}

fn refused(
    call: impl Into<String>,
    code: &'static str,
    says: &[&'static str],
    hints: &[&'static str],
) -> Refused {
    Refused { call: call.into(), code, says: says.to_vec(), hints: hints.to_vec() }
}

impl Refused {
    /// What is wrong with the error, if anything is.
    fn complaint(&self, error: &SqlError) -> Option<String> {
        let said = format!("{}\n{}", error.message, error.detail);
        let right = error.code == self.code
            && self.says.iter().all(|part| said.contains(part))
            && self.hints.iter().all(|part| error.hint.contains(part));
        let expected = || format!("expected {} {:?}, hint {:?}", self.code, self.says, self.hints);
        (!right).then(|| format!("{}\n    {}\n    got {error:?}", self.call, expected()))
    }
}

/// Makes the calls, which all must be refused and change nothing.
fn assert_refused(db: &Db, session: &mut Client, calls: &[Refused]) {
    let mut wrong = Vec::new();
    let mut before = picture(db);
    for refused in calls {
        match attempt(session, &refused.call) {
            Ok(()) => wrong.push(format!("{}\n    was not refused", refused.call)),
            Err(error) => wrong.extend(refused.complaint(&error)),
        }
        let after = picture(db);
        if after != before {
            let changed: Vec<_> = after.iter().filter(|table| !before.contains(table)).collect();
            let gone: Vec<_> = before.iter().filter(|table| !after.contains(table)).collect();
            wrong.push(format!("{}\n    left {changed:#?}\n    for {gone:#?}", refused.call));
            before = after;
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Every stage with a list of pairs and months, `{}` standing for the pairs.
const STAGES_WITH_PAIRS: [&str; 9] = [
    "CALL bqx.create_m1({})",
    "CALL bqx.simulate_m1({})",
    "CALL bqx.set_baselines(pairs => {})",
    "CALL bqx.index_m1({})",
    "CALL bqx.create_tables(pairs => {})",
    "CALL bqx.drop_tables('{bqx,reg}', {})",
    "CALL bqx.backfill(pairs => {}, workers => 0)",
    "CALL bqx.run_pipeline({}, workers => 0)",
    "SELECT * FROM bqx.verify(pairs => {})",
];

const STAGES_WITH_MONTHS: [&str; 6] = [
    "CALL bqx.create_m1('{eurusd}', {})",
    "CALL bqx.simulate_m1('{gbpusd}', {})",
    "CALL bqx.create_tables(NULL, '{eurusd}', {})",
    "CALL bqx.backfill(NULL, '{eurusd}', {}, workers => 0)",
    "CALL bqx.run_pipeline('{eurusd}', NULL, {}, workers => 0)",
    "SELECT * FROM bqx.verify(NULL, '{eurusd}', {})",
];

const STAGES_WITH_FAMILIES: [&str; 4] = [
    "CALL bqx.create_tables({}, '{eurusd}')",
    "CALL bqx.drop_tables({}, '{eurusd}')",
    "CALL bqx.backfill({}, '{eurusd}', workers => 0)",
    "SELECT * FROM bqx.verify({}, '{eurusd}')",
];

fn each(stages: &[&str], argument: &str, says: &[&'static str], hints: &[&'static str]) -> Vec<Refused> {
    stages.iter().map(|stage| refused(stage.replace("{}", argument), "22023", says, hints)).collect()
}

#[test]
fn wrong_arguments_are_refused_by_every_stage() {
    let db = Db::new("arguments");
    let mut session = db.connect();
    make_ready(&mut session, "eurusd");
    let known = "SELECT pair FROM bqx.pairs";
    let mut calls = Vec::new();
    // pairs
    calls.extend(each(
        &STAGES_WITH_PAIRS,
        "'{eurxxx}'",
        &["unknown pair 'eurxxx'"],
        &[known, "INSERT INTO bqx.pairs"],
    ));
    calls.extend(each(&STAGES_WITH_PAIRS, "'{eurusd,eurxxx}'", &["unknown pair 'eurxxx'"], &[known]));
    calls.extend(each(&STAGES_WITH_PAIRS, "'{eurusd,NULL}'", &["unknown pair NULL"], &[known]));
    calls.extend(each(
        &STAGES_WITH_PAIRS,
        r#"'{"eurusd; DROP TABLE bqx.pairs"}'"#,
        &["unknown pair 'eurusd; DROP"],
        &[known],
    ));
    calls.extend(each(&STAGES_WITH_PAIRS, "'{}'", &["pairs", "empty"], &["leave the argument out"]));
    for (pair, named) in
        [("'eurxxx'", "'eurxxx'"), ("NULL", "NULL"), ("'staging'", "'staging'"), ("''", "''")]
    {
        calls.push(refused(
            format!("CALL bqx.load_m1({pair}, '/nowhere')"),
            "22023",
            &["unknown pair", named],
            &[known],
        ));
        calls.push(refused(
            format!("CALL bqx.ingest_m1({pair})"),
            "22023",
            &["unknown pair", named],
            &[known],
        ));
    }
    // families
    let both = ["'bqx'", "'reg'"];
    calls.extend(each(&STAGES_WITH_FAMILIES, "'{bqz}'", &["unknown family 'bqz'"], &both));
    calls.extend(each(&STAGES_WITH_FAMILIES, "'{bqx,reg,x}'", &["unknown family 'x'"], &both));
    calls.extend(each(&STAGES_WITH_FAMILIES, "ARRAY[NULL]::text[]", &["unknown family NULL"], &both));
    calls.extend(each(&STAGES_WITH_FAMILIES, "'{}'", &["families", "empty"], &both));
    // months
    calls.extend(each(
        &STAGES_WITH_MONTHS,
        "'2024-08-01', '2024-07-31'",
        &["2024-08", "after", "2024-07"],
        &["inclusive"],
    ));
    calls.extend(each(&STAGES_WITH_MONTHS, "'infinity', 'infinity'", &["infinity"], &["1900-01-01"]));
    calls.extend(each(&STAGES_WITH_MONTHS, "'2024-07-01', '5000-01-01'", &["5000-01-01"], &["2999-12-31"]));
    calls.extend([
        refused(
            "CALL bqx.simulate_m1('{gbpusd}', NULL, '2024-07-01')",
            "22023",
            &["from_month"],
            &["CALL bqx.simulate_m1("],
        ),
        refused(
            "CALL bqx.simulate_m1('{gbpusd}', '2024-07-01', '2024-07-01', NULL)",
            "22023",
            &["seed"],
            &["CALL bqx.simulate_m1("],
        ),
        refused(
            "CALL bqx.set_baselines(NULL, '{eurusd}')",
            "22023",
            &["baseline_date"],
            &["CALL bqx.set_baselines("],
        ),
        refused(
            "CALL bqx.set_baselines('infinity', '{eurusd}')",
            "22023",
            &["baseline_date"],
            &["CALL bqx.set_baselines("],
        ),
        refused("CALL bqx.run_pipeline('{eurusd}', 'infinity')", "22023", &["baseline_date"], &[]),
    ]);
    // files
    for stage in ["CALL bqx.load_m1('eurusd', '/nowhere', {})", "CALL bqx.ingest_m1('eurusd', {})"] {
        calls.extend(each(
            &[stage],
            "'excel'",
            &["unknown format 'excel'"],
            &["'csv'", "'histdata'", "'metatrader'", "'dukascopy'", "'auto'"],
        ));
        calls.extend(each(&[stage], "NULL", &["unknown format"], &["'auto'"]));
        calls.extend(each(&[stage], "on_bad_row => 'ignore'", &["on_bad_row", "'ignore'"], &["'skip'"]));
        calls.extend(each(&[stage], "on_bad_row => NULL", &["on_bad_row", "NULL"], &["'skip'"]));
    }
    calls.push(refused(
        "CALL bqx.load_m1('eurusd', NULL)",
        "22023",
        &["path"],
        &["CALL bqx.load_m1('eurusd'"],
    ));
    // workers
    let zero = "workers => 0";
    calls.push(refused(
        "CALL bqx.backfill(pairs => '{eurusd}', workers => -1)",
        "22023",
        &["workers", "-1"],
        &[zero],
    ));
    calls.push(refused(
        "CALL bqx.run_pipeline('{eurusd}', workers => -1)",
        "22023",
        &["workers", "-1"],
        &[zero],
    ));
    assert_refused(&db, &mut session, &calls);
}

/// `{}` stands for families and windows.
#[test]
fn windows_out_of_range_are_refused() {
    let db = Db::new("windows");
    let mut session = db.connect();
    make_bars(&mut session, "eurusd");
    let call = |families: &str, windows: &str| {
        format!("CALL bqx.create_tables({families}, '{{eurusd}}', windows => {windows})")
    };
    let one_family = "CALL bqx.create_tables(families => '{bqx}', windows => '{20,40}')";
    assert_refused(
        &db,
        &mut session,
        &[
            refused(call("'{bqx}'", "'{1}'"), "22023", &["window 1 ", "'bqx'"], &["2 to 10000"]),
            refused(call("'{bqx}'", "'{20,0,40}'"), "22023", &["window 0 "], &["2 to 10000"]),
            refused(call("'{bqx}'", "'{-20}'"), "22023", &["window -20 "], &["2 to 10000"]),
            refused(call("'{bqx}'", "'{10001}'"), "22023", &["window 10001 "], &["2 to 10000"]),
            refused(call("'{bqx}'", "'{20,NULL}'"), "22023", &["window NULL "], &["2 to 10000"]),
            refused(call("'{reg}'", "'{1}'"), "22023", &["window 1 ", "'reg'"], &["3 to 10000"]),
            refused(call("'{reg}'", "'{2}'"), "22023", &["window 2 ", "'reg'"], &["3 to 10000"]),
            refused(call("'{reg}'", "'{10001}'"), "22023", &["window 10001 "], &["3 to 10000"]),
            refused(call("'{bqx,reg}'", "'{20}'"), "22023", &["exactly one family"], &[one_family]),
            refused(call("NULL", "'{20}'"), "22023", &["exactly one family"], &[one_family]),
            refused(call("'{bqx}'", "'{}'"), "22023", &["at least one window"], &[one_family]),
        ],
    );
    run(&mut session, &call("'{bqx,BQX}'", "'{2,10000,2}'"));
    run(&mut session, &call("'{reg}'", "'{3,10000}'"));
    let windows = |table| {
        format!(
            "SELECT string_agg(DISTINCT substring(attname, '^w[0-9]+'), ' ') FROM pg_attribute WHERE \
                attrelid = 'bqx.{table}'::regclass"
        )
    };
    assert_eq!(row(&mut session, &windows("bqx_eurusd")), "w10000 w2");
    assert_eq!(row(&mut session, &windows("reg_eurusd")), "w10000 w3");
}

#[test]
fn missing_tables_are_named_with_the_call_that_makes_them() {
    let db = Db::new("missing_tables");
    let mut session = db.connect();
    // no bars at all
    let load = ["CALL bqx.load_m1('eurusd', '", "CALL bqx.simulate_m1();"];
    let mut calls: Vec<_> = STAGES_WITH_PAIRS[2..]
        .iter()
        .filter(|stage| !stage.contains("drop_tables"))
        .map(|stage| refused(stage.replace("{}", "NULL"), "42P01", &["no pair has M1 data"], &load))
        .collect();
    assert_refused(&db, &mut session, &calls);

    // none of the pair's own
    make_bars(&mut session, "eurusd");
    let load = ["CALL bqx.load_m1('audusd', '", "CALL bqx.create_m1(ARRAY['audusd']);"];
    calls = STAGES_WITH_PAIRS[2..]
        .iter()
        .filter(|stage| !stage.contains("drop_tables"))
        .map(|stage| {
            refused(
                stage.replace("{}", "'{eurusd,audusd}'"),
                "42P01",
                &["bqx.m1_audusd", "does not exist"],
                &load,
            )
        })
        .collect();
    assert_refused(&db, &mut session, &calls);

    // no derived tables
    run(&mut session, "CALL bqx.set_baselines(pairs => '{eurusd}')");
    run(&mut session, "CALL bqx.index_m1('{eurusd}')");
    run(&mut session, "CALL bqx.create_tables('{bqx}', '{eurusd}')");
    assert_refused(
        &db,
        &mut session,
        &[
            refused(
                "CALL bqx.backfill(workers => 0)",
                "42P01",
                &["bqx.reg_eurusd", "does not exist"],
                &["CALL bqx.create_tables(ARRAY['reg'], ARRAY['eurusd']);"],
            ),
            refused(
                "CALL bqx.backfill(workers => 1)",
                "42P01",
                &["bqx.reg_eurusd"],
                &["CALL bqx.create_tables(ARRAY['reg'], ARRAY['eurusd']);"],
            ),
            refused(
                "SELECT * FROM bqx.verify()",
                "42P01",
                &["bqx.reg_eurusd"],
                &["CALL bqx.create_tables(ARRAY['reg'], ARRAY['eurusd']);"],
            ),
            refused(
                "SELECT * FROM bqx.verify('{reg}', '{eurusd}')",
                "42P01",
                &["bqx.reg_eurusd"],
                &["CALL bqx.create_tables("],
            ),
        ],
    );
    // What is not there need not be dropped.
    run(&mut session, "CALL bqx.drop_tables('{bqx,reg}', '{audusd,eurusd}')");
    run(&mut session, "CALL bqx.drop_tables('{bqx,reg}')");
}

#[test]
fn stages_out_of_order_name_the_call_that_is_due() {
    let db = Db::new("order");
    let mut session = db.connect();
    make_ready(&mut session, "eurusd"); // in order
    for pair in ["gbpusd", "usdjpy", "usdchf"] {
        make_bars(&mut session, pair);
        run(&mut session, &format!("CALL bqx.create_tables(pairs => '{{{pair}}}')"));
    }
    run(&mut session, "TRUNCATE bqx.m1_usdchf");
    run(&mut session, "CALL bqx.set_baselines(pairs => '{usdjpy}')");
    let baseline = ["CALL bqx.set_baselines(pairs => ARRAY['gbpusd']);"];
    let index = ["CALL bqx.index_m1(ARRAY['usdjpy']);"];
    assert_refused(
        &db,
        &mut session,
        &[
            refused("CALL bqx.index_m1('{gbpusd}')", "55000", &["gbpusd", "no baseline"], &baseline),
            refused(
                "CALL bqx.index_m1('{eurusd,usdjpy,gbpusd}')",
                "55000",
                &["gbpusd", "no baseline"],
                &baseline,
            ),
            refused(
                "CALL bqx.backfill(pairs => '{gbpusd}', workers => 0)",
                "55000",
                &["gbpusd", "no baseline"],
                &[baseline[0], "CALL bqx.index_m1(ARRAY['gbpusd']);"],
            ),
            refused(
                "CALL bqx.backfill(pairs => '{eurusd,gbpusd}', workers => 1)",
                "55000",
                &["gbpusd", "no baseline"],
                &baseline,
            ),
            refused(
                "CALL bqx.backfill(pairs => '{usdjpy}', workers => 0)",
                "55000",
                &["usdjpy", "no rate_index"],
                &index,
            ),
            refused(
                "CALL bqx.backfill('{bqx}', '{eurusd,usdjpy}', workers => 0)",
                "55000",
                &["usdjpy", "no rate_index"],
                &index,
            ),
            refused(
                "CALL bqx.backfill(pairs => '{usdjpy}', wait => false)",
                "55000",
                &["usdjpy", "no rate_index"],
                &index,
            ),
            refused(
                "CALL bqx.set_baselines('2025-01-01 00:00+00', '{gbpusd}')",
                "55000",
                &["gbpusd", "no bar at or after 2025-01-01", "2024-07-01", "2024-09-01"],
                &["CALL bqx.set_baselines('2024-07-01 00:00:00+00', ARRAY['gbpusd']);"],
            ),
            // one pair's trouble records no other's baseline
            refused(
                "CALL bqx.set_baselines('2024-08-01 00:00+00', '{eurusd,gbpusd,usdchf}')",
                "55000",
                &["usdchf", "no bar"],
                &["CALL bqx.load_m1('usdchf', "],
            ),
            refused(
                "CALL bqx.run_pipeline('{eurusd,usdchf}', workers => 0)",
                "55000",
                &["usdchf"],
                &["CALL bqx.load_m1('usdchf', "],
            ),
            refused(
                "CALL bqx.run_pipeline('{gbpusd}', '2025-01-01', workers => 0)",
                "55000",
                &["gbpusd", "no bar"],
                &["CALL bqx.set_baselines("],
            ),
        ],
    );
}

/// Who does what the hints say gets there.
#[test]
fn the_hints_lead_from_bars_to_derived_rows() {
    let db = Db::new("hints");
    let mut session = db.connect();
    run(&mut session, "SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German, DMY'");
    make_bars(&mut session, "gbpusd");
    run(&mut session, "DELETE FROM bqx.m1_gbpusd WHERE time < '2024-08-01 00:05+00'");
    run(&mut session, "DELETE FROM bqx.m1_gbpusd WHERE time >= '2024-09-01 00:00+00'");
    run(&mut session, "CALL bqx.set_baselines('2024-07-28 00:00+00', '{gbpusd}')");
    run(&mut session, "DELETE FROM bqx.baseline_rates");
    let goal = "CALL bqx.backfill(pairs => '{gbpusd}', workers => 0)";
    let mut done = Vec::new();
    while let Err(error) = attempt(&mut session, goal) {
        assert!(done.len() < 10, "no end: {done:#?}\n{error:?}");
        let calls = error
            .hint
            .split("CALL ")
            .skip(1)
            .map(|rest| format!("CALL {}", rest.split(';').next().unwrap_or_default()));
        let calls: Vec<_> = calls.collect();
        assert!(!calls.is_empty(), "no way on: {error:?}");
        for call in calls {
            assert!(!done.contains(&call), "{call} did not help: {error:?}");
            run(&mut session, &call);
            done.push(call);
        }
    }
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.reg_gbpusd"), "955");
}

const COMMITTING_STAGES: [(&str, &str); 10] = [
    ("create_m1", "CALL bqx.create_m1('{audusd}')"),
    ("load_m1", "CALL bqx.load_m1('audusd', '/nowhere')"),
    ("ingest_m1", "CALL bqx.ingest_m1('audusd')"),
    ("simulate_m1", "CALL bqx.simulate_m1('{audusd}', '2024-07-01', '2024-07-01')"),
    ("index_m1", "CALL bqx.index_m1('{eurusd}')"),
    ("create_tables", "CALL bqx.create_tables(NULL, '{eurusd}')"),
    ("drop_tables", "CALL bqx.drop_tables('{bqx,reg}', '{eurusd}')"),
    ("backfill", "CALL bqx.backfill(pairs => '{eurusd}', workers => 0)"),
    ("resume", "CALL bqx.resume(1, workers => 0)"),
    ("run_pipeline", "CALL bqx.run_pipeline('{eurusd}', workers => 0)"),
];

/// A stage that commits says so before it does anything, wherever it can't.
#[test]
fn stages_that_commit_refuse_transaction_blocks() {
    let db = Db::new("blocks");
    let mut session = db.connect();
    make_ready(&mut session, "eurusd");
    run(
        &mut session,
        "CREATE FUNCTION public.a_function(call text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE \
            call; END $$",
    );
    run(
        &mut session,
        "CREATE PROCEDURE public.with_settings(call text) LANGUAGE plpgsql SET work_mem = '4MB' AS $$ BEGIN \
            EXECUTE call; END $$",
    );
    run(
        &mut session,
        "CREATE PROCEDURE public.a_procedure(call text) LANGUAGE plpgsql AS $$ BEGIN EXECUTE call; END $$",
    );
    let before = picture(&db);
    let mut wrong = Vec::new();
    for (name, call) in COMMITTING_STAGES {
        let quoted = format!("$call${call}$call$");
        // PL/pgSQL wants a variable for an INOUT parameter
        let in_code = if name == "backfill" {
            call.replace("workers => 0", "workers => 0, run_id => run")
        } else {
            call.to_owned()
        };
        let attempts = [
            format!("BEGIN; {call}"),
            format!("{call}; SELECT 1"),
            format!("SELECT 1; {call}"),
            format!("BEGIN; DO $do$ DECLARE run bigint; BEGIN {in_code}; END $do$"),
            format!("DO $do$ BEGIN PERFORM public.a_function({quoted}); END $do$"),
            format!("SELECT public.a_function({quoted})"),
            format!("BEGIN; CALL public.a_procedure({quoted})"),
            format!("CALL public.with_settings({quoted})"),
            // an exception block is a subtransaction
            format!(
                "DO $do$ DECLARE run bigint; BEGIN {in_code}; EXCEPTION WHEN division_by_zero THEN NULL; \
                    END $do$"
            ),
        ];
        for sql in attempts {
            let refused =
                refused(sql.clone(), "25001", &[name, "transaction block"], &["Call it alone", name]);
            match attempt(&mut session, &sql) {
                Ok(()) => wrong.push(format!("{sql}\n    was not refused")),
                Err(error) => wrong.extend(refused.complaint(&error)),
            }
            run(&mut session, "ROLLBACK");
            let after = picture(&db);
            if after != before {
                wrong.push(format!("{sql}\n    did something"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));

    let mut psql = db.psql_command();
    psql.args(["-c", "CALL bqx.index_m1(); SELECT 1"]);
    let ran = transcript(psql, b"").unwrap();
    assert!(
        !ran.success && ran.output.contains("transaction block") && ran.output.contains("HINT:"),
        "{}",
        ran.output
    );
    let mut psql = db.psql_command();
    psql.args(["--single-transaction", "-c", "CALL bqx.index_m1()"]);
    let ran = transcript(psql, b"").unwrap();
    assert!(!ran.success && ran.output.contains("transaction block"), "{}", ran.output);
    assert_eq!(picture(&db), before);
}

/// What can commit may be called from code, and set_baselines from anywhere.
#[test]
fn stages_work_where_they_can_commit() {
    let db = Db::new("not_blocks");
    let mut session = db.connect();
    make_bars(&mut session, "eurusd");
    run(&mut session, "BEGIN; CALL bqx.set_baselines('2024-08-01 00:00+00', '{eurusd}'); ROLLBACK");
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.baseline_rates"), "0");
    run(&mut session, "BEGIN; CALL bqx.set_baselines(pairs => '{eurusd}'); COMMIT");
    run(
        &mut session,
        "DO $$ BEGIN CALL bqx.index_m1('{eurusd}'); CALL bqx.create_tables(NULL, '{eurusd}'); END $$",
    );
    run(
        &mut session,
        "CREATE PROCEDURE public.nightly() LANGUAGE plpgsql AS \
         $$ DECLARE run bigint; BEGIN CALL bqx.backfill(workers => 0, run_id => run); END $$",
    );
    run(&mut session, "CALL public.nightly()");
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.bqx_eurusd"), "2880");
}

const AUGUST_BAR: &str = "2024-08-01 00:10:00";

/// Months done and failed of the latest run: `family|month|state|rows_written`.
fn latest_jobs(session: &mut Client) -> Vec<String> {
    let query = "SELECT family, to_char(month, 'YYYY-MM'), state, rows_written FROM bqx.jobs \
                  WHERE run_id = (SELECT max(run_id) FROM bqx.runs) ORDER BY month, family";
    rows(session, query)
}

fn rows_by_month(session: &mut Client, table: &str) -> Vec<String> {
    rows(
        session,
        &format!(
            "SELECT to_char(ts_utc AT TIME ZONE 'UTC', 'YYYY-MM'), count(*) FROM bqx.{table} GROUP BY 1 ORDER BY 1"
        ),
    )
}

/// A month with a bar that is no positive finite number fails, and names it; the others are done. Once the
/// bar is mended,
/// a rerun does just that month.
#[test]
fn a_bar_that_is_no_number_fails_its_month_alone() {
    let db = Db::new("bad_bars");
    let mut session = db.connect();
    run(&mut session, "SET TimeZone = 'America/New_York'"); // messages are in UTC all the same
    let mend = format!("UPDATE bqx.m1_eurusd SET close = 1.0625 WHERE time = '{AUGUST_BAR}+00'");
    let no_trigger = "ALTER TABLE bqx.m1_eurusd_2024_08 DISABLE TRIGGER bqx_set_rate_index";
    let lost_index = format!(
        "{no_trigger}; UPDATE bqx.m1_eurusd SET rate_index = NULL WHERE time = '{AUGUST_BAR}+00'; \
         ALTER TABLE bqx.m1_eurusd_2024_08 ENABLE ALWAYS TRIGGER bqx_set_rate_index"
    );
    let index_again = "CALL bqx.index_m1('{eurusd}')".to_owned();
    let set_close =
        |value: &str| format!("UPDATE bqx.m1_eurusd SET close = {value} WHERE time = '{AUGUST_BAR}+00'");
    #[rustfmt::skip]
    let cases = [
        // harm, message, hint, cure, workers
        (set_close("NULL"), "close NULL", "bqx.backfill", &mend, 0),
        (set_close("-1.5"), "close -1.5", "bqx.backfill", &mend, 0),
        (set_close("0"), "close 0", "bqx.backfill", &mend, 1),
        (set_close("'NaN'"), "close NaN", "bqx.backfill", &mend, 0),
        (set_close("'Infinity'"), "close inf", "bqx.backfill", &mend, 1),
        (set_close("'-Infinity'"), "close -inf", "bqx.backfill", &mend, 0),
        (lost_index, "rate_index NULL", "CALL bqx.index_m1(", &index_again, 0),
    ];
    let mut wrong = Vec::new();
    for (harm, found, hint, cure, workers) in cases {
        run(
            &mut session,
            "DROP TABLE IF EXISTS bqx.m1_eurusd, bqx.bqx_eurusd, bqx.reg_eurusd; TRUNCATE bqx.month_ledger",
        );
        make_ready(&mut session, "eurusd");
        run(&mut session, &harm);
        let backfill = format!("CALL bqx.backfill(workers => {workers})");
        let error = error_of(&mut session, &backfill);
        assert_eq!(error.code, "22003", "{harm}: {error:?}");
        assert!(error.message.contains("2 of 6 jobs"), "{error:?}");
        for part in
            ["bqx eurusd 2024-08: ", "reg eurusd 2024-08: ", "bqx.m1_eurusd", found, AUGUST_BAR, "UTC"]
        {
            assert!(error.detail.contains(part), "{part} in {error:?}");
        }
        if !error.hint.contains(hint) {
            wrong.push(format!("{found}: no {hint} in the hint: {}", error.hint));
        }
        let jobs = [
            "bqx|2024-07|done|960",
            "reg|2024-07|done|960",
            "bqx|2024-08|failed|NULL",
            "reg|2024-08|failed|NULL",
            "bqx|2024-09|done|960",
            "reg|2024-09|done|960",
        ];
        assert_eq!(latest_jobs(&mut session), jobs, "{harm}");
        for table in ["bqx_eurusd", "reg_eurusd"] {
            assert_eq!(rows_by_month(&mut session, table), ["2024-07|960", "2024-09|960"], "{harm}");
        }
        let finding = row(
            &mut session,
            "SELECT string_agg(detail, ' ') FROM bqx.verify() WHERE NOT ok AND check_name = 'index_range' \
                AND family IS NULL",
        );
        assert!(finding.contains(AUGUST_BAR), "{finding}");

        run(&mut session, cure);
        run(&mut session, &backfill);
        let jobs = [
            "bqx|2024-07|done|0",
            "reg|2024-07|done|0",
            "bqx|2024-08|done|960",
            "reg|2024-08|done|960",
            "bqx|2024-09|done|0",
            "reg|2024-09|done|0",
        ];
        assert_eq!(latest_jobs(&mut session), jobs, "{harm}");
        assert_eq!(rows(&mut session, "SELECT * FROM bqx.verify() WHERE NOT ok"), [""; 0], "{harm}");
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// A month that was filled and then gets a bad bar keeps the rows that it has.
#[test]
fn a_failed_month_keeps_its_rows() {
    let db = Db::new("kept_rows");
    let mut session = db.connect();
    make_ready(&mut session, "eurusd");
    run(&mut session, "CALL bqx.backfill(workers => 0)");
    let sums = |db: &Db| {
        ["bqx", "reg"].map(|family| checksum(db, &format!("SELECT *, ctid FROM bqx.{family}_eurusd")))
    };
    let before = sums(&db);
    run(&mut session, &format!("UPDATE bqx.m1_eurusd SET close = NULL WHERE time = '{AUGUST_BAR}+00'"));
    for options in ["", ", force => true"] {
        let error = error_of(
            &mut session,
            &format!(
                "CALL bqx.backfill(workers => 0, from_month => '2024-08-01', to_month => \
                    '2024-08-01'{options})"
            ),
        );
        assert_eq!(error.code, "22003", "{error:?}");
        assert_eq!(sums(&db), before);
    }
    let stale = "SELECT family, to_char(month, 'YYYY-MM') FROM bqx.verify() WHERE NOT ok AND check_name = \
        'stale' ORDER BY 1, 2";
    assert_eq!(rows(&mut session, stale), ["bqx|2024-08", "reg|2024-08"]);
    // A baseline can't be taken from such a bar.
    let error = error_of(&mut session, &format!("CALL bqx.set_baselines('{AUGUST_BAR}+00', '{{eurusd}}')"));
    assert_eq!(error.code, "22003");
    assert!(error.message.contains("eurusd") && error.message.contains("NULL"), "{error:?}");
    assert!(error.hint.contains("CALL bqx.set_baselines('2024-08-01 00:11"), "{error:?}");
    let pipeline = error_of(&mut session, "CALL bqx.run_pipeline('{eurusd}', workers => 0)");
    assert_eq!(pipeline.code, "22003", "{pipeline:?}");
    assert_eq!(sums(&db), before);
}

/// Two bars of one minute in a table without a key.
#[test]
fn duplicate_minutes_fail_their_month_alone() {
    let db = Db::new("duplicate_minutes");
    let mut session = db.connect();
    run(
        &mut session,
        "CREATE TABLE bqx.m1_eurusd (time timestamp, open numeric, high numeric, low numeric, close \
            numeric, volume numeric)",
    );
    run(&mut session, "SET TimeZone = 'UTC'");
    insert_bars(&mut session, "eurusd");
    run(
        &mut session,
        &format!("INSERT INTO bqx.m1_eurusd SELECT * FROM bqx.m1_eurusd WHERE time = '{AUGUST_BAR}'"),
    );
    make_tables(&mut session, "eurusd");
    let error = error_of(&mut session, "CALL bqx.backfill(workers => 0)");
    assert_eq!(error.code, "23505", "{error:?}");
    for part in ["bqx eurusd 2024-08: ", "reg eurusd 2024-08: ", "bqx.m1_eurusd", AUGUST_BAR, "UTC"] {
        assert!(error.detail.contains(part), "{part} in {error:?}");
    }
    for table in ["bqx_eurusd", "reg_eurusd"] {
        assert_eq!(rows_by_month(&mut session, table), ["2024-07|960", "2024-09|960"]);
    }
    let doubled = "SELECT string_agg(detail, ' ') FROM bqx.verify() WHERE NOT ok";
    assert!(row(&mut session, doubled).contains(AUGUST_BAR));
    run(
        &mut session,
        &format!(
            "DELETE FROM bqx.m1_eurusd WHERE ctid = (SELECT max(ctid) FROM bqx.m1_eurusd WHERE time = \
                '{AUGUST_BAR}')"
        ),
    );
    run(&mut session, "CALL bqx.backfill(workers => 0)");
    let written = [
        "bqx|2024-07|done|0",
        "reg|2024-07|done|0",
        "bqx|2024-08|done|960",
        "reg|2024-08|done|960",
        "bqx|2024-09|done|0",
        "reg|2024-09|done|0",
    ];
    assert_eq!(latest_jobs(&mut session), written);
}

/// A role without rights on the tables can do nothing, and says so.
#[test]
fn missing_rights_are_said_and_nothing_is_done() {
    let db = Db::new("rights");
    let mut owner = db.connect();
    run(&mut owner, "CREATE ROLE rights_nobody LOGIN; CREATE ROLE rights_reader LOGIN");
    make_ready(&mut owner, "eurusd");
    make_bars(&mut owner, "gbpusd");
    run(
        &mut owner,
        "GRANT SELECT ON bqx.m1_eurusd, bqx.m1_gbpusd, bqx.bqx_eurusd, bqx.reg_eurusd TO rights_reader",
    );
    let stages = [
        ("CALL bqx.create_m1('{audusd}')", "bqx"),
        ("CALL bqx.create_m1('{eurusd}', '2024-12-01', '2024-12-01')", "permission denied"),
        ("CALL bqx.load_m1('eurusd', '/etc/hostname')", "file"),
        ("CALL bqx.load_m1('eurusd', '/etc/hostname', on_bad_row => 'skip')", "file"),
        ("CALL bqx.simulate_m1('{audusd}', '2024-07-01', '2024-07-01')", "bqx"),
        ("CALL bqx.simulate_m1('{gbpusd}', '2024-12-01', '2024-12-01')", "permission denied"),
        ("CALL bqx.set_baselines('2024-08-01', '{eurusd}')", "eurusd"),
        ("CALL bqx.index_m1('{eurusd}')", "m1_eurusd"),
        ("CALL bqx.create_tables('{bqx}', '{gbpusd}')", ""),
        ("CALL bqx.create_tables('{bqx}', '{eurusd}', '2024-12-01', '2024-12-01')", "permission denied"),
        ("CALL bqx.create_tables('{bqx}', '{audusd}', '2024-12-01', '2024-12-01')", "bqx"),
        ("CALL bqx.drop_tables('{bqx,reg}', '{eurusd}')", "bqx_eurusd"),
        ("CALL bqx.drop_tables('{bqx,reg}', '{eurusd}', true)", "bqx_eurusd"),
        ("CALL bqx.run_pipeline('{eurusd}', workers => 0)", "eurusd"),
    ];
    let calls: Vec<_> = stages.iter().map(|(call, named)| refused(*call, "42501", &[named], &[])).collect();
    let mut nobody = db.connect_as("rights_nobody");
    assert_refused(&db, &mut nobody, &calls);
    assert_refused(
        &db,
        &mut nobody,
        &[refused("SELECT * FROM bqx.verify(pairs => '{eurusd}')", "42501", &["eurusd"], &[])],
    );
    assert_refused(&db, &mut db.connect_as("rights_reader"), &calls);

    // A backfill writes what it was asked for into the ledger, and no row.
    let before =
        [checksum(&db, "SELECT * FROM bqx.bqx_eurusd"), checksum(&db, "SELECT * FROM bqx.month_ledger")];
    for role in ["rights_nobody", "rights_reader"] {
        for options in ["workers => 0", "workers => 1", "workers => 0, force => true"] {
            let error = error_of(
                &mut db.connect_as(role),
                &format!("CALL bqx.backfill(pairs => '{{eurusd}}', {options})"),
            );
            assert_eq!(error.code, "42501", "{role}: {error:?}");
            assert!(format!("{error:?}").contains("eurusd"), "{error:?}");
            let after = [
                checksum(&db, "SELECT * FROM bqx.bqx_eurusd"),
                checksum(&db, "SELECT * FROM bqx.month_ledger"),
            ];
            assert_eq!(after, before, "{role}");
        }
    }
    // Reading is enough to verify.
    run(&mut db.connect_as("rights_reader"), "SELECT * FROM bqx.verify(pairs => '{eurusd}')");
    // The functions that write the ledger are of no use to others.
    for sql in [
        "SELECT bqx._record_baseline('eurusd', now(), now(), 2)",
        "SELECT bqx._mark_baseline_applied('eurusd', 1)",
        "SELECT bqx._keep_reject('eurusd', 's', 1, 'l', 'r')",
        "SELECT bqx._close_run(1)",
        "SELECT bqx._finish_job(1, 'bqx', 'eurusd', '2024-07-01', 'done', 0, now(), 1, 1, 0, 'x', 'x', NULL, NULL, NULL, NULL)",
        "INSERT INTO bqx.pairs (pair) VALUES ('eurtry')",
        "UPDATE bqx.baseline_rates SET baseline_rate = 2",
        "DELETE FROM bqx.rejected_bars",
        "SELECT * FROM bqx.run_ledger",
        "DELETE FROM bqx.month_ledger",
    ] {
        run(
            &mut owner,
            "INSERT INTO bqx.run_ledger (run_id, called_by, arguments) OVERRIDING SYSTEM VALUE VALUES (1, \
                'postgres', '{}') ON CONFLICT (run_id) DO UPDATE SET called_by = 'postgres'",
        );
        assert_eq!(error_of(&mut nobody, sql).code, "42501", "{sql}");
    }
}

#[test]
fn tables_with_dependents_are_dropped_only_with_cascade() {
    let db = Db::new("dependents");
    let mut session = db.connect();
    make_ready(&mut session, "eurusd");
    make_ready(&mut session, "gbpusd");
    run(&mut session, "CALL bqx.backfill('{bqx}', '{gbpusd,eurusd}', workers => 0)");
    run(
        &mut session,
        "CREATE VIEW public.signals AS SELECT ts_utc, w15_bqx_return FROM bqx.bqx_gbpusd; \
         CREATE VIEW public.strong_signals AS SELECT * FROM public.signals WHERE w15_bqx_return > 0.125; \
         CREATE MATERIALIZED VIEW public.july AS SELECT ts_utc, rate_index FROM bqx.bqx_gbpusd_2024_07; \
         CREATE TABLE public.trades (at timestamptz REFERENCES bqx.bqx_gbpusd (ts_utc))",
    );
    let dependents = [
        "view public.signals",
        "view public.strong_signals",
        "materialized view public.july",
        "public.trades",
        "bqx.bqx_gbpusd",
    ];
    let cascade = ["cascade => true"];
    assert_refused(
        &db,
        &mut session,
        &[
            refused("CALL bqx.drop_tables('{bqx}', '{eurusd,gbpusd}')", "2BP01", &dependents, &cascade),
            refused("CALL bqx.drop_tables('{bqx,reg}')", "2BP01", &dependents, &cascade),
            refused("CALL bqx.drop_tables(NULL, '{gbpusd}', false)", "2BP01", &dependents, &cascade),
            refused("CALL bqx.drop_tables('{reg,bqx}', '{gbpusd}', NULL)", "2BP01", &dependents, &cascade),
        ],
    );
    // What nothing depends on goes without.
    run(&mut session, "CALL bqx.drop_tables('{reg}', '{gbpusd}')");

    let told = Arc::new(Mutex::new(Vec::new()));
    let inbox = Arc::clone(&told);
    let mut config = server().connection_config(db.name());
    config.notice_callback(move |notice| {
        inbox
            .lock()
            .unwrap()
            .push((notice.message().to_owned(), notice.detail().unwrap_or_default().to_owned()));
    });
    let mut watched = config.connect(NoTls).unwrap();
    run(&mut watched, "CALL bqx.drop_tables('{bqx}', '{eurusd,gbpusd}', cascade => true)");
    let relations = "SELECT count(*) FROM pg_class WHERE relname IN ('signals', 'strong_signals', 'july') \
        OR relname LIKE 'bqx_%usd%' AND relkind = 'r'";
    assert_eq!(row(&mut session, relations), "0");
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.m1_gbpusd"), "2880", "M1 stays");
    let told = told.lock().unwrap().clone();
    let definitions: Vec<_> = told.iter().filter(|(message, _)| message.contains("goes with")).collect();
    assert_eq!(definitions.len(), 4, "{told:#?}");

    // The definitions make them again.
    run(&mut session, "CALL bqx.create_tables('{bqx}', '{gbpusd}')");
    let mut to_do: Vec<&str> = definitions.iter().map(|(_, definition)| definition.as_str()).collect();
    to_do.sort_by_key(|definition| definition.contains("strong")); // a view's view after it
    for definition in to_do {
        run(&mut session, definition);
    }
    assert_eq!(row(&mut session, "SELECT count(*) FROM public.strong_signals"), "0");
    // What a new table would have to be computed from was forgotten with the old one.
    run(&mut session, "CALL bqx.backfill('{bqx}', '{gbpusd}', workers => 0)");
    assert_eq!(rows_by_month(&mut session, "bqx_gbpusd"), ["2024-07|960", "2024-08|960", "2024-09|960"]);
}

/// Something else has the name of a partition that is to be made.
#[test]
fn names_that_are_taken_are_reported() {
    let db = Db::new("taken_names");
    let mut session = db.connect();
    make_bars(&mut session, "eurusd");
    run(
        &mut session,
        "CREATE TABLE bqx.bqx_eurusd_2024_08 (x int); CREATE TABLE bqx.m1_eurusd_2024_12 (x int)",
    );
    run(&mut session, "CREATE TABLE bqx.m1_gbpusd_2024_07 (x int)");
    let attach = ["ATTACH PARTITION bqx.bqx_eurusd_2024_08"];
    assert_refused(
        &db,
        &mut session,
        &[
            refused(
                "CALL bqx.create_tables('{bqx}', '{eurusd}')",
                "42P07",
                &["bqx.bqx_eurusd_2024_08", "in the way"],
                &attach,
            ),
            refused(
                "CALL bqx.create_m1('{eurusd}', '2024-11-01', '2024-12-01')",
                "42P07",
                &["bqx.m1_eurusd_2024_12"],
                &["ATTACH PARTITION"],
            ),
            refused(
                "CALL bqx.create_m1('{gbpusd}', '2024-06-01', '2024-07-01')",
                "42P07",
                &["bqx.m1_gbpusd_2024_07"],
                &["ATTACH PARTITION"],
            ),
            refused(
                "CALL bqx.simulate_m1('{gbpusd}', '2024-07-01', '2024-07-01')",
                "42P07",
                &["bqx.m1_gbpusd_2024_07"],
                &["ATTACH PARTITION"],
            ),
        ],
    );
}

/// A baseline far from the date asked for is taken, with a warning; a week is not far.
#[test]
fn late_baselines_warn() {
    let db = Db::new("late_baselines");
    let (mut session, notices) = db.connect_with_notices();
    make_bars(&mut session, "eurusd");
    for (date, warns) in
        [("2024-07-25 00:00+00", false), ("2024-07-24 23:59+00", true), ("2024-07-17 00:00+00", true)]
    {
        notices.take();
        run(&mut session, &format!("CALL bqx.set_baselines('{date}', '{{eurusd}}')"));
        let told = notices.take();
        let warned = told.iter().any(|notice| {
            notice.starts_with("WARNING: ") && notice.contains("eurusd") && notice.contains("7 days")
        });
        assert_eq!(warned, warns, "{date}: {told:?}");
        let recorded = "SELECT baseline_time AT TIME ZONE 'UTC', baseline_rate FROM bqx.baseline_rates";
        assert_eq!(row(&mut session, recorded), "2024-08-01 00:00:00|1", "{date}");
    }
}

/// Bars that are somebody's own are never mixed with simulated ones.
#[test]
fn simulated_bars_keep_off_others() {
    let db = Db::new("simulated");
    let mut session = db.connect();
    make_bars(&mut session, "eurusd");
    run(&mut session, "INSERT INTO bqx.pairs (pair) VALUES ('gold24')");
    assert_refused(
        &db,
        &mut session,
        &[
            refused(
                "CALL bqx.simulate_m1('{eurusd}', '2024-08-01', '2024-08-01')",
                "55000",
                &["m1_eurusd", "2024-08"],
                &["DROP TABLE bqx.m1_eurusd"],
            ),
            refused(
                "CALL bqx.simulate_m1('{gold24}', '2024-08-01', '2024-08-01')",
                "55000",
                &["gold24", "currency"],
                &["UPDATE bqx.pairs"],
            ),
        ],
    );
}

#[test]
fn no_free_worker_slot() {
    let cluster =
        bqx_tests::own_server("no-slots", &[("max_worker_processes", "0"), ("max_parallel_workers", "0")]);
    let db = Db::on(&cluster, "no_slots");
    let mut session = db.connect();
    make_ready(&mut session, "eurusd");
    let before = rows_by_month(&mut session, "bqx_eurusd");
    let error = error_of(&mut session, "CALL bqx.backfill(workers => 2, wait => false)");
    assert_eq!(error.code, "53000", "{error:?}");
    assert!(error.hint.contains("CALL bqx.backfill(workers => 0);"), "{error:?}");
    assert_eq!(rows_by_month(&mut session, "bqx_eurusd"), before);
    run(&mut session, "CALL bqx.backfill(workers => 2)"); // this session does the work
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.bqx_eurusd"), "2880");
    assert_eq!(
        row(&mut session, "SELECT count(*) FROM bqx.jobs WHERE state IN ('pending', 'running')"),
        "0",
        "nothing waits for ever"
    );
}
