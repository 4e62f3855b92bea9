//! `rate_index` of bars that come after `index_m1`: its trigger, in M1 tables of every kind.

mod common;

use std::io::Write;

use bqx_tests::Db;
use common::{attempt, row, rows, run, run_each};
use postgres::Client;

/// M1 tables by the types of `close` and `rate_index`. The trigger does those of doubles in another way than the others.
const TABLES: [(&str, &str); 7] = [
    (
        "as bqx makes it",
        "CREATE TABLE bqx.m1_eurusd (time timestamptz PRIMARY KEY, open float8, high float8, low float8, close float8, \
             volume float8, rate_index float8) PARTITION BY RANGE (time); \
         CREATE TABLE bqx.m1_eurusd_2024 PARTITION OF bqx.m1_eurusd FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')",
    ),
    (
        "doubles among other columns, some of them dropped",
        "CREATE TABLE bqx.m1_eurusd (gone int, rate_index float8, note text DEFAULT repeat('x', 9000), close float8, \
             lost text, time timestamp PRIMARY KEY); \
         ALTER TABLE bqx.m1_eurusd DROP COLUMN gone, DROP COLUMN lost",
    ),
    (
        "doubles in a partition of another shape",
        "CREATE TABLE bqx.m1_eurusd (time timestamptz, close float8, rate_index float8) PARTITION BY RANGE (time); \
         CREATE TABLE bqx.y2024 (rate_index float8, gone int, close float8, time timestamptz); \
         ALTER TABLE bqx.y2024 DROP COLUMN gone; \
         ALTER TABLE bqx.m1_eurusd ATTACH PARTITION bqx.y2024 FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')",
    ),
    (
        "decimal numbers",
        "CREATE TABLE bqx.m1_eurusd (time timestamptz PRIMARY KEY, close numeric, rate_index numeric(12,8))",
    ),
    (
        "decimal closes",
        "CREATE TABLE bqx.m1_eurusd (time timestamptz PRIMARY KEY, close numeric(12,6), rate_index float8)",
    ),
    (
        "decimal indexes",
        "CREATE TABLE bqx.m1_eurusd (time timestamptz PRIMARY KEY, close float8, rate_index numeric(9,3))",
    ),
    (
        "single precision",
        "CREATE TABLE bqx.m1_eurusd (time timestamptz PRIMARY KEY, close real, rate_index real)",
    ),
];

/// Bars whose rate_index is not what it is to be, by the formula in SQL.
fn wrong_bars(session: &mut Client) -> Vec<String> {
    let index_type = row(
        session,
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute \
          WHERE attrelid = 'bqx.m1_eurusd'::regclass AND attname = 'rate_index'",
    );
    rows(
        session,
        &format!(
            "SELECT time, close, rate_index FROM bqx.m1_eurusd AS m, bqx.baseline_rates AS b \
              WHERE b.pair = 'eurusd' AND m.rate_index IS DISTINCT FROM \
                    CASE WHEN close::float8 > 0 AND close::float8 < 'Infinity' \
                         THEN close::float8 / b.baseline_rate * 100 END::{index_type}"
        ),
    )
}

fn make_indexed(session: &mut Client, table: &str) {
    run(session, &format!("DROP TABLE IF EXISTS bqx.m1_eurusd; {table}"));
    run(
        session,
        "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-07-01', 1.0845), ('2024-07-02', 1.1)",
    );
    run_each(session, &["CALL bqx.set_baselines(pairs => '{eurusd}')", "CALL bqx.index_m1('{eurusd}')"]);
    assert_eq!(wrong_bars(session), [""; 0]);
}

#[test]
fn bars_have_their_index_however_they_come() {
    let db = Db::new("rate_index");
    let mut session = db.connect();
    for (title, table) in TABLES {
        make_indexed(&mut session, table);
        run(
            &mut session,
            "INSERT INTO bqx.m1_eurusd (time, close) SELECT t, 1 + random() FROM generate_series( \
                               timestamptz '2024-08-01', '2024-08-02', '1 min') AS t",
        );
        run(
            &mut session,
            "INSERT INTO bqx.m1_eurusd (time, close, rate_index) VALUES ('2024-09-01', 1.25, 7)",
        );
        let mut copy =
            session.copy_in("COPY bqx.m1_eurusd (time, close) FROM STDIN WITH (FORMAT csv)").unwrap();
        copy.write_all(b"2024-09-02,1.3\n2024-09-03,1.0845\n2024-09-04,\n").unwrap();
        copy.finish().unwrap();
        assert_eq!(wrong_bars(&mut session), [""; 0], "{title}");

        run(&mut session, "UPDATE bqx.m1_eurusd SET close = close * 1.5 WHERE time < '2024-08-01 12:00'");
        run(&mut session, "UPDATE bqx.m1_eurusd SET rate_index = 7 WHERE time > '2024-09-01 12:00'");
        assert_eq!(wrong_bars(&mut session), [""; 0], "{title}");
        let known = "SELECT count(*) FROM bqx.m1_eurusd WHERE rate_index IS NOT NULL";
        assert_eq!(row(&mut session, known), "1446", "{title}");
    }
}

#[test]
fn a_close_that_is_none_has_no_index_and_stops_no_feed() {
    let db = Db::new("no_rate_index");
    let mut session = db.connect();
    for (title, table) in TABLES.into_iter().filter(|(_, table)| !table.contains("close numeric(12,6)")) {
        make_indexed(&mut session, table);
        run(
            &mut session,
            "INSERT INTO bqx.m1_eurusd (time, close, rate_index) VALUES ('2024-08-01', NULL, 1), ('2024-08-02', 0, 1), \
                 ('2024-08-03', -1, 1), ('2024-08-04', 'NaN', 1), ('2024-08-05', 'Infinity', 1)",
        );
        run(&mut session, "UPDATE bqx.m1_eurusd SET close = 'NaN' WHERE time = '2024-07-02'");
        let indexes = rows(&mut session, "SELECT rate_index FROM bqx.m1_eurusd WHERE time > '2024-07-01'");
        assert_eq!(indexes, ["NULL"; 6], "{title}");
    }
}

#[test]
fn columns_may_get_another_type_under_the_trigger() {
    let db = Db::new("rate_index_types");
    let mut session = db.connect();
    make_indexed(&mut session, TABLES[0].1);
    for (month, sql) in [
        (8, "ALTER TABLE bqx.m1_eurusd ALTER close TYPE numeric"),
        (9, "ALTER TABLE bqx.m1_eurusd ALTER rate_index TYPE numeric(9,3)"),
        (10, "ALTER TABLE bqx.m1_eurusd ALTER close TYPE float8"),
        (11, "ALTER TABLE bqx.m1_eurusd ALTER rate_index TYPE float8"),
    ] {
        run(&mut session, sql);
        session = db.connect(); // PL/pgSQL keeps its plans for the types that a session met first
        run(
            &mut session,
            &format!("INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-{month}-01', 1.3)"),
        );
        run(&mut session, "UPDATE bqx.m1_eurusd SET close = close + 0.1");
        assert_eq!(wrong_bars(&mut session), [""; 0], "{sql}");
    }
}

/// Whoever owns a table can put the function on it.
#[test]
fn the_triggers_function_is_harmless_elsewhere() {
    let db = Db::new("rate_index_elsewhere");
    let mut session = db.connect();
    let error = |session: &mut Client, sql: &str| attempt(session, sql).expect_err(sql).message;
    assert!(error(&mut session, "SELECT bqx._set_rate_index()").contains("only be called as triggers"));
    run(&mut session, "CREATE TABLE t (close float8, rate_index float8, other int)");
    let put = |session: &mut Client, event: &str, arguments: &str| {
        run(
            session,
            &format!(
                "DROP TRIGGER IF EXISTS x ON t; TRUNCATE t; INSERT INTO t VALUES (1, 7); \
                 CREATE TRIGGER x {event} EXECUTE FUNCTION bqx._set_rate_index({arguments})"
            ),
        );
    };
    let each_row = "BEFORE INSERT OR UPDATE ON t FOR EACH ROW";
    for (arguments, expected) in [("", "NULL"), ("'2'", "50"), ("'-2'", "NULL"), ("'2', '4'", "50")] {
        put(&mut session, each_row, arguments);
        run(&mut session, "UPDATE t SET other = 1");
        assert_eq!(row(&mut session, "SELECT rate_index FROM t"), expected, "{arguments}");
    }
    put(&mut session, each_row, "'two'");
    assert!(error(&mut session, "UPDATE t SET other = 1").contains("double precision: \"two\""));
    for event in ["AFTER INSERT OR UPDATE ON t FOR EACH ROW", "BEFORE UPDATE ON t FOR EACH STATEMENT"] {
        put(&mut session, event, "'2'");
        let _ = attempt(&mut session, "UPDATE t SET other = 1");
        assert_eq!(row(&mut session, "SELECT rate_index FROM t"), "7", "{event}");
    }
    put(&mut session, "BEFORE DELETE ON t FOR EACH ROW", "'2'");
    let _ = attempt(&mut session, "DELETE FROM t");
    run(&mut session, "DROP TABLE t; CREATE TABLE t (close float8)");
    run(
        &mut session,
        "CREATE TRIGGER x BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION bqx._set_rate_index('2')",
    );
    assert!(error(&mut session, "INSERT INTO t VALUES (1)").contains("rate_index"));
}

#[test]
fn a_generated_close_gives_no_index_rather_than_that_of_the_old_one() {
    let db = Db::new("generated_close");
    let mut session = db.connect();
    run_each(
        &mut session,
        &[
            "CREATE TABLE bqx.m1_eurusd (time timestamptz PRIMARY KEY, bid float8, ask float8, \
                close float8 GENERATED ALWAYS AS ((bid + ask) / 2) STORED, rate_index float8)",
            "CREATE TRIGGER bqx_set_rate_index BEFORE INSERT OR UPDATE ON bqx.m1_eurusd \
                FOR EACH ROW EXECUTE FUNCTION bqx._set_rate_index('1.0')",
            "INSERT INTO bqx.m1_eurusd (time, bid, ask) VALUES ('2024-07-01', 1, 1.5)",
            "UPDATE bqx.m1_eurusd SET bid = 3",
        ],
    );
    // PostgreSQL computes such columns after its triggers have run
    assert_eq!(row(&mut session, "SELECT close, rate_index FROM bqx.m1_eurusd"), "2.25|NULL");
}
