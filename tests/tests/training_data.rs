//! Features, related pairs, targets and training sets: what they hold is what the tables hold, and nothing from later.

mod common;

use std::sync::OnceLock;

use bqx_tests::{Db, Notices, error_of};
use common::followed::Followed;
use common::{attempt, row, rows, run, run_each};
use postgres::Client;

fn server() -> &'static Followed {
    static SERVER: OnceLock<Followed> = OnceLock::new();
    SERVER.get_or_init(|| Followed::start("training_data", &[]))
}

fn filled(name: &str) -> (Db<'static>, Client, Notices) {
    let db = server().db(name);
    let (mut session, notices) = db.connect_with_notices();
    run(&mut session, "SET TimeZone = 'America/New_York'");
    notices.take();
    (db, session, notices)
}

/// SQL for the number of rows that two queries do not share.
fn difference(one: &str, other: &str) -> String {
    format!(
        "SELECT count(*) FROM ((({one}) EXCEPT ALL ({other})) UNION ALL (({other}) EXCEPT ALL ({one}))) AS d"
    )
}

/// The partitions and tables that the transaction has locked, of those that hold rows.
fn locked_tables(session: &mut Client) -> Vec<String> {
    rows(
        session,
        "SELECT DISTINCT c.relname FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation \
          WHERE l.pid = pg_backend_pid() AND c.relkind = 'r' AND c.relnamespace = 'bqx'::regnamespace \
            AND c.relname ~ '_20\\d\\d_\\d\\d$' ORDER BY 1",
    )
}

/// The three-way join of eurusd, written by hand.
const JOINED: &str = "SELECT m.open, m.high, m.low, m.close, m.volume, m.rate_index, m.time, b.w15_bqx_return, b.agg_bqx_volatility, \
                             r.w60_reg_a, r.w630_reg_endpoint \
                        FROM bqx.m1_eurusd AS m LEFT JOIN bqx.bqx_eurusd AS b ON b.ts_utc = m.time \
                        LEFT JOIN bqx.reg_eurusd AS r ON r.ts_utc = m.time";
const COLUMNS: &str = "open, high, low, close, volume, rate_index, ts_utc, w15_bqx_return, agg_bqx_volatility, w60_reg_a, w630_reg_endpoint";

#[test]
fn features_are_the_bars_with_their_metrics() {
    let (_db, mut session, notices) = filled("features");
    // A bar that has no metrics yet, and one that is in no month of metrics.
    run_each(
        &mut session,
        &[
            "DELETE FROM bqx.reg_eurusd WHERE ts_utc = '2024-08-05 10:00+00'",
            "DELETE FROM bqx.bqx_eurusd WHERE ts_utc >= '2024-09-01 00:00+00'",
            "CALL bqx.create_features()",
        ],
    );
    let made = ["audusd", "eurusd", "gbpusd"].map(|pair| format!("NOTICE: bqx_ml.features_{pair}: made"));
    assert_eq!(notices.take(), made);
    let same = |session: &mut Client, from: &str, to: &str| {
        let bounds = format!("WHERE time >= '{from}' AND time < '{to}'");
        let by_hand = format!("{JOINED} {bounds}");
        let function = format!("SELECT {COLUMNS} FROM bqx_ml.features('{{eurusd}}', '{from}', '{to}')");
        let view = format!("SELECT {COLUMNS} FROM bqx_ml.features_eurusd {bounds} AND ts_utc = time");
        assert_eq!(row(session, &difference(&by_hand, &function)), "0", "{from} {to}");
        assert_eq!(row(session, &difference(&by_hand, &view)), "0", "{from} {to}");
        row(session, &format!("SELECT count(*) FROM ({function}) AS f"))
    };
    assert_eq!(same(&mut session, "-infinity", "infinity"), "3168");
    assert_eq!(same(&mut session, "2024-08-01 00:00+00", "2024-09-01 00:00+00"), "1056");
    assert_eq!(same(&mut session, "2024-08-30 22:30+00", "2024-09-02 01:00+00"), "5");
    assert_eq!(same(&mut session, "2024-08-05 10:00+00", "2024-08-05 10:00+00"), "0");
    // All pairs, by name, each in the order of time, whatever their tables look like.
    assert_eq!(
        rows(
            &mut session,
            "SELECT pair, count(*), count(w15_bqx_return), count(open) FROM bqx_ml.features(NULL, NULL, NULL) GROUP BY 1 ORDER BY 1"
        ),
        ["audusd|3168|0|0", "eurusd|3168|2145|0", "gbpusd|3168|0|0"]
    );
    assert_eq!(
        row(
            &mut session,
            "SELECT bool_and(ordered) FROM (SELECT (pair, time) >= lag((pair, time)) OVER () AS ordered \
                             FROM bqx_ml.features('{audusd,eurusd}', '2024-07-20', NULL)) AS f"
        ),
        "t"
    );
    // The views have the windows that the tables have.
    assert_eq!(
        row(
            &mut session,
            &difference(
                "SELECT time, close, volume, w20_bqx_endpoint, w5_reg_c FROM bqx_ml.features_gbpusd",
                "SELECT m.time AT TIME ZONE 'UTC', m.close::float8, m.volume::float8, b.w20_bqx_endpoint, r.w5_reg_c FROM bqx.m1_gbpusd AS m \
               JOIN bqx.bqx_gbpusd AS b ON b.ts_utc = m.time AT TIME ZONE 'UTC' JOIN bqx.reg_gbpusd AS r USING (ts_utc)"
            )
        ),
        "0"
    );
}

#[test]
fn one_month_is_all_that_functions_look_at() {
    let (_db, mut session, _) = filled("one_month");
    run(&mut session, "CALL bqx.create_tables('{bqx}', '{usdjpy,usdchf}', '2024-07-01', '2024-09-01')");
    for (query, expected) in [
        (
            "bqx_ml.features('{eurusd}', '2024-08-01 00:00+00', '2024-09-01 00:00+00')",
            "bqx_eurusd m1_eurusd reg_eurusd",
        ),
        (
            "bqx_ml.related('eurusd', '2024-08-01 00:00+00', '2024-09-01 00:00+00')",
            "bqx_audusd bqx_eurusd bqx_gbpusd bqx_usdchf bqx_usdjpy",
        ),
        ("bqx_ml.targets('eurusd', '2024-08-01 00:00+00', '2024-09-01 00:00+00')", "bqx_eurusd"),
        (
            "bqx_ml.training_set('eurusd', '2024-08-01 00:00+00', '2024-09-01 00:00+00', 60)",
            "bqx_eurusd m1_eurusd reg_eurusd",
        ),
    ] {
        run_each(&mut session, &["BEGIN", &format!("SELECT count(*) FROM {query}")]);
        let expected: Vec<String> = expected.split(' ').map(|table| format!("{table}_2024_08")).collect();
        assert_eq!(locked_tables(&mut session), expected, "{query}");
        run(&mut session, "COMMIT");
    }
}

#[test]
fn views_are_made_once_anew_and_never_over_others() {
    let (_db, mut session, notices) = filled("views");
    let mut call = |sql: &str| {
        run(&mut session, sql);
        notices.take().join("\n")
    };
    assert_eq!(call("CALL bqx.create_features('{eurusd}')"), "NOTICE: bqx_ml.features_eurusd: made");
    assert_eq!(call("CALL bqx.create_features('{EURUSD}')"), "NOTICE: bqx_ml.features_eurusd: was there");
    assert_eq!(
        call("CALL bqx.refresh_features('{eurusd}')"),
        "NOTICE: bqx_ml.features_eurusd is a view: it is always up to date"
    );
    assert_eq!(
        call("CALL bqx.refresh_features()"),
        "NOTICE: no features are materialized: views are always up to date"
    );
    assert_eq!(
        call("CALL bqx.create_features('{eurusd}', materialized => true)"),
        "NOTICE: bqx_ml.features_eurusd: made anew"
    );
    assert_eq!(
        call("CALL bqx.create_features('{eurusd}', true)"),
        "NOTICE: bqx_ml.features_eurusd: was there"
    );
    run(&mut session, "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-09-30 23:45+00', 1.08)");
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx_ml.features_eurusd"), "3168");
    run(&mut session, "CALL bqx.refresh_features()");
    assert_eq!(notices.take(), ["NOTICE: bqx_ml.features_eurusd: refreshed"]);
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx_ml.features_eurusd"), "3169");
    // Another column makes it another relation; who may read it stays.
    run(
        &mut session,
        "DO $$ BEGIN IF to_regrole('ml_reader') IS NULL THEN CREATE ROLE ml_reader LOGIN; END IF; END $$",
    );
    run_each(
        &mut session,
        &[
            "GRANT SELECT ON bqx_ml.features_eurusd TO ml_reader WITH GRANT OPTION",
            "GRANT SELECT ON bqx_ml.features_eurusd TO PUBLIC",
            "ALTER TABLE bqx.bqx_eurusd ADD COLUMN w20_bqx_return double precision",
        ],
    );
    run(&mut session, "CALL bqx.create_features('{eurusd}')");
    assert_eq!(notices.take(), ["NOTICE: bqx_ml.features_eurusd: made anew"]);
    run(&mut session, "SELECT w20_bqx_return FROM bqx_ml.features_eurusd LIMIT 1");
    let acl = "SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM pg_class, unnest(relacl) AS a WHERE oid = 'bqx_ml.features_eurusd'::regclass AND a::text !~ '^postgres='";
    assert_eq!(row(&mut session, acl), "=r/postgres ml_reader=r*/postgres");

    run(&mut session, "CREATE VIEW bqx_ml.features_gbpusd AS SELECT 1 AS mine");
    let error = error_of(&mut session, "CALL bqx.create_features('{gbpusd}')");
    assert_eq!(
        (&*error.code, &*error.message),
        ("42P07", "relation bqx_ml.features_gbpusd exists already, and was not made by bqx")
    );
    assert_eq!(row(&mut session, "SELECT mine FROM bqx_ml.features_gbpusd"), "1");
    run(&mut session, "CREATE TABLE bqx_ml.related_audusd AS SELECT 2 AS mine");
    let error = error_of(&mut session, "CALL bqx.create_related('audusd')");
    assert_eq!(error.code, "42P07");
    let error = error_of(&mut session, "CALL bqx.create_features('{usdcad}')");
    assert_eq!(error.code, "42P01");
    let error = error_of(&mut session, "CALL bqx.refresh_features('{audusd}')");
    assert_eq!(error.code, "42P01");
    assert!(
        error.hint.contains("CALL bqx.create_features(ARRAY['audusd'], materialized => true);"),
        "{error:?}"
    );
}

/// A derived table need not have any metric.
#[test]
fn tables_without_metrics_add_no_columns() {
    let (_db, mut session, _) = filled("no_metrics");
    run_each(
        &mut session,
        &[
            "CREATE TABLE bqx.m1_usdcad AS SELECT time, close, rate_index FROM bqx.m1_eurusd LIMIT 10",
            "CREATE TABLE bqx.bqx_usdcad (ts_utc timestamptz PRIMARY KEY)",
            "CREATE TABLE bqx.reg_usdcad (ts_utc timestamptz PRIMARY KEY, w60_reg_a double precision)",
            "CALL bqx.create_features('{usdcad}')",
        ],
    );
    let seen = "SELECT count(*), count(close), count(open), count(w60_reg_a) FROM bqx_ml.features_usdcad";
    assert_eq!(row(&mut session, seen), "10|10|0|0");
    assert_eq!(
        row(
            &mut session,
            "SELECT count(*), count(w60_bqx_return) FROM bqx_ml.features('{usdcad}', NULL, NULL)"
        ),
        "10|0"
    );
}

#[test]
fn dropped_tables_take_the_views_along_and_say_how_to_make_them_again() {
    let (_db, mut session, notices) = filled("dropped");
    run_each(
        &mut session,
        &[
            "CALL bqx.create_features('{eurusd}', true)",
            "CALL bqx.create_related('eurusd')",
            "CALL bqx.create_targets('{eurusd}')",
        ],
    );
    let error = error_of(&mut session, "CALL bqx.drop_tables('{bqx}', '{eurusd}')");
    assert_eq!(error.code, "2BP01");
    assert!(error.detail.contains("materialized view bqx_ml.features_eurusd"), "{error:?}");
    notices.take();
    run(&mut session, "CALL bqx.drop_tables('{bqx}', '{eurusd}', cascade => true)");
    let said = notices.take().join("\n");
    for relation in [
        "materialized view bqx_ml.features_eurusd",
        "view bqx_ml.related_eurusd",
        "view bqx_ml.targets_eurusd",
    ] {
        assert!(said.contains(&format!("{relation} goes with bqx.bqx_eurusd")), "{said}");
    }
    run_each(
        &mut session,
        &[
            "CALL bqx.create_tables(pairs => '{eurusd}')",
            "CALL bqx.backfill(pairs => '{eurusd}', workers => 0)",
            "CALL bqx.create_features(ARRAY['eurusd'], materialized => true)",
            "CALL bqx.create_related('eurusd')",
            "CALL bqx.create_targets(ARRAY['eurusd'], '{60}', '{15,30,45,60,75,90,105}')",
        ],
    );
    assert_eq!(row(&mut session, "SELECT count(w75_bqx_return) FROM bqx_ml.features_eurusd"), "3093");
}

/// The metrics of related pairs are those of their tables at the same instant.
#[test]
fn related_pairs_stand_side_by_side() {
    let (_db, mut session, notices) = filled("related");
    run_each(
        &mut session,
        &[
            // shares no currency with eurusd; has no bars
            "CALL bqx.create_tables('{bqx}', '{audjpy,eurjpy}', '2024-07-01', '2024-09-01')",
            "INSERT INTO bqx.bqx_eurjpy (ts_utc, w15_bqx_return) VALUES ('2024-08-05 10:00+00', 7), ('2024-08-05 10:10+00', 8)",
            "INSERT INTO bqx.bqx_audjpy (ts_utc, w15_bqx_return) VALUES ('2024-08-05 10:00+00', 9)",
            "INSERT INTO bqx.pairs (pair, base, quote) VALUES ('eurtry', 'EUR', 'TRY')",
            "CALL bqx.create_tables('{bqx}', '{eurtry}', '2024-07-01', '2024-09-01')",
            "INSERT INTO bqx.bqx_eurtry (ts_utc, w15_bqx_return) VALUES ('2024-08-05 10:00+00', 10)",
        ],
    );
    notices.take();
    run(&mut session, "CALL bqx.create_related('EURUSD')");
    assert_eq!(
        notices.take(),
        ["NOTICE: bqx_ml.related_eurusd: made, beside 4 pair(s) that share a currency with it"]
    );
    let columns = "ts_utc, target_w15_bqx_return, target_agg_bqx_volatility, eurjpy_w15_bqx_return";
    let by_hand = "SELECT t.ts_utc, t.w15_bqx_return, t.agg_bqx_volatility, o.w15_bqx_return \
                     FROM bqx.bqx_eurusd AS t LEFT JOIN bqx.bqx_eurjpy AS o USING (ts_utc)";
    let bounds = "WHERE ts_utc >= '2024-08-01 00:00+00' AND ts_utc < '2024-09-01 00:00+00'";
    let view = format!("SELECT {columns} FROM bqx_ml.related_eurusd");
    let function = |ends: &str| format!("SELECT {columns} FROM bqx_ml.related('eurusd', {ends})");
    assert_eq!(row(&mut session, &difference(by_hand, &view)), "0");
    assert_eq!(row(&mut session, &difference(by_hand, &function("NULL, NULL"))), "0");
    let month = function("'2024-08-01 00:00+00', '2024-09-01 00:00+00'");
    assert_eq!(row(&mut session, &difference(&format!("{by_hand} {bounds}"), &month)), "0");
    assert_eq!(row(&mut session, &difference(&format!("{view} {bounds}"), &month)), "0");
    let seen = "SELECT eurjpy_w15_bqx_return, audusd_w7_bqx_return IS NOT NULL, eurtry_w15_bqx_return FROM bqx_ml.related_eurusd \
                 WHERE ts_utc = '2024-08-05 10:00+00'";
    assert_eq!(row(&mut session, seen), "7|t|10");
    let seen = "SELECT eurjpy_w15_bqx_return, audjpy_w15_bqx_return, gbpusd_w15_bqx_return FROM bqx_ml.related('eurusd', NULL, NULL) \
                 WHERE ts_utc = '2024-08-05 10:00+00'";
    assert_eq!(
        row(&mut session, seen),
        "7|NULL|NULL",
        "unrelated pairs, and windows that a table lacks, are NULL"
    );
    // 37 metrics of a pair and of the twelve others, at most
    let names = "SELECT count(*), count(*) FILTER (WHERE attname LIKE 'target\\_%') FROM pg_attribute \
                  WHERE attnum > 0 AND NOT attisdropped AND attrelid = ";
    assert_eq!(row(&mut session, &format!("{names} 'bqx.related_row'::regclass")), "1074|37");
    let all = "CALL bqx.create_tables('{bqx}', '{euraud,eurcad,eurchf,eurgbp,eurnzd,nzdusd,usdcad,usdchf,usdjpy}', '2024-07-01', '2024-09-01')";
    run_each(
        &mut session,
        &[
            "DROP TABLE bqx.bqx_gbpusd, bqx.bqx_audusd, bqx.bqx_eurtry CASCADE",
            "CALL bqx.create_tables('{bqx}', '{audusd,gbpusd}', '2024-07-01', '2024-09-01')",
            all,
            "CALL bqx.create_related('eurusd')",
        ],
    );
    assert_eq!(row(&mut session, &format!("{names} 'bqx_ml.related_eurusd'::regclass")), "482|37");
    assert_eq!(error_of(&mut session, "CALL bqx.create_related('usdxxx')").code, "22023");
    // A view over the pair's function goes with the table, too.
    run(
        &mut session,
        "CREATE VIEW bqx_ml.over_function AS SELECT ts_utc FROM bqx_ml.related_eurusd(NULL, NULL)",
    );
    let error = error_of(&mut session, "CALL bqx.drop_tables('{bqx}', '{eurgbp}')");
    assert!(error.detail.contains("view bqx_ml.over_function (of bqx.bqx_eurgbp)"), "{error:?}");
    assert_eq!(error_of(&mut session, "SELECT * FROM bqx_ml.related('nzdcad', NULL, NULL)").code, "42P01");
    run_each(&mut session, &["CALL bqx.create_m1('{nzdcad}', '2024-07-01', '2024-07-01')"]);
    assert_eq!(
        row(&mut session, "SELECT count(DISTINCT pair) FROM bqx_ml.features(NULL, NULL, NULL)"),
        "3",
        "those with both tables"
    );
}

#[test]
fn targets_are_what_the_tables_hold_later() {
    let (_db, mut session, _) = filled("targets");
    run_each(
        &mut session,
        &[
            "DELETE FROM bqx.m1_eurusd WHERE time = '2024-08-05 12:00+00'",
            "CALL bqx.refresh('{eurusd}')",
            "CALL bqx.create_targets('{eurusd}', '{15,60}', '{30,90,45}')",
            "CALL bqx.create_targets('{gbpusd}', '{20}', '{60}')",
        ],
    );
    let by_hand = "SELECT b.ts_utc, f.w15_bqx_return, f.w60_bqx_return, (f.rate_index - b.rate_index) / b.rate_index \
                     FROM bqx.bqx_eurusd AS b LEFT JOIN bqx.bqx_eurusd AS f ON f.ts_utc = b.ts_utc + interval '90 min'";
    let view = "SELECT ts_utc, w15_bqx_return_h90, w60_bqx_return_h90, rate_index_return_h90 FROM bqx_ml.targets_eurusd";
    assert_eq!(row(&mut session, &difference(by_hand, view)), "0");
    let some = "SELECT w60_bqx_return_h90 IS NULL, w60_bqx_return_h30 IS NULL, w15_bqx_return_h45 FROM bqx_ml.targets_eurusd WHERE ts_utc = ";
    assert_eq!(
        row(&mut session, &format!("{some} '2024-08-05 10:30+00'")),
        "t|f|NULL",
        "there is no bar at 12:00, and none at 11:15"
    );
    let known = format!(
        "SELECT ts_utc, w60_bqx_return, change FROM ({by_hand}) AS h (ts_utc, w15, w60_bqx_return, change) WHERE w60_bqx_return IS NOT NULL \
            AND ts_utc >= '2024-08-01 00:00+00' AND ts_utc + interval '91 min' <= '2024-09-01 00:00+00'"
    );
    let function = "SELECT * FROM bqx_ml.targets('eurusd', '2024-08-01 00:00+00', '2024-09-01 00:00+00', 90)";
    assert_eq!(row(&mut session, &difference(&known, function)), "0");
    let gbpusd = "SELECT count(*), count(w20_bqx_return_h60) = (SELECT count(*) FROM bqx_ml.targets('gbpusd', NULL, NULL, width => 20)) \
                    FROM bqx_ml.targets_gbpusd";
    assert_eq!(row(&mut session, gbpusd), "3168|t");
    for (call, hint) in [
        ("SELECT * FROM bqx_ml.targets('eurusd', NULL, NULL, 0)", "Horizons are minutes ahead"),
        ("SELECT * FROM bqx_ml.targets('gbpusd', NULL, NULL, 60)", "It has: w2_bqx_return, w20_bqx_return."),
        ("CALL bqx.create_targets('{eurusd}', '{61}')", "w15_bqx_return"),
        ("CALL bqx.create_targets('{eurusd}', '{}')", "w15_bqx_return"),
        ("CALL bqx.create_targets('{eurusd}', horizons => '{15,NULL}')", "Horizons are minutes ahead"),
        ("SELECT * FROM bqx_ml.targets('eurusd', '2024-08-02', '2024-08-01')", "from_ts comes first"),
    ] {
        let error = error_of(&mut session, call);
        assert_eq!(error.code, "22023", "{call}");
        assert!(error.hint.contains(hint), "{call}: {error:?}");
    }
}

#[test]
fn training_sets_look_neither_ahead_nor_over_a_cut() {
    let (_db, mut session, notices) = filled("training");
    let set = |arguments: &str| {
        format!("bqx_ml.training_set('eurusd', '2024-07-08 00:00+00', '2024-09-20 00:00+00', {arguments})")
    };
    let parts = |session: &mut Client, arguments: &str| {
        rows(
            session,
            &format!(
                "SELECT split, count(*), to_char(min(ts_utc) AT TIME ZONE 'UTC', 'MM-DD HH24:MI'), to_char(max(ts_utc) AT TIME ZONE 'UTC', 'MM-DD HH24:MI') \
               FROM {} GROUP BY split ORDER BY min(ts_utc)",
                set(arguments)
            ),
        )
    };
    // Every half hour of five days; the last hour and a minute of each week has no bar that much later.
    let candidates = "SELECT b.ts_utc, row_number() OVER (ORDER BY b.ts_utc) - 1 AS i, count(*) OVER () AS n FROM bqx.bqx_eurusd AS b \
                        JOIN bqx.bqx_eurusd AS f ON f.ts_utc = b.ts_utc + interval '60 min' \
                       WHERE b.ts_utc >= '2024-07-08 00:00+00' AND f.ts_utc + interval '1 min' <= '2024-09-20 00:00+00' \
                         AND f.w60_bqx_return IS NOT NULL";
    let expected = format!(
        "WITH rows AS ({candidates}), cuts AS (SELECT min(ts_utc) FILTER (WHERE i >= round(0.8 * n)) AS validation, \
                                                   min(ts_utc) FILTER (WHERE i >= round(0.9 * n)) AS test FROM rows), \
              parts AS (SELECT ts_utc, CASE WHEN ts_utc + interval '61 min' < validation THEN 'train' \
                     WHEN ts_utc >= validation + interval '120 min' AND ts_utc + interval '61 min' < test AND bars(ts_utc, validation) >= 60 THEN 'validation' \
                     WHEN ts_utc >= test + interval '120 min' AND bars(ts_utc, test) >= 60 THEN 'test' END AS split FROM rows CROSS JOIN cuts) \
         SELECT p.ts_utc, p.split, f.w60_bqx_return, (f.rate_index - b.rate_index) / b.rate_index, b.w15_bqx_stdev_index, r.w390_reg_r2, m.close \
           FROM parts AS p JOIN bqx.bqx_eurusd AS b USING (ts_utc) JOIN bqx.reg_eurusd AS r USING (ts_utc) JOIN bqx.m1_eurusd AS m ON m.time = ts_utc \
           JOIN bqx.bqx_eurusd AS f ON f.ts_utc = p.ts_utc + interval '60 min' WHERE p.split IS NOT NULL"
    );
    // As many bars as a target is about lie between a cut and the instant that it is of.
    let bars = "CREATE FUNCTION bars(at timestamptz, cut timestamptz) RETURNS bigint LANGUAGE sql AS \
                $$ SELECT count(*) FROM bqx.bqx_eurusd WHERE ts_utc >= cut AND ts_utc < at + interval '60 min' $$";
    run(&mut session, bars);
    let found = format!(
        "SELECT ts_utc, split, target, forward_return, w15_bqx_stdev_index, w390_reg_r2, close FROM {}",
        set("60")
    );
    assert_eq!(row(&mut session, &difference(&expected, &found)), "0");
    assert_eq!(parts(&mut session, "60").len(), 3);
    assert_eq!(notices.take(), [""; 0]);
    // What is known of a row before a cut is known before it; after it, the gap is as long as asked for.
    let gaps = format!(
        "SELECT max(ts_utc) FILTER (WHERE split = 'train') + interval '61 min' < min(ts_utc) FILTER (WHERE split = 'validation') - interval '1 day', \
                max(ts_utc) + interval '61 min' <= '2024-09-20 00:00+00', bool_and(target IS NOT NULL AND forward_return IS NOT NULL) FROM {}",
        set("60, embargo => '1 day'")
    );
    assert_eq!(row(&mut session, &gaps), "t|t|t");
    assert_eq!(parts(&mut session, "60, '{1,0,0}'").len(), 1);
    assert_eq!(parts(&mut session, "60, '{0.5,0,0.5}'").len(), 2);
    assert_eq!(notices.take(), [""; 0]);
    assert_eq!(parts(&mut session, "60, embargo => '20 days'").len(), 1);
    assert_eq!(notices.take(), ["WARNING: no rows for validation, test"]);
    let all = "SELECT count(*) > 2000 FROM bqx_ml.training_set('eurusd', NULL, NULL, 30)";
    assert_eq!(row(&mut session, all), "t");
    for (arguments, hint) in [
        ("0", "Horizons are minutes ahead"),
        ("60, '{0.8,0.2}'", "Three shares"),
        ("60, '{0.8,0.3,-0.1}'", "Three shares"),
        ("60, '{0.8,NULL,0.2}'", "Three shares"),
        ("60, '{0.8,NaN,0.2}'", "Three shares"),
        ("60, NULL", "Three shares"),
        ("60, embargo => '119 min'", "At least 120 minutes"),
        ("60, width => 61", "w15_bqx_return"),
    ] {
        let error = error_of(&mut session, &format!("SELECT * FROM {}", set(arguments)));
        assert_eq!(error.code, "22023", "{arguments}");
        assert!(error.hint.contains(hint), "{arguments}: {error:?}");
    }
}

/// Where a pair has a function of its own, its query stands in the place of the call: no rows are kept, and unused tables not read.
#[test]
fn the_planner_sees_through_a_call_for_one_pair() {
    let (_db, mut session, _) = filled("see_through");
    let one_month = "'2024-08-01 00:00+00', '2024-09-01 00:00+00'";
    let is_function = |session: &mut Client, call: &str| {
        rows(session, &format!("EXPLAIN SELECT count(*) FROM bqx_ml.{call}"))
            .iter()
            .any(|line| line.contains("Function Scan"))
    };
    let features = format!("features('{{EURUSD}}', {one_month})");
    let related = format!("related('eurusd', {one_month})");
    let rows_of = |session: &mut Client, call: &str| {
        row(session, &format!("SELECT count(*), md5(string_agg(f::text, ',')) FROM bqx_ml.{call} AS f"))
    };
    let before = [&features, &related].map(|call| rows_of(&mut session, call));
    assert!(is_function(&mut session, &features) && is_function(&mut session, &related));
    run_each(&mut session, &["CALL bqx.create_features('{eurusd}')", "CALL bqx.create_related('eurusd')"]);
    assert!(!is_function(&mut session, &features) && !is_function(&mut session, &related));
    assert_eq!([&features, &related].map(|call| rows_of(&mut session, call)), before);
    assert!(!is_function(&mut session, "features('{eurusd}', NULL, NULL)"));
    for call in [
        "features('{eurusd,eurusd}', NULL, NULL)",
        "features('{eurusd,gbpusd}', NULL, NULL)",
        "features(NULL, NULL, NULL)",
        "features('{NULL}', NULL, NULL)",
        "features('{nosuch}', NULL, NULL)",
        "features('{eurusd}', now() - interval '1 day', NULL)",
        "related('gbpusd', NULL, NULL)",
        "related(NULL, NULL, NULL)",
    ] {
        assert!(is_function(&mut session, call), "{call}");
    }
    let error =
        error_of(&mut session, "SELECT * FROM bqx_ml.features('{eurusd}', '2024-08-02', '2024-08-01')");
    assert_eq!(error.code, "22023", "what is wrong is said all the same");
    // Prepared, with times that are known when it runs.
    run(
        &mut session,
        "PREPARE of_time (timestamptz) AS SELECT count(*) FROM bqx_ml.features('{eurusd}', $1, NULL)",
    );
    assert_eq!(row(&mut session, "EXECUTE of_time ('2024-09-30 23:00+00')"), "2");
    // What it was made of has changed: it is no longer taken, until it is made again.
    run_each(
        &mut session,
        &[
            "CALL bqx.create_tables('{bqx}', '{eurjpy}', '2024-07-01', '2024-09-01')",
            "INSERT INTO bqx.bqx_eurjpy (ts_utc, w15_bqx_return) VALUES ('2024-08-05 10:00+00', 7)",
        ],
    );
    let beside = format!("SELECT sum(eurjpy_w15_bqx_return) FROM bqx_ml.{related}");
    assert!(is_function(&mut session, &related));
    assert_eq!(row(&mut session, &beside), "7");
    run(&mut session, "CALL bqx.create_related('eurusd')");
    assert!(!is_function(&mut session, &related));
    assert_eq!(row(&mut session, &beside), "7");
    run(&mut session, "ALTER TABLE bqx.reg_eurusd DROP COLUMN w60_reg_a CASCADE");
    assert!(is_function(&mut session, &features), "with the column went the function");
    run(&mut session, "CALL bqx.create_features('{eurusd}')");
    assert!(!is_function(&mut session, &features));
    // With a table goes the function, and with it the plan.
    run(&mut session, "CALL bqx.drop_tables('{reg}', '{eurusd}', cascade => true)");
    assert_eq!(error_of(&mut session, &format!("SELECT count(*) FROM bqx_ml.{features}")).code, "42P01");
}

/// A table that takes another's name is read from then on, whether PostgreSQL sees through the call or not.
#[test]
fn a_table_in_the_place_of_another_is_read() {
    let (_db, mut session, notices) = filled("another_table");
    run_each(
        &mut session,
        &[
            "CALL bqx.create_features('{eurusd}')",
            "CALL bqx.create_related('eurusd')",
            "REVOKE EXECUTE ON FUNCTION bqx_ml.features_eurusd(timestamptz, timestamptz) FROM PUBLIC",
            "ALTER TABLE bqx.bqx_eurusd RENAME TO bqx_before",
            "CREATE TABLE bqx.bqx_eurusd (LIKE bqx.bqx_before INCLUDING ALL)",
            "INSERT INTO bqx.bqx_eurusd SELECT * FROM bqx.bqx_before",
            "UPDATE bqx.bqx_eurusd SET w60_bqx_return = 42",
        ],
    );
    let found = |session: &mut Client, relation: &str, column: &str| {
        row(session, &format!("SELECT min({column}), max({column}) FROM bqx_ml.{relation}"))
    };
    let month = "'2024-08-01 00:00+00', '2024-09-01 00:00+00'";
    let (features, related) =
        (format!("features('{{eurusd}}', {month})"), format!("related('eurusd', {month})"));
    let both = [(&*features, "w60_bqx_return"), (&*related, "target_w60_bqx_return")];
    for (call, column) in both {
        assert_eq!(found(&mut session, call, column), "42|42", "{call}");
    }
    assert_ne!(
        found(&mut session, "features_eurusd", "w60_bqx_return"),
        "42|42",
        "a view is of the tables that it was made of"
    );
    notices.take();
    run_each(&mut session, &["CALL bqx.create_features('{eurusd}')", "CALL bqx.create_related('eurusd')"]);
    assert_eq!(notices.take()[0], "NOTICE: bqx_ml.features_eurusd: made anew");
    for (call, column) in both
        .into_iter()
        .chain([("features_eurusd", "w60_bqx_return"), ("related_eurusd", "target_w60_bqx_return")])
    {
        assert_eq!(found(&mut session, call, column), "42|42", "{call}");
    }
    let may_call = "SELECT has_function_privilege('pg_monitor', 'bqx_ml.features_eurusd(timestamptz, timestamptz)', 'EXECUTE')";
    assert_eq!(row(&mut session, may_call), "f", "who may call it stays");
}

/// Views outlive the extension. The functions of one pair return a type of its, so they go; one call makes them again.
#[test]
fn views_outlive_the_extension() {
    let (_db, mut session, notices) = filled("outlive");
    run_each(
        &mut session,
        &[
            "CALL bqx.create_features('{eurusd}')",
            "CALL bqx.create_related('eurusd')",
            "CALL bqx.create_targets('{eurusd}')",
        ],
    );
    let sums = "SELECT (SELECT sum(w60_reg_r2) FROM bqx_ml.features_eurusd), (SELECT sum(target_w60_bqx_return) FROM bqx_ml.related_eurusd), \
                       (SELECT sum(w60_bqx_return_h60) FROM bqx_ml.targets_eurusd)";
    let before = row(&mut session, sums);
    run(&mut session, "DROP EXTENSION bqx CASCADE");
    assert_eq!(row(&mut session, sums), before);
    assert_eq!(
        row(&mut session, "SELECT count(*) FROM pg_proc WHERE pronamespace = 'bqx_ml'::regnamespace"),
        "0"
    );
    run(&mut session, "CREATE EXTENSION bqx");
    notices.take();
    run_each(&mut session, &["CALL bqx.create_features('{eurusd}')", "CALL bqx.create_targets('{eurusd}')"]);
    assert_eq!(
        notices.take(),
        ["NOTICE: bqx_ml.features_eurusd: was there", "NOTICE: bqx_ml.targets_eurusd: was there"]
    );
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx_ml.features('{eurusd}', NULL, NULL)"), "3168");
}

/// A function that somebody else puts there is not run as whoever asks for features.
#[test]
fn strangers_functions_are_not_taken_for_ours() {
    let (db, mut session, _) = filled("strangers_functions");
    run_each(
        &mut session,
        &[
            "DROP ROLE IF EXISTS ml_stranger",
            "CREATE ROLE ml_stranger LOGIN",
            "GRANT CREATE ON SCHEMA bqx_ml TO ml_stranger",
        ],
    );
    let trap = "CREATE FUNCTION bqx_ml.features_eurusd(timestamptz, timestamptz) RETURNS SETOF bqx.feature_row LANGUAGE sql STABLE \
                AS $$ SELECT (NULL::bqx.feature_row).* $$";
    run(&mut db.connect_as("ml_stranger"), trap);
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx_ml.features('{eurusd}', NULL, NULL)"), "3168");
    let error = error_of(&mut session, "CALL bqx.create_features('{eurusd}')");
    assert_eq!(error.code, "42723");
    assert!(error.message.contains("exists already, and was not made by bqx"), "{error:?}");
    // Even if it says that it is ours, and its owner is that of the bars.
    run_each(
        &mut session,
        &[
            "CALL bqx.create_features('{gbpusd}')",
            "ALTER TABLE bqx.m1_gbpusd OWNER TO ml_stranger",
            "ALTER FUNCTION bqx_ml.features_gbpusd(timestamptz, timestamptz) OWNER TO ml_stranger",
        ],
    );
    let explain = "EXPLAIN SELECT * FROM bqx_ml.features('{gbpusd}', NULL, NULL)";
    assert!(rows(&mut session, explain).join("").contains("Function Scan"));
    run(&mut session, "CALL bqx.create_features('{gbpusd}')");
    assert!(
        !rows(&mut session, explain).join("").contains("Function Scan"),
        "it was made anew, as the caller's"
    );
    // What may not be called is not opened by the way.
    run_each(
        &mut session,
        &[
            "GRANT USAGE ON SCHEMA bqx_ml TO ml_stranger",
            "GRANT SELECT ON ALL TABLES IN SCHEMA bqx TO ml_stranger",
            "REVOKE EXECUTE ON FUNCTION bqx_ml.features_gbpusd(timestamptz, timestamptz) FROM PUBLIC",
        ],
    );
    let mut stranger = db.connect_as("ml_stranger");
    assert_eq!(row(&mut stranger, "SELECT count(*) FROM bqx_ml.features('{gbpusd}', NULL, NULL)"), "3168");
    // A plan that is kept is not for another role: the stranger's own function is for the stranger alone.
    run_each(
        &mut session,
        &[
            "GRANT EXECUTE ON FUNCTION bqx_ml.features_gbpusd(timestamptz, timestamptz) TO PUBLIC",
            "ALTER FUNCTION bqx_ml.features_gbpusd(timestamptz, timestamptz) OWNER TO ml_stranger",
            "SET ROLE ml_stranger",
            "PREPARE kept AS SELECT count(*) FROM bqx_ml.features('{gbpusd}', NULL, NULL)",
            "EXECUTE kept",
        ],
    );
    assert!(!rows(&mut session, "EXPLAIN EXECUTE kept").join("").contains("Function Scan"));
    run(&mut session, "RESET ROLE");
    assert!(rows(&mut session, "EXPLAIN EXECUTE kept").join("").contains("Function Scan"));
    run_each(
        &mut session,
        &["REVOKE EXECUTE ON FUNCTION bqx_ml.features(text[], timestamptz, timestamptz) FROM PUBLIC"],
    );
    assert_eq!(
        error_of(&mut stranger, "SELECT count(*) FROM bqx_ml.features('{gbpusd}', NULL, NULL)").code,
        "42501"
    );
    run_each(
        &mut session,
        &[
            "ALTER TABLE bqx.m1_gbpusd OWNER TO postgres",
            "DROP OWNED BY ml_stranger",
            "DROP ROLE ml_stranger",
            "CALL bqx.create_features('{eurusd}')",
        ],
    );
}

#[test]
fn functions_read_as_their_caller() {
    let (db, mut session, _) = filled("as_caller");
    run_each(
        &mut session,
        &[
            "DO $$ BEGIN IF to_regrole('ml_reader') IS NULL THEN CREATE ROLE ml_reader LOGIN; END IF; END $$",
            "GRANT SELECT ON bqx.m1_eurusd, bqx.bqx_eurusd TO ml_reader",
            "CALL bqx.create_features('{eurusd}')",
            "GRANT SELECT ON bqx_ml.features_eurusd TO ml_reader",
        ],
    );
    let mut reader = db.connect_as("ml_reader");
    run(&mut reader, "SELECT count(*) FROM bqx_ml.targets('eurusd', NULL, NULL)");
    run(&mut reader, "SELECT count(*) FROM bqx_ml.features_eurusd");
    for query in ["bqx_ml.features('{eurusd}', NULL, NULL)", "bqx_ml.training_set('eurusd', NULL, NULL, 60)"]
    {
        let error = attempt(&mut reader, &format!("SELECT count(*) FROM {query}"))
            .expect_err("no right to read reg_eurusd");
        assert_eq!(error.code, "42501", "{query}");
    }
    let error =
        attempt(&mut reader, "CALL bqx.create_targets('{eurusd}')").expect_err("no right to make views");
    assert_eq!(error.code, "42501");
}

/// Against PostgreSQL's own corr(), of values and of ranks.
#[test]
fn correlations_are_those_of_every_feature_by_itself() {
    let (_db, mut session, notices) = filled("correlations");
    run_each(
        &mut session,
        &[
            "UPDATE bqx.m1_eurusd SET open = close - 0.001, high = 7, volume = round(volume / 100)",
            "DELETE FROM bqx.m1_eurusd WHERE time = '2024-08-05 12:00+00'",
            "CALL bqx.refresh('{eurusd}')",
        ],
    );
    notices.take();
    run(&mut session, "CALL bqx.compute_correlations('{eurusd}', horizon => 90)");
    assert_eq!(
        notices.take(),
        ["NOTICE: eurusd: 3 month(s) correlated with w60_bqx_return 90 minutes later"]
    );
    let all = "SELECT count(*), count(DISTINCT feature), count(DISTINCT month), min(target), min(horizon) FROM bqx_ml.correlations WHERE pair = 'eurusd'";
    assert_eq!(row(&mut session, all), "288|96|3|w60_bqx_return|90", "all but low, of which there is none");
    for (feature, month) in [
        ("close", "2024-08-01"),
        ("open", "2024-08-01"),
        ("volume", "2024-07-01"),
        ("w15_bqx_return", "2024-07-01"),
        ("agg_bqx_volatility", "2024-08-01"),
        ("w630_reg_r2", "2024-09-01"),
        ("high", "2024-09-01"),
        ("low", "2024-09-01"),
    ] {
        let expected = format!(
            "WITH rows AS (SELECT f.{feature} AS x, l.w60_bqx_return AS y FROM bqx_ml.features('{{eurusd}}', NULL, NULL) AS f \
                             JOIN bqx.bqx_eurusd AS l ON l.ts_utc = f.ts_utc + interval '90 min' \
                            WHERE date_trunc('month', f.ts_utc AT TIME ZONE 'UTC') = '{month}' AND f.{feature} IS NOT NULL \
                              AND l.w60_bqx_return IS NOT NULL), \
                  ranks AS (SELECT x, y, rank() OVER (ORDER BY x) + (count(*) OVER (PARTITION BY x) - 1) / 2.0 AS rx, \
                                   rank() OVER (ORDER BY y) + (count(*) OVER (PARTITION BY y) - 1) / 2.0 AS ry FROM rows) \
             SELECT count(*) AS n, corr(x, y) AS pearson, corr(rx, ry) AS spearman FROM ranks"
        );
        let same = format!(
            "SELECT e.n = coalesce(f.n, 0), abs(e.pearson - f.pearson) < 1e-9, abs(e.spearman - f.spearman) < 1e-12 FROM ({expected}) AS e \
               LEFT JOIN bqx_ml.correlations AS f ON f.pair = 'eurusd' AND f.month = '{month}' AND f.feature = '{feature}'"
        );
        let expected = if ["high", "low"].contains(&feature) { "t|NULL|NULL" } else { "t|t|t" };
        assert_eq!(row(&mut session, &same), expected, "{feature} {month}");
    }
    // Again: the same rows, not more. Other horizons stand beside them.
    run_each(
        &mut session,
        &[
            "CALL bqx.compute_correlations('{eurusd}', '2024-08-15', '2024-08-20', horizon => 90)",
            "CALL bqx.compute_correlations('{eurusd}', '2024-08-15', '2024-08-20', width => 15)",
        ],
    );
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx_ml.correlations"), "384");
    // A target of a window that only this pair's table has, and rows that do not lie in the order of time.
    run_each(
        &mut session,
        &[
            "CALL bqx.drop_tables('{bqx}', '{gbpusd}')",
            "CALL bqx.create_tables('{bqx}', '{gbpusd}', windows => '{20,60}')",
            "CALL bqx.backfill('{bqx}', '{gbpusd}', workers => 0)",
            "UPDATE bqx.bqx_gbpusd SET w20_bqx_return = w20_bqx_return WHERE extract(minute FROM ts_utc) = 7",
            "CALL bqx.compute_correlations('{gbpusd}', '2024-08-01', '2024-08-01', horizon => 90, width => 20)",
        ],
    );
    let of_another_window = "SELECT c.n = e.n AND abs(c.pearson - e.r) < 1e-9 FROM bqx_ml.correlations AS c, ( \
        SELECT count(*) AS n, corr(f.w60_bqx_return, l.w20_bqx_return) AS r FROM bqx.bqx_gbpusd AS f \
        JOIN bqx.bqx_gbpusd AS l ON l.ts_utc = f.ts_utc + interval '90 min' \
        WHERE date_trunc('month', f.ts_utc AT TIME ZONE 'UTC') = '2024-08-01' AND num_nulls(f.w60_bqx_return, l.w20_bqx_return) = 0) AS e \
        WHERE c.pair = 'gbpusd' AND c.feature = 'w60_bqx_return' AND c.target = 'w20_bqx_return' AND c.horizon = 90";
    assert_eq!(row(&mut session, of_another_window), "t");
    for (call, code) in [
        ("CALL bqx.compute_correlations('{eurusd}', width => 61)", "22023"),
        ("CALL bqx.compute_correlations('{eurusd}', horizon => 0)", "22023"),
        ("CALL bqx.compute_correlations('{usdcad}')", "42P01"),
        ("CALL bqx.compute_correlations('{eurusd}', '2024-09-01', '2024-08-01')", "22023"),
    ] {
        assert_eq!(error_of(&mut session, call).code, code, "{call}");
    }
}
