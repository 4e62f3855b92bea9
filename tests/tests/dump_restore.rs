//! pg_dump and restore bring back everything: registry, ledger, data, triggers; and the stages go on from there.

mod common;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use bqx_tests::{Db, error_of, server};
use common::{row, rows, run, run_each};
use postgres::Client;

/// Tables of the extension whose rows are users'.
const REGISTRY: [&str; 7] =
    ["pairs", "baseline_rates", "rejected_bars", "run_ledger", "job_ledger", "month_ledger", "bar_changes"];

/// A database with something in every table: two pairs, one of them the user's own, with an existing table of another
/// shape; runs that went well, that failed and that were planned; rejected lines; a role's own run.
fn used() -> &'static Db<'static> {
    static USED: OnceLock<Db<'static>> = OnceLock::new();
    USED.get_or_init(|| {
        let db = Db::new("used");
        let mut session = db.connect();
        run_each(
            &mut session,
            &[
                "CREATE ROLE dump_trader LOGIN",
                "INSERT INTO bqx.pairs (pair, base, quote) VALUES ('eurtry', 'EUR', 'TRY'), ('dax40', NULL, NULL)",
                "CALL bqx.simulate_m1('{eurusd}', '2024-07-01', '2024-09-01')",
                "DELETE FROM bqx.m1_eurusd WHERE extract(minute FROM time)::int % 15 <> 0",
                // plain, a timestamp that means UTC, numeric, with others' columns
                "CREATE TABLE bqx.m1_eurtry (time timestamp PRIMARY KEY, close numeric(12,6), source text)",
                "INSERT INTO bqx.m1_eurtry SELECT time AT TIME ZONE 'UTC', close * 30, 'copy' FROM bqx.m1_eurusd",
                "CREATE TABLE bqx.bqx_eurtry (ts_utc timestamptz PRIMARY KEY, rate_index numeric, w15_bqx_avg_index real, \
                 note text DEFAULT 'mine')",
                "CALL bqx.run_pipeline('{eurusd,eurtry}', workers => 0)",
                "UPDATE bqx.m1_eurusd SET close = NULL WHERE time = '2024-08-14 12:00+00'",
            ],
        );
        assert_eq!(error_of(&mut session, "CALL bqx.backfill(workers => 0)").code, "22003");
        run_each(
            &mut session,
            &[
                "UPDATE bqx.m1_eurusd SET close = open WHERE time = '2024-08-14 12:00+00'",
                "CALL bqx.backfill(workers => 0)",
                "INSERT INTO bqx.m1_staging (line) VALUES ('time,open,high,low,close'), \
                 ('2024-09-30 23:59:00,40,41,39,40'), ('2024-09-30 23:58:00,40,39,41,40'), (E'rubbish\\\\N\t\"')",
                "CALL bqx.ingest_m1('dax40', on_bad_row => 'skip')",
                // noted for refresh, and no change in the end
                "UPDATE bqx.m1_eurtry SET close = close * 2 WHERE time = (SELECT max(time) FROM bqx.m1_eurtry)",
                "UPDATE bqx.m1_eurtry SET close = close / 2 WHERE time = (SELECT max(time) FROM bqx.m1_eurtry)",
                "CALL bqx.create_features('{eurusd}', materialized => true)",
                "CALL bqx.create_related('eurusd')",
                "CALL bqx.create_targets('{eurusd}')",
                "CALL bqx.set_baselines('2024-07-01', '{dax40}')",
                "GRANT CREATE ON SCHEMA bqx TO dump_trader",
                "ALTER TABLE bqx.m1_dax40 OWNER TO dump_trader",
                "ALTER TABLE bqx.m1_dax40_2024_09 OWNER TO dump_trader",
            ],
        );
        let mut trader = db.connect_as("dump_trader");
        run_each(
            &mut trader,
            &[
                "CALL bqx.index_m1('{dax40}')",
                "CALL bqx.create_tables('{bqx}', '{dax40}', windows => '{2,3}')",
                "CALL bqx.backfill('{bqx}', '{dax40}', workers => 0)",
            ],
        );
        for table in REGISTRY {
            let filter = if table == "pairs" { "WHERE NOT builtin" } else { "" };
            assert_ne!(row(&mut session, &format!("SELECT count(*) FROM bqx.{table} {filter}")), "0", "{table}");
        }
        db
    })
}

/// A program of the server's installation, for a database of it.
fn program(name: &str, database: &str) -> Command {
    let mut command = Command::new(server().pg_config().bindir.join(name));
    command.env("PGHOST", server().socket_dir()).env("PGUSER", "postgres").env("PGDATABASE", database);
    command.env_remove("PGOPTIONS").env_remove("PGTZ").env_remove("PGSERVICE");
    command
}

/// Runs a program that must neither fail nor complain.
fn output_of(command: &mut Command, input: &[u8]) -> Vec<u8> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let mut pipe = process.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || pipe.write_all(input).unwrap());
        process.wait_with_output().unwrap()
    });
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaints.is_empty(), "{command:?}: {complaints}");
    output.stdout
}

/// Everything in the tables of schema bqx: the registry and the data, with each row's text; columns and triggers.
fn contents(session: &mut Client) -> BTreeSet<String> {
    run(session, "SET TimeZone = 'UTC'; SET search_path = ''");
    let tables = rows(
        session,
        "SELECT c.oid::regclass, c.relkind, c.relowner::regrole, c.relacl, pg_get_expr(c.relpartbound, c.oid), \
                (SELECT string_agg(concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull), ', ' \
                                   ORDER BY a.attnum) \
                   FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), \
                (SELECT string_agg(concat_ws(' ', t.tgname, t.tgenabled, pg_get_triggerdef(t.oid)), ', ' ORDER BY t.tgname) \
                   FROM pg_trigger AS t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal), \
                (SELECT string_agg(pg_get_constraintdef(k.oid), ', ' ORDER BY k.conname) \
                   FROM pg_constraint AS k WHERE k.conrelid = c.oid) \
           FROM pg_class AS c WHERE c.relnamespace = 'bqx'::regnamespace AND c.relkind IN ('r', 'p') ORDER BY 1",
    );
    let with_rows = |session: &mut Client, table: String| {
        let name = table.split('|').next().unwrap().to_owned();
        // CREATE EXTENSION makes the builtin rows, and its time is theirs
        let filter = if name == "bqx.pairs" { "WHERE NOT builtin" } else { "" };
        let query = format!("SELECT count(*), sum(hashtextextended(t::text, 0)) FROM {name} AS t {filter}");
        let rows = row(session, &query);
        format!("{table} {rows}")
    };
    let mut contents: BTreeSet<String> = tables.into_iter().map(|table| with_rows(session, table)).collect();
    let for_training = rows(
        session,
        "SELECT c.oid::regclass::text, c.relkind, obj_description(c.oid, 'pg_class'), pg_get_viewdef(c.oid), \
                (SELECT string_agg(pg_get_indexdef(i.indexrelid), ' ') FROM pg_index AS i WHERE i.indrelid = c.oid) \
           FROM pg_class AS c WHERE c.relnamespace = 'bqx_ml'::regnamespace AND c.relkind IN ('v', 'm') \
          UNION ALL \
         SELECT p.oid::regprocedure::text, p.prokind, obj_description(p.oid, 'pg_proc'), pg_get_functiondef(p.oid), NULL \
           FROM pg_proc AS p WHERE p.pronamespace = 'bqx_ml'::regnamespace AND p.proname ~ '_eurusd$'",
    );
    assert_eq!(for_training.len(), 5, "three views, two functions");
    contents.extend(for_training);
    contents
}

/// The restored database is as the dumped one was, and the work goes on in it.
fn assert_restored(name: &str) {
    let mut session = server().connect(name).unwrap();
    let (before, after) = (contents(&mut used().connect()), contents(&mut session));
    assert!(before.len() > 25);
    let lost: Vec<_> = before.difference(&after).collect();
    let strange: Vec<_> = after.difference(&before).collect();
    assert!(lost.is_empty() && strange.is_empty(), "lost: {lost:#?}\nstrange: {strange:#?}");
    let builtin = "SELECT count(*) FILTER (WHERE builtin), count(*) FROM bqx.pairs";
    assert_eq!(row(&mut session, builtin), "28|30");
    let extension = "SELECT count(*) FROM pg_depend WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e' \
                     AND classid = 'pg_class'::regclass AND objid::regclass::text ~ '^bqx.(m1|bqx|reg)_(eurusd|eurtry)'";
    assert_eq!(row(&mut session, extension), "0", "data tables are no members");
    let acl = "SELECT has_schema_privilege('dump_trader', 'bqx', 'CREATE'), has_table_privilege('dump_trader', 'bqx.jobs', 'SELECT'), \
               has_table_privilege('dump_trader', 'bqx.job_ledger', 'SELECT')";
    assert_eq!(row(&mut session, acl), "t|t|f");
    assert_eq!(faults(&mut session), [""; 0]);

    // Each role sees its own.
    let trader = server().connection_config(name).user("dump_trader").connect(postgres::NoTls);
    let mut trader = trader.unwrap();
    assert_eq!(row(&mut trader, "SELECT count(*), min(called_by) FROM bqx.runs"), "1|dump_trader");
    assert_eq!(row(&mut trader, "SELECT count(*) FROM bqx.rejected_bars"), "0");
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.rejected_bars"), "2");

    // Nothing is to be done.
    let last = row(&mut session, "SELECT max(run_id) FROM bqx.runs");
    run(&mut session, "CALL bqx.index_m1()");
    run(&mut session, "CALL bqx.backfill('{bqx}', workers => 2)");
    run(&mut session, "CALL bqx.backfill('{reg}', '{eurusd,eurtry}', workers => 0)");
    let done = format!(
        "SELECT count(DISTINCT run_id), count(*), sum(rows_written), string_agg(DISTINCT state, ' ') FROM bqx.jobs WHERE run_id > {last}"
    );
    assert_eq!(row(&mut session, &done), "2|13|0|done");
    run(&mut session, "CALL bqx.backfill(ARRAY['bqx'], '{eurusd}', workers => 0, force => true)");
    assert_eq!(row(&mut session, &done), "3|16|0|done");
    assert_eq!(
        row(&mut session, "SELECT count(*), count(DISTINCT run_id) FROM bqx.runs")
            .split_once('|')
            .map(|(a, b)| a == b),
        Some(true)
    );

    // What is for training can be read, and is still ours.
    run(&mut session, "CALL bqx.create_features('{eurusd}', materialized => true)");
    let usage = "SELECT has_schema_privilege('dump_trader', 'bqx_ml', 'USAGE'), has_schema_privilege('dump_trader', 'bqx_ml', 'CREATE')";
    assert_eq!(row(&mut session, usage), "t|f");
    let features = "SELECT count(*) = (SELECT count(*) FROM bqx.m1_eurusd), count(w630_reg_r2) > 0 FROM bqx_ml.features_eurusd";
    assert_eq!(row(&mut session, features), "t|t");
    let plan = rows(&mut session, "EXPLAIN SELECT * FROM bqx_ml.related('eurusd', NULL, NULL)").join("\n");
    assert!(!plan.contains("Function Scan"), "{plan}");

    // Triggers work, in replica sessions, too; so do rejects and new pairs.
    run_each(
        &mut session,
        &[
            "INSERT INTO bqx.m1_eurusd (time, close) SELECT '2024-09-30 23:59+00', 2 * baseline_rate FROM bqx.baseline_rates \
             WHERE pair = 'eurusd'",
            "SET session_replication_role = replica",
            "INSERT INTO bqx.m1_eurusd_2024_09 (time, close) SELECT '2024-09-30 23:58+00', 0.5 * baseline_rate \
             FROM bqx.baseline_rates WHERE pair = 'eurusd'",
            "RESET session_replication_role",
            "INSERT INTO bqx.m1_eurtry (time, close) VALUES ('2024-09-30 23:59', 31.5)",
            "INSERT INTO bqx.pairs (pair) VALUES ('after')",
        ],
    );
    let indexes = "SELECT string_agg(rate_index::text, ' ' ORDER BY time) FROM bqx.m1_eurusd WHERE time >= '2024-09-30 23:58+00'";
    assert_eq!(row(&mut session, indexes), "50 200");
    run_each(
        &mut session,
        &[
            "CALL bqx.backfill(ARRAY['bqx', 'reg'], ARRAY['eurusd', 'eurtry'], workers => 2)",
            "INSERT INTO bqx.m1_staging (line) VALUES ('2024-09-30 23:57:00,40,41,39,rubbish')",
            "CALL bqx.ingest_m1('dax40', format => 'csv', on_bad_row => 'skip')",
        ],
    );
    assert_eq!(faults(&mut session), [""; 0]);
    let ids = "SELECT count(*) = count(DISTINCT rejected_id), max(rejected_id) > 2 FROM bqx.rejected_bars";
    assert_eq!(row(&mut session, ids), "t|t");
}

/// What verification finds; the trader's pair has one family only.
fn faults(session: &mut Client) -> Vec<String> {
    let query = "SELECT check_name, family, pair, month, detail FROM bqx.verify(pairs => '{eurusd,eurtry}') \
                  WHERE ok IS NOT TRUE UNION ALL \
                 SELECT check_name, family, pair, month, detail FROM bqx.verify('{bqx}', '{dax40}') WHERE ok IS NOT TRUE";
    rows(session, query)
}

/// A place for a dump.
fn dump_file(name: &str) -> PathBuf {
    server().directory().join(name)
}

#[test]
fn a_plain_dump_restores() {
    let dump = output_of(&mut program("pg_dump", used().name()), b"");
    server().create_database("plain").unwrap();
    output_of(program("psql", "plain").args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null"]), &dump);
    assert_restored("plain");
    // A dump of what was restored says the same.
    server().create_database("again").unwrap();
    let mut used_dump = output_of(&mut program("pg_dump", used().name()), b"");
    output_of(program("psql", "again").args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null"]), &dump);
    let mut dump_again = output_of(&mut program("pg_dump", "again"), b"");
    for dump in [&mut used_dump, &mut dump_again] {
        let text = String::from_utf8(std::mem::take(dump)).unwrap();
        // newer versions of pg_dump put a random key around the text
        let lines =
            text.lines().filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
        *dump = lines.collect::<Vec<_>>().join("\n").into_bytes();
    }
    assert!(used_dump == dump_again, "a dump of the restored database differs");
}

#[test]
fn a_custom_dump_restores_in_one_transaction() {
    let file = dump_file("custom.dump");
    output_of(program("pg_dump", used().name()).arg("-Fc").arg("-f").arg(&file), b"");
    server().create_database("custom").unwrap();
    output_of(program("pg_restore", "custom").args(["--single-transaction", "-d", "custom"]).arg(&file), b"");
    assert_restored("custom");
}

#[test]
fn a_directory_dump_restores_in_parallel() {
    let directory = dump_file("dump");
    output_of(program("pg_dump", used().name()).args(["-Fd", "-j2"]).arg("-f").arg(&directory), b"");
    server().create_database("directory").unwrap();
    output_of(
        program("pg_restore", "directory")
            .args(["-j2", "--exit-on-error", "-d", "directory"])
            .arg(&directory),
        b"",
    );
    assert_restored("directory");
}

#[test]
fn a_dump_of_rows_restores_into_a_fresh_installation() {
    // As INSERTs, which name the columns, generated identities included.
    let dump = output_of(
        program("pg_dump", used().name()).args([
            "--data-only",
            "--column-inserts",
            "-t",
            "bqx.*_ledger",
            "-t",
            "bqx.bar_changes",
            "-t",
            "bqx.pairs",
            "-t",
            "bqx.baseline_rates",
        ]),
        b"",
    );
    let db = Db::new("rows_only");
    output_of(
        program("psql", db.name()).args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null"]),
        &dump,
    );
    let count = |table: &str| row(&mut db.connect(), &format!("SELECT count(*) FROM bqx.{table}"));
    for table in ["pairs", "baseline_rates", "run_ledger", "job_ledger", "month_ledger", "bar_changes"] {
        assert_eq!(
            count(table),
            row(&mut used().connect(), &format!("SELECT count(*) FROM bqx.{table}")),
            "{table}"
        );
    }
}
