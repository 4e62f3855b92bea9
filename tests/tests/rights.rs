//! Rights and hostile surroundings: what a role can't do without bqx it can't do with it, and what it sees of others is
//! what PostgreSQL shows. Policies, read-only servers, publications, settings and names of every kind change no bit, or
//! are refused before anything is written.

mod common;
mod two_pairs;

use bqx_tests::{Db, SqlError, error_of, own_server};
use common::backfilled::{PREPARED, faults, prepare, wait_until};
use common::{attempt, checksum, checksums, picture, row, rows, run, run_each};
use pgcluster::StopMode;
use postgres::Client;
use two_pairs::{cluster, expected, filled, prepared};

/// Roles are of the whole server: each test has its own.
fn make_roles(session: &mut Client, roles: &[&str]) {
    for role in roles {
        run(session, &format!("CREATE ROLE {role}"));
    }
}

/// All rights on all data tables, short of owning them.
fn grant_data(session: &mut Client, role: &str) {
    let tables = rows(
        session,
        "SELECT oid::regclass FROM pg_class WHERE relnamespace = 'bqx'::regnamespace AND relkind IN ('r', 'p') \
            AND relname ~ '^(m1|bqx|reg)_(eurusd|usdjpy)'",
    );
    for table in tables {
        run(session, &format!("GRANT ALL ON {table} TO {role}"));
    }
}

/// Gives everything of the data tables to a role, partitions included.
fn give_data(session: &mut Client, role: &str) {
    run(session, &format!("GRANT CREATE ON SCHEMA bqx TO {role}"));
    let tables = rows(
        session,
        "SELECT oid::regclass FROM pg_class WHERE relnamespace = 'bqx'::regnamespace AND relkind IN ('r', 'p') \
            AND relname ~ '^(m1|bqx|reg)_(eurusd|usdjpy)'",
    );
    for table in tables {
        run(session, &format!("ALTER TABLE {table} OWNER TO {role}"));
    }
}

/// Each call must fail with this code, a message and a hint with these parts; nothing stored may change.
fn assert_all_refused(db: &Db, session: &mut Client, calls: &[&str], code: &str, message: &str, hint: &str) {
    let before = picture(db);
    for call in calls {
        let error = error_of(session, call);
        let as_expected = error.code == code && error.message.contains(message) && error.hint.contains(hint);
        assert!(as_expected, "{call}\n{error:?}");
    }
    assert_eq!(picture(db), before);
}

fn code_of(result: Result<(), SqlError>) -> String {
    result.err().map_or("no error".to_owned(), |error| error.code)
}

// Internal functions

/// Arguments of a type that a function may not be ready for.
fn hostile_arguments(sql_type: &str) -> Vec<String> {
    let relations = "0 1259 4294967295 'pg_authid'::regclass 'bqx.m1_eurusd'::regclass \
                     'bqx.bqx_eurusd_2024_07'::regclass 'bqx.bqx_eurusd_pkey'::regclass 'bqx.runs'::regclass \
                     'bqx.run_ledger'::regclass 'bqx.run_ledger_run_id_seq'::regclass 'bqx._finding'::regclass";
    let texts =
        "'' 'bqx' 'reg' 'eurusd' 'usdjpy' 'done' 'run' 'auto' 'time' repeat('x',100000) E'a''b\"\\\\;%s'";
    let times = "'-infinity' 'infinity' '2024-07-01' '2024-08-31' '4713-01-01+BC' '5874897-01-01'";
    let values = match sql_type {
        "oid" | "regclass" => relations,
        "text" => texts,
        "name" => "'' 'bqx' 'rights_stranger' 'postgres' 'nobody'",
        "integer" => "0 1 -1 15 1000 2147483647 -2147483648",
        "bigint" => "0 1 -1 2 9223372036854775807 -9223372036854775808",
        "double precision" => "0 1 -1 'NaN' 'Infinity' 1e308 5e-324",
        "date" => times,
        "timestamp with time zone" | "timestamp without time zone" => {
            "'-infinity' 'infinity' '2024-07-01' '2024-08-31' '4713-01-01+BC' '294276-01-01'"
        }
        "boolean" => "true false",
        "jsonb" => "'{}' 'null' '[1]'",
        "bytea" => "'' '\\x00' decode(repeat('ff',1000),'hex')",
        "interval" => "'1+day' '-178000000+years'",
        _ => "NULL",
    };
    values.split_whitespace().map(|value| format!("({})::{sql_type}", value.replace('+', " "))).collect()
}

fn argument(sql_type: &str, choice: usize) -> String {
    if sql_type == "internal" {
        return "NULL".to_owned();
    }
    let Some(element) = sql_type.strip_suffix("[]") else {
        let values = hostile_arguments(sql_type);
        return if choice.is_multiple_of(9) {
            format!("NULL::{sql_type}")
        } else {
            values[choice % values.len()].clone()
        };
    };
    let elements: Vec<String> =
        (0..[0, 1, 2, 40][choice % 4]).map(|i| argument(element, choice + i)).collect();
    format!("ARRAY[{}]::{sql_type}", elements.join(", "))
}

/// Calls of every function and procedure with arguments of all kinds.
fn hostile_calls(session: &mut Client) -> Vec<String> {
    let functions = rows(
        session,
        "SELECT proname, prokind, proretset AND prorettype = 'record'::regtype AND proargmodes IS NULL, \
                array_to_string(ARRAY(SELECT format_type(t, NULL) FROM unnest(proargtypes) AS t), ';') \
           FROM pg_proc WHERE pronamespace = 'bqx'::regnamespace AND prokind IN ('f', 'p') \
            AND proname <> '_await_workers' AND prorettype <> 'trigger'::regtype ORDER BY oid",
    );
    let mut calls = Vec::new();
    for function in functions {
        let parts: Vec<&str> = function.split('|').collect();
        let [name, kind, is_record, types] = parts[..] else { panic!("{function}") };
        let types: Vec<&str> = types.split(';').filter(|t| !t.is_empty()).collect();
        for choice in 0..if types.is_empty() { 1 } else { 14 } {
            // each argument goes through its values at a pace of its own
            let arguments: Vec<String> =
                types.iter().enumerate().map(|(i, t)| argument(t, choice * (i + 1) + i)).collect();
            let arguments = arguments.join(", ");
            calls.push(match (kind, is_record) {
                ("p", _) => format!("CALL bqx.{name}({arguments})"),
                (_, "t") => format!("SELECT * FROM bqx.{name}({arguments}) AS c (ts timestamptz, v float8)"),
                _ => format!("SELECT (bqx.{name}({arguments}))::text"),
            });
        }
    }
    calls
}

/// Ledger entries of other roles, and everything that is no ledger.
fn picture_but_of(db: &Db, role: &str) -> Vec<String> {
    let mut picture = picture(db);
    picture.retain(|line| !line.starts_with("bqx.run_ledger|"));
    picture.push(checksum(db, &format!("SELECT * FROM bqx.run_ledger WHERE called_by <> '{role}'")));
    picture
}

#[test]
fn no_internal_function_crashes_or_does_a_stranger_a_favour() {
    let own = own_server("rights-strangers", &[("max_worker_processes", "20")]);
    let db = Db::on(&own, "strangers");
    prepare(&db);
    let mut admin = db.connect();
    run_each(&mut admin, &["CALL bqx.create_tables()", "CALL bqx.backfill('{bqx}', workers => 0)"]);
    run(&mut admin, "CREATE ROLE rights_stranger LOGIN");
    leave_a_run(&mut admin);
    let calls = hostile_calls(&mut admin);
    assert!(calls.len() > 1500, "{} calls", calls.len());

    let before = picture_but_of(&db, "rights_stranger");
    let postmaster = own.postmaster_pid().unwrap();
    let mut stranger = db.connect_as("rights_stranger");
    run(&mut stranger, "SET statement_timeout = '2s'; SET client_min_messages = error");
    let mut answers = 0;
    for call in &calls {
        answers += usize::from(attempt(&mut stranger, call).is_ok());
    }
    assert!(answers > 100, "only {answers} of {} calls got an answer", calls.len());
    assert_eq!(picture_but_of(&db, "rights_stranger"), before);
    assert_eq!(
        row(&mut admin, "SELECT count(*) FROM pg_class WHERE relowner = 'rights_stranger'::regrole"),
        "0"
    );

    // A superuser may break what he likes, but not the server.
    let mut superuser = Db::on(&own, "superuser").connect();
    run(&mut superuser, "SET statement_timeout = '2s'; SET client_min_messages = error");
    for statement in
        ["CALL bqx.simulate_m1('{eurusd}', to_month => '2024-07-01')", "CALL bqx.create_tables()"]
    {
        let _ = attempt(&mut superuser, statement);
    }
    for call in &calls {
        let _ = attempt(&mut superuser, call);
    }
    drop(superuser);
    assert_eq!(own.postmaster_pid().unwrap(), postmaster);
    let log = std::fs::read_to_string(own.log_file()).unwrap();
    let crashes: Vec<&str> =
        log.lines().filter(|line| line.contains("terminated by signal") || line.contains("PANIC")).collect();
    assert_eq!(crashes, [""; 0]);
}

/// A direct call that fills a table of the caller's own, made in the same transaction.
fn fill(tables: &str, families: &str) -> String {
    format!(
        "SELECT * FROM bqx._fill_partitions('{families}', 'bqx.m1_eurusd'::regclass, '2024-07-01 00:00+00', \
            '2024-08-01 00:00+00', ARRAY[{tables}]::regclass[]::oid[], '{{x}}')"
    )
}

#[test]
fn rows_go_past_the_executor_only_where_it_would_not_object() {
    let db = prepared("rights_fill");
    let mut admin = db.connect();
    make_roles(&mut admin, &["fill_owner LOGIN", "fill_other LOGIN"]);
    run_each(
        &mut admin,
        &[
            "GRANT SELECT ON bqx.m1_eurusd TO fill_owner, fill_other",
            "GRANT CREATE ON SCHEMA public TO fill_owner",
            "CREATE EXTENSION btree_gist",
            "CALL bqx.create_tables('{bqx}', '{eurusd}')",
            "GRANT ALL ON bqx.bqx_eurusd_2024_07 TO fill_owner",
            "CREATE VIEW public.a_view AS SELECT now() AS ts_utc",
        ],
    );
    let mut owner = db.connect_as("fill_owner");
    let columns = "ts_utc timestamptz, rate_index float8, w15_bqx_return float8";
    // What the executor would have looked at, row by row, keeps the rows out; so does what is no table of the caller's.
    let cases: &[(&str, &str)] = &[
        (&format!("CREATE TABLE t ({columns}, CHECK (rate_index < 0))"), "42501"),
        (&format!("CREATE TABLE t ({columns}, CONSTRAINT other CHECK (rate_index > 0))"), "42501"),
        ("CREATE TABLE t (ts_utc timestamptz, w15_bqx_return float8 NOT NULL)", "42501"),
        ("CREATE TABLE t (ts_utc timestamptz, rate_index float8 GENERATED ALWAYS AS (1) STORED)", "42804"),
        (
            "CREATE DOMAIN d AS float8 CHECK (VALUE < 0); CREATE TABLE t (ts_utc timestamptz, rate_index d)",
            "42804",
        ),
        ("CREATE TABLE t (ts_utc timestamptz, id int GENERATED ALWAYS AS IDENTITY)", "42703"),
        (&format!("CREATE TABLE t ({columns}); CREATE RULE r AS ON INSERT TO t DO INSTEAD NOTHING"), "42501"),
        (&format!("CREATE TABLE t ({columns}); ALTER TABLE t ENABLE ROW LEVEL SECURITY"), "42501"),
        (&format!("CREATE TABLE t ({columns}); REVOKE INSERT ON t FROM fill_owner"), "42501"),
        (&format!("CREATE TABLE t ({columns}, UNIQUE (ts_utc) DEFERRABLE)"), "42501"),
        (&format!("CREATE TABLE t ({columns}, EXCLUDE USING gist (abs(rate_index) WITH <>))"), "42501"),
        (
            &format!(
                "CREATE TABLE p ({columns}) PARTITION BY RANGE (ts_utc); \
                 CREATE TABLE t PARTITION OF p FOR VALUES FROM ('2024-07-02') TO ('2024-09-01')"
            ),
            "42501",
        ),
        (
            &format!(
                "CREATE TABLE p ({columns}) PARTITION BY RANGE (rate_index); \
                 CREATE TABLE t PARTITION OF p FOR VALUES FROM (0) TO (1000)"
            ),
            "42501",
        ),
        (&format!("CREATE TABLE t ({columns}) PARTITION BY RANGE (ts_utc)"), "42501"),
        ("CREATE VIEW t AS SELECT now() AS ts_utc", "42501"),
        ("CREATE MATERIALIZED VIEW t AS SELECT now() AS ts_utc", "42501"),
        ("CREATE TABLE u (ts_utc timestamptz); CREATE INDEX t ON u (ts_utc)", "42809"),
        ("CREATE SEQUENCE t", "42501"),
        ("CREATE TYPE t AS (ts_utc timestamptz)", "42809"),
    ];
    for (make, code) in cases {
        run(&mut owner, "BEGIN");
        run(&mut owner, make);
        assert_eq!(code_of(attempt(&mut owner, &fill("'t'", "{bqx}"))), *code, "{make}");
        run(&mut owner, "ROLLBACK");
    }
    let others = [
        "pg_authid",
        "bqx.bqx_eurusd",
        "bqx.bqx_eurusd_2024_07",
        "bqx.run_ledger",
        "bqx.m1_eurusd",
        "a_view",
    ];
    for other in others {
        assert_eq!(code_of(attempt(&mut owner, &fill(&format!("'{other}'"), "{bqx}"))), "42501", "{other}");
    }
    // TRUNCATE gives another's partition new storage, and no more right to put rows into it.
    run(&mut owner, "BEGIN; TRUNCATE bqx.bqx_eurusd_2024_07");
    assert_eq!(code_of(attempt(&mut owner, &fill("'bqx.bqx_eurusd_2024_07'", "{bqx}"))), "42501");
    run(&mut owner, "ROLLBACK");
    // Another session's temporary table.
    let mut other = db.connect_as("fill_other");
    run(&mut other, "CREATE TEMP TABLE theirs (ts_utc timestamptz)");
    let theirs = row(&mut other, "SELECT 'theirs'::regclass::oid");
    assert_eq!(code_of(attempt(&mut admin, &fill(&theirs, "{bqx}"))), "42501");

    for (tables, families) in [("'t'", "{bqx,bqx}"), ("'t','t'", "{bqx}"), ("", "{bqx}"), ("'t'", "{}")] {
        run(&mut owner, &format!("BEGIN; CREATE TABLE t ({columns})"));
        assert_eq!(code_of(attempt(&mut owner, &fill(tables, families))), "22023", "{families} {tables}");
        run(&mut owner, "ROLLBACK");
    }

    // Where the executor would let them pass, the rows are the same as its own.
    let right = "SELECT count(*), bool_and(t.rate_index = m.rate_index) FROM t JOIN bqx.m1_eurusd AS m ON m.time = t.ts_utc";
    let bars = row(&mut owner, "SELECT count(*) FROM bqx.m1_eurusd WHERE time < '2024-08-01 00:00+00'");
    for make in [
        format!("CREATE TABLE t ({columns})"),
        format!("CREATE TEMP TABLE t ({columns})"),
        format!("CREATE UNLOGGED TABLE t ({columns})"),
        format!("CREATE TABLE t (x int, {columns}, y text); ALTER TABLE t DROP COLUMN x, DROP COLUMN y"),
        format!("CREATE TABLE t ({columns}); CREATE INDEX ON t ((rate_index * 2)) WHERE rate_index > 100"),
        format!("CREATE TABLE u ({columns}); CREATE TABLE t () INHERITS (u)"),
        format!(
            "CREATE TABLE p ({columns}) PARTITION BY RANGE (ts_utc); \
             CREATE TABLE t PARTITION OF p FOR VALUES FROM ('2024-07-01 00:00+00') TO ('2024-08-01 00:00+00')"
        ),
    ] {
        run(&mut owner, &format!("BEGIN; {make}"));
        run(&mut owner, &fill("'t'", "{bqx}"));
        run(&mut owner, "COMMIT");
        assert_eq!(row(&mut owner, right), format!("{bars}|t"), "{make}");
        run(&mut owner, "DROP TABLE IF EXISTS p, t, u CASCADE");
    }
    // Of a table that is changed, or looked at by a function of an index, while it is filled.
    run_each(
        &mut owner,
        &[
            "CREATE FUNCTION public.meddle() RETURNS timestamptz LANGUAGE plpgsql AS \
                $$ BEGIN EXECUTE current_setting('meddle.how'); RETURN '2024-07-01 00:00+00'; END $$",
            "CREATE VIEW public.m1_view AS SELECT public.meddle() AS time, 1.0::float8 AS close, 1.0::float8 AS rate_index",
        ],
    );
    for (how, code) in [
        ("DROP TABLE t", "55006"),
        ("TRUNCATE t", "55006"),
        ("ALTER TABLE t ADD COLUMN agg_bqx_return float8", "55006"),
        ("ALTER TABLE t ALTER rate_index TYPE real", "55006"),
        ("ALTER TABLE t RENAME TO t2", "no error"),
        ("INSERT INTO t VALUES (now(), 1)", "no error"),
        ("CLOSE ALL", "no error"),
    ] {
        // no window: each bar is read once
        run(&mut owner, "BEGIN; CREATE TABLE t (ts_utc timestamptz, rate_index float8)");
        run(&mut owner, &format!("SET LOCAL meddle.how = '{how}'"));
        let call = fill("'t'", "{bqx}").replace("bqx.m1_eurusd", "public.m1_view");
        assert_eq!(code_of(attempt(&mut owner, &call)), code, "{how}");
        run(&mut owner, "ROLLBACK");
    }
}

#[test]
fn an_index_runs_functions_as_its_tables_owner() {
    let db = prepared("rights_index");
    let mut admin = db.connect();
    make_roles(&mut admin, &["index_owner LOGIN"]);
    run(&mut admin, "CALL bqx.create_tables()");
    give_data(&mut admin, "index_owner");
    run_each(
        &mut admin,
        &[
            "CREATE TABLE public.runs_as (who name); GRANT INSERT ON public.runs_as TO PUBLIC",
            "CREATE FUNCTION public.told(value float8) RETURNS float8 LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN \
                IF current_user <> 'index_owner' THEN RAISE 'told runs as %', current_user; END IF; RETURN value; END $$",
            "SET ROLE index_owner",
            "CREATE INDEX ON bqx.bqx_eurusd (public.told(rate_index))",
            "RESET ROLE",
            // the partitions, empty as they are, are filled by a superuser
            "CALL bqx.backfill('{bqx}', '{eurusd}', workers => 0)",
        ],
    );
    assert_eq!(row(&mut admin, "SELECT count(*) > 9000 FROM bqx.bqx_eurusd"), "t");
}

// Row-level security

/// A policy on one table that hides August from everyone whom policies concern.
fn hide_august(session: &mut Client, table: &str, time: &str, force: bool) {
    run_each(
        session,
        &[
            format!("ALTER TABLE bqx.{table} ENABLE ROW LEVEL SECURITY"),
            format!(
                "CREATE POLICY no_august ON bqx.{table} USING (extract(month FROM {time} AT TIME ZONE 'UTC') <> 8)"
            ),
        ],
    );
    if force {
        run(session, &format!("ALTER TABLE bqx.{table} FORCE ROW LEVEL SECURITY"));
    }
}

const APPLIES: [&str; 2] = ["row-level security of bqx.", "BYPASSRLS"];

#[test]
fn policies_that_apply_to_the_caller_are_no_bars_that_are_missing() {
    let db = prepared("rights_rls_m1");
    let mut admin = db.connect();
    make_roles(&mut admin, &["rls_m1_worker LOGIN", "rls_m1_owner LOGIN", "rls_m1_bypass LOGIN BYPASSRLS"]);
    run(&mut admin, "CALL bqx.create_tables()");
    give_data(&mut admin, "rls_m1_owner");
    for role in ["rls_m1_worker", "rls_m1_bypass"] {
        grant_data(&mut admin, role);
    }
    hide_august(&mut admin, "m1_eurusd", "time", false);

    let stages = [
        "CALL bqx.set_baselines('2024-08-01', '{eurusd}')",
        "CALL bqx.index_m1('{eurusd}')",
        "CALL bqx.backfill(pairs => '{eurusd}', workers => 0)",
        "CALL bqx.backfill(workers => 2)",
        "CALL bqx.run_pipeline('{eurusd}', workers => 0)",
        "CALL bqx.simulate_m1('{eurusd}', '2024-08-01', '2024-08-01')",
        "SELECT * FROM bqx.verify(pairs => '{eurusd}')",
    ];
    let [message, hint] = APPLIES;
    assert_all_refused(&db, &mut db.connect_as("rls_m1_worker"), &stages, "42501", message, hint);
    let mut worker = db.connect_as("rls_m1_worker");
    run(&mut worker, "INSERT INTO bqx.m1_staging (line) VALUES ('2024-08-05T00:00:00Z,1,1,1,1')");
    let error = error_of(&mut worker, "CALL bqx.ingest_m1('eurusd', 'csv')");
    assert_eq!((error.code.as_str(), error.message.contains(message)), ("42501", true), "{error:?}");
    // A setting of the role makes no difference, but that PostgreSQL itself refuses to read.
    run(&mut admin, "ALTER ROLE rls_m1_worker SET row_security = off");
    assert_all_refused(&db, &mut db.connect_as("rls_m1_worker"), &stages, "42501", "row-level security", "");
    // Nor does owning the table, where policies are forced on its owner.
    run(&mut admin, "ALTER TABLE bqx.m1_eurusd FORCE ROW LEVEL SECURITY");
    assert_all_refused(&db, &mut db.connect_as("rls_m1_owner"), &stages, "42501", message, hint);
    run(&mut admin, "ALTER TABLE bqx.m1_eurusd NO FORCE ROW LEVEL SECURITY");

    // What is reported is what the role sees.
    let months = "SELECT months_total FROM bqx.completion_report() WHERE pair = 'eurusd' AND family = 'bqx'";
    run(&mut admin, "ALTER ROLE rls_m1_worker RESET row_security");
    assert_eq!(row(&mut db.connect_as("rls_m1_worker"), months), "2");
    assert_eq!(row(&mut db.connect_as("rls_m1_bypass"), months), "3");

    // Whom no policy concerns: the same bits.
    run(&mut db.connect_as("rls_m1_bypass"), "CALL bqx.backfill('{bqx}', workers => 2)");
    run(&mut db.connect_as("rls_m1_owner"), "CALL bqx.backfill(workers => 0)");
    assert_eq!(checksums(&db), *expected());
    assert_eq!(faults(&mut db.connect_as("rls_m1_bypass")), [""; 0]);
}

#[test]
fn policies_of_derived_tables_and_of_single_partitions() {
    for (name, table, time, refused) in [
        ("derived", "bqx_eurusd", "ts_utc", true),
        ("derived_partition", "bqx_eurusd_2024_08", "ts_utc", false),
        ("m1_partition", "m1_eurusd_2024_08", "time", false),
    ] {
        let db = prepared(&format!("rights_rls_{name}"));
        let mut admin = db.connect();
        let [worker, owner] = ["worker", "owner"].map(|role| format!("rls_{name}_{role}"));
        make_roles(&mut admin, &[&format!("{worker} LOGIN"), &format!("{owner} LOGIN")]);
        run(&mut admin, "CALL bqx.create_tables()");
        give_data(&mut admin, &owner);
        grant_data(&mut admin, &worker);
        hide_august(&mut admin, table, time, false);
        let calls = ["CALL bqx.backfill(workers => 0)", "SELECT * FROM bqx.verify()"];
        if refused {
            let [message, hint] = APPLIES;
            assert_all_refused(&db, &mut db.connect_as(&worker), &calls, "42501", message, hint);
        } else {
            // Through its parent, a partition's policies concern nobody.
            run_each(&mut db.connect_as(&worker), &calls);
            assert_eq!(checksums(&db), *expected(), "{name}");
            run(&mut admin, "TRUNCATE bqx.bqx_eurusd, bqx.reg_eurusd, bqx.bqx_usdjpy, bqx.reg_usdjpy");
        }
        run_each(&mut db.connect_as(&owner), &calls);
        assert_eq!(checksums(&db), *expected(), "{name}");
        if time == "time" {
            // index_m1 updates each partition on its own.
            run(&mut admin, &format!("ALTER TABLE bqx.{table} FORCE ROW LEVEL SECURITY"));
            run(&mut admin, "CALL bqx.set_baselines('2024-07-02', '{eurusd}')");
            let error = error_of(&mut db.connect_as(&owner), "CALL bqx.index_m1('{eurusd}')");
            assert_eq!((error.code.as_str(), error.message.contains(table)), ("42501", true), "{error:?}");
            let stale = "SELECT count(*) FROM bqx.m1_eurusd AS m, bqx.baseline_rates AS b WHERE b.pair = 'eurusd' \
                            AND m.rate_index = bqx.rate_index(m.close, b.baseline_rate)";
            assert_eq!(row(&mut admin, stale), "0", "nothing was indexed anew");
        }
    }
}

#[test]
fn a_trigger_that_secures_every_new_table_is_no_obstacle() {
    let own = own_server("rights-event-trigger", &[("max_worker_processes", "20")]);
    let db = Db::on(&own, "event_trigger");
    prepare(&db);
    let mut session = db.connect();
    run_each(
        &mut session,
        &[
            "CREATE FUNCTION public.secure() RETURNS event_trigger LANGUAGE plpgsql AS $$ DECLARE made record; BEGIN \
                FOR made IN SELECT * FROM pg_event_trigger_ddl_commands() WHERE object_type = 'table' LOOP \
                    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', made.object_identity); END LOOP; END $$",
            "CREATE EVENT TRIGGER secure ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION public.secure()",
            "CALL bqx.create_tables(from_month => '2024-07-01', to_month => '2024-07-01')",
            "ALTER TABLE bqx.bqx_usdjpy DISABLE ROW LEVEL SECURITY",
            "CALL bqx.backfill(workers => 2)",
        ],
    );
    assert_eq!(checksums(&db), *expected());
    let open = "SELECT count(*) FROM pg_class WHERE relnamespace = 'bqx'::regnamespace AND NOT relrowsecurity \
                   AND relname ~ '^(bqx|reg)_.*_2024_0[89]$' AND relkind = 'r'";
    assert_eq!(row(&mut session, open), "0");
}

// Servers and sessions that can't write

/// Every stage that commits.
const COMMITTING_STAGES: [&str; 9] = [
    "CALL bqx.create_m1('{gbpusd}')",
    "CALL bqx.load_m1('eurusd', '/nonexistent')",
    "CALL bqx.ingest_m1('eurusd')",
    "CALL bqx.simulate_m1('{gbpusd}')",
    "CALL bqx.index_m1()",
    "CALL bqx.create_tables()",
    "CALL bqx.drop_tables('{bqx}')",
    "CALL bqx.backfill(workers => 1)",
    "CALL bqx.run_pipeline()",
];

#[test]
fn nothing_begins_in_a_session_that_may_only_read() {
    let db = filled("rights_read_only");
    let mut session = db.connect();
    run(&mut session, "SET default_transaction_read_only = on");
    let resume = ["CALL bqx.resume(1)", "SELECT bqx.cancel(1)"];
    let stages = [&COMMITTING_STAGES[..], &resume].concat();
    assert_all_refused(
        &db,
        &mut session,
        &stages,
        "25006",
        "cannot run in a read-only transaction",
        "SET default_transaction_read_only = off",
    );
    assert_all_refused(&db, &mut session, &["CALL bqx.set_baselines()"], "25006", "read-only", "");
    assert_eq!(faults(&mut session), [""; 0]);
    run(&mut session, "SELECT * FROM bqx.dashboard");

    // The stages' own word counts for workers, too.
    let mut admin = db.connect();
    make_roles(&mut admin, &["read_only_role LOGIN"]);
    give_data(&mut admin, "read_only_role");
    run(&mut admin, "ALTER ROLE read_only_role SET default_transaction_read_only = on");
    run(&mut admin, "TRUNCATE bqx.bqx_eurusd, bqx.reg_eurusd, bqx.bqx_usdjpy, bqx.reg_usdjpy");
    let mut session = db.connect_as("read_only_role");
    assert_eq!(error_of(&mut session, "CALL bqx.backfill(workers => 2)").code, "25006");
    run_each(&mut session, &["SET default_transaction_read_only = off", "CALL bqx.backfill(workers => 2)"]);
    assert_eq!(checksums(&db), *expected());
    assert_eq!(row(&mut session, "SELECT min(worker) > 0 FROM bqx.jobs"), "t");
}

#[test]
fn a_standby_shows_everything_and_begins_nothing() {
    let own = own_server("rights-standby", &[("max_worker_processes", "20")]);
    let db = Db::on(&own, "standby");
    prepare(&db);
    let mut session = db.connect();
    run_each(&mut session, &["CALL bqx.create_tables()", "CALL bqx.backfill(workers => 2)"]);
    run(&mut session, "SELECT bqx._add_jobs(bqx._open_run('{}'), 'eurusd', '{bqx,reg}', '{2024-08-01}')");
    let views = [
        "SELECT run_id, called_by, arguments FROM bqx.runs",
        "SELECT run_id, family, pair, month, rows_written, error FROM bqx.jobs",
        "SELECT run_id, family, jobs_total, jobs_done, percent, rows_written FROM bqx.progress",
        "SELECT family, pair, months_done, percent FROM bqx.pair_progress",
        "SELECT * FROM bqx.recent",
        "SELECT * FROM bqx.storage",
        "SELECT line FROM bqx.dashboard WHERE line LIKE 'last%'",
        "SELECT * FROM bqx.completion_report()",
        "SELECT check_name, family, pair, month, ok FROM bqx.verify()",
        "SELECT count(*), sum(w15_bqx_return) FROM bqx.bqx_metrics('eurusd')",
        "SELECT count(*), sum(w60_reg_a) FROM bqx.reg_metrics('eurusd')",
        "SELECT sum((m).bqx_avg) FROM (SELECT bqx.bqx_window_metrics(close) OVER (ORDER BY time ROWS 5 PRECEDING) AS m \
            FROM bqx.m1_eurusd) AS windows",
    ];
    let shown = |db: &Db| views.map(|view| rows(&mut db.connect(), view));
    let on_primary = shown(&db);
    drop(session);

    own.stop(StopMode::Fast).unwrap();
    let signal = own.data_dir().join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    own.account().own(&signal).unwrap();
    own.start_again().unwrap();
    let mut session = db.connect();
    assert_eq!(row(&mut session, "SELECT pg_is_in_recovery()"), "t");
    assert_eq!(shown(&db), on_primary);
    assert_eq!(rows(&mut session, "SELECT state FROM bqx.runs"), ["done", "unknown"]);
    assert!(row(&mut session, "SELECT line FROM bqx.dashboard WHERE line LIKE 'run%'").contains("2 unknown"));
    for call in [&COMMITTING_STAGES[..], &["CALL bqx.resume(2)", "SELECT bqx.cancel(2)"]].concat() {
        let error = error_of(&mut session, call);
        assert_eq!(error.code, "25006", "{call} {error:?}");
        assert!(error.message.contains("on a standby server") && error.hint.contains("primary"), "{error:?}");
    }
    assert_eq!(error_of(&mut session, "CALL bqx.set_baselines()").code, "25006");
    assert_eq!(error_of(&mut session, "COPY bqx.m1_staging (line) FROM '/dev/null'").code, "25006");
}

// Triggers and foreign keys

#[test]
fn a_session_that_replicates_writes_the_same() {
    let db = Db::on(cluster(), "rights_replica");
    let mut admin = db.connect();
    make_roles(&mut admin, &["replica_role LOGIN SUPERUSER"]);
    run(&mut admin, "ALTER ROLE replica_role SET session_replication_role = replica");
    let mut session = db.connect_as("replica_role");
    // the index's own trigger fires in such sessions, too
    run_each(&mut session, PREPARED);
    run_each(
        &mut session,
        &[
            "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-09-30 23:59:30+00', 2)",
            "CALL bqx.create_tables()",
            "CREATE SEQUENCE public.origin_fired",
            "CREATE SEQUENCE public.always_fired",
            "CREATE FUNCTION public.count_it() RETURNS trigger LANGUAGE plpgsql AS \
                $$ BEGIN PERFORM pg_catalog.nextval(TG_ARGV[0]); RETURN NEW; END $$",
            "CREATE TRIGGER o BEFORE INSERT ON bqx.bqx_eurusd FOR EACH ROW EXECUTE FUNCTION public.count_it('public.origin_fired')",
            "CREATE TRIGGER a AFTER INSERT ON bqx.reg_eurusd_2024_08 FOR EACH ROW EXECUTE FUNCTION public.count_it('public.always_fired')",
            "ALTER TABLE bqx.reg_eurusd_2024_08 ENABLE ALWAYS TRIGGER a",
            "CREATE TABLE public.times (at timestamptz PRIMARY KEY)",
            "ALTER TABLE bqx.bqx_usdjpy ADD FOREIGN KEY (ts_utc) REFERENCES public.times",
        ],
    );
    let index = "SELECT rate_index = bqx.rate_index(close, (SELECT baseline_rate FROM bqx.baseline_rates WHERE pair = 'eurusd')) \
                   FROM bqx.m1_eurusd WHERE time = '2024-09-30 23:59:30+00'";
    assert_eq!(row(&mut session, index), "t");
    run(&mut session, "DELETE FROM bqx.m1_eurusd WHERE time = '2024-09-30 23:59:30+00'");
    run(&mut session, "CALL bqx.backfill(workers => 2)");
    assert_eq!(checksums(&db), *expected());
    let fired = "SELECT (SELECT is_called FROM public.origin_fired), \
                        (SELECT last_value FROM public.always_fired) = (SELECT count(*) FROM bqx.reg_eurusd_2024_08)";
    assert_eq!(row(&mut session, fired), "f|t");
    // In a usual session the foreign key counts.
    run(&mut admin, "UPDATE bqx.m1_usdjpy SET close = close * 1.001 WHERE time >= '2024-09-20'");
    assert_eq!(error_of(&mut admin, "CALL bqx.backfill(workers => 0)").code, "23503");
}

#[test]
fn foreign_keys_of_derived_tables_hold_month_by_month() {
    let db = prepared("rights_references");
    let mut session = db.connect();
    run_each(
        &mut session,
        &[
            "CALL bqx.create_tables()",
            "CREATE TABLE public.times AS SELECT time AS at FROM bqx.m1_eurusd WHERE time <> '2024-08-07 12:00+00'",
            "ALTER TABLE public.times ADD PRIMARY KEY (at)",
            "ALTER TABLE bqx.bqx_eurusd ADD FOREIGN KEY (ts_utc) REFERENCES public.times",
        ],
    );
    let error = error_of(&mut session, "CALL bqx.backfill(workers => 2)");
    assert_eq!(
        (error.code.as_str(), error.detail.contains("bqx eurusd 2024-08")),
        ("23503", true),
        "{error:?}"
    );
    let states = "SELECT string_agg(DISTINCT family || ' ' || pair || ' ' || to_char(month, 'YYYY-MM'), ' ') \
                    FROM bqx.jobs WHERE state <> 'done'";
    assert_eq!(row(&mut session, states), "bqx eurusd 2024-08");
    run_each(
        &mut session,
        &["INSERT INTO public.times VALUES ('2024-08-07 12:00+00')", "CALL bqx.resume(1, workers => 1)"],
    );
    assert_eq!(checksums(&db), *expected());
}

/// What other tables say of a row outlives its correction, whatever was agreed for the row's deletion.
#[test]
fn rows_that_others_refer_to_are_corrected_in_place() {
    for (name, action) in [("cascade", "CASCADE"), ("nothing", "NO ACTION"), ("restrict", "RESTRICT")] {
        for target in ["bqx_eurusd", "bqx_eurusd_2024_08"] {
            let db = filled(&format!("rights_{name}_{}", target.len()));
            let mut session = db.connect();
            run_each(
                &mut session,
                &[
                    &format!(
                        "CREATE TABLE public.trades (at timestamptz REFERENCES bqx.{target} (ts_utc) \
                         ON DELETE {action}, size float8)"
                    ),
                    "INSERT INTO public.trades SELECT ts_utc, 1 FROM bqx.bqx_eurusd_2024_08",
                    "UPDATE bqx.m1_eurusd SET close = close * 1.01 WHERE time BETWEEN '2024-08-06' AND '2024-08-07'",
                    "CALL bqx.backfill(workers => 1)",
                ],
            );
            let lost =
                "SELECT (SELECT count(*) FROM bqx.bqx_eurusd_2024_08) - (SELECT count(*) FROM public.trades)";
            assert_eq!(row(&mut session, lost), "0", "{action}, {target}");
            assert_eq!(faults(&mut session), [""; 0], "{action}, {target}");
            // A row whose bar is gone stays as well, and is told of.
            run(&mut session, "DELETE FROM bqx.m1_eurusd WHERE time = '2024-08-14 12:00+00'");
            run(&mut session, "CALL bqx.backfill(workers => 0)");
            assert_eq!(row(&mut session, lost), "0", "{action}, {target}");
            let told = faults(&mut session).concat();
            assert!(told.contains("2024-08-14 12:00"), "{told}");
        }
    }
}

// Publications

/// How many rows of derived tables a subscriber of the slot's publication was sent since the last time, by the relation
/// that they were sent as.
fn sent(session: &mut Client, publication: &str) -> Vec<String> {
    rows(
        session,
        &format!(
            "SELECT regexp_replace(c.relname, '_\\d{{4}}_\\d\\d$', '_month'), count(*) FROM ( \
                 SELECT get_byte(data, 1)::bigint << 24 | get_byte(data, 2) << 16 | get_byte(data, 3) << 8 | get_byte(data, 4) AS id \
                   FROM pg_logical_slot_get_binary_changes('subscriber', NULL, NULL, 'proto_version', '1', \
                        'publication_names', '{publication}') \
                  WHERE get_byte(data, 0) = ascii('I')) AS inserted \
               JOIN pg_class AS c ON c.oid = inserted.id::oid \
              WHERE c.relname ~ '^(bqx|reg)_eurusd' GROUP BY 1 ORDER BY 1"
        ),
    )
}

#[test]
fn subscribers_of_a_table_get_every_row() {
    let own = own_server("rights-publications", &[("wal_level", "logical"), ("max_worker_processes", "20")]);
    let mut cases = vec![
        ("table", "FOR TABLE bqx.bqx_eurusd", false, ["month"].as_slice()),
        ("root", "FOR TABLE bqx.bqx_eurusd WITH (publish_via_partition_root)", true, &[]),
        ("all", "FOR ALL TABLES", false, &["month", "reg"]),
        ("all_root", "FOR ALL TABLES WITH (publish_via_partition_root)", true, &["reg"]),
    ];
    if own.pg_config().major >= 15 {
        cases.push(("schema", "FOR TABLES IN SCHEMA bqx", false, &["month", "reg"]));
        cases.push((
            "schema_root",
            "FOR TABLES IN SCHEMA bqx WITH (publish_via_partition_root)",
            true,
            &["reg"],
        ));
    }
    let unprepared = Db::on(&own, "published");
    prepare(&unprepared);
    for (name, publication, as_root, with) in cases {
        run(
            &mut own.connect("postgres").unwrap(),
            &format!("CREATE DATABASE published_{name} TEMPLATE published"),
        );
        let mut session = own.connect(&format!("published_{name}")).unwrap();
        run_each(
            &mut session,
            &[
                // one month is there beforehand, two are made by the backfill
                "CALL bqx.create_tables(NULL, '{eurusd}', '2024-07-01', '2024-07-01')",
                &format!("CREATE PUBLICATION p {publication}"),
                "SELECT pg_create_logical_replication_slot('subscriber', 'pgoutput')",
                "CALL bqx.backfill(NULL, '{eurusd}', workers => 2)",
            ],
        );
        let expected = |session: &mut Client, run_id: u32| {
            let mut expected = Vec::new();
            for family in ["bqx", "reg"] {
                let written = row(
                    session,
                    &format!(
                        "SELECT sum(rows_written) FROM bqx.jobs WHERE run_id = {run_id} AND family = '{family}'"
                    ),
                );
                if family == "bqx" || with.contains(&"reg") {
                    let name = if as_root { "eurusd" } else { "eurusd_month" };
                    expected.push(format!("{family}_{name}|{written}"));
                }
            }
            expected
        };
        let filled = expected(&mut session, 1);
        assert!(!filled[0].ends_with("|0"), "{filled:?}");
        assert_eq!(sent(&mut session, "p"), filled, "{name}: first fill");
        run_each(
            &mut session,
            &[
                "UPDATE bqx.m1_eurusd SET close = close * 1.001 WHERE time >= '2024-08-25' AND time < '2024-08-28'",
                "TRUNCATE bqx.bqx_eurusd_2024_09, bqx.reg_eurusd_2024_09",
                "CALL bqx.backfill(NULL, '{eurusd}', workers => 0)",
            ],
        );
        let rewritten = expected(&mut session, 2);
        assert_ne!(rewritten, filled);
        assert_eq!(sent(&mut session, "p"), rewritten, "{name}: rewritten");
        let faults = "SELECT * FROM bqx.verify(pairs => '{eurusd}') WHERE ok IS NOT TRUE";
        assert_eq!(rows(&mut session, faults), [""; 0], "{name}");
        run(&mut session, "SELECT pg_drop_replication_slot('subscriber')");
    }
}

// Who calls

/// A run of the superuser that nobody works for, with open jobs.
fn leave_a_run(admin: &mut Client) {
    run(admin, "SELECT bqx._add_jobs(bqx._open_run('{}'), 'eurusd', '{bqx,reg}', '{2024-08-01}')");
}

/// What a SECURITY DEFINER function could want to do to the ledger.
const LEDGER_CALLS: [&str; 12] = [
    "bqx._record_baseline('eurusd'::text, now(), now(), 1::float8)",
    "bqx._mark_baseline_applied('eurusd'::text, 1::float8)",
    "bqx._keep_reject('eurusd'::text, 's'::text, 1::bigint, 'l'::text, 'r'::text)",
    "bqx._add_jobs(1::bigint, 'eurusd'::text, '{bqx}'::text[], '{2024-09-01}'::date[])",
    "bqx._open_units(1::bigint, 1)",
    "bqx._finish_job(1::bigint, 'bqx'::text, 'eurusd'::text, '2024-08-01'::date, 'done'::text, 1, now(), 1::bigint, \
        1::bigint, 0::bigint, 'forged'::text, 'forged'::text, NULL::text, NULL::text, NULL::text)",
    "bqx._note_followed('eurusd'::text, '{bqx}'::text[], '{2024-08-01}'::date[], '{1}'::bigint[], \
        NULL::date, NULL::date)",
    "bqx._cancel_open_jobs(1::bigint)",
    "bqx._reopen_jobs(1::bigint)",
    "bqx._close_run(1::bigint)",
    "bqx._start_workers(1::bigint, 1)",
    "bqx.cancel(1::bigint)",
];

#[test]
fn a_security_definer_function_acts_as_its_owner_whoever_calls_it() {
    let db = filled("rights_definer");
    let mut admin = db.connect();
    make_roles(&mut admin, &["definer_mallory LOGIN", "definer_dba LOGIN", "definer_analyst LOGIN"]);
    run(&mut admin, "GRANT CREATE ON SCHEMA public TO definer_mallory, definer_dba");
    run(&mut admin, "UPDATE bqx.run_ledger SET run_id = DEFAULT; TRUNCATE bqx.run_ledger RESTART IDENTITY");
    run(&mut admin, "TRUNCATE bqx.job_ledger");
    leave_a_run(&mut admin);

    let mut mallory = db.connect_as("definer_mallory");
    let trap = |body: &str| {
        format!(
            "CREATE OR REPLACE FUNCTION public.trap() RETURNS text LANGUAGE plpgsql SECURITY DEFINER AS \
             $f$ BEGIN RETURN (SELECT {body})::text; END $f$"
        )
    };
    let before = picture(&db);
    for call in LEDGER_CALLS {
        run(&mut mallory, &trap(call));
        let error = error_of(&mut admin, "SELECT public.trap()");
        assert_eq!(error.code, "42501", "{call} {error:?}");
    }
    assert_eq!(picture(&db), before);
    for nothing in ["count(*) FROM bqx.runs", "count(*) FROM bqx.jobs", "count(*) FROM bqx._jobs_now(1)"] {
        run(&mut mallory, &trap(nothing));
        assert_eq!(row(&mut admin, "SELECT public.trap()"), "0", "{nothing}");
    }
    run(&mut mallory, &trap("bqx._open_run('{}'::jsonb)"));
    run(&mut admin, "SELECT public.trap()");
    assert_eq!(row(&mut admin, "SELECT called_by FROM bqx.runs WHERE run_id = 2"), "definer_mallory");

    // The other way round: what a DBA offers works, and only that.
    grant_data(&mut admin, "definer_dba");
    let mut dba = db.connect_as("definer_dba");
    run_each(
        &mut dba,
        &[
            "CREATE FUNCTION public.rebase(day timestamptz) RETURNS void LANGUAGE plpgsql SECURITY DEFINER \
                SET search_path = pg_catalog, pg_temp AS $$ BEGIN CALL bqx.set_baselines(day, ARRAY['eurusd']); END $$",
            "GRANT EXECUTE ON FUNCTION public.rebase(timestamptz) TO definer_analyst",
        ],
    );
    let mut analyst = db.connect_as("definer_analyst");
    run(&mut analyst, "SELECT public.rebase('2024-08-05 00:00+00')");
    let day = "SELECT baseline_date FROM bqx.baseline_rates WHERE pair = 'eurusd'";
    assert_eq!(row(&mut analyst, day), "2024-08-05 00:00:00+00");
    let direct = "CALL bqx.set_baselines('2024-08-06 00:00+00', ARRAY['eurusd'])";
    assert_eq!(error_of(&mut analyst, direct).code, "42501");
}

#[test]
fn the_number_of_a_caller_is_of_no_use_to_others() {
    let db = filled("rights_caller");
    let mut admin = db.connect();
    make_roles(&mut admin, &["caller_thief LOGIN", "caller_short_lived", "caller_other"]);
    leave_a_run(&mut admin);
    let number = row(&mut admin, "SELECT bqx._caller()");
    assert_ne!(row(&mut db.connect(), "SELECT bqx._caller()"), number, "another session has its own");

    let mut thief = db.connect_as("caller_thief");
    for stolen in [number.as_str(), "0", "NULL"] {
        for call in [
            format!("SELECT bqx._cancel_open_jobs(2, {stolen})"),
            format!("SELECT bqx._record_baseline('eurusd', now(), now(), 1, {stolen})"),
            format!("SELECT * FROM bqx._runs_now({stolen})"),
            format!("SELECT * FROM bqx._recorded_month('bqx', 'eurusd', '2024-07-01', {stolen})"),
        ] {
            assert_eq!(code_of(attempt(&mut thief, &call)), "42501", "{call}");
        }
    }
    let untouched = "SELECT (SELECT count(*) FROM bqx.job_ledger WHERE state = 'pending'), \
                            (SELECT baseline_rate FROM bqx.baseline_rates WHERE pair = 'eurusd') <> 1";
    assert_eq!(row(&mut admin, untouched), "2|t");
    // Nothing shows it.
    for explain in ["EXPLAIN (VERBOSE, ANALYZE)", "EXPLAIN (VERBOSE)"] {
        let plan = rows(&mut admin, &format!("{explain} SELECT * FROM bqx._open_units(2, 1)")).concat();
        assert!(plan.contains("_open_units") && !plan.contains(&number), "{plan}");
    }
    let seen =
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%_open_units%' AND pid <> pg_backend_pid()";
    assert_eq!(row(&mut thief, seen), "0");

    // Each role that a session takes on is known by its own name, back and forth.
    let who = "SELECT bqx._role_of(bqx._caller()) || ' ' || current_user";
    for statement in [
        "RESET ROLE",
        "SET ROLE caller_other",
        "SET ROLE caller_short_lived",
        "RESET ROLE",
        "SET SESSION AUTHORIZATION caller_thief",
        "SET SESSION AUTHORIZATION DEFAULT",
        "SET ROLE caller_other",
        "DISCARD ALL",
    ] {
        run(&mut admin, statement);
        let names = row(&mut admin, who);
        let (known, is) = names.split_once(' ').unwrap();
        assert_eq!(known, is, "{statement}");
    }
    // A role that was renamed keeps its number; one that is gone has none.
    run(&mut admin, "SET ROLE caller_short_lived");
    let number = row(&mut admin, "SELECT bqx._caller()");
    run(&mut admin, "RESET ROLE; ALTER ROLE caller_short_lived RENAME TO caller_renamed");
    assert_eq!(row(&mut admin, &format!("SELECT bqx._role_of({number})")), "caller_renamed");
    run(&mut admin, "DROP ROLE caller_renamed");
    assert_eq!(error_of(&mut admin, &format!("SELECT bqx._role_of({number})")).code, "42501");
}

#[test]
fn nobody_can_pretend_to_work_for_anothers_run() {
    let db = filled("rights_pretend");
    let mut admin = db.connect();
    make_roles(&mut admin, &["pretend_owner LOGIN", "pretend_mallory LOGIN"]);
    grant_data(&mut admin, "pretend_owner");
    let mut owner = db.connect_as("pretend_owner");
    leave_a_run(&mut owner);
    let views = [
        "SELECT state FROM bqx.runs WHERE run_id = 2",
        "SELECT family, state, rows_written, worker FROM bqx.jobs WHERE run_id = 2",
        "SELECT family, state, jobs_total, percent, rows_written FROM bqx.progress WHERE run_id = 2",
    ];
    let shown = |session: &mut Client| views.map(|view| rows(session, view));
    let interrupted = shown(&mut owner);
    assert_eq!(interrupted[0], ["interrupted"]);

    // Locks like those of a run at work, and an activity like a worker's.
    let jobs = rows(&mut admin, "SELECT job_id FROM bqx.job_ledger WHERE run_id = 2 ORDER BY 1");
    let mut mallory = db.connect_as("pretend_mallory");
    run(&mut mallory, "SELECT bqx._enter_run(2)");
    for (kind, object) in [("run", "2"), ("work", "2"), ("job", &jobs[0])] {
        run(&mut mallory, &format!("SELECT pg_advisory_lock_shared(bqx._lock_key('{kind}', '{object}'))"));
    }
    let claim = format!("bqx run 2 worker 9: eurusd 2024-08, job {} bqx: 5 of 6 rows written", jobs[0]);
    assert_eq!(error_of(&mut mallory, &claim).code, "42601");
    assert_eq!(
        row(&mut admin, &format!("SELECT count(*) FROM pg_stat_activity WHERE query = '{claim}'")),
        "1"
    );
    assert_eq!(shown(&mut owner), interrupted);
    assert_eq!(shown(&mut admin), interrupted);
    run(&mut owner, "CALL bqx.resume(2, workers => 0)");
    leave_a_run(&mut owner);
    run(&mut mallory, "SELECT pg_advisory_lock_shared(bqx._lock_key('work', '3')), bqx._enter_run(3)");
    assert_eq!(row(&mut owner, "SELECT bqx.cancel(3)"), "t");
    assert_eq!(
        row(&mut owner, "SELECT string_agg(state, ' ' ORDER BY run_id) FROM bqx.runs"),
        "done cancelled"
    );
    // Members of the role are believed.
    run(&mut admin, "GRANT pretend_owner TO pretend_mallory");
    leave_a_run(&mut owner);
    run(&mut mallory, "SELECT bqx._enter_run(4)");
    assert_eq!(row(&mut owner, "SELECT state FROM bqx.runs WHERE run_id = 4"), "running");
}

#[test]
fn the_ledger_tells_of_tables_only_who_may_read_them() {
    let db = filled("rights_ledger");
    let mut admin = db.connect();
    make_roles(&mut admin, &["ledger_stranger LOGIN", "ledger_reader LOGIN"]);
    leave_a_run(&mut admin);
    run(&mut admin, "GRANT SELECT (ts_utc) ON bqx.bqx_eurusd TO ledger_reader");
    let month = "SELECT (bqx._recorded_month('bqx', 'eurusd', '2024-07-01')).bars > 3000";
    let months = "SELECT count(*) FROM bqx._recorded_months('{bqx,reg}', 'eurusd')";
    for (role, known) in [("ledger_stranger", ["NULL", "0"]), ("ledger_reader", ["t", "3"])] {
        let mut session = db.connect_as(role);
        assert_eq!([month, months].map(|query| row(&mut session, query)), known, "{role}");
        for call in ["SELECT bqx._open_jobs(2, 'eurusd', '2024-08-01')", "SELECT bqx._run_force(2)"] {
            assert_eq!(error_of(&mut session, call).code, "42501", "{role}: {call}");
        }
    }
}

#[test]
fn workers_are_started_only_where_there_is_work() {
    let db = filled("rights_workers");
    let mut admin = db.connect();
    make_roles(&mut admin, &["workers_idle LOGIN"]);
    let mut idle = db.connect_as("workers_idle");
    let run_id = row(&mut idle, "SELECT bqx._open_run('{}')");
    for wanted in [-1, 0, 50] {
        assert_eq!(
            row(&mut idle, &format!("SELECT bqx._start_workers({run_id}, {wanted})")),
            "0",
            "{wanted}"
        );
    }
    leave_a_run(&mut admin);
    assert_eq!(row(&mut admin, "SELECT bqx._start_workers(3, 2147483647)"), "1", "a pair and month each");
    run(&mut admin, "SELECT bqx._forget_workers()");
    wait_until(&mut admin, "SELECT state = 'done' FROM bqx.runs WHERE run_id = 3");
}

// Surroundings

/// A name of 63 bytes with everything that has to be quoted.
const NAME: &str = "n\"a'm e; -- \\ %I $$ \u{e9}\u{4e2d} abcdefghijklmnopqrstuvwxyzabcdefghijk";

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn named(last: &str) -> String {
    quoted(&format!("{}{last}", &NAME[..NAME.len() - last.len()]))
}

#[test]
fn names_of_every_kind_are_only_names() {
    assert_eq!(NAME.len(), 63);
    let own = own_server("rights-names", &[("max_worker_processes", "20")]);
    let db = Db::on(&own, NAME);
    prepare(&db);
    let mut admin = db.connect();
    let (role, schema, tablespace) = (quoted(NAME), named("s"), named("t"));
    run_each(
        &mut admin,
        &[
            &format!("CREATE ROLE {role} LOGIN; CREATE SCHEMA {schema} AUTHORIZATION {role}"),
            "CALL bqx.create_tables('{bqx}')",
            &format!("ALTER TABLE bqx.m1_eurusd ADD COLUMN {} text", named("c")),
            &format!("ALTER TABLE bqx.m1_eurusd_2024_08 RENAME TO {}", named("m")),
            &format!("ALTER TABLE bqx.bqx_eurusd_2024_08 RENAME TO {}", named("p")),
            &format!("ALTER TABLE bqx.{} SET SCHEMA {schema}", named("p")),
            &format!("ALTER TABLE bqx.bqx_usdjpy ADD COLUMN {} text DEFAULT 'x'", named("d")),
            &format!("ALTER INDEX bqx.bqx_eurusd_pkey RENAME TO {}", named("i")),
        ],
    );
    if own.pg_config().major >= 15 {
        run(&mut admin, "SET allow_in_place_tablespaces = on");
        run(&mut admin, &format!("CREATE TABLESPACE {tablespace} LOCATION ''"));
        run(&mut admin, &format!("GRANT CREATE ON TABLESPACE {tablespace} TO {role}"));
        run(&mut admin, "DROP TABLE bqx.bqx_eurusd_2024_09");
        run(&mut admin, &format!("ALTER TABLE bqx.bqx_eurusd SET TABLESPACE {tablespace}"));
    }
    give_data(&mut admin, &role);
    let parts = [format!("bqx.{}", named("m")), format!("{schema}.{}", named("p"))];
    for part in parts {
        run(&mut admin, &format!("ALTER TABLE {part} OWNER TO {role}"));
    }
    let mut session = db.connect_as(NAME);
    run_each(
        &mut session,
        &[
            "CALL bqx.set_baselines(pairs => ARRAY['eurusd'])",
            "CALL bqx.index_m1('{eurusd}')",
            "CALL bqx.create_tables()",
            "CALL bqx.backfill(workers => 2)",
            "CALL bqx.backfill(workers => 1, force => true)",
        ],
    );
    for (table, column) in [("m1_eurusd", "c"), ("bqx_usdjpy", "d")] {
        run(&mut admin, &format!("ALTER TABLE bqx.{table} DROP COLUMN {}", named(column)));
    }
    assert_eq!(checksums(&db), *expected());
    assert_eq!(faults(&mut session), [""; 0]);
    assert_eq!(row(&mut session, "SELECT DISTINCT called_by FROM bqx.runs"), NAME);
    assert_eq!(row(&mut session, "SELECT min(worker) > 0 FROM bqx.jobs"), "t");
    run(&mut session, "SELECT * FROM bqx.dashboard");
    if own.pg_config().major >= 15 {
        let lies = "SELECT s.spcname = right(s.spcname, 63) AND s.spcname <> 'pg_default' FROM pg_class AS c \
                      JOIN pg_tablespace AS s ON s.oid = c.reltablespace WHERE c.oid = 'bqx.bqx_eurusd_2024_09'::regclass";
        assert_eq!(row(&mut session, lies), "t");
    }
    // An error with such a name in it reaches the caller through worker and ledger as it is.
    run(
        &mut session,
        &format!("ALTER TABLE bqx.bqx_usdjpy ADD CONSTRAINT {} CHECK (rate_index > 0)", named("k")),
    );
    run(&mut session, "UPDATE bqx.m1_usdjpy SET close = NULL WHERE time = '2024-08-07 12:00+00'");
    let error = error_of(&mut session, "CALL bqx.backfill('{bqx}', '{usdjpy}', workers => 2)");
    assert_eq!(error.code, "22003", "{error:?}");
}

/// Objects of the sort that a role may make without any right: in its own temporary schema.
const TEMPORARY: [&str; 7] = [
    "CREATE TEMP TABLE pairs (pair text)",
    "CREATE TEMP TABLE pg_class (oid oid, relname name, relkind \"char\")",
    "CREATE TEMP TABLE run_ledger (run_id bigint)",
    "CREATE TEMP TABLE m1_eurusd (time timestamptz, close float8, rate_index float8)",
    "CREATE TEMP VIEW pg_locks AS SELECT 1/0 AS pid",
    "CREATE FUNCTION pg_temp.format(text, text) RETURNS text LANGUAGE sql AS $$ SELECT (1/0)::text $$",
    "CREATE TYPE pg_temp.date AS ENUM ('hostile')",
];

#[test]
fn temporary_objects_catch_nothing() {
    let db = prepared("rights_temporary");
    let mut session = db.connect();
    run_each(&mut session, &TEMPORARY);
    run_each(
        &mut session,
        &[
            "SET search_path = pg_temp, public",
            "CALL bqx.set_baselines(pairs => '{eurusd}')",
            "CALL bqx.index_m1('{eurusd}')",
            "CALL bqx.create_tables()",
            "CALL bqx.backfill('{bqx}', workers => 0)",
            "CALL bqx.backfill(workers => 1)",
            "SELECT * FROM bqx.dashboard",
            "SELECT * FROM bqx.completion_report()",
        ],
    );
    assert_eq!(checksums(&db), *expected());
    assert_eq!(faults(&mut session), [""; 0]);
}

/// Types whose casts and operators run code of their owner, as whoever reads the table.
#[test]
fn reading_a_table_runs_nobodys_casts() {
    let db = filled("rights_casts");
    let mut admin = db.connect();
    make_roles(&mut admin, &["casts_mallory LOGIN"]);
    give_data(&mut admin, "casts_mallory");
    run(&mut admin, "GRANT CREATE ON SCHEMA public TO casts_mallory");
    run(&mut admin, "CREATE TABLE public.ran_as (who name); GRANT INSERT ON public.ran_as TO PUBLIC");
    let mut mallory = db.connect_as("casts_mallory");
    run_each(
        &mut mallory,
        &[
            "CREATE TYPE public.price AS (x float8)",
            "CREATE FUNCTION public.price_to_float(public.price) RETURNS float8 LANGUAGE plpgsql AS \
                $$ BEGIN INSERT INTO public.ran_as VALUES (current_user); RETURN ($1).x; END $$",
            "CREATE CAST (public.price AS float8) WITH FUNCTION public.price_to_float(public.price) AS IMPLICIT",
            "CREATE DOMAIN public.tagged AS public.price",
        ],
    );
    let reading = [
        "SELECT * FROM bqx.verify()",
        "SELECT * FROM bqx.completion_report()",
        "SELECT * FROM bqx.bqx_metrics('eurusd')",
        "SELECT * FROM bqx.reg_metrics('usdjpy')",
        "CALL bqx.set_baselines()",
        "CALL bqx.backfill(workers => 0)",
    ];
    for (column, hostile) in [("close", "public.price"), ("rate_index", "public.tagged")] {
        for table in ["m1_eurusd", "m1_usdjpy"] {
            run_each(
                &mut mallory,
                &[
                    &format!("DROP TRIGGER IF EXISTS bqx_set_rate_index ON bqx.{table}"),
                    &format!(
                        "ALTER TABLE bqx.{table} ALTER {column} TYPE {hostile} USING ROW({column})::public.price"
                    ),
                ],
            );
        }
        assert_all_refused(&db, &mut admin, &reading, "42804", column, "ALTER TABLE bqx.m1_");
        for table in ["m1_eurusd", "m1_usdjpy"] {
            run(
                &mut mallory,
                &format!("ALTER TABLE bqx.{table} ALTER {column} TYPE float8 USING ({column}).x"),
            );
        }
    }
    assert_eq!(row(&mut admin, "SELECT count(*) FROM public.ran_as"), "0");
    run(&mut admin, "CALL bqx.index_m1()");
    // A domain over a type of PostgreSQL's own is no stranger.
    run(
        &mut mallory,
        "CREATE DOMAIN public.plain AS float8; ALTER TABLE bqx.m1_eurusd ALTER open TYPE public.plain",
    );
    assert_eq!(faults(&mut admin), [""; 0]);
}

#[test]
fn settings_for_debugging_and_casts_of_old_change_nothing() {
    let db = prepared("rights_settings");
    let mut admin = db.connect();
    // what databases got that moved up from PostgreSQL 8.2
    for sql_type in ["integer", "bigint", "float8", "date", "timestamptz", "oid", "interval"] {
        run(&mut admin, &format!("CREATE CAST ({sql_type} AS text) WITH INOUT AS IMPLICIT"));
    }
    let force_parallel =
        if cluster().pg_config().major >= 16 { "debug_parallel_query" } else { "force_parallel_mode" };
    let mut settings = vec![
        "plpgsql.extra_errors = 'all'",
        "plpgsql.extra_warnings = 'all'",
        "plpgsql.variable_conflict = 'use_column'",
        "plan_cache_mode = force_generic_plan",
        "from_collapse_limit = 1",
        "join_collapse_limit = 1",
        "geqo_threshold = 2",
        "work_mem = '64kB'",
        "row_security = off",
        "client_encoding = 'LATIN1'",
        "backslash_quote = on",
        "default_transaction_deferrable = on",
        "default_transaction_isolation = serializable",
        "temp_tablespaces = 'pg_default'",
        "cursor_tuple_fraction = 0.001",
        "xmlbinary = hex",
        "lc_messages = 'C'",
    ];
    let parallel = format!("{force_parallel} = on");
    settings.push(&parallel);
    for setting in &settings {
        run(&mut admin, &format!("ALTER DATABASE {} SET {setting}", db.name()));
    }
    let mut session = db.connect();
    run_each(
        &mut session,
        &[
            "CALL bqx.set_baselines('2024-08-10 00:00+00', ARRAY['usdjpy'])",
            "CALL bqx.index_m1()",
            "CALL bqx.create_tables(to_month => '2024-08-01')",
            "CALL bqx.backfill('{bqx}', workers => 0)",
            "CALL bqx.backfill(workers => 2)",
            "SELECT * FROM bqx.dashboard",
            "SELECT * FROM bqx.completion_report()",
            "CALL bqx.backfill(force => true, workers => 1)",
        ],
    );
    assert_eq!(faults(&mut session), [""; 0]);
    assert_eq!(checksums(&db), *expected());
    // Installing under them gives the same, too.
    run(&mut session, "DROP EXTENSION bqx CASCADE; CREATE EXTENSION bqx");
    assert_eq!(checksums(&db), *expected());
}

// A careful DBA

#[test]
fn rights_can_be_taken_from_everyone_and_given_to_one() {
    let db = prepared("rights_careful");
    let mut admin = db.connect();
    make_roles(&mut admin, &["careful_worker LOGIN", "careful_stranger LOGIN"]);
    run_each(
        &mut admin,
        &[
            "CALL bqx.create_tables(to_month => '2024-07-01')",
            "REVOKE ALL ON SCHEMA bqx FROM PUBLIC",
            "REVOKE ALL ON ALL ROUTINES IN SCHEMA bqx FROM PUBLIC",
            "REVOKE ALL ON ALL TABLES IN SCHEMA bqx FROM PUBLIC",
            "GRANT USAGE ON SCHEMA bqx TO careful_worker",
            "GRANT EXECUTE ON ALL ROUTINES IN SCHEMA bqx TO careful_worker",
            "GRANT SELECT ON bqx.pairs, bqx.baseline_rates, bqx.rejected_bars, bqx.runs, bqx.jobs, bqx.progress, \
                bqx.pair_progress, bqx.recent, bqx.storage, bqx.dashboard TO careful_worker",
            "GRANT INSERT (line) ON bqx.m1_staging TO careful_worker",
        ],
    );
    give_data(&mut admin, "careful_worker");
    let mut worker = db.connect_as("careful_worker");
    run_each(
        &mut worker,
        &[
            "CALL bqx.set_baselines(pairs => '{eurusd}')",
            "CALL bqx.index_m1('{eurusd}')",
            "CALL bqx.backfill('{bqx}', workers => 0)",
            "CALL bqx.backfill(workers => 2)",
            "SELECT * FROM bqx.dashboard",
        ],
    );
    assert_eq!(checksums(&db), *expected());
    assert_eq!(faults(&mut worker), [""; 0]);
    assert_eq!(row(&mut worker, "SELECT max(worker) > 0 FROM bqx.jobs"), "t");
    for call in ["CALL bqx.backfill()", "SELECT bqx.rate_index(1, 1)", "SELECT * FROM bqx.runs"] {
        assert_eq!(error_of(&mut db.connect_as("careful_stranger"), call).code, "42501", "{call}");
    }
}

/// Where no more sessions of the caller's role can come in, a call either goes on by itself or says what happened.
#[test]
fn a_call_whose_workers_cannot_connect_says_so() {
    let own = own_server("rights-connections", &[("max_worker_processes", "20")]);
    let db = Db::on(&own, "connections");
    prepare(&db);
    let mut admin = db.connect();
    make_roles(&mut admin, &["connections_role LOGIN"]);
    run(&mut admin, "CALL bqx.create_tables()");
    give_data(&mut admin, "connections_role");
    let cases = [
        (
            "REVOKE CONNECT ON DATABASE connections FROM PUBLIC",
            "GRANT CONNECT ON DATABASE connections TO PUBLIC",
        ),
        (
            "UPDATE pg_database SET datallowconn = false WHERE datname = 'connections'",
            "UPDATE pg_database SET datallowconn = true WHERE datname = 'connections'",
        ),
        ("ALTER ROLE connections_role CONNECTION LIMIT 1", "ALTER ROLE connections_role CONNECTION LIMIT -1"),
        ("ALTER DATABASE connections CONNECTION LIMIT 1", "ALTER DATABASE connections CONNECTION LIMIT -1"),
        // of how sessions prove who they are, workers know nothing
        (
            "ALTER ROLE connections_role PASSWORD 'x' VALID UNTIL '2000-01-01'",
            "ALTER ROLE connections_role PASSWORD NULL",
        ),
    ];
    for (forbid, allow) in cases {
        let mut session = db.connect_as("connections_role");
        run(&mut admin, "TRUNCATE bqx.bqx_eurusd, bqx.reg_eurusd, bqx.bqx_usdjpy, bqx.reg_usdjpy");
        run(&mut admin, forbid);
        let outcome = attempt(&mut session, "CALL bqx.backfill(workers => 2)");
        if let Err(error) = &outcome {
            assert_eq!(error.code, "55000", "{forbid}: {error:?}");
            assert!(
                error.message.contains("12 of 12 jobs") && error.hint.contains("server log"),
                "{error:?}"
            );
            let last = "SELECT state FROM bqx.runs ORDER BY run_id DESC LIMIT 1";
            assert_eq!(row(&mut session, last), "interrupted", "{forbid}");
            assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.bqx_eurusd"), "0");
        }
        assert!(outcome.is_ok() || !forbid.contains("VALID UNTIL"), "{outcome:?}");
        // Without workers, nobody need connect.
        run(&mut session, "CALL bqx.backfill(workers => 0)");
        run(&mut admin, allow);
        assert_eq!(checksums(&db), *expected(), "{forbid}");
    }
}
