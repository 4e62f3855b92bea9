//! New months are written as finished pages, past the executor and the buffer cache. In all that can be asked of a
//! table they must be what PostgreSQL's own INSERT would have made.

mod common;

use std::path::Path;
use std::sync::OnceLock;

use bqx_tests::{Db, error_of, own_server, skipped};
use common::backfilled::{Prepared, prepare, wait_until};
use common::{attempt, checksums, row, rows, run, run_each};
use pgcluster::{Cluster, StopMode};
use postgres::Client;

const FILLED: [&str; 2] = ["CALL bqx.create_tables()", "CALL bqx.backfill(workers => 2)"];

/// What [`FILLED`] gives on any server.
fn prepared() -> &'static Prepared {
    static PREPARED: OnceLock<Prepared> = OnceLock::new();
    PREPARED.get_or_init(|| Prepared::start("heap-pages", &[]))
}

/// Runs a program as the server's account; it must succeed.
fn run_program(server: &Cluster, program: impl AsRef<Path>, arguments: &[&str]) {
    let program = program.as_ref();
    let ran = server.account().command(program).args(arguments).output().expect("a program that starts");
    assert!(ran.status.success(), "{program:?} {arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

fn pg_checksums(server: &Cluster, mode: &str) {
    let data = server.data_dir();
    run_program(
        server,
        server.pg_config().bindir.join("pg_checksums"),
        &[mode, "-D", data.to_str().unwrap()],
    );
}

#[test]
fn the_log_has_every_row_and_every_page_its_checksum() {
    let own = own_server("heap-pages-log", &[("wal_level", "replica"), ("wal_keep_size", "1GB")]);
    let db = Db::on(&own, "logged");
    prepare(&db);
    let has_checksums = row(&mut db.connect(), "SHOW data_checksums") == "on"; // from PostgreSQL 18 on
    own.stop(StopMode::Fast).unwrap();
    if !has_checksums {
        pg_checksums(&own, "--enable");
    }
    let data = own.data_dir().to_str().unwrap().to_owned();
    let (before, after) = (format!("{data}-before"), format!("{data}-after"));
    run_program(&own, "cp", &["-a", &data, &before]);
    own.start_again().unwrap();
    run_each(&mut db.connect(), &FILLED);
    run(&mut db.connect(), "SELECT pg_switch_wal()");
    assert_eq!(checksums(&db), prepared().expected());
    own.stop(StopMode::Fast).unwrap();
    pg_checksums(&own, "--check");

    // The same server as it was before, which has the log to go by and nothing else.
    run_program(&own, "mv", &[&data, &after]);
    run_program(&own, "mv", &[&before, &data]);
    run_program(&own, "touch", &[&format!("{data}/recovery.signal")]);
    let restore =
        format!("echo \"restore_command = 'cp {after}/pg_wal/%f %p'\" >> {data}/postgresql.auto.conf");
    run_program(&own, "sh", &["-c", &restore]);
    own.start_again().unwrap();
    let mut session = db.connect();
    wait_until(&mut session, "SELECT NOT pg_is_in_recovery()");
    assert_eq!(checksums(&db), prepared().expected());
    assert_sound(&mut session);
    drop(session);
    own.stop(StopMode::Fast).unwrap();
    pg_checksums(&own, "--check");
}

#[test]
fn without_a_log_of_the_rows_a_commit_still_means_that_they_are_safe() {
    // 0: synced at each commit; the usual threshold: small tables are logged at the commit
    for threshold in ["0", "2MB", "1GB"] {
        let settings = [
            ("wal_level", "minimal"),
            ("max_wal_senders", "0"),
            ("wal_skip_threshold", threshold),
            ("fsync", "on"),
        ];
        let own = own_server(&format!("heap-pages-minimal-{threshold}"), &settings);
        let db = Db::on(&own, "minimal");
        prepare(&db);
        run_each(&mut db.connect(), &FILLED);
        own.kill_postmaster().unwrap();
        own.start_again().unwrap();
        assert_eq!(checksums(&db), prepared().expected(), "wal_skip_threshold = {threshold}");
        assert_sound(&mut db.connect());
    }
}

/// PostgreSQL's own checks find nothing wrong with the derived tables, where they are installed.
fn assert_sound(session: &mut Client) {
    if attempt(session, "CREATE EXTENSION IF NOT EXISTS amcheck").is_err() {
        return skipped("amcheck", "it is not installed");
    }
    let partitions = "FROM pg_class AS c WHERE c.relispartition AND c.relname ~ '^(bqx|reg)_[a-z]{6}_'";
    let found = format!(
        "SELECT c.relname, v.* FROM (SELECT c.oid, c.relname {partitions} AND c.relkind = 'r') AS c, \
                verify_heapam(c.oid) AS v"
    );
    assert_eq!(rows(session, &found), [""; 0]);
    assert_indexes_sound(session, 12);
}

/// So many B-trees of the derived tables have all rows in order, as far as `amcheck` is installed.
fn assert_indexes_sound(session: &mut Client, count: usize) {
    if attempt(session, "CREATE EXTENSION IF NOT EXISTS amcheck").is_err() {
        return;
    }
    let indexes = "SELECT count(bt_index_check(c.oid, true)) FROM pg_class AS c JOIN pg_am AS a ON a.oid = c.relam \
        WHERE c.relispartition AND c.relname ~ '^(bqx|reg)_[a-z]{6}_' AND c.relkind = 'i' AND a.amname = 'btree'";
    assert_eq!(row(session, indexes), count.to_string());
}

#[test]
fn every_index_has_every_row() {
    let db = prepared().db("indexed");
    let mut session = db.connect();
    run_each(
        &mut session,
        &[
            "CALL bqx.create_tables()",
            "CREATE INDEX ON bqx.bqx_eurusd (w15_bqx_return)",
            "CREATE INDEX ON bqx.bqx_eurusd (ts_utc DESC, rate_index)",
            "CREATE INDEX ON bqx.bqx_eurusd (ts_utc) WHERE w15_bqx_return > 0",
            "CREATE INDEX ON bqx.bqx_eurusd (date_trunc('day', ts_utc AT TIME ZONE 'UTC'))",
            "CREATE INDEX ON bqx.bqx_eurusd USING hash (ts_utc)",
            "CREATE INDEX ON bqx.bqx_eurusd USING brin (ts_utc) WITH (pages_per_range = 1)",
            "CREATE INDEX ON bqx.bqx_eurusd (ts_utc) INCLUDE (rate_index)",
            "CALL bqx.backfill(workers => 0)",
        ],
    );
    assert_indexes_sound(&mut session, 12 + 3 * 5);
    // read through each index, there are the rows that the table has
    run(&mut session, "SET enable_seqscan = off");
    let day = "ts_utc >= '2024-08-06 00:00+00' AND ts_utc < '2024-08-07 00:00+00'";
    let rows_of_day = rows(&mut session, &format!("SELECT ts_utc FROM bqx.bqx_eurusd WHERE {day}"));
    assert!(rows_of_day.len() > 100);
    let questions = [
        format!("SELECT count(*) FROM bqx.bqx_eurusd_2024_08 WHERE {day}"),
        format!("SELECT count(*) FROM bqx.bqx_eurusd_2024_08 WHERE {day} AND ctid = ctid"),
        "SELECT count(*) FROM bqx.bqx_eurusd_2024_08 WHERE date_trunc('day', ts_utc AT TIME ZONE 'UTC') = '2024-08-06 00:00'".to_owned(),
    ];
    for question in &questions {
        for setting in ["enable_bitmapscan", "enable_indexscan"] {
            run(&mut session, &format!("SET {setting} = off"));
            assert_eq!(row(&mut session, question), rows_of_day.len().to_string(), "{question}");
            run(&mut session, &format!("RESET {setting}"));
        }
    }
    let by_hash = format!("SELECT * FROM bqx.bqx_eurusd WHERE ts_utc = '{}'", rows_of_day[7]);
    assert_eq!(rows(&mut session, &by_hash).len(), 1);
    assert_eq!(
        row(
            &mut session,
            "SELECT sum(reltuples)::int = (SELECT count(*) FROM bqx.bqx_eurusd) FROM pg_class \
        WHERE relispartition AND relkind = 'r' AND relname LIKE 'bqx_eurusd_%'"
        ),
        "t"
    );
}

#[test]
fn rows_are_those_that_an_insert_would_store() {
    let db = prepared().db("inserted");
    let mut session = db.connect();
    // NULLs at the series' beginning, a column that is gone, one that came later
    run_each(
        &mut session,
        &[
            "CALL bqx.create_tables()",
            "ALTER TABLE bqx.bqx_eurusd DROP COLUMN w30_bqx_max_index",
            "ALTER TABLE bqx.bqx_eurusd ADD COLUMN w30_bqx_max_index float8",
            "ALTER TABLE bqx.reg_eurusd DROP COLUMN w630_reg_a",
            "CALL bqx.backfill(workers => 0)",
        ],
    );
    assert_sound(&mut session);
    for table in ["bqx_eurusd", "reg_eurusd", "bqx_usdjpy"] {
        // the fast way left it, a plain INSERT makes the copy
        run(&mut session, &format!("CREATE TABLE public.copy_of_{table} (LIKE bqx.{table})"));
        run(&mut session, &format!("INSERT INTO public.copy_of_{table} SELECT * FROM bqx.{table}"));
        // A row is shorter where no dropped column makes it have a bitmap of NULLs.
        let size = if table == "bqx_usdjpy" { "sum(pg_column_size(t))" } else { "0" };
        let stored =
            |name: &str| format!("SELECT count(*), sum(hash_record_extended(t, 0)), {size} FROM {name} AS t");
        let copy = row(&mut session, &stored(&format!("public.copy_of_{table}")));
        assert_eq!(row(&mut session, &stored(&format!("bqx.{table}"))), copy, "{table}");
        assert!(!copy.starts_with("0|"));
    }
    let differing = "SELECT count(*) FROM bqx.bqx_eurusd AS stored JOIN bqx.bqx_metrics('eurusd') AS computed \
        USING (ts_utc) WHERE stored.w30_bqx_max_index IS DISTINCT FROM computed.w30_bqx_max_index \
            OR stored.agg_bqx_return IS DISTINCT FROM computed.agg_bqx_return";
    assert_eq!(row(&mut session, differing), "0");
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.verify() WHERE NOT ok"), "0");
}

#[test]
fn the_first_reader_writes_nothing() {
    let db = prepared().db("first_reader");
    let mut session = db.connect();
    run_each(&mut session, &FILLED);
    run(&mut session, "CREATE TABLE public.inserted AS SELECT * FROM bqx.bqx_eurusd");
    run(&mut session, "CHECKPOINT");
    let mut is_dirtied = |table: &str| {
        let plan = rows(&mut session, &format!("EXPLAIN (ANALYZE, BUFFERS) SELECT count(*) FROM {table}"));
        // the planner reads catalogs, which are like any table
        plan.iter().take_while(|line| *line != "Planning:").any(|line| line.contains("dirtied"))
    };
    assert!(!is_dirtied("bqx.bqx_eurusd") && !is_dirtied("bqx.reg_usdjpy"));
    assert!(is_dirtied("public.inserted"), "PostgreSQL's own rows are marked by their first reader");
}

#[test]
fn an_event_trigger_sees_the_rows_of_its_transaction() {
    let db = prepared().db("event_trigger");
    let mut session = db.connect();
    run_each(
        &mut session,
        &[
            "CREATE TABLE public.seen (n bigint)",
            "CREATE FUNCTION public.look() RETURNS event_trigger LANGUAGE plpgsql AS \
                $$ BEGIN INSERT INTO public.seen SELECT count(*) FROM bqx.bqx_eurusd; END $$",
            "CALL bqx.create_tables(pairs => '{eurusd}', to_month => '2024-07-01')",
            "CREATE EVENT TRIGGER look ON ddl_command_end WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION public.look()",
            "CALL bqx.backfill(pairs => '{eurusd}', workers => 0)",
        ],
    );
    // August and September are attached, rows and all, by ALTER TABLE
    let seen = "SELECT max(n) = (SELECT count(*) FROM bqx.bqx_eurusd) FROM public.seen";
    assert_eq!(row(&mut session, seen), "t");
}

#[test]
fn a_trigger_on_the_ledger_sees_the_month_that_is_entered() {
    let db = prepared().db("ledger_trigger");
    let mut session = db.connect();
    run_each(
        &mut session,
        &[
            "CREATE TABLE public.seen (month date, n bigint)",
            "CREATE FUNCTION public.look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                INSERT INTO public.seen SELECT NEW.month, count(*) FROM bqx.bqx_eurusd; RETURN NULL; END $$",
            "CREATE TRIGGER look AFTER INSERT OR UPDATE ON bqx.month_ledger FOR EACH ROW EXECUTE FUNCTION public.look()",
            "CALL bqx.create_tables('{bqx}', '{eurusd}')",
            "CALL bqx.backfill('{bqx}', '{eurusd}', workers => 0)",
        ],
    );
    let bars = "SELECT string_agg(s.n::text, ' ' ORDER BY s.month) = string_agg(b.n::text, ' ' ORDER BY s.month) \
        FROM public.seen AS s, LATERAL (SELECT count(*) AS n FROM bqx.m1_eurusd AS m \
            WHERE m.time < (s.month + interval '1 month') AT TIME ZONE 'UTC') AS b";
    assert_eq!(row(&mut session, "SELECT count(*) FROM public.seen"), "3");
    assert_eq!(row(&mut session, bars), "t");
}

#[test]
fn a_key_that_finds_no_room_leaves_nothing_and_the_session_goes_on() {
    let db = prepared().db("no_room");
    let mut session = db.connect();
    // 480 characters for each row: their sort goes to the disk
    let long_text: Vec<String> =
        (0..15).map(|i| format!("md5(agg_bqx_return::numeric::text || '{i}')")).collect();
    run_each(
        &mut session,
        &[
            "CALL bqx.create_tables('{bqx}', '{eurusd}')",
            "SET maintenance_work_mem = '1MB'",
            "SET temp_file_limit = 0",
            &format!("CREATE INDEX long ON bqx.bqx_eurusd (({}))", long_text.join(" || ")),
        ],
    );
    let error = error_of(&mut session, "CALL bqx.backfill('{bqx}', '{eurusd}', workers => 0)");
    assert_eq!(error.code, "53400", "{error:?}");
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.bqx_eurusd"), "0");
    run_each(
        &mut session,
        &["RESET temp_file_limit", "CALL bqx.backfill('{bqx}', '{eurusd}', workers => 0)"],
    );
    let stored = "SELECT count(*) = (SELECT count(*) FROM bqx.m1_eurusd) FROM bqx.bqx_eurusd";
    assert_eq!(row(&mut session, stored), "t");
    assert_indexes_sound(&mut session, 6);
}

#[test]
fn what_is_taken_back_leaves_nothing() {
    let db = prepared().db("taken_back");
    let mut session = db.connect();
    run(&mut session, "CALL bqx.create_tables(from_month => '2024-07-01', to_month => '2024-07-01')");
    let write = |month: &str| format!("SELECT * FROM bqx._write_month('eurusd', '{{bqx,reg}}', '{month}')");
    let stored = "SELECT count(*), (SELECT count(*) FROM bqx.reg_eurusd), \
        (SELECT count(*) FROM pg_class WHERE relname ~ '^(bqx|reg)_eurusd_....') FROM bqx.bqx_eurusd";
    let empty = row(&mut session, stored);
    assert!(empty.starts_with("0|0|"));
    // July has an empty partition, August gets a new one
    for month in ["2024-07-01", "2024-08-01"] {
        run_each(&mut session, &["BEGIN", &write(month), "ROLLBACK"]);
        assert_eq!(row(&mut session, stored), empty, "{month} rolled back");
        run_each(
            &mut session,
            &["BEGIN", "SAVEPOINT s", &write(month), "ROLLBACK TO s", "SELECT txid_current()", "COMMIT"],
        );
        assert_eq!(row(&mut session, stored), empty, "{month} rolled back to a savepoint");
        run_each(&mut session, &["BEGIN", "SAVEPOINT s", &write(month), "RELEASE s", "ROLLBACK"]);
        assert_eq!(row(&mut session, stored), empty, "{month} released, then rolled back");
    }
    run_each(&mut session, &["BEGIN", "SAVEPOINT s", &write("2024-08-01"), "RELEASE s", "COMMIT"]);
    assert_ne!(row(&mut session, stored), empty);
    assert_eq!(checksums(&db).iter().filter(|line| line.contains(" 0|")).count(), 2, "those of usdjpy");
}

#[test]
fn storage_that_could_outlive_the_rows_transaction_is_refused() {
    let db = prepared().db("refused");
    let mut session = db.connect();
    run(&mut session, "CALL bqx.create_tables()");
    let fill = "SELECT * FROM bqx._fill_partitions('{bqx}', 'bqx.m1_eurusd'::regclass, '2024-07-01 00:00+00', \
        '2024-08-01 00:00+00', ARRAY['bqx.bqx_eurusd_2024_07'::regclass]::oid[], '{x}')";
    let truncate = "TRUNCATE bqx.bqx_eurusd_2024_07";
    let mut refusal = |statements: &[&str]| {
        run(&mut session, "BEGIN");
        run_each(&mut session, statements);
        let error = error_of(&mut session, fill);
        run(&mut session, "ROLLBACK");
        format!("{} {}", error.code, error.message)
    };
    let because =
        |reason: &str| format!("42501 table bqx.bqx_eurusd_2024_07 can't be written directly: {reason}");
    let not_new = because("its storage is not new in this transaction");
    assert_eq!(refusal(&[]), not_new);
    // Rolled back to the savepoint, the rows would stay, and say that they are committed.
    assert_eq!(refusal(&[truncate, "SAVEPOINT s"]), not_new);
    let insert = "INSERT INTO bqx.bqx_eurusd (ts_utc) VALUES ('2024-07-01 00:00+00')";
    assert_eq!(refusal(&[truncate, insert]), because("it has rows"));
    run_each(&mut session, &["BEGIN", "SAVEPOINT s", truncate, fill, "COMMIT"]);
    assert_ne!(row(&mut session, "SELECT count(*) FROM bqx.bqx_eurusd"), "0");
}

#[test]
fn pages_keep_the_room_that_they_are_to_keep() {
    let db = prepared().db("fill_factor");
    let mut session = db.connect();
    run_each(
        &mut session,
        &[
            "CALL bqx.create_tables()",
            "ALTER TABLE bqx.bqx_eurusd_2024_08 SET (fillfactor = 50)",
            "CALL bqx.backfill(workers => 0)",
        ],
    );
    let mut rows_in_a_page = |table: &str| -> (usize, usize) {
        let counts = format!(
            "SELECT max(n), min(n) FROM (SELECT count(*) AS n FROM {table} GROUP BY (ctid::text::point)[0] \
              ORDER BY (ctid::text::point)[0] LIMIT 50) AS first_pages"
        );
        let (most, fewest) =
            row(&mut session, &counts).split_once('|').map(|(a, b)| (a.parse(), b.parse())).unwrap();
        (most.unwrap(), fewest.unwrap())
    };
    let usual = rows_in_a_page("bqx.bqx_eurusd_2024_09");
    let half = rows_in_a_page("bqx.bqx_eurusd_2024_08");
    run(&mut db.connect(), "CREATE TABLE public.usual AS SELECT * FROM bqx.bqx_eurusd_2024_09");
    run(
        &mut db.connect(),
        "CREATE TABLE public.half WITH (fillfactor = 50) AS SELECT * FROM bqx.bqx_eurusd_2024_08",
    );
    assert_eq!(usual, rows_in_a_page("public.usual"));
    assert_eq!(half, rows_in_a_page("public.half"));
    assert!(half.0 <= usual.0.div_ceil(2));
}

#[test]
fn inserted_rows_are_counted() {
    let db = prepared().db("counted");
    let mut session = db.connect();
    run_each(&mut session, &FILLED);
    let counted = "SELECT n_tup_ins = (SELECT count(*) FROM bqx.bqx_eurusd_2024_08) AND n_live_tup = n_tup_ins \
        FROM pg_stat_user_tables WHERE relname = 'bqx_eurusd_2024_08'";
    wait_until(&mut session, counted);
}

#[test]
fn a_logical_decoder_gets_every_row() {
    let own = own_server("heap-pages-decoded", &[("wal_level", "logical")]);
    let db = Db::on(&own, "decoded");
    prepare(&db);
    let mut session = db.connect();
    run(&mut session, "CALL bqx.create_tables(pairs => '{eurusd}')");
    let reason = "SELECT bqx._why_not_fast('bqx', 'bqx.bqx_eurusd')";
    let may_follow = "logical replication slots may follow this database";
    let decodes_on_standbys =
        row(&mut session, "SELECT current_setting('server_version_num')::int >= 160000") == "t";
    assert_eq!(row(&mut session, reason), if decodes_on_standbys { may_follow } else { "NULL" });
    let slot = "SELECT pg_create_logical_replication_slot('reader', 'test_decoding')";
    if attempt(&mut session, slot).is_err() {
        return skipped("a_logical_decoder_gets_every_row", "test_decoding is not installed");
    }
    assert_eq!(row(&mut session, reason), may_follow);
    run(&mut session, "CALL bqx.backfill(families => '{bqx}', pairs => '{eurusd}', workers => 0)");
    let decoded = "SELECT count(*) FROM pg_logical_slot_get_changes('reader', NULL, NULL) \
        WHERE data ~ '^table bqx.bqx_eurusd_...._..: INSERT'";
    let decoded = row(&mut session, decoded);
    assert_eq!(decoded, row(&mut session, "SELECT count(*) FROM bqx.bqx_eurusd"));
    assert_ne!(decoded, "0");
}
