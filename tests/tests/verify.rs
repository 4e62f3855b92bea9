//! verify() sees damage of every kind, where it is, and nothing else; completion_report() and the monitoring views
//! tell what there is.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use bqx_tests::{Db, error_of};
use postgres::Client;

/// Two pairs, the first nine days of two months, all stages done. The tests take turns: each leaves everything as
/// it was.
fn finished() -> (&'static Db<'static>, MutexGuard<'static, Client>) {
    static FINISHED: OnceLock<(Db<'static>, Mutex<Client>)> = OnceLock::new();
    let (db, session) = FINISHED.get_or_init(|| {
        let db = Db::new("verify");
        let mut session = db.connect();
        for stage in [
            "CALL bqx.simulate_m1(ARRAY['eurusd', 'usdjpy'], '2024-07-01', '2024-08-01')",
            "DELETE FROM bqx.m1_eurusd WHERE extract(day FROM time AT TIME ZONE 'UTC') > 9",
            "DELETE FROM bqx.m1_usdjpy WHERE extract(day FROM time AT TIME ZONE 'UTC') > 9",
            "CALL bqx.run_pipeline(ARRAY['eurusd', 'usdjpy'], workers => 0)",
        ] {
            session.batch_execute(stage).unwrap();
        }
        (db, Mutex::new(session))
    });
    let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
    session.batch_execute("ROLLBACK; RESET ALL").unwrap();
    (db, session)
}

/// Checks that do not hold, each as `check family pair month`, e.g. `row_count bqx eurusd 2024-08`; `-` stands for
/// no family and for no month.
fn faults(session: &mut Client, arguments: &str) -> BTreeSet<String> {
    let query = format!(
        "SELECT concat_ws(' ', check_name, coalesce(family, '-'), pair, coalesce(to_char(month, 'YYYY-MM'), '-')) \
         FROM bqx.verify({arguments}) WHERE ok IS NOT TRUE"
    );
    session.query(&query, &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

fn set(faults: &[&str]) -> BTreeSet<String> {
    faults.iter().map(|&fault| fault.to_owned()).collect()
}

/// The faults after some damage, which is undone.
fn faults_after(session: &mut Client, damage: &str, arguments: &str) -> BTreeSet<String> {
    session.batch_execute(&format!("BEGIN; {damage}")).unwrap();
    let found = faults(session, arguments);
    session.batch_execute("ROLLBACK").unwrap();
    found
}

fn text(session: &mut Client, query: &str) -> String {
    session.query_one(query, &[]).unwrap().get(0)
}

#[test]
fn a_finished_database_passes_every_check_of_every_month() {
    let (_db, mut session) = finished();
    assert_eq!(faults(&mut session, ""), set(&[]));
    let count = |session: &mut Client, filter: &str| -> i64 {
        session.query_one(&format!("SELECT count(*) FROM bqx.verify() WHERE {filter}"), &[]).unwrap().get(0)
    };
    // 2 pairs x (baseline, 2 months of M1, 2 families x (schema, indexes, 2 months x 7 checks))
    assert_eq!(count(&mut session, "ok"), 2 * (1 + 2 + 2 * (2 + 2 * 7)));
    assert_eq!(
        count(&mut session, "check_name = 'recomputed_sample' AND detail ~ '^[34] rows recomputed$'"),
        8
    );
}

#[test]
fn each_kind_of_damage_is_seen_where_it_is_and_nowhere_else() {
    let (_db, mut session) = finished();
    // A bar in the middle of a month, and a minute of a Saturday.
    let bar = "'2024-08-07 12:00+00'";
    let no_bar = "'2024-08-03 12:00+00'";
    let without_trigger = "ALTER TABLE bqx.m1_eurusd_2024_08 DISABLE TRIGGER bqx_set_rate_index";
    let cases: &[(String, &[&str])] = &[
        (format!("DELETE FROM bqx.bqx_eurusd WHERE ts_utc = {bar}"), &["row_count bqx eurusd 2024-08"]),
        (
            format!("INSERT INTO bqx.reg_eurusd (ts_utc) VALUES ({no_bar})"),
            &["row_count reg eurusd 2024-08"],
        ),
        (
            // as many rows as bars, but not the same minutes
            format!(
                "DELETE FROM bqx.bqx_eurusd WHERE ts_utc = {bar};
                 INSERT INTO bqx.bqx_eurusd (ts_utc) VALUES ({no_bar})"
            ),
            &["row_count bqx eurusd 2024-08"],
        ),
        (
            "INSERT INTO bqx.bqx_usdjpy (ts_utc) VALUES ('2024-07-06 12:00+00')".into(),
            &["row_count bqx usdjpy 2024-07"],
        ),
        (
            "ALTER TABLE bqx.bqx_eurusd DROP CONSTRAINT bqx_eurusd_pkey".into(),
            &["indexes bqx eurusd -"],
        ),
        (
            // a twin, which only a table without a key can hold
            format!(
                "ALTER TABLE bqx.bqx_eurusd DROP CONSTRAINT bqx_eurusd_pkey;
                 INSERT INTO bqx.bqx_eurusd SELECT * FROM bqx.bqx_eurusd WHERE ts_utc = {bar}"
            ),
            &["indexes bqx eurusd -", "row_count bqx eurusd 2024-08", "unique_timestamps bqx eurusd 2024-08"],
        ),
        (
            "UPDATE bqx.baseline_rates SET applied_at = NULL WHERE pair = 'eurusd'".into(),
            &["baseline - eurusd 2024-07"],
        ),
        (
            "UPDATE bqx.baseline_rates AS b SET baseline_time =
                 (SELECT min(time) FROM bqx.m1_eurusd WHERE rate_index <> 100 AND time >= '2024-08-01 00:00+00')
              WHERE pair = 'eurusd'"
                .into(),
            &["baseline - eurusd 2024-08"],
        ),
        (
            "UPDATE bqx.baseline_rates SET baseline_time = '2024-07-06 12:00+00' WHERE pair = 'eurusd'".into(),
            &["baseline - eurusd 2024-07"],
        ),
        (
            format!("UPDATE bqx.bqx_eurusd SET w60_bqx_avg_index = NULL WHERE ts_utc = {bar}"),
            &["null_distribution bqx eurusd 2024-08"],
        ),
        (
            format!("UPDATE bqx.bqx_eurusd SET agg_bqx_range = NULL WHERE ts_utc = {bar}"),
            &["null_distribution bqx eurusd 2024-08"],
        ),
        (
            // one bar too early: the 60th row has 59 bars before it
            "UPDATE bqx.reg_eurusd SET w60_reg_r2 = 1 WHERE ts_utc =
                 (SELECT time FROM bqx.m1_eurusd ORDER BY time OFFSET 59 LIMIT 1)"
                .into(),
            &["null_distribution reg eurusd 2024-07"],
        ),
        (
            // and one too late
            "UPDATE bqx.reg_eurusd SET w60_reg_r2 = NULL WHERE ts_utc =
                 (SELECT time FROM bqx.m1_eurusd ORDER BY time OFFSET 60 LIMIT 1)"
                .into(),
            &["null_distribution reg eurusd 2024-07"],
        ),
        (
            format!("UPDATE bqx.reg_eurusd SET w630_reg_b = 'NaN' WHERE ts_utc = {bar}"),
            &["finite reg eurusd 2024-08"],
        ),
        (
            format!("UPDATE bqx.reg_eurusd SET w60_reg_endpoint = 'Infinity' WHERE ts_utc = {bar}"),
            &["finite reg eurusd 2024-08"],
        ),
        (
            format!("UPDATE bqx.bqx_eurusd SET agg_bqx_return = '-Infinity' WHERE ts_utc = {bar}"),
            &["finite bqx eurusd 2024-08"],
        ),
        (
            format!("UPDATE bqx.reg_eurusd SET rate_index = rate_index + 1e-12 WHERE ts_utc = {bar}"),
            &["index_range reg eurusd 2024-08"],
        ),
        (
            format!("UPDATE bqx.reg_eurusd SET rate_index = NULL WHERE ts_utc = {bar}"),
            &["index_range reg eurusd 2024-08"],
        ),
        (
            // What the tables were computed from is another series now. (Too little for recomputed_sample.)
            format!("{without_trigger}; UPDATE bqx.m1_eurusd SET rate_index = rate_index + 1e-12 WHERE time = {bar}"),
            &[
                "index_range - eurusd 2024-08",
                "index_range bqx eurusd 2024-08",
                "index_range reg eurusd 2024-08",
                "stale bqx eurusd 2024-08",
                "stale reg eurusd 2024-08",
            ],
        ),
        (
            format!("{without_trigger}; UPDATE bqx.m1_eurusd SET close = -1 WHERE time = {bar}"),
            &["index_range - eurusd 2024-08", "stale bqx eurusd 2024-08", "stale reg eurusd 2024-08"],
        ),
        (
            "UPDATE bqx.bqx_eurusd SET w30_bqx_stdev_index = w30_bqx_stdev_index * 1.000001
              WHERE ts_utc >= '2024-08-01 00:00+00'"
                .into(),
            &["recomputed_sample bqx eurusd 2024-08"],
        ),
        (
            "UPDATE bqx.reg_eurusd SET w630_reg_yhat_end = w630_reg_yhat_end + 1e-6
              WHERE ts_utc < '2024-08-01 00:00+00'"
                .into(),
            &["recomputed_sample reg eurusd 2024-07"],
        ),
        (
            // the first row of the series with all metrics is always in the sample
            "UPDATE bqx.bqx_eurusd SET agg_bqx_volatility = agg_bqx_volatility * 1.000001 WHERE ts_utc =
                 (SELECT time FROM bqx.m1_eurusd ORDER BY time OFFSET 75 LIMIT 1)"
                .into(),
            &["recomputed_sample bqx eurusd 2024-07"],
        ),
        (
            // without the partition there are no rows either
            "ALTER TABLE bqx.bqx_eurusd DETACH PARTITION bqx.bqx_eurusd_2024_08".into(),
            &["row_count bqx eurusd 2024-08", "schema bqx eurusd -"],
        ),
        (
            // another type may have lost digits: these months were computed for the former one
            "ALTER TABLE bqx.bqx_eurusd ALTER COLUMN w15_bqx_return TYPE text".into(),
            &["schema bqx eurusd -", "stale bqx eurusd 2024-07", "stale bqx eurusd 2024-08"],
        ),
        (
            "ALTER TABLE bqx.bqx_eurusd RENAME COLUMN ts_utc TO at".into(),
            &["indexes bqx eurusd -", "schema bqx eurusd -"],
        ),
        (
            // a table may have fewer columns; but these months were computed with more
            "ALTER TABLE bqx.bqx_eurusd DROP COLUMN w15_bqx_return".into(),
            &["stale bqx eurusd 2024-07", "stale bqx eurusd 2024-08"],
        ),
        (
            "DELETE FROM bqx.month_ledger WHERE (family, pair, month) = ('bqx', 'eurusd', '2024-08-01')".into(),
            &["stale bqx eurusd 2024-08"],
        ),
        (
            // M1 corrected behind the tables' back, by less than the sample could see; the month's last bar is
            // August's lookback, too
            "UPDATE bqx.m1_eurusd SET close = close + 1e-14 WHERE time =
                 (SELECT max(time) FROM bqx.m1_eurusd WHERE time < '2024-08-01 00:00+00')"
                .into(),
            &[
                "index_range bqx eurusd 2024-07",
                "index_range reg eurusd 2024-07",
                "stale bqx eurusd 2024-07",
                "stale bqx eurusd 2024-08",
                "stale reg eurusd 2024-07",
                "stale reg eurusd 2024-08",
            ],
        ),
        (
            // rows in a month that has no bars any more
            "DELETE FROM bqx.m1_eurusd WHERE time >= '2024-08-01 00:00+00'".into(),
            &[
                "row_count bqx eurusd 2024-08",
                "row_count reg eurusd 2024-08",
                "stale bqx eurusd 2024-08",
                "stale reg eurusd 2024-08",
            ],
        ),
    ];
    for (damage, expected) in cases {
        // the other pair is looked at where it is the damaged one; all else takes too long
        let arguments = if damage.contains("usdjpy") { "" } else { "NULL, '{eurusd}'" };
        assert_eq!(faults_after(&mut session, damage, arguments), set(expected), "{damage}");
    }
    assert_eq!(faults(&mut session, ""), set(&[]), "all damage was undone");
}

#[test]
fn every_metric_is_recomputed() {
    let (_db, mut session) = finished();
    let columns = session
        .query(
            "SELECT f, c.name FROM unnest(ARRAY['bqx', 'reg']) AS f, bqx._metric_columns(f, NULL) AS c
              WHERE c.name ~ '^(w45_bqx|agg_bqx|w60_reg|w630_reg)_'",
            &[],
        )
        .unwrap();
    assert_eq!(columns.len(), 6 + 7 + 2 * 9);
    for row in columns {
        let (family, column): (&str, &str) = (row.get(0), row.get(1));
        let damage = format!(
            "UPDATE bqx.{family}_usdjpy SET {column} = {column} * 1.0001 + 1e-8 WHERE ts_utc >= '2024-08-01 00:00+00'"
        );
        assert_eq!(
            faults_after(&mut session, &damage, &format!("'{{{family}}}', '{{usdjpy}}', '2024-08-15'")),
            set(&[&format!("recomputed_sample {family} usdjpy 2024-08")]),
            "{column}"
        );
    }
}

#[test]
fn details_name_the_row_and_the_column() {
    let (_db, mut session) = finished();
    let mut detail_after = |check: &str, damage: &str| {
        session.batch_execute(&format!("BEGIN; {damage}")).unwrap();
        let query = format!(
            "SELECT detail FROM bqx.verify('{{bqx}}', '{{eurusd}}') WHERE NOT ok AND check_name = '{check}'"
        );
        let detail = text(&mut session, &query);
        session.batch_execute("ROLLBACK").unwrap();
        detail
    };
    assert_eq!(
        detail_after("row_count", "DELETE FROM bqx.bqx_eurusd WHERE ts_utc = '2024-08-09 21:58+00'"),
        "9840 rows, 9841 bars; rows without a bar: 0, bars without a row: 1, first at 2024-08-09 21:58:00 UTC"
    );
    assert_eq!(
        detail_after(
            "null_distribution",
            "UPDATE bqx.bqx_eurusd SET w60_bqx_endpoint = NULL WHERE ts_utc = '2024-08-07 12:00+00'"
        ),
        "wrongly NULL or not NULL (rows: 1, first at 2024-08-07 12:00:00 UTC: w60_bqx_endpoint)"
    );
    assert_eq!(
        detail_after(
            "finite",
            "UPDATE bqx.bqx_eurusd SET w60_bqx_endpoint = 'NaN'
              WHERE ts_utc IN ('2024-08-07 12:00+00', '2024-08-07 12:01+00')"
        ),
        "NaN or infinity (rows: 2, first at 2024-08-07 12:00:00 UTC: w60_bqx_endpoint)"
    );
    let sample = detail_after(
        "recomputed_sample",
        "UPDATE bqx.bqx_eurusd SET agg_bqx_range = 7 WHERE ts_utc =
             (SELECT time FROM bqx.m1_eurusd ORDER BY time OFFSET 75 LIMIT 1)",
    );
    assert!(
        sample.starts_with("row 2024-07-01 0") && sample.contains("agg_bqx_range is 7, recomputed 0.00"),
        "{sample}"
    );
}

#[test]
fn session_settings_change_nothing() {
    let (_db, mut session) = finished();
    let damage = "UPDATE bqx.bqx_eurusd SET rate_index = rate_index + 1e-12, w15_bqx_return = 'NaN'
                   WHERE ts_utc IN ('2024-07-09 23:59+00', '2024-08-01 00:00+00')";
    let query = "SELECT string_agg(v::text, E'\\n')
                   FROM (SELECT check_name, family, pair, to_char(month, 'YYYY-MM'), ok, detail
                   FROM bqx.verify(NULL, '{eurusd}', '2024-07-31', '2024-08-31')) AS v";
    session.batch_execute(&format!("BEGIN; {damage}; SELECT setseed(0.5)")).unwrap();
    let usual = text(&mut session, query);
    assert!(usual.contains(",f,"), "{usual}");
    session
        .batch_execute(
            "SET TimeZone = 'Pacific/Auckland'; SET DateStyle = 'German'; SET IntervalStyle = 'iso_8601';
             SET extra_float_digits = -15; SET search_path = ''; SET enable_seqscan = off; SELECT setseed(0.5)",
        )
        .unwrap();
    assert_eq!(text(&mut session, query), usual);
}

#[test]
fn arguments_and_rights_are_checked_as_everywhere() {
    let (db, mut session) = finished();
    for (call, code) in [
        ("bqx.verify('{foo}')", "22023"),
        ("bqx.verify(pairs => '{eurusdx}')", "22023"),
        ("bqx.verify(pairs => '{}')", "22023"),
        ("bqx.verify(from_month => '2024-08-01', to_month => '2024-07-01')", "22023"),
        ("bqx.verify(pairs => '{gbpusd}')", "42P01"),
    ] {
        assert_eq!(error_of(&mut session, &format!("SELECT * FROM {call}")).code, code, "{call}");
    }
    session.batch_execute("BEGIN; DROP TABLE bqx.reg_usdjpy").unwrap();
    let missing = error_of(&mut session, "SELECT * FROM bqx.verify()");
    assert_eq!((missing.code.as_str(), missing.hint.contains("bqx.create_tables")), ("42P01", true));
    session.batch_execute("ROLLBACK").unwrap();
    assert_eq!(faults(&mut session, "'{BQX}', '{EURUSD}', '2030-01-01'"), set(&[]), "a range without bars");

    session.batch_execute("CREATE ROLE verify_reader LOGIN").unwrap();
    let mut reader = db.connect_as("verify_reader");
    for report in ["bqx.verify()", "bqx.completion_report()"] {
        assert_eq!(error_of(&mut reader, &format!("SELECT * FROM {report}")).code, "42501", "{report}");
    }
    session.batch_execute("GRANT SELECT ON ALL TABLES IN SCHEMA bqx TO verify_reader").unwrap();
    assert_eq!(faults(&mut reader, "NULL, '{eurusd}'"), set(&[]));
    let complete: i64 = reader
        .query_one("SELECT count(*) FROM bqx.completion_report() WHERE status = 'complete'", &[])
        .unwrap()
        .get(0);
    assert_eq!(complete, 6);
    session.batch_execute("DROP OWNED BY verify_reader; DROP ROLE verify_reader").unwrap();
}

#[test]
fn the_locks_of_many_partitions_are_not_kept() {
    let (_db, mut session) = finished();
    session
        .batch_execute(
            "BEGIN; SELECT count(*) FROM bqx.verify(NULL, '{eurusd}'); SELECT * FROM bqx.completion_report()",
        )
        .unwrap();
    let kept = text(
        &mut session,
        "SELECT coalesce(string_agg(c.relname, ' '), '') FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation
          WHERE l.pid = pg_backend_pid() AND c.relname ~ '^(m1|bqx|reg)_eurusd_'",
    );
    session.batch_execute("ROLLBACK").unwrap();
    assert_eq!(kept, "");
}

#[test]
fn an_existing_table_with_other_types_and_fewer_columns_passes() {
    let db = Db::new("verify_existing");
    let mut session = db.connect();
    session
        .batch_execute(
            "INSERT INTO bqx.pairs (pair) VALUES ('oldusd');
             CREATE TABLE bqx.m1_oldusd
                 (id serial, time timestamp UNIQUE, close numeric(12,5), rate_index numeric(12,6));
             INSERT INTO bqx.m1_oldusd (time, close, rate_index)
                 SELECT t, p, p * 58 FROM (
                     SELECT t, round((1.1 + 0.02 * sin(extract(epoch FROM t) / 3000))::numeric, 5) AS p
                       FROM generate_series('2024-07-01'::timestamp, '2024-07-02', '1 minute') AS t) AS bars;
             CREATE TABLE bqx.bqx_oldusd (ts_utc timestamp UNIQUE, rate numeric, rate_index numeric(12,4),
                 w15_bqx_return numeric(20,10), w15_bqx_max_index real, w40_bqx_stdev_index double precision,
                 agg_bqx_range real, note text)",
        )
        .unwrap();
    session.batch_execute("CALL bqx.backfill('{bqx}', '{oldusd}', workers => 0)").unwrap();
    assert_eq!(faults(&mut session, "'{bqx}', '{oldusd}'"), set(&[]));
    let schema =
        text(&mut session, "SELECT detail FROM bqx.verify('{bqx}', '{oldusd}') WHERE check_name = 'schema'");
    assert!(
        schema.contains("lacks w15_bqx_min_index") && schema.contains("not of bqx: rate, note"),
        "{schema}"
    );

    let damage = "UPDATE bqx.bqx_oldusd SET w15_bqx_return = w15_bqx_return + 1e-8";
    assert_eq!(
        faults_after(&mut session, damage, "'{bqx}', '{oldusd}'"),
        set(&["recomputed_sample bqx oldusd 2024-07"])
    );
    // Without NOT NULL a row may have no time: it is in no month.
    let damage = "INSERT INTO bqx.bqx_oldusd (rate_index) VALUES (100)";
    assert_eq!(
        faults_after(&mut session, damage, "'{bqx}', '{oldusd}'"),
        set(&["unique_timestamps bqx oldusd -"])
    );
    let damage = "ALTER TABLE bqx.bqx_oldusd DROP CONSTRAINT bqx_oldusd_ts_utc_key";
    assert_eq!(faults_after(&mut session, damage, "'{bqx}', '{oldusd}'"), set(&["indexes bqx oldusd -"]));
}

#[test]
fn the_completion_report_counts_what_is_there() {
    let (_db, mut session) = finished();
    let report = |session: &mut Client| -> Vec<String> {
        let query = "SELECT concat_ws(' ', family, pair, rows, months || '/' || months_total, status)
                       FROM bqx.completion_report()";
        session.query(query, &[]).unwrap().iter().map(|row| row.get(0)).collect()
    };
    assert_eq!(
        report(&mut session),
        [
            "bqx eurusd 19830 2/2 complete",
            "bqx usdjpy 19625 2/2 complete",
            "bqx all 39455 4/4 complete",
            "reg eurusd 19830 2/2 complete",
            "reg usdjpy 19625 2/2 complete",
            "reg all 39455 4/4 complete",
        ]
    );
    // Spans, means and deviations are those of the tables' rows; the total's are across pairs.
    let differences = text(
        &mut session,
        "WITH expected AS (
             SELECT 'eurusd' AS pair, min(ts_utc), max(ts_utc), avg(rate_index) AS mean,
                    stddev_samp(rate_index) AS stdev FROM bqx.reg_eurusd
             UNION ALL
             SELECT 'usdjpy', min(ts_utc), max(ts_utc), avg(rate_index), stddev_samp(rate_index) FROM bqx.reg_usdjpy),
         with_total AS (
             SELECT * FROM expected
             UNION ALL SELECT 'all', min(min), max(max), avg(mean), stddev_samp(mean) FROM expected)
         SELECT count(*)::text || coalesce(string_agg(e::text || r::text, '') FILTER (WHERE
                    (r.first_bar, r.last_bar) IS DISTINCT FROM (e.min, e.max)
                    OR abs(r.mean_rate_index / e.mean - 1) > 1e-12 OR abs(r.stdev_rate_index / e.stdev - 1) > 1e-9), '')
           FROM with_total AS e JOIN bqx.completion_report() AS r USING (pair) WHERE r.family = 'reg'",
    );
    assert_eq!(differences, "3");

    session
        .batch_execute(
            "BEGIN; DELETE FROM bqx.bqx_eurusd WHERE ts_utc = '2024-08-07 12:00+00'; DROP TABLE bqx.reg_usdjpy;
             TRUNCATE bqx.reg_eurusd;
             UPDATE bqx.job_ledger SET state = 'failed' WHERE family = 'reg' AND pair = 'eurusd'",
        )
        .unwrap();
    let damaged = report(&mut session);
    session.batch_execute("ROLLBACK").unwrap();
    assert_eq!(
        damaged,
        [
            "bqx eurusd 19829 1/2 incomplete",
            "bqx usdjpy 19625 2/2 complete",
            "bqx all 39454 3/4 incomplete",
            "reg eurusd 0 0/2 failed",
            "reg usdjpy 0 0/2 not started",
            "reg all 0 0/4 failed",
        ]
    );
}

#[test]
fn monitoring_shows_the_run_to_those_who_may_see_it() {
    let (db, mut session) = finished();
    let recent = session.query("SELECT line FROM bqx.recent", &[]).unwrap();
    assert_eq!(recent.len(), 8);
    let newest: String = recent[7].get(0);
    assert!(
        newest.starts_with("[W00] usdjpy 2024-08 reg 9,766 rows ") && newest.ends_with(" s 100.0 %"),
        "{newest}"
    );
    let progress = "SELECT string_agg(concat_ws(' ', family, pair, months_done, months_total, rows_written,
                                           percent, status),
                           E'\\n' ORDER BY family, pair) FROM bqx.pair_progress";
    assert_eq!(
        text(&mut session, progress),
        "bqx eurusd 2 2 19830 100 complete\nbqx usdjpy 2 2 19625 100 complete\n\
         reg eurusd 2 2 19830 100 complete\nreg usdjpy 2 2 19625 100 complete"
    );
    session
        .batch_execute(
            "BEGIN;
             UPDATE bqx.job_ledger SET state = 'failed', error = E'no\\nbar', rows_written = NULL
              WHERE (family, pair, month) = ('bqx', 'eurusd', '2024-08-01');
             UPDATE bqx.job_ledger SET state = 'pending', finished_at = NULL, rows_written = NULL
              WHERE (family, pair) = ('reg', 'usdjpy')",
        )
        .unwrap();
    assert_eq!(
        text(&mut session, progress),
        "bqx eurusd 1 2 9989 50 failed\nbqx usdjpy 2 2 19625 100 complete\n\
         reg eurusd 2 2 19830 100 complete\nreg usdjpy 0 2 0 0 pending"
    );
    let dashboard = text(&mut session, "SELECT string_agg(line, E'\\n') FROM bqx.dashboard");
    assert!(dashboard.contains("failed  eurusd 2024-08 bqx   no bar\n"), "{dashboard}");
    assert!(dashboard.contains("3 of 4 months, 1 failed   29,614 rows"), "{dashboard}");
    assert!(dashboard.lines().count() <= 24, "{dashboard}");
    session.batch_execute("ROLLBACK").unwrap();

    let storage = text(
        &mut session,
        "SELECT string_agg(concat_ws(' ', family, pair, partitions, rows, bytes > 1e6), ', ' ORDER BY pair, family)
           FROM bqx.storage",
    );
    assert_eq!(
        storage,
        "bqx eurusd 2 19830 t, reg eurusd 2 19830 t, bqx usdjpy 2 19625 t, reg usdjpy 2 19625 t"
    );

    session.batch_execute("CREATE ROLE verify_stranger LOGIN").unwrap();
    let mut stranger = db.connect_as("verify_stranger");
    for view in ["pair_progress", "recent", "storage"] {
        let seen: i64 = stranger.query_one(&format!("SELECT count(*) FROM bqx.{view}"), &[]).unwrap().get(0);
        assert_eq!(seen, 0, "{view}");
    }
    let line = text(&mut stranger, "SELECT string_agg(line, '|') FROM bqx.dashboard");
    assert!(line.contains("no run yet, or none of yours"), "{line}");
    session.batch_execute("DROP ROLE verify_stranger").unwrap();
}
