//! Backfill: what it writes, that it writes the same however it's called, what it recomputes and what not, and who
//! sees what meanwhile.

mod common;
mod two_pairs;

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::Duration;

use bqx_tests::{Db, error_of, own_server};
use common::backfilled::{PREPARED, faults, prepare, wait_until};
use common::{attempt, checksums, row, rows, run, run_each};
use pgcluster::Cluster;
use postgres::Client;
use two_pairs::{cluster, expected, filled, prepared};
use twox_hash::XxHash3_128;

/// Where and by which transaction each row of the derived tables was written.
fn row_versions(db: &Db) -> Vec<String> {
    let version = |table: &str| {
        row(
            &mut db.connect(),
            &format!(
                "SELECT count(*), sum(hashtextextended(concat_ws(' ', tableoid, ctid, xmin, t), 0)) \
                 FROM bqx.{table} AS t"
            ),
        )
    };
    ["bqx_eurusd", "bqx_usdjpy", "reg_eurusd", "reg_usdjpy"].map(version).to_vec()
}

/// Jobs of the latest run that wrote rows, as `family pair month rows`.
fn jobs_that_wrote(session: &mut Client) -> Vec<String> {
    rows(
        session,
        "SELECT concat_ws(' ', family, pair, to_char(month, 'YYYY-MM'), rows_written) FROM bqx.jobs \
         WHERE run_id = (SELECT max(run_id) FROM bqx.runs) AND rows_written > 0 ORDER BY pair, month, family",
    )
}

/// Windows of the columns of a derived table, as `column|bars that must precede`.
fn windows(session: &mut Client, table: &str) -> Vec<(String, u32)> {
    let columns = rows(
        session,
        &format!(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'bqx.{table}'::regclass AND attnum > 0 \
             AND attname <> 'created_at' ORDER BY attnum"
        ),
    );
    let window = |name: &str| match name {
        "ts_utc" | "rate_index" => 0,
        _ if name.starts_with("agg_") => 75,
        _ => name[1..name.find('_').unwrap()].parse().unwrap(),
    };
    columns.into_iter().map(|name| (name.clone(), window(&name))).collect()
}

/// Each bar has a row, and each column is NULL exactly in the rows that fewer bars precede than its window is long.
fn assert_nulls_are_right(session: &mut Client, table: &str, m1: &str) {
    let columns = windows(session, table);
    let wrong: Vec<String> = columns
        .iter()
        .map(|(name, w)| format!("count(*) FILTER (WHERE ({name} IS NULL) <> (preceding < {w})) AS {name}"))
        .collect();
    let found = row(
        session,
        &format!(
            "SELECT count(*) FILTER (WHERE time IS NULL OR t.ts_utc IS NULL), {} FROM ( \
                 SELECT time, row_number() OVER (ORDER BY time) - 1 AS preceding FROM bqx.{m1}) AS m \
             FULL JOIN bqx.{table} AS t ON t.ts_utc = m.time",
            wrong.join(", ").replace("(ts_utc IS", "(t.ts_utc IS")
        ),
    );
    let (unpaired, found) = found.split_once('|').unwrap();
    assert_eq!(unpaired, "0", "{table}: bars without a row, and rows without a bar");
    let wrong: Vec<_> = found.split('|').zip(&columns).filter(|(n, _)| *n != "0").collect();
    assert!(wrong.is_empty(), "{table} is wrongly NULL or not NULL, (rows, (column, window)): {wrong:?}");
}

#[test]
fn every_bar_has_a_row_and_nulls_stand_only_where_the_series_begins() {
    let db = filled("rows");
    let mut session = db.connect();
    for pair in ["eurusd", "usdjpy"] {
        for family in ["bqx", "reg"] {
            assert_nulls_are_right(&mut session, &format!("{family}_{pair}"), &format!("m1_{pair}"));
        }
        assert_eq!(
            row(
                &mut session,
                &format!(
                    "SELECT count(*), bool_and(m.rate_index = 100 AND m.close = b.baseline_rate AND t.rate_index = 100 \
                            AND r.rate_index = 100), min(time) >= min(b.baseline_date) \
                       FROM bqx.baseline_rates AS b JOIN bqx.m1_{pair} AS m ON m.time = b.baseline_time \
                       JOIN bqx.bqx_{pair} AS t ON t.ts_utc = m.time JOIN bqx.reg_{pair} AS r ON r.ts_utc = m.time \
                      WHERE b.pair = '{pair}'"
                )
            ),
            "1|t|t"
        );
        let other_index = format!(
            "SELECT count(*) FROM bqx.m1_{pair} AS m JOIN bqx.bqx_{pair} AS t ON t.ts_utc = m.time \
             JOIN bqx.reg_{pair} AS r ON r.ts_utc = m.time JOIN bqx.baseline_rates AS b ON b.pair = '{pair}' \
             WHERE (m.rate_index, m.rate_index) IS DISTINCT FROM (t.rate_index, r.rate_index) \
                OR m.rate_index IS DISTINCT FROM bqx.rate_index(m.close, b.baseline_rate)"
        );
        assert_eq!(row(&mut session, &other_index), "0");
    }
    assert_eq!(
        row(
            &mut session,
            "SELECT count(*), array_agg(DISTINCT to_char(ts_utc AT TIME ZONE 'UTC', 'YYYY-MM')) FROM bqx.bqx_usdjpy \
             WHERE agg_bqx_return IS NULL"
        ),
        "75|{2024-07}"
    );
    assert_eq!(faults(&mut session), [""; 0]);
    // not a number, or no finite one
    for table in ["bqx_eurusd", "reg_eurusd", "bqx_usdjpy", "reg_usdjpy"] {
        let odd = format!("SELECT count(*) FROM bqx.{table} AS t WHERE t::text ~ '(NaN|Infinity|-0[,)])'");
        assert_eq!(row(&mut session, &odd), "0", "{table}");
    }
}

#[test]
fn the_number_of_workers_changes_no_bit() {
    for workers in ["0", "1", "2", "3", "NULL"] {
        let db = prepared(&format!("workers_{}", workers.to_lowercase()));
        let mut session = db.connect();
        run_each(
            &mut session,
            &["CALL bqx.create_tables()", &format!("CALL bqx.backfill(workers => {workers})")],
        );
        assert_eq!(checksums(&db), *expected(), "workers => {workers}");
        let by_session = row(
            &mut session,
            "SELECT count(*), count(*) FILTER (WHERE worker = 0), count(*) FILTER (WHERE state <> 'done') \
             FROM bqx.jobs",
        );
        match workers {
            "0" => assert_eq!(by_session, "12|12|0"),
            _ => assert_eq!(by_session, "12|0|0", "workers => {workers}"),
        }
    }
}

#[test]
fn the_order_of_months_families_and_partitions_changes_no_bit() {
    let month = |month: &str, more: &str| {
        format!("CALL bqx.backfill(from_month => '{month}', to_month => '{month}', workers => 0{more})")
    };
    let one_by_one = ["2024-09-30", "2024-07-31", "2024-08-01"].map(|m| month(m, ""));
    let families = ["2024-08-08", "2024-09-09", "2024-07-07"]
        .map(|m| [month(m, ", families => ARRAY['reg']"), month(m, ", families => '{bqx}'")])
        .concat();
    let pairs = ["USDJPY", "EurUsd"].map(|p| format!("CALL bqx.backfill(pairs => '{{{p}}}', workers => 1)"));
    let overlapping = [
        "CALL bqx.backfill(from_month => '2024-08-15', workers => 2)".to_owned(),
        "CALL bqx.backfill(to_month => '2024-08-15', workers => 2)".to_owned(),
    ];
    let some_partitions = "CALL bqx.create_tables(from_month => '2024-08-01', to_month => '2024-08-01')";
    // A table without any partition, too.
    let no_partitions = [
        "ALTER TABLE bqx.reg_eurusd DETACH PARTITION bqx.reg_eurusd_2024_08",
        "DROP TABLE bqx.reg_eurusd_2024_08",
    ];
    let cases: &[(&str, &[&str], &[String])] = &[
        ("one_month_at_a_time", &["CALL bqx.create_tables()"], &one_by_one),
        ("families_apart", &["CALL bqx.create_tables()"], &families),
        ("pairs_apart", &[some_partitions], &pairs),
        ("overlapping", &[some_partitions, no_partitions[0], no_partitions[1]], &overlapping),
    ];
    for (name, tables, calls) in cases {
        let db = prepared(name);
        let mut session = db.connect();
        run_each(&mut session, tables);
        run_each(&mut session, calls);
        assert_eq!(checksums(&db), *expected(), "{name}");
        assert_eq!(faults(&mut session), [""; 0], "{name}");
        let partitions = "SELECT count(*), count(DISTINCT pg_get_expr(relpartbound, oid)) FROM pg_class \
             WHERE relispartition AND relname ~ '^(bqx|reg)_(eurusd|usdjpy)_2024_0[789]$' AND relkind = 'r'";
        assert_eq!(row(&mut session, partitions), "12|3", "{name}");
        assert_eq!(
            row(
                &mut session,
                "SELECT count(*) FROM pg_constraint WHERE contype = 'c' AND conrelid::regclass::text ~ '_2024_'"
            ),
            "0",
            "{name}: a CHECK was left behind"
        );
        let indexes = row(
            &mut session,
            "SELECT count(*) FILTER (WHERE indisvalid AND indisprimary), count(*) FROM pg_index \
             WHERE indrelid::regclass::text ~ '^bqx.(bqx|reg)_.*_2024_0[789]$'",
        );
        assert_eq!(indexes, "12|12", "{name}");
    }
}

#[test]
fn the_way_a_month_is_written_changes_no_bit() {
    let each = |statement: &str| {
        ["bqx_eurusd", "reg_eurusd", "bqx_usdjpy", "reg_usdjpy"].map(|table| {
            let m1 = format!("m1_{}", &table[4..]);
            statement.replace("{t}", table).replace("{m1}", &m1)
        })
    };
    let counted = [
        "CREATE SEQUENCE public.fired".to_owned(),
        "CREATE FUNCTION public.count_it() RETURNS trigger LANGUAGE plpgsql AS $$ \
         BEGIN PERFORM pg_catalog.nextval('public.fired'); RETURN NEW; END $$"
            .to_owned(),
    ];
    let triggers =
        each("CREATE TRIGGER t BEFORE INSERT ON bqx.{t} FOR EACH ROW EXECUTE FUNCTION public.count_it()");
    let leaf_triggers = each(
        "CREATE TRIGGER t BEFORE INSERT ON bqx.{t}_2024_08 FOR EACH ROW EXECUTE FUNCTION public.count_it()",
    );
    let columns = each("ALTER TABLE bqx.{t} ADD COLUMN note text DEFAULT 'mine'");
    let checks = each("ALTER TABLE bqx.{t} ADD CHECK (rate_index > 0)");
    let indexes = each("CREATE INDEX ON bqx.{t} (rate_index)");
    let wrong = each("INSERT INTO bqx.{t} (ts_utc, rate_index) SELECT time, 1 FROM bqx.{m1}");
    let surplus =
        each("INSERT INTO bqx.{t} (ts_utc, rate_index) SELECT time + interval '30 s', 1 FROM bqx.{m1}");
    let deleted = each("DELETE FROM bqx.{t}");
    let cases: &[(&str, Vec<String>)] = &[
        ("triggers", [counted.to_vec(), triggers.to_vec()].concat()),
        ("leaf_triggers", [counted.to_vec(), leaf_triggers.to_vec()].concat()),
        ("more_columns", columns.to_vec()),
        ("more_indexes", indexes.to_vec()),
        ("checks", checks.to_vec()),
        ("wrong_rows", wrong.to_vec()),
        ("surplus_rows", surplus.to_vec()),
        ("dead_rows", [wrong.to_vec(), deleted.to_vec()].concat()),
    ];
    for (name, changes) in cases {
        let db = prepared(&format!("way_{name}"));
        let mut session = db.connect();
        run(&mut session, "CALL bqx.create_tables()");
        run_each(&mut session, changes);
        run(&mut session, "CALL bqx.backfill(workers => 0)");
        assert_eq!(checksums(&db), *expected(), "{name}");
        let all_rows = row(&mut session, "SELECT sum(bars), sum(rows_written) FROM bqx.job_ledger");
        let (bars, written) = all_rows.split_once('|').unwrap();
        assert_eq!(bars, written, "{name}: each row was written once");
        let fired: Option<&str> = match *name {
            "triggers" => Some(bars),
            "leaf_triggers" => Some("a third"),
            _ => None,
        };
        if let Some(fired) = fired {
            let times = row(&mut session, "SELECT last_value FROM public.fired");
            assert!(times == fired || (fired == "a third" && times.len() == bars.len()), "{name}: {times}");
        }
        // Once more, all of it: nothing is left to change.
        if !["triggers", "more_columns", "surplus_rows"].contains(name) {
            continue;
        }
        let before = row_versions(&db);
        run(&mut session, "CALL bqx.backfill(workers => 0, force => true)");
        assert_eq!(row_versions(&db), before, "{name}");
        assert_eq!(jobs_that_wrote(&mut session), [""; 0], "{name}");
    }
}

#[test]
fn a_table_may_have_windows_of_its_own() {
    let db = prepared("own_windows");
    let mut session = db.connect();
    run_each(
        &mut session,
        &[
            "CALL bqx.create_tables('{bqx}', '{eurusd}', windows => '{40,20,40}')",
            "CALL bqx.create_tables('{reg}', '{eurusd}', windows => '{20,40}')",
            "CALL bqx.simulate_m1('{gbpusd}', '2024-07-01', '2024-07-01')",
            "CALL bqx.set_baselines(pairs => '{gbpusd}')",
            "CALL bqx.index_m1('{gbpusd}')",
            "CALL bqx.create_tables('{bqx}', '{gbpusd}', windows => '{2,3,10000}')",
            "CALL bqx.create_tables('{reg}', '{gbpusd}', windows => '{3,10000}')",
            "CALL bqx.backfill(pairs => '{eurusd,gbpusd}', workers => 2)",
        ],
    );
    let names = |session: &mut Client, table: &str| -> Vec<String> {
        windows(session, table).into_iter().map(|(name, _)| name).collect()
    };
    let bqx = names(&mut session, "bqx_eurusd");
    assert_eq!(bqx[..3], ["ts_utc", "rate_index", "w20_bqx_return"]);
    assert_eq!(bqx.iter().filter(|n| n.starts_with('w')).count(), 12);
    assert_eq!(bqx.len(), 2 + 12 + 7);
    assert_eq!(names(&mut session, "reg_gbpusd").len(), 2 + 18);
    for table in ["bqx_eurusd", "reg_eurusd", "bqx_gbpusd", "reg_gbpusd"] {
        assert_nulls_are_right(&mut session, table, &format!("m1_{}", &table[4..]));
    }
    let faults = "SELECT * FROM bqx.verify(pairs => '{eurusd,gbpusd}') WHERE ok IS NOT TRUE";
    assert_eq!(rows(&mut session, faults), [""; 0]);
    // against the formulas, in plain SQL
    for (pair, w) in [("eurusd", 20), ("eurusd", 40), ("gbpusd", 2), ("gbpusd", 3), ("gbpusd", 10_000)] {
        let agrees = format!(
            "WITH m AS (SELECT time, rate_index AS p, row_number() OVER (ORDER BY time) AS i FROM bqx.m1_{pair}) \
             SELECT count(*), bool_and( \
                    abs(t.w{w}_bqx_return / s.bqx_return - 1) < 1e-9 AND t.w{w}_bqx_max_index = s.bqx_max \
                AND t.w{w}_bqx_min_index = s.bqx_min AND abs(t.w{w}_bqx_avg_index / s.bqx_avg - 1) < 1e-12 \
                AND abs(t.w{w}_bqx_stdev_index / s.bqx_stdev - 1) < 1e-9 \
                AND abs(t.w{w}_bqx_endpoint - s.bqx_endpoint) < 1e-14) \
               FROM m AS c JOIN bqx.bqx_{pair} AS t ON t.ts_utc = c.time CROSS JOIN LATERAL ( \
                    SELECT sum(x.p::numeric - c.p::numeric)::float8 / c.p AS bqx_return, max(x.p) AS bqx_max, \
                           min(x.p) AS bqx_min, avg(x.p) AS bqx_avg, stddev_samp(x.p::numeric)::float8 AS bqx_stdev, \
                           (min(x.p) FILTER (WHERE x.i = c.i - {w}) - c.p) / c.p AS bqx_endpoint \
                      FROM m AS x WHERE x.i BETWEEN c.i - {w} AND c.i - 1) AS s \
              WHERE c.i IN ({w} + 1, 4567, 7890, 23456, 29999) AND s.bqx_return <> 0 AND s.bqx_stdev > 0"
        );
        let found = row(&mut session, &agrees);
        assert!(["3|t", "5|t"].contains(&found.as_str()), "w{w} of {pair}: {found}");
    }
    // The default table has the same figures where the windows are the same.
    let db = filled("default_windows");
    let mut session = db.connect();
    let other = "SELECT count(*) FROM bqx.bqx_eurusd AS t WHERE \
         (agg_bqx_return, agg_bqx_max_index, agg_bqx_min_index, agg_bqx_avg_index, agg_bqx_stdev_index) \
         IS DISTINCT FROM \
         (w75_bqx_return, w75_bqx_max_index, w75_bqx_min_index, w75_bqx_avg_index, w75_bqx_stdev_index)";
    assert_eq!(row(&mut session, other), "0");
}

#[test]
fn a_rerun_skips_what_is_done_and_force_changes_nothing() {
    let db = filled("rerun");
    let (mut session, notices) = db.connect_with_notices();
    let before = row_versions(&db);
    for call in [
        "CALL bqx.backfill(workers => 0)",
        "CALL bqx.backfill(workers => 2)",
        "CALL bqx.backfill(workers => 0, force => true)",
        "CALL bqx.backfill(workers => 2, force => true)",
        "CALL bqx.run_pipeline(workers => 0)",
        "CALL bqx.index_m1()",
    ] {
        notices.take();
        run(&mut session, call);
        assert_eq!(row_versions(&db), before, "{call}");
        let done = "SELECT count(*), sum(rows_written), string_agg(DISTINCT state, ' ') FROM bqx.jobs \
                    WHERE run_id = (SELECT max(run_id) FROM bqx.runs)";
        assert_eq!(row(&mut session, done), "12|0|done", "{call}");
        assert!(!notices.take().is_empty(), "{call} says what it did");
    }
    // A wrong value is nothing that a rerun looks for; force finds it, and mends just that row.
    run(
        &mut session,
        "UPDATE bqx.reg_eurusd SET w60_reg_a = w60_reg_a + 1 WHERE ts_utc = '2024-08-07 12:00+00'",
    );
    run(&mut session, "CALL bqx.backfill(workers => 0, force => true)");
    assert_eq!(jobs_that_wrote(&mut session), ["reg eurusd 2024-08 1"]);
    assert_eq!(checksums(&db), *expected());
}

/// It is compared with what former versions recorded, so it may not change unnoticed, whatever pieces it is read in.
#[test]
fn a_fingerprint_is_a_hash_of_shape_lookback_and_bars() {
    let db = Db::on(cluster(), "fingerprint");
    let mut session = db.connect();
    run_each(
        &mut session,
        &[
            "CALL bqx.simulate_m1('{gbpusd}', '2024-07-01', '2024-08-01')",
            "CALL bqx.set_baselines()",
            "CALL bqx.index_m1()",
        ],
    );
    let bars = rows(
        &mut session,
        "SELECT (extract(epoch FROM time - '2000-01-01 00:00+00'::timestamptz) * 1000000)::bigint, rate_index \
           FROM bqx.m1_gbpusd ORDER BY time",
    );
    let before = "SELECT count(*) FROM bqx.m1_gbpusd WHERE time < '2024-08-01 00:00+00'";
    let july: usize = row(&mut session, before).parse().unwrap();
    assert!(bars.len() - july > 20_000, "more than one piece");
    for lookback in [0, 75, 630] {
        let mut bytes = b"bqx 1 some shape".to_vec();
        bytes.extend((lookback as u64).to_le_bytes());
        for bar in &bars[july - lookback..] {
            let (time, value) = bar.split_once('|').unwrap();
            bytes.extend(time.parse::<i64>().unwrap().to_le_bytes());
            bytes.extend(value.parse::<f64>().unwrap().to_le_bytes());
        }
        let expected = format!("{:032x}|{}", XxHash3_128::oneshot(&bytes), bars.len() - july);
        let found = format!(
            "SELECT * FROM bqx._input_fingerprint('bqx.m1_gbpusd', '2024-08-01 00:00+00', '2024-09-01 00:00+00', \
             {lookback}, 'some shape')"
        );
        assert_eq!(row(&mut session, &found), expected, "lookback {lookback}");
    }
}

/// The bar that is the `nth` last of a month of eurusd (0: the last), as SQL.
fn nth_last_bar(month: &str, nth: u32) -> String {
    format!(
        "(SELECT time FROM bqx.m1_eurusd WHERE to_char(time AT TIME ZONE 'UTC', 'YYYY-MM') = '{month}' \
          ORDER BY time DESC OFFSET {nth} LIMIT 1)"
    )
}

#[test]
fn a_changed_bar_makes_just_the_rows_that_it_touches_recompute() {
    let db = filled("corrections");
    let mut session = db.connect();
    let correct = |bar: String| format!("UPDATE bqx.m1_eurusd SET close = close * 1.001 WHERE time = {bar}");
    let mid_gap = "(SELECT time + interval '1 min' FROM bqx.m1_eurusd WHERE time >= '2024-08-07 12:00+00' \
                    ORDER BY time LIMIT 1)";
    let insert = |time: &str, close: &str| {
        format!(
            "INSERT INTO bqx.m1_eurusd (time, open, high, low, close) SELECT t, {close}, {close}, {close}, {close} FROM (SELECT {time}) AS b (t)"
        )
    };
    let delete = |bar: String| format!("DELETE FROM bqx.m1_eurusd WHERE time = {bar}");
    let cases: &[(String, &[&str])] = &[
        // in the middle of a month: the bar's own row and those that look back on it
        (correct(nth_last_bar("2024-07", 2000)), &["bqx eurusd 2024-07 76", "reg eurusd 2024-07 631"]),
        // within the lookback of one family's next month: the rest of July, then the rest of the window
        (
            correct(nth_last_bar("2024-07", 100)),
            &["bqx eurusd 2024-07 76", "reg eurusd 2024-07 101", "reg eurusd 2024-08 530"],
        ),
        // the last bar of a month
        (
            correct(nth_last_bar("2024-08", 0)),
            &[
                "bqx eurusd 2024-08 1",
                "reg eurusd 2024-08 1",
                "bqx eurusd 2024-09 75",
                "reg eurusd 2024-09 630",
            ],
        ),
        // a bar more: its row and the rows after it
        (insert(mid_gap, "1.2"), &["bqx eurusd 2024-08 76", "reg eurusd 2024-08 631"]),
        // a column that nothing is computed from
        ("UPDATE bqx.m1_eurusd SET volume = volume + 1 WHERE time < '2024-07-03 00:00+00'".into(), &[]),
    ];
    for (change, jobs) in cases {
        run(&mut session, change);
        run(&mut session, "CALL bqx.backfill(workers => 0)");
        assert_eq!(jobs_that_wrote(&mut session), *jobs, "{change}");
        assert_eq!(faults(&mut session), [""; 0], "{change}");
    }

    // A bar less: the rows after it. Its own row goes; how that counts is left open.
    run(&mut session, &delete(nth_last_bar("2024-09", 1000)));
    run(&mut session, "CALL bqx.backfill(workers => 0)");
    let wrote = jobs_that_wrote(&mut session);
    assert!(
        [
            ["bqx eurusd 2024-09 75", "reg eurusd 2024-09 630"],
            ["bqx eurusd 2024-09 76", "reg eurusd 2024-09 631"]
        ]
        .iter()
        .any(|jobs| wrote == jobs),
        "{wrote:?}"
    );
    // A new first bar, in a month of its own: the series begins there, so each window's NULLs end one row
    // earlier; the other rows' windows are the same.
    run_each(
        &mut session,
        &[
            "CALL bqx.create_m1('{eurusd}', '2024-06-01', '2024-10-01')",
            &insert("timestamptz '2024-06-30 23:54+00'", "1.1"),
            "CALL bqx.backfill(workers => 0)",
        ],
    );
    assert_eq!(
        jobs_that_wrote(&mut session),
        ["bqx eurusd 2024-06 1", "reg eurusd 2024-06 1", "bqx eurusd 2024-07 5", "reg eurusd 2024-07 6"]
    );
    assert_nulls_are_right(&mut session, "bqx_eurusd", "m1_eurusd");
    assert_nulls_are_right(&mut session, "reg_eurusd", "m1_eurusd");
    // New bars at the end.
    let end = "generate_series(timestamptz '2024-09-30 23:55+00', '2024-10-01 00:04+00', interval '1 min')";
    run_each(&mut session, &[insert(end, "1.1"), "CALL bqx.backfill(workers => 0)".to_owned()]);
    assert_eq!(
        jobs_that_wrote(&mut session),
        ["bqx eurusd 2024-09 5", "reg eurusd 2024-09 5", "bqx eurusd 2024-10 5", "reg eurusd 2024-10 5"]
    );
    assert_eq!(faults(&mut session), [""; 0]);

    // All of that is what a backfill from scratch gives.
    let step_by_step = checksums(&db);
    run_each(
        &mut session,
        &["CALL bqx.drop_tables('{bqx,reg}')", "CALL bqx.create_tables()", "CALL bqx.backfill(workers => 2)"],
    );
    assert_eq!(checksums(&db), step_by_step);
}

#[test]
fn another_baseline_recomputes_everything() {
    let db = filled("other_baseline");
    let mut session = db.connect();
    run_each(
        &mut session,
        &[
            "CALL bqx.set_baselines('2024-08-05 12:00+00', '{eurusd}')",
            "CALL bqx.index_m1('{eurusd}')",
            "CALL bqx.backfill(workers => 2)",
        ],
    );
    let bars = row(&mut session, "SELECT count(*) FROM bqx.m1_eurusd");
    let written = "SELECT sum(rows_written) FILTER (WHERE family = 'bqx' AND pair = 'eurusd'), \
                          sum(rows_written) FILTER (WHERE pair <> 'eurusd') FROM bqx.jobs \
                    WHERE run_id = (SELECT max(run_id) FROM bqx.runs)";
    assert_eq!(row(&mut session, written), format!("{bars}|0"));
    assert_eq!(faults(&mut session), [""; 0]);
}

#[test]
fn rows_that_went_missing_are_written_again() {
    let db = filled("missing");
    let mut session = db.connect();
    let rows_of = |session: &mut Client, filter: &str| {
        row(session, &format!("SELECT count(*) FROM bqx.m1_eurusd WHERE {filter}"))
    };
    let august = rows_of(&mut session, "time >= '2024-08-01 00:00+00' AND time < '2024-09-01 00:00+00'");
    let damages: &[(&[&str], Vec<String>)] = &[
        (&["TRUNCATE bqx.bqx_eurusd_2024_08"], vec![format!("bqx eurusd 2024-08 {august}")]),
        (&["DELETE FROM bqx.reg_eurusd_2024_08"], vec![format!("reg eurusd 2024-08 {august}")]),
        (
            &[
                "DELETE FROM bqx.reg_eurusd WHERE ts_utc >= '2024-07-09 00:00+00' AND ts_utc < '2024-07-09 01:00+00'",
            ],
            vec!["reg eurusd 2024-07 6".to_owned()],
        ),
        (
            &["INSERT INTO bqx.bqx_eurusd (ts_utc) VALUES ('2024-09-04 00:00:30+00')"],
            vec![], // a surplus row goes: nothing to write
        ),
        (
            &[
                "ALTER TABLE bqx.bqx_eurusd DETACH PARTITION bqx.bqx_eurusd_2024_08",
                "DROP TABLE bqx.bqx_eurusd_2024_08",
            ],
            vec![format!("bqx eurusd 2024-08 {august}")],
        ),
    ];
    for (damage, jobs) in damages {
        run_each(&mut session, damage);
        run(&mut session, "CALL bqx.backfill(workers => 0)");
        assert_eq!(checksums(&db), *expected(), "{damage:?}");
        assert_eq!(jobs_that_wrote(&mut session), *jobs, "{damage:?}");
    }
}

#[test]
fn rows_go_where_the_bars_of_a_month_went() {
    let db = filled("bars_gone");
    let mut session = db.connect();
    for (pair, gone) in [
        ("usdjpy", "time >= '2024-08-01 00:00+00' AND time < '2024-09-01 00:00+00'"), // in between
        ("eurusd", "time >= '2024-09-01 00:00+00'"),                                  // at the end
    ] {
        run(&mut session, &format!("DELETE FROM bqx.m1_{pair} WHERE {gone}"));
        run(&mut session, "CALL bqx.backfill(workers => 0)");
        for family in ["bqx", "reg"] {
            assert_nulls_are_right(&mut session, &format!("{family}_{pair}"), &format!("m1_{pair}"));
        }
    }
}

#[test]
fn rows_of_an_unlogged_partition_are_written_again_after_a_crash() {
    let own = own_server("backfill-crash", &[("fsync", "on")]);
    let db = Db::on(&own, "unlogged");
    prepare(&db);
    let mut session = db.connect();
    run_each(
        &mut session,
        &[
            "CALL bqx.create_tables()",
            "ALTER TABLE bqx.bqx_eurusd_2024_08 SET UNLOGGED",
            "CALL bqx.backfill(workers => 0)",
            "ALTER TABLE bqx.reg_usdjpy_2024_09 SET UNLOGGED",
            "CHECKPOINT",
        ],
    );
    let before = checksums(&db);
    assert_eq!(before, *expected());
    drop(session);
    own.kill_postmaster().unwrap();
    own.start_again().unwrap();
    let mut session = db.connect();
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.bqx_eurusd_2024_08"), "0");
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.reg_usdjpy_2024_09"), "0");
    run(&mut session, "CALL bqx.backfill(workers => 0)");
    assert_eq!(checksums(&db), before);
    let wrote = jobs_that_wrote(&mut session);
    assert_eq!(wrote.len(), 2, "{wrote:?}");
    assert!(
        wrote[0].starts_with("bqx eurusd 2024-08 ") && wrote[1].starts_with("reg usdjpy 2024-09 "),
        "{wrote:?}"
    );
}

#[test]
fn one_bad_month_stops_no_other_and_the_error_names_it() {
    for workers in [0, 2] {
        let db = prepared(&format!("bad_month_{workers}"));
        let mut session = db.connect();
        run_each(
            &mut session,
            &[
                "CALL bqx.create_tables()",
                // The month is there already, of a time when the bar was good.
                "CALL bqx.backfill(from_month => '2024-08-01', to_month => '2024-08-01', workers => 0)",
                "UPDATE bqx.m1_usdjpy SET close = NULL WHERE time = '2024-08-14 12:00+00'",
            ],
        );
        let august = |session: &mut Client| {
            row(
                session,
                "SELECT count(*), sum(hashtextextended(concat_ws(' ', ctid, xmin, t), 0)) FROM bqx.reg_usdjpy_2024_08 AS t",
            )
        };
        let before = august(&mut session);
        let error = error_of(&mut session, &format!("CALL bqx.backfill(workers => {workers})"));
        assert_eq!(error.code, "22003", "{error:?}");
        assert!(error.message.starts_with("2 of 12 jobs"), "{error:?}");
        let failures: Vec<&str> = error.detail.lines().collect();
        assert_eq!(failures.len(), 2, "{error:?}");
        for (failure, family) in failures.iter().zip(["bqx", "reg"]) {
            assert!(failure.starts_with(&format!("{family} usdjpy 2024-08")), "{failure}");
            assert!(failure.contains("2024-08-14 12:00"), "the bar is named: {failure}");
        }
        assert!(!error.hint.is_empty(), "{error:?}");
        assert_eq!(august(&mut session), before, "the failed month is as it was");
        let states = "SELECT state, count(*), string_agg(DISTINCT concat_ws(' ', pair, to_char(month, 'YYYY-MM')), ',') \
             FILTER (WHERE state <> 'done'), count(error), count(rows_written) FROM bqx.jobs \
             WHERE run_id = (SELECT max(run_id) FROM bqx.runs) GROUP BY state ORDER BY state";
        assert_eq!(rows(&mut session, states), ["done|10|NULL|0|10", "failed|2|usdjpy 2024-08|2|0"]);
        assert_eq!(row(&mut session, "SELECT state FROM bqx.runs ORDER BY run_id DESC LIMIT 1"), "failed");
        let pair_progress =
            "SELECT family, pair, months_done, months_total, status FROM bqx.pair_progress ORDER BY 1, 2";
        assert_eq!(
            rows(&mut session, pair_progress),
            [
                "bqx|eurusd|3|3|complete",
                "bqx|usdjpy|2|3|failed",
                "reg|eurusd|3|3|complete",
                "reg|usdjpy|2|3|failed"
            ]
        );
        // The cause is mended: the rest is done, and nothing but the rest.
        run_each(
            &mut session,
            &[
                "UPDATE bqx.m1_usdjpy SET close = open WHERE time = '2024-08-14 12:00+00'",
                "CALL bqx.backfill(workers => 0)",
            ],
        );
        assert_eq!(jobs_that_wrote(&mut session).len(), 2);
        assert_eq!(faults(&mut session), [""; 0]);
    }
}

#[test]
fn failures_of_different_kinds_are_all_named() {
    let db = prepared("bad_months");
    let mut session = db.connect();
    run_each(
        &mut session,
        &[
            "CALL bqx.create_tables()",
            "UPDATE bqx.m1_usdjpy SET close = 'NaN' WHERE time = '2024-07-17 12:00+00'",
            // a partition that refuses its rows
            "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not here'; END $$",
            "CREATE TRIGGER refuse BEFORE INSERT ON bqx.reg_eurusd FOR EACH ROW WHEN (NEW.ts_utc >= '2024-08-20 00:00+00' \
             AND NEW.ts_utc < '2024-08-21 00:00+00') EXECUTE FUNCTION public.refuse()",
            // an index that went missing
            "ALTER TABLE bqx.m1_eurusd_2024_09 DISABLE TRIGGER bqx_set_rate_index",
            "UPDATE bqx.m1_eurusd SET rate_index = NULL WHERE time = '2024-09-25 12:00+00'",
        ],
    );
    let error = error_of(&mut session, "CALL bqx.backfill(workers => 2)");
    assert!(error.message.starts_with("5 of 12 jobs"), "{error:?}");
    let named: BTreeSet<String> = error
        .detail
        .lines()
        .map(|line| line.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
        .collect();
    let expected = [
        "bqx eurusd 2024-09:",
        "bqx usdjpy 2024-07:",
        "reg eurusd 2024-08:",
        "reg eurusd 2024-09:",
        "reg usdjpy 2024-07:",
    ];
    assert_eq!(named, expected.map(str::to_owned).into(), "{error:?}");
    assert!(error.detail.contains("NaN") && error.detail.contains("2024-09-25 12:00"), "{error:?}");
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.jobs WHERE state = 'done'"), "7");
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.reg_eurusd_2024_08"), "0");
}

#[test]
fn constraints_of_a_table_or_of_one_partition_hold() {
    let cases = [
        (
            "check_all",
            "ALTER TABLE bqx.bqx_eurusd ADD CHECK (ts_utc <> '2024-08-07 12:00+00')",
            "2024-08",
            "23514",
        ),
        ("check_one", "ALTER TABLE bqx.bqx_eurusd_2024_08 ADD CHECK (rate_index < 0)", "2024-08", "23514"),
        ("not_null_all", "ALTER TABLE bqx.bqx_eurusd ALTER w15_bqx_return SET NOT NULL", "2024-07", "23502"),
        (
            "not_null_one",
            "ALTER TABLE bqx.bqx_eurusd_2024_07 ALTER w15_bqx_return SET NOT NULL",
            "2024-07",
            "23502",
        ),
        (
            "unique_one",
            "CREATE UNIQUE INDEX ON bqx.bqx_eurusd_2024_08 (w15_bqx_max_index)",
            "2024-08",
            "23505",
        ),
    ];
    let outcome = |name: &str, constraint: &str| {
        let db = prepared(&format!("constraint_{name}"));
        let mut session = db.connect();
        run_each(&mut session, &["CALL bqx.create_tables('{bqx}', '{eurusd}')", constraint]);
        let error = attempt(&mut session, "CALL bqx.backfill('{bqx}', '{eurusd}', workers => 0)");
        let code = error.err().map_or("no error".to_owned(), |error| error.code);
        let failed = "SELECT string_agg(to_char(month, 'YYYY-MM'), ' ') FROM bqx.jobs WHERE state = 'failed'";
        let empty = "SELECT string_agg(to_char(m, 'YYYY-MM'), ' ') FROM unnest('{2024-07-01,2024-08-01,2024-09-01}'::date[]) AS m \
                      WHERE NOT EXISTS (SELECT FROM bqx.bqx_eurusd WHERE to_char(ts_utc AT TIME ZONE 'UTC', 'YYYY-MM') = to_char(m, 'YYYY-MM'))";
        format!("{name}: {code}, failed {}, empty {}", row(&mut session, failed), row(&mut session, empty))
    };
    let outcomes = cases.map(|(name, constraint, ..)| outcome(name, constraint));
    let expected =
        cases.map(|(name, _, month, code)| format!("{name}: {code}, failed {month}, empty {month}"));
    assert_eq!(outcomes, expected);
}

#[test]
fn rules_of_a_table_are_not_passed_over() {
    let db = prepared("rules");
    let mut session = db.connect();
    run_each(
        &mut session,
        &[
            "CALL bqx.create_tables('{bqx}', '{eurusd}')",
            "CREATE TABLE public.seen (at timestamptz)",
            "CREATE RULE r AS ON INSERT TO bqx.bqx_eurusd DO ALSO INSERT INTO public.seen VALUES (NEW.ts_utc)",
        ],
    );
    // PostgreSQL may refuse rules where the rows are written by a WITH query: then nothing is written.
    let refused = attempt(&mut session, "CALL bqx.backfill('{bqx}', '{eurusd}', workers => 0)").is_err();
    let both = "SELECT (SELECT count(*) FROM bqx.bqx_eurusd) = (SELECT count(*) FROM public.seen), \
                       (SELECT count(*) FROM public.seen) = 0";
    assert_eq!(row(&mut session, both), if refused { "t|t" } else { "t|f" });
}

#[test]
fn the_ledgers_views_have_the_columns_of_the_contract() {
    let db = Db::on(cluster(), "views");
    let mut session = db.connect();
    for (view, columns) in [
        ("runs", "run_id, called_by, arguments, state, started_at, finished_at"),
        (
            "jobs",
            "run_id, family, pair, month, state, rows_written, seconds, worker, error, started_at, finished_at",
        ),
        (
            "progress",
            "run_id, family, state, jobs_total, jobs_done, jobs_failed, percent, rows_written, rows_per_second, \
             started_at, elapsed, eta, bar",
        ),
        ("pair_progress", "family, pair, months_done, months_total, rows_written, percent, status"),
        ("storage", "family, pair, partitions, rows, bytes"),
    ] {
        let found = row(
            &mut session,
            &format!(
                "SELECT string_agg(attname, ', ' ORDER BY attnum) FROM pg_attribute \
                 WHERE attrelid = 'bqx.{view}'::regclass AND attnum > 0"
            ),
        );
        assert_eq!(found, columns, "{view}");
    }
    let parameters = "SELECT string_agg(concat_ws(' ', m, n, format_type(t, NULL)), ', ' ORDER BY i) FROM pg_proc AS p, \
         unnest(proargmodes, proargnames, proallargtypes) WITH ORDINALITY AS a (m, n, t, i) \
         WHERE oid = 'bqx.backfill'::regproc";
    assert_eq!(
        row(&mut session, parameters),
        "i families text[], i pairs text[], i from_month date, i to_month date, i workers integer, i force boolean, \
         i wait boolean, b run_id bigint"
    );
}

#[test]
fn the_ledger_tells_what_was_done() {
    let db = filled("ledger");
    let mut session = db.connect();
    let bars = row(
        &mut session,
        "SELECT (SELECT count(*) FROM bqx.m1_eurusd) + (SELECT count(*) FROM bqx.m1_usdjpy)",
    );
    let run = "SELECT count(*), min(called_by), min(state), bool_and(finished_at >= started_at), min(arguments ->> 'force') FROM bqx.runs";
    assert_eq!(row(&mut session, run), "1|postgres|done|t|false");
    let jobs = "SELECT count(*), count(DISTINCT (family, pair, month)), bool_and(finished_at >= started_at AND seconds >= 0), \
                       min(worker), count(error), bool_and(extract(day FROM month) = 1) FROM bqx.jobs";
    assert_eq!(row(&mut session, jobs), "12|12|t|0|0|t");
    let counted = "SELECT count(*) FROM bqx.jobs AS j JOIN bqx.month_ledger AS m USING (family, pair, month) \
                    WHERE j.rows_written = m.bars AND j.rows_written > 2000";
    assert_eq!(row(&mut session, counted), "12");
    let progress = "SELECT family, state, jobs_total, jobs_done, jobs_failed, percent, rows_written, rows_per_second > 0, \
                    elapsed > '0', eta, length(bar) > 0 FROM bqx.progress ORDER BY family";
    assert_eq!(
        rows(&mut session, progress),
        [format!("bqx|done|6|6|0|100|{bars}|t|t|NULL|t"), format!("reg|done|6|6|0|100|{bars}|t|t|NULL|t")]
    );
    let storage = "SELECT count(*), sum(partitions), sum(rows), bool_and(bytes > 100000) FROM bqx.storage";
    let twice: i64 = 2 * bars.parse::<i64>().unwrap();
    assert_eq!(row(&mut session, storage), format!("4|12|{twice}|t"));
    let line = row(&mut session, "SELECT line FROM bqx.recent OFFSET 11");
    let shape = r"^\[W00\] usdjpy 2024-09 (bqx|reg) [23],\d{3} rows \d+\.\d\d s 100\.0 %$";
    assert_eq!(row(&mut session, &format!("SELECT '{line}' ~ '{shape}'")), "t", "{line}");
    assert!(!rows(&mut session, "SELECT * FROM bqx.dashboard").is_empty());
}

#[test]
fn a_run_goes_on_without_its_caller() {
    let db = prepared("no_wait");
    let mut session = db.connect();
    run(&mut session, "CALL bqx.create_tables()");
    // The workers are held up, so that it shows that the call doesn't wait for them.
    let mut brake = db.connect();
    run(&mut brake, "BEGIN; LOCK TABLE bqx.m1_eurusd, bqx.m1_usdjpy IN ACCESS EXCLUSIVE MODE");
    let caller = db.name().to_owned();
    let called = thread::spawn(move || {
        let mut session = cluster().connect(&caller).unwrap();
        run(&mut session, "SET statement_timeout = '30 s'");
        rows(&mut session, "CALL bqx.backfill(workers => 2, wait => false)")
    });
    // Planning has to look at the bars, too: the lock goes as soon as the plan could wait for it.
    thread::sleep(Duration::from_millis(300));
    run(&mut brake, "COMMIT");
    let run_id = called.join().unwrap();
    assert_eq!(run_id.len(), 1, "{run_id:?}");
    assert!(run_id[0].parse::<i64>().is_ok(), "{run_id:?}");
    // The session that called is gone.
    wait_until(
        &mut session,
        &format!("SELECT state IN ('done', 'failed') FROM bqx.runs WHERE run_id = {}", run_id[0]),
    );
    assert_eq!(row(&mut session, "SELECT state, finished_at IS NOT NULL FROM bqx.runs"), "done|t");
    assert_eq!(checksums(&db), *expected());
    // Nothing to do is no reason to stay open.
    let idle = row(
        &mut session,
        "CALL bqx.backfill(workers => 2, wait => false, from_month => '2025-01-01', to_month => '2025-02-01')",
    );
    assert_eq!(row(&mut session, &format!("SELECT state FROM bqx.runs WHERE run_id = {idle}")), "done");
}

#[test]
fn a_call_that_does_not_wait_returns_while_its_workers_are_held_up() {
    let db = prepared("returns_at_once");
    let mut session = db.connect();
    run(&mut session, "CALL bqx.create_tables()");
    // Rows in the derived tables' way: workers wait, planning needs no such lock.
    let mut brake = db.connect();
    run(
        &mut brake,
        "BEGIN; LOCK TABLE bqx.bqx_eurusd, bqx.reg_eurusd, bqx.bqx_usdjpy, bqx.reg_usdjpy IN SHARE ROW EXCLUSIVE MODE",
    );
    run(&mut session, "SET statement_timeout = '30 s'");
    let run_id = row(&mut session, "CALL bqx.backfill(workers => 2, wait => false)");
    wait_until(&mut session, &format!("SELECT state = 'running' FROM bqx.runs WHERE run_id = {run_id}"));
    let open = row(&mut session, "SELECT count(*) FROM bqx.jobs WHERE state IN ('pending', 'running')");
    assert_ne!(open, "0");
    run(&mut brake, "COMMIT");
    wait_until(&mut session, &format!("SELECT state = 'done' FROM bqx.runs WHERE run_id = {run_id}"));
    assert_eq!(checksums(&db), *expected());
}

#[test]
fn two_backfills_at_once_share_the_work() {
    for workers in [0, 2] {
        let db = prepared(&format!("two_at_once_{workers}"));
        run(&mut db.connect(), "CALL bqx.create_tables()");
        thread::scope(|scope| {
            // opposite orders of families and pairs
            for pairs in ["ARRAY['eurusd', 'usdjpy']", "ARRAY['usdjpy', 'eurusd']"] {
                let db = &db;
                scope.spawn(move || {
                    run(
                        &mut db.connect(),
                        &format!("CALL bqx.backfill(pairs => {pairs}, workers => {workers})"),
                    );
                });
            }
        });
        assert_eq!(checksums(&db), *expected());
        let mut session = db.connect();
        let both = "SELECT count(*), string_agg(DISTINCT state, ' '), \
                           sum(rows_written) = (SELECT sum(bars) FROM bqx.month_ledger) FROM bqx.jobs";
        assert_eq!(row(&mut session, both), "24|done|t", "workers => {workers}");
        let twice = "SELECT count(*) FROM (SELECT FROM bqx.jobs WHERE rows_written > 0 GROUP BY family, pair, month \
                     HAVING count(*) > 1) AS t";
        assert_eq!(row(&mut session, twice), "0", "workers => {workers}");
    }
}

#[test]
fn backfills_families_and_corrections_at_once_neither_deadlock_nor_get_stuck() {
    let db = filled("busy");
    let calls = [
        "CALL bqx.backfill(ARRAY['bqx'], workers => 0, force => true)",
        "CALL bqx.backfill(ARRAY['reg', 'bqx'], workers => 1, force => true)",
        "CALL bqx.backfill(from_month => '2024-08-01', workers => 0)",
    ];
    thread::scope(|scope| {
        let db = &db;
        for call in calls {
            scope.spawn(move || run(&mut db.connect(), call));
        }
        scope.spawn(move || {
            let mut session = db.connect();
            for day in 1..20 {
                let change = format!(
                    "UPDATE bqx.m1_eurusd SET close = close + 0.0001 WHERE time >= '2024-08-{day:02} 00:00+00' \
                     AND time < '2024-08-{day:02} 12:00+00'"
                );
                run(&mut session, &change);
                thread::sleep(Duration::from_millis(50));
            }
        });
    });
    let mut session = db.connect();
    run(&mut session, "CALL bqx.backfill(workers => 0)");
    assert_eq!(faults(&mut session), [""; 0]);
}

#[test]
fn workers_start_no_helper_processes() {
    let own = own_server("backfill-helpers", &[("log_min_messages", "debug1")]);
    let db = Db::on(&own, "helpers");
    prepare(&db);
    run_each(
        &mut db.connect(),
        &[
            "ALTER DATABASE helpers SET min_parallel_table_scan_size = 0",
            "ALTER DATABASE helpers SET min_parallel_index_scan_size = 0",
            "ALTER DATABASE helpers SET parallel_setup_cost = 0",
            "ALTER DATABASE helpers SET parallel_tuple_cost = 0",
        ],
    );
    let helpers = || {
        let log = fs::read_to_string(own.log_file()).unwrap();
        log.matches("starting background worker process \"parallel worker").count()
    };
    let mut session = db.connect();
    run(&mut session, "SELECT count(*) FROM bqx.m1_eurusd");
    assert_ne!(helpers(), 0, "PostgreSQL starts them whenever it can");
    // the calling session's own business, which plans that it keeps are made with
    run(&mut session, "SET max_parallel_workers_per_gather = 0");
    run(&mut session, "CALL bqx.create_tables()");
    for what in ["workers => 2", "workers => 2", "workers => 2, force => true", "workers => 0"] {
        if what == "workers => 0" {
            run(&mut session, "TRUNCATE bqx.bqx_eurusd, bqx.reg_usdjpy");
        }
        let before = helpers();
        run(&mut session, &format!("CALL bqx.backfill({what})"));
        assert_eq!(helpers() - before, 0, "{what}");
    }
    assert_eq!(checksums(&db), *expected());
}

#[test]
fn a_role_that_may_not_log_in_works_in_the_session() {
    let db = prepared("nologin");
    let (mut session, notices) = db.connect_with_notices();
    run_each(
        &mut session,
        &[
            "CREATE ROLE backfill_nologin NOLOGIN",
            "GRANT CREATE ON SCHEMA bqx TO backfill_nologin",
            "GRANT SELECT ON bqx.m1_eurusd, bqx.m1_usdjpy TO backfill_nologin",
            "SET ROLE backfill_nologin",
            "CALL bqx.create_tables()",
        ],
    );
    notices.take();
    run(&mut session, "CALL bqx.backfill(workers => 2)");
    let told = notices.take();
    assert!(told.iter().any(|n| n.starts_with("NOTICE") && n.contains("log in")), "{told:?}");
    assert_eq!(
        row(&mut session, "SELECT count(*), max(worker), string_agg(DISTINCT state, ' ') FROM bqx.jobs"),
        "12|0|done"
    );
    assert_eq!(row(&mut session, "SELECT called_by FROM bqx.runs"), "backfill_nologin");
    assert_eq!(checksums(&db), *expected());
    run(&mut session, "RESET ROLE");
    run(&mut session, "REASSIGN OWNED BY backfill_nologin TO postgres");
}

#[test]
fn a_role_needs_rights_on_its_own_tables_only() {
    let db = prepared("own_tables");
    let mut admin = db.connect();
    run_each(
        &mut admin,
        &[
            "CREATE ROLE backfill_trader LOGIN",
            "CREATE ROLE backfill_other LOGIN",
            "GRANT CREATE ON SCHEMA bqx TO backfill_trader",
            "ALTER TABLE bqx.m1_usdjpy OWNER TO backfill_trader",
            "ALTER TABLE bqx.m1_usdjpy_2024_07 OWNER TO backfill_trader",
            "ALTER TABLE bqx.m1_usdjpy_2024_08 OWNER TO backfill_trader",
            "ALTER TABLE bqx.m1_usdjpy_2024_09 OWNER TO backfill_trader",
            "CALL bqx.create_tables(pairs => '{eurusd}')",
            "CALL bqx.backfill(pairs => '{eurusd}', workers => 0)",
        ],
    );
    let mut trader = db.connect_as("backfill_trader");
    run_each(
        &mut trader,
        &[
            "CALL bqx.set_baselines('2024-08-10 00:00+00', '{usdjpy}')",
            "CALL bqx.index_m1('{usdjpy}')",
            "CALL bqx.create_tables(pairs => '{usdjpy}')",
            "CALL bqx.backfill(pairs => '{usdjpy}', workers => 2)",
        ],
    );
    assert_eq!(checksums(&db), *expected());
    assert_eq!(row(&mut trader, "SELECT count(*), count(*) FILTER (WHERE worker > 0) FROM bqx.jobs"), "6|6");
    assert_eq!(row(&mut trader, "SELECT count(*), min(called_by) FROM bqx.runs"), "1|backfill_trader");
    assert_eq!(row(&mut admin, "SELECT count(*) FROM bqx.runs"), "2");
    assert_eq!(row(&mut db.connect_as("backfill_other"), "SELECT count(*) FROM bqx.jobs"), "0");
    run(&mut trader, "CALL bqx.run_pipeline('{usdjpy}', workers => 2)");

    // Others' tables: no, whichever right is missing, and nothing changes.
    assert_eq!(error_of(&mut trader, "CALL bqx.backfill(pairs => '{eurusd}', workers => 0)").code, "42501");
    run(&mut admin, "GRANT SELECT ON bqx.m1_eurusd TO backfill_trader");
    for workers in [0, 1] {
        let call = format!("CALL bqx.backfill(pairs => '{{eurusd}}', workers => {workers}, force => true)");
        assert_eq!(error_of(&mut trader, &call).code, "42501", "{call}");
    }
    run(&mut admin, "TRUNCATE bqx.bqx_eurusd_2024_08");
    run(&mut admin, "GRANT SELECT ON bqx.bqx_eurusd, bqx.reg_eurusd TO backfill_trader");
    assert_eq!(error_of(&mut trader, "CALL bqx.backfill(pairs => '{eurusd}', workers => 0)").code, "42501");
    run(&mut admin, "GRANT INSERT, UPDATE, DELETE ON bqx.bqx_eurusd, bqx.reg_eurusd TO backfill_trader");
    run(&mut trader, "CALL bqx.backfill(pairs => '{eurusd}', workers => 1)");
    assert_eq!(checksums(&db), *expected());
}

#[test]
fn fewer_worker_slots_than_wanted_are_made_do_with() {
    for (slots, usable) in [("2", 1), ("1", 0)] {
        let own = own_server(&format!("backfill-slots-{slots}"), &[("max_worker_processes", slots)]);
        few_slots(&own, usable);
    }
}

fn few_slots(own: &Cluster, usable: usize) {
    let db = Db::on(own, "slots");
    prepare(&db);
    let (mut session, notices) = db.connect_with_notices();
    run(&mut session, "CALL bqx.create_tables()");
    if usable == 0 {
        let error = error_of(&mut session, "CALL bqx.backfill(workers => 3, wait => false)");
        assert_eq!(error.code, "53000", "{error:?}");
        assert!(error.hint.contains("workers => 0"), "{error:?}");
        assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.bqx_eurusd"), "0");
        assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.runs WHERE state = 'running'"), "0");
    }
    notices.take();
    run(&mut session, "CALL bqx.backfill(workers => 3)");
    let told = notices.take();
    let says = format!("{usable} of 3 ");
    assert!(told.iter().any(|n| n.starts_with("NOTICE") && n.contains(&says)), "{told:?}");
    assert_eq!(checksums(&db), *expected());
    let done = "SELECT count(*), count(DISTINCT worker), max(worker) FROM bqx.jobs WHERE state = 'done'";
    assert_eq!(row(&mut session, done), format!("12|1|{usable}"));
    if usable > 0 {
        run(&mut session, "CALL bqx.backfill(workers => 3, force => true, wait => false)");
        wait_until(&mut session, "SELECT bool_and(state = 'done') FROM bqx.runs");
    }
}

/// Names that a careless or hostile search path would catch.
const HOSTILE: &str = "\
    CREATE SCHEMA hostile; \
    CREATE TABLE hostile.pairs (pair text); CREATE TABLE hostile.pg_class (oid oid, relname name); \
    CREATE FUNCTION hostile.fail() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'hostile code ran'; END $$; \
    CREATE FUNCTION hostile.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT hostile.fail(); SELECT '2000-01-01'::timestamptz $$; \
    CREATE FUNCTION hostile.format(text, VARIADIC text[]) RETURNS text LANGUAGE sql AS $$ SELECT hostile.fail()::text $$; \
    CREATE FUNCTION hostile.format(text, text) RETURNS text LANGUAGE sql AS $$ SELECT hostile.fail()::text $$; \
    CREATE FUNCTION hostile.to_char(date, text) RETURNS text LANGUAGE sql AS $$ SELECT hostile.fail()::text $$; \
    CREATE FUNCTION hostile.to_regclass(text) RETURNS regclass LANGUAGE sql AS $$ SELECT hostile.fail(); SELECT NULL::regclass $$; \
    CREATE FUNCTION hostile.eq(double precision, double precision) RETURNS boolean LANGUAGE sql AS $$ SELECT hostile.fail() $$; \
    CREATE OPERATOR hostile.= (FUNCTION = hostile.eq, LEFTARG = double precision, RIGHTARG = double precision); \
    CREATE FUNCTION hostile.eq(int, int) RETURNS boolean LANGUAGE sql AS $$ SELECT hostile.fail() $$; \
    CREATE OPERATOR hostile.= (FUNCTION = hostile.eq, LEFTARG = int, RIGHTARG = int); \
    CREATE FUNCTION hostile.eq(bigint, bigint) RETURNS boolean LANGUAGE sql AS $$ SELECT hostile.fail() $$; \
    CREATE OPERATOR hostile.= (FUNCTION = hostile.eq, LEFTARG = bigint, RIGHTARG = bigint); \
    CREATE FUNCTION hostile.eq(text, text) RETURNS boolean LANGUAGE sql AS $$ SELECT hostile.fail() $$; \
    CREATE OPERATOR hostile.= (FUNCTION = hostile.eq, LEFTARG = text, RIGHTARG = text); \
    CREATE FUNCTION hostile.eq(oid, regclass) RETURNS boolean LANGUAGE sql AS $$ SELECT hostile.fail() $$; \
    CREATE OPERATOR hostile.= (FUNCTION = hostile.eq, LEFTARG = oid, RIGHTARG = regclass); \
    CREATE FUNCTION hostile.lt(timestamptz, timestamptz) RETURNS boolean LANGUAGE sql AS $$ SELECT hostile.fail() $$; \
    CREATE OPERATOR hostile.< (FUNCTION = hostile.lt, LEFTARG = timestamptz, RIGHTARG = timestamptz); \
    CREATE FUNCTION hostile.cat(text, text) RETURNS text LANGUAGE sql AS $$ SELECT hostile.fail()::text $$; \
    CREATE OPERATOR hostile.|| (FUNCTION = hostile.cat, LEFTARG = text, RIGHTARG = text)";

/// Types of usual names, in a schema before pg_catalog.
const HOSTILE_TYPES: &str = "\
    CREATE DOMAIN hostile.float8 AS text; CREATE DOMAIN hostile.timestamptz AS date; CREATE DOMAIN hostile.regclass AS text; \
    CREATE DOMAIN hostile.date AS text; CREATE DOMAIN hostile.name AS int; CREATE DOMAIN hostile.text AS int";

/// Runs all stages in sessions of a database whose every session begins with these settings, background workers, too.
fn stages_under(db: &Db, settings: &[&str]) {
    let mut admin = db.connect();
    for setting in settings {
        run(&mut admin, &format!("ALTER DATABASE {} SET {setting}", db.name()));
    }
    let mut session = db.connect();
    let mut usual = db.connect();
    run(&mut usual, "SET search_path = pg_catalog");
    for stage in PREPARED {
        // the test's own statements mean what they mean in a usual session
        run(if stage.starts_with("CALL") { &mut session } else { &mut usual }, stage);
    }
    for stage in [
        "CALL bqx.create_tables(from_month => '2024-07-31', to_month => '2024-08-01')",
        "CALL bqx.backfill(workers => 0, families => ARRAY['bqx'])",
        "CALL bqx.backfill(workers => 2)",
        "CALL bqx.run_pipeline(workers => 1)",
    ] {
        // DateStyle makes no other date of it
        run(&mut session, stage);
    }
    run(&mut admin, &format!("ALTER DATABASE {} RESET ALL", db.name()));
    assert_eq!(checksums(db), *expected());
}

#[test]
fn settings_of_the_session_change_nothing() {
    let db = Db::on(cluster(), "settings");
    let locales = [("lc_numeric", "de_DE.UTF-8"), ("lc_time", "de_DE.UTF-8"), ("lc_monetary", "de_DE.UTF-8")];
    let mut settings = vec![
        "TimeZone = 'America/New_York'".to_owned(),
        "DateStyle = 'SQL, DMY'".to_owned(),
        "IntervalStyle = 'sql_standard'".to_owned(),
        "extra_float_digits = -15".to_owned(),
        "bytea_output = 'escape'".to_owned(),
        "quote_all_identifiers = on".to_owned(),
        "array_nulls = off".to_owned(),
        "check_function_bodies = off".to_owned(),
        "transform_null_equals = on".to_owned(),
        "enable_indexscan = off".to_owned(),
        "enable_hashjoin = off".to_owned(),
        "enable_partition_pruning = off".to_owned(),
        "max_parallel_workers_per_gather = 4".to_owned(),
        "client_min_messages = error".to_owned(),
    ];
    for (name, locale) in locales {
        // where the machine has it
        if db.connect().batch_execute(&format!("SET {name} = '{locale}'")).is_ok() {
            settings.push(format!("{name} = '{locale}'"));
        }
    }
    stages_under(&db, &settings.iter().map(String::as_str).collect::<Vec<_>>());
    let mut session = db.connect();
    let partitions = "SELECT relname, pg_get_expr(relpartbound, oid) FROM pg_class \
                      WHERE relispartition AND relname ~ '^(m1|reg)_eurusd_....?..?..$' AND relkind = 'r' ORDER BY 1";
    let expected_partitions: Vec<String> = ["m1", "reg"]
        .iter()
        .flat_map(|family| {
            [("07", "08"), ("08", "09"), ("09", "10")].map(|(from, to)| {
                let bounds = format!("FROM ('2024-{from}-01 00:00:00+00') TO ('2024-{to}-01 00:00:00+00')");
                format!("{family}_eurusd_2024_{from}|FOR VALUES {bounds}")
            })
        })
        .collect();
    assert_eq!(rows(&mut session, partitions), expected_partitions);
    let months = "SELECT DISTINCT to_char(month, 'YYYY-MM-DD') FROM bqx.jobs ORDER BY 1";
    assert_eq!(rows(&mut session, months), ["2024-07-01", "2024-08-01", "2024-09-01"]);
}

#[test]
fn string_literals_of_old_change_nothing() {
    let db = Db::on(cluster(), "string_literals");
    stages_under(&db, &["standard_conforming_strings = off", "escape_string_warning = off"]);
}

#[test]
fn another_default_isolation_changes_nothing() {
    let own = own_server("backfill-isolation", &[("default_transaction_isolation", "repeatable read")]);
    let db = Db::on(&own, "isolation");
    prepare(&db);
    let mut session = db.connect();
    run_each(&mut session, &["CALL bqx.create_tables()", "CALL bqx.backfill(workers => 3)"]);
    assert_eq!(checksums(&db), *expected());
    for _ in 0..4 {
        run(&mut session, "CALL bqx.backfill(workers => 3)");
    }
    run(&mut session, "TRUNCATE bqx.bqx_eurusd, bqx.reg_eurusd, bqx.bqx_usdjpy, bqx.reg_usdjpy");
    thread::scope(|scope| {
        for workers in [0, 1] {
            let mut session = db.connect();
            scope.spawn(move || run(&mut session, &format!("CALL bqx.backfill(workers => {workers})")));
        }
    });
    assert_eq!(checksums(&db), *expected());
    let states = "SELECT string_agg(DISTINCT state, ' ') FROM bqx.runs";
    assert_eq!(row(&mut session, states), "done");
    let log = std::fs::read_to_string(own.log_file()).unwrap();
    let errors =
        log.lines().filter(|line| line.contains("ERROR:") || line.contains("FATAL:")).collect::<Vec<_>>();
    assert_eq!(errors, [""; 0], "workers ended early");
}

#[test]
fn a_hostile_search_path_catches_nothing() {
    let db = Db::on(cluster(), "hostile_schema");
    run(&mut db.connect(), HOSTILE);
    stages_under(&db, &["search_path = hostile"]); // after pg_catalog, where it has better matches
}

#[test]
fn a_schema_before_pg_catalog_catches_no_function_and_no_operator() {
    let db = Db::on(cluster(), "hostile_functions");
    run(&mut db.connect(), HOSTILE);
    stages_under(&db, &["search_path = hostile, pg_catalog, bqx"]);
}

#[test]
fn a_schema_before_pg_catalog_catches_no_type() {
    let db = Db::on(cluster(), "hostile_types");
    run(&mut db.connect(), &format!("CREATE SCHEMA hostile; {HOSTILE_TYPES}"));
    stages_under(&db, &["search_path = hostile, pg_catalog, bqx"]);
}

#[test]
fn an_older_snapshot_keeps_what_it_saw() {
    let db = prepared("snapshots");
    let mut session = db.connect();
    run(&mut session, "CALL bqx.create_tables()");
    let reader = || {
        let mut reader = db.connect();
        // a snapshot, and no lock on any derived table
        run(&mut reader, "BEGIN ISOLATION LEVEL REPEATABLE READ");
        row(&mut reader, "SELECT count(*) FROM bqx.pairs");
        reader
    };
    let look = |reader: &mut Client| -> Vec<String> {
        ["bqx_eurusd", "reg_eurusd", "bqx_usdjpy", "reg_usdjpy"]
            .map(|table| {
                row(
                    reader,
                    &format!(
                        "SELECT count(*), sum(hashtextextended(concat_ws(' ', t), 0)) FROM bqx.{table} AS t"
                    ),
                )
            })
            .to_vec()
    };
    // before there was a row
    let mut before_all = reader();
    run(&mut session, "CALL bqx.backfill(workers => 0)");
    assert_eq!(look(&mut before_all), ["0|NULL"; 4], "rows are not visible before their time");
    drop(before_all);

    let old = look(&mut session);
    let mut idle = reader(); // looks for the first time when all is over
    let mut active = reader();
    assert_eq!(look(&mut active), old);
    // A rewrite neither waits for readers nor hides the old rows from them.
    run(&mut session, "SET lock_timeout = '10 s'");
    for change in [
        "UPDATE bqx.m1_eurusd SET close = close * 1.01 WHERE time >= '2024-08-01 00:00+00' AND time < '2024-09-01 00:00+00'",
        "DELETE FROM bqx.m1_usdjpy WHERE time >= '2024-08-10 00:00+00' AND time < '2024-08-20 00:00+00'",
    ] {
        run(&mut session, change);
        run(&mut session, "CALL bqx.backfill(workers => 0)");
        assert_eq!(look(&mut active), old, "{change}");
    }
    run(&mut session, "DELETE FROM bqx.bqx_eurusd_2024_09");
    run(&mut session, "VACUUM bqx.bqx_eurusd_2024_09");
    run(&mut session, "CALL bqx.backfill(workers => 1)");
    assert_eq!(look(&mut active), old, "deleted rows are there for older snapshots");
    assert_eq!(look(&mut idle), old, "a first look at the end");
    run(&mut active, "COMMIT");
    assert_ne!(look(&mut active), old);
    assert_eq!(look(&mut active), look(&mut session));
}

#[test]
fn a_month_is_seen_whole_or_not_at_all() {
    let db = prepared("whole");
    let mut session = db.connect();
    run(&mut session, "CALL bqx.create_tables()");
    let full: BTreeSet<String> = rows(
        &mut session,
        "SELECT concat_ws(' ', to_char(time AT TIME ZONE 'UTC', 'YYYY-MM'), count(*)) FROM bqx.m1_eurusd GROUP BY \
         to_char(time AT TIME ZONE 'UTC', 'YYYY-MM')",
    )
    .into_iter()
    .collect();
    let fill = |call: &'static str, may_be_missing: bool| {
        thread::scope(|scope| {
            let worker = scope.spawn(|| run(&mut db.connect(), call));
            let mut looks = 0;
            let mut reader = db.connect();
            while !worker.is_finished() || looks == 0 {
                let seen: BTreeSet<String> = rows(
                    &mut reader,
                    "SELECT concat_ws(' ', to_char(ts_utc AT TIME ZONE 'UTC', 'YYYY-MM'), count(*)) FROM bqx.reg_eurusd \
                     GROUP BY to_char(ts_utc AT TIME ZONE 'UTC', 'YYYY-MM')",
                )
                .into_iter()
                .collect();
                assert!(seen.is_subset(&full), "{seen:?} of {full:?}");
                assert!(may_be_missing || seen == full, "{seen:?} of {full:?}");
                looks += 1;
            }
            worker.join().unwrap();
        });
    };
    fill("CALL bqx.backfill(workers => 1)", true);
    run(&mut session, "UPDATE bqx.m1_eurusd SET close = close * 1.01 WHERE time >= '2024-07-02 00:00+00'");
    fill("CALL bqx.backfill(workers => 1)", false);
    assert_eq!(faults(&mut session), [""; 0]);
}

#[test]
fn planning_keeps_no_partition_locked() {
    let db = filled("planning_locks");
    let mut session = db.connect();
    // of many pairs and years, those locks would be more than the server has room for
    run(&mut session, "BEGIN");
    assert_eq!(row(&mut session, "SELECT bqx._pairs_with_bars()"), "{eurusd,usdjpy}");
    run(&mut session, "SELECT bqx._plan_run('{bqx,reg}', '{eurusd,usdjpy}', NULL, NULL, '{}')");
    let locked = "SELECT c.relname FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation \
                   WHERE l.pid = pg_backend_pid() AND (c.relispartition OR c.relkind IN ('i', 'I')) \
                     AND c.relnamespace = 'bqx'::regnamespace AND c.relname ~ '_(eurusd|usdjpy)'";
    assert_eq!(rows(&mut session, locked), [""; 0]);
    run(&mut session, "ROLLBACK");
}
