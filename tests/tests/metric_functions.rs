//! `bqx_metrics` and `reg_metrics`: the rows that a backfill stores, bit for bit, for whatever range is asked
//! for, in whatever query, with the caller's rights, in memory that does not grow with the range.

mod common;

use std::sync::OnceLock;

use bqx_tests::{Db, SqlError, error_of, own_server};
use common::{row, rows, run, run_each};
use postgres::Client;

const FAMILIES: [&str; 2] = ["bqx", "reg"];

/// Bars that the functions read at a time.
const PIECE: usize = 16_384;

/// Two months of eurusd and one of usdjpy, simulated and stored.
fn stored() -> &'static Db<'static> {
    static STORED: OnceLock<Db<'static>> = OnceLock::new();
    STORED.get_or_init(|| {
        let db = Db::new("stored");
        run_each(
            &mut db.connect(),
            &[
                "CALL bqx.simulate_m1('{eurusd}', '2024-07-01', '2024-08-01', 3)",
                "CALL bqx.simulate_m1('{usdjpy}', '2024-07-01', '2024-07-01', 3)",
                "CALL bqx.set_baselines()",
                "CALL bqx.index_m1()",
                "CALL bqx.create_tables()",
                "CALL bqx.backfill(workers => 2)",
            ],
        );
        db
    })
}

/// Rows that a function returns or the table stores in a range, and how many are not the same bits in both.
fn compared(session: &mut Client, family: &str, pair: &str, from: &str, to: &str) -> (usize, usize) {
    let columns = row(
        session,
        &format!(
            "SELECT string_agg(name, ', ' ORDER BY position) FROM bqx._metric_columns('{family}', NULL) \
             WHERE name <> 'created_at'"
        ),
    );
    let counts = row(
        session,
        &format!(
            "SELECT count(*), count(*) FILTER (WHERE NOT coalesce(computed *= stored, false)) \
               FROM bqx.{family}_metrics('{pair}', {from}, {to}) AS computed \
               FULL JOIN (SELECT {columns} FROM bqx.{family}_{pair} \
                           WHERE ts_utc >= coalesce({from}::timestamptz, '-infinity') \
                             AND ts_utc < coalesce({to}::timestamptz, 'infinity')) AS stored USING (ts_utc)"
        ),
    );
    let (all, unlike) = counts.split_once('|').expect("two columns");
    (all.parse().unwrap(), unlike.parse().unwrap())
}

/// Asserts that the functions return what is stored, for each bar in the range.
fn assert_as_stored(session: &mut Client, pair: &str, time: &str, from: &str, to: &str) {
    let bars = row(
        session,
        &format!(
            "SELECT count(*) FROM (SELECT {time} AS time FROM bqx.m1_{pair}) AS bar \
              WHERE time >= coalesce({from}::timestamptz, '-infinity') \
                AND time < coalesce({to}::timestamptz, 'infinity')"
        ),
    );
    for family in FAMILIES {
        let (all, unlike) = compared(session, family, pair, from, to);
        assert_eq!((all.to_string(), unlike), (bars.clone(), 0), "{family}_metrics('{pair}', {from}, {to})");
    }
}

/// The time of a bar, counted from 0, as SQL.
fn time_of(session: &mut Client, pair: &str, bar: usize) -> String {
    let query =
        format!("SELECT time AT TIME ZONE 'UTC' FROM bqx.m1_{pair} ORDER BY time OFFSET {bar} LIMIT 1");
    format!("timestamptz '{}+00'", row(session, &query))
}

#[test]
fn whole_series_are_the_stored_tables() {
    let mut session = stored().connect();
    for pair in ["eurusd", "usdjpy"] {
        for (from, to) in [("NULL", "NULL"), ("'-infinity'", "'infinity'")] {
            assert_as_stored(&mut session, pair, "time", from, to);
        }
    }
    // as many as several pieces hold, or borders would not be tried
    let bars: usize = row(&mut session, "SELECT count(*) FROM bqx.m1_eurusd").parse().unwrap();
    assert!(bars > 3 * PIECE, "{bars}");
}

#[test]
fn ranges_are_cut_out_of_the_stored_tables_wherever_they_begin_and_end() {
    let mut session = stored().connect();
    run(&mut session, "SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German, DMY'; SET search_path = public");
    let at = |text: &str| format!("timestamptz '{text}'");
    for (from, to) in [
        ("2024-07-10 12:34+00", "2024-07-10 13:34+00"), // amid a month
        ("2024-07-31 23:00+00", "2024-08-01 01:00+00"), // two months
        ("2024-07-06 03:00+00", "2024-07-06 04:00+00"), // nothing but weekend
        ("2024-07-06 03:00+00", "2024-07-07 22:05+00"), // out of a weekend
        ("2024-07-10 12:34:56.789+00", "2024-07-10 12:36:00.000001+00"),
        ("1999-01-01 00:00+00", "2024-07-01 00:20+00"), // from before all bars
        ("1999-01-01 00:00+00", "1999-02-01 00:00+00"), // all before
        ("2024-08-30 12:00+00", "2199-01-01 00:00+00"), // to after all
        ("2100-01-01 00:00+00", "2199-01-01 00:00+00"), // all after
        ("4713-01-01 00:00+00 BC", "2024-07-01 01:00+00"), // from the beginning of time
        ("2024-08-30 20:00+00", "294276-12-31 23:59+00"), // to its end
        ("294276-12-31 00:00+00", "294276-12-31 23:59+00"),
        ("4714-11-24 00:00+00 BC", "4714-11-25 00:00+00 BC"),
    ]
    .map(|(from, to)| (at(from), at(to)))
    {
        assert_as_stored(&mut session, "eurusd", "time", &from, &to);
    }
    for (from, to) in [
        ("NULL", "timestamptz '2024-07-02 00:00+00'"),
        ("timestamptz '2024-08-30 00:00+00'", "NULL"),
        ("timestamptz '2024-07-10 00:00+00'", "timestamptz '2024-07-10 00:00+00'"),
        ("timestamptz '2024-08-29 00:00+00'", "timestamptz 'infinity'"),
        ("timestamptz '-infinity'", "timestamptz '2024-07-01 10:00+00'"),
        ("timestamptz '-infinity'", "timestamptz '-infinity'"),
        ("timestamptz 'infinity'", "timestamptz 'infinity'"),
        ("timestamptz 'infinity'", "NULL"),
        ("NULL", "timestamptz '-infinity'"),
    ] {
        assert_as_stored(&mut session, "eurusd", "time", from, to);
    }
}

#[test]
fn metrics_are_null_exactly_where_too_few_bars_of_the_series_precede() {
    let mut session = stored().connect();
    for bars in [0, 1, 14, 15, 16, 74, 75, 76, 629, 630, 631] {
        let from = time_of(&mut session, "eurusd", bars);
        let to = time_of(&mut session, "eurusd", bars + 700);
        assert_as_stored(&mut session, "eurusd", "time", &from, &to);
        for (family, column, window) in
            [("bqx", "w15_bqx_return", 15), ("bqx", "agg_bqx_range", 75), ("reg", "w630_reg_r2", 630)]
        {
            let without = format!(
                "SELECT count(*) FROM bqx.{family}_metrics('eurusd', {from}, {to}) WHERE {column} IS NULL"
            );
            let expected = usize::saturating_sub(window, bars);
            assert_eq!(row(&mut session, &without), expected.to_string(), "{column} from bar {bars}");
        }
    }
}

#[test]
fn pieces_leave_no_trace() {
    let mut session = stored().connect();
    let first = 1000;
    let from = time_of(&mut session, "eurusd", first);
    for bars in [PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 1] {
        let to = time_of(&mut session, "eurusd", first + bars);
        assert_as_stored(&mut session, "eurusd", "time", &from, &to);
        assert_eq!(compared(&mut session, "bqx", "eurusd", &from, &to), (bars, 0));
    }
}

/// A pair with an M1 table without a key and 40,000 bars, one a minute.
fn make_keyless(session: &mut Client, pair: &str) {
    run_each(
        session,
        &[
            format!("INSERT INTO bqx.pairs (pair) VALUES ('{pair}')"),
            format!(
                "CREATE TABLE bqx.m1_{pair} (time timestamptz, close numeric, rate_index double precision)"
            ),
            format!(
                "INSERT INTO bqx.m1_{pair} \
                 SELECT timestamptz '2024-07-01 00:00+00' + i * interval '1 minute', 1.08, \
                        100 + sin(i / 100.0) \
                   FROM generate_series(0, 39999) AS i ORDER BY hashint4(i)"
            ),
        ],
    );
}

/// Both functions refuse a query over the pair's whole series.
fn assert_series_refused(session: &mut Client, pair: &str, code: &str, says: &[&str], hint: &str) {
    for family in FAMILIES {
        let error =
            error_of(session, &format!("SELECT count(*) FROM bqx.{family}_metrics('{pair}', NULL, NULL)"));
        assert_eq!(error.code, code, "{error:?}");
        assert!(says.iter().all(|part| error.message.contains(part)), "{says:?}: {error:?}");
        assert!(error.hint.contains(hint), "{hint}: {error:?}");
    }
}

#[test]
fn bad_bars_are_seen_in_every_piece_and_on_every_border() {
    let db = Db::new("bad_bars");
    let mut session = db.connect();
    make_keyless(&mut session, "xauusd");
    let whole = "SELECT count(*), count(w75_bqx_return) FROM bqx.bqx_metrics('xauusd', NULL, NULL)";
    assert_eq!(row(&mut session, whole), "40000|39925");
    for bar in [0, PIECE - 1, PIECE, 2 * PIECE - 1, 2 * PIECE, 39_999] {
        let time = time_of(&mut session, "xauusd", bar);
        let named = time.replace("timestamptz '", "").replace("+00'", " UTC");
        let bars = format!("bqx.m1_xauusd WHERE time = {time}");
        // the border lies between the two if the first of them is a piece's last bar
        run(&mut session, &format!("INSERT INTO bqx.m1_xauusd SELECT * FROM {bars}"));
        let says = ["bqx.m1_xauusd", "more than one bar", named.as_str()];
        assert_series_refused(&mut session, "xauusd", "23505", &says, "ADD PRIMARY KEY (time)");
        // the last bar is remembered even where no column looks back
        let indexes = "SELECT count(*) FROM bqx._computed_rows('bqx', 'bqx.m1_xauusd', '-infinity', \
                       'infinity', '{rate_index}') AS c (t timestamptz, p float8)";
        assert_eq!(error_of(&mut session, indexes).code, "23505");
        let surplus =
            format!("DELETE FROM bqx.m1_xauusd WHERE ctid = (SELECT max(ctid) FROM {bars}) RETURNING 1");
        assert_eq!(rows(&mut session, &surplus), ["1"]);

        for (column, value, hint) in
            [("close", "-1", "Correct or delete"), ("rate_index", "NaN", "bqx.index_m1")]
        {
            let old = row(&mut session, &format!("SELECT {column} FROM {bars}"));
            run(&mut session, &format!("UPDATE bqx.m1_xauusd SET {column} = '{value}' WHERE time = {time}"));
            let says = ["bqx.m1_xauusd", column, value, named.as_str()];
            assert_series_refused(&mut session, "xauusd", "22003", &says, hint);
            run(&mut session, &format!("UPDATE bqx.m1_xauusd SET {column} = '{old}' WHERE time = {time}"));
        }
    }
    run(&mut session, "INSERT INTO bqx.m1_xauusd VALUES ('-infinity', 1, 1)");
    assert_series_refused(&mut session, "xauusd", "22003", &["infinite"], "NOT isfinite(time)");
    // what isn't looked back at does no harm
    let later =
        "SELECT count(*) FROM bqx.reg_metrics('xauusd', '2024-07-02 00:00+00', '2024-07-02 01:00+00')";
    assert_eq!(row(&mut session, later), "60");
}

#[test]
fn tables_of_an_existing_database_are_read_as_they_are() {
    let db = Db::without_extension("existing_tables");
    run(&mut db.connect(), "ALTER DATABASE existing_tables SET TimeZone = 'America/New_York'");
    let mut session = db.connect();
    run_each(
        &mut session,
        &[
            "CREATE SCHEMA bqx",
            "CREATE TABLE bqx.m1_eurusd (id bigserial, time timestamp(0), close numeric(12,6), \
                 rate_index numeric(12,8))",
            "CREATE TABLE bqx.m1_usdjpy (close real, time timestamp NOT NULL, rate_index real) \
                 PARTITION BY RANGE (time)",
            "CREATE TABLE bqx.early PARTITION OF bqx.m1_usdjpy \
                 FOR VALUES FROM (MINVALUE) TO ('2024-07-09 10:00')",
            "CREATE TABLE bqx.late PARTITION OF bqx.m1_usdjpy \
                 FOR VALUES FROM ('2024-07-09 10:00') TO (MAXVALUE)",
            "CREATE EXTENSION bqx",
        ],
    );
    for pair in ["eurusd", "usdjpy"] {
        let bars = format!(
            "INSERT INTO bqx.m1_{pair} (time, close) \
             SELECT timestamp '2024-06-28 00:00' + i * interval '20 minutes', \
                    1.08 + 0.01 * sin(i / 97.0) \
               FROM generate_series(1, 4000) AS i ORDER BY hashint4(i)"
        );
        run(&mut session, &bars);
    }
    for stage in ["set_baselines()", "index_m1()", "create_tables()", "backfill(workers => 0)"] {
        run(&mut session, &format!("CALL bqx.{stage}"));
    }
    for pair in ["eurusd", "usdjpy"] {
        for (from, to) in [
            ("NULL", "NULL"),
            ("'-infinity'", "'infinity'"),
            ("'infinity'", "'infinity'"),
            ("'2024-07-09 08:00+00'", "'2024-07-09 12:00+00'"),
            ("'2024-07-09 08:00'", "'2024-07-10'"), // New York's
            ("'4714-11-24 00:00+00 BC'", "'2024-07-01 00:00+00'"),
            ("'2024-07-20 00:00+00'", "'294276-12-31 23:59+00'"),
        ] {
            assert_as_stored(&mut session, pair, "time AT TIME ZONE 'UTC'", from, to);
        }
    }
}

#[test]
fn they_are_tables_to_any_query() {
    let db = stored();
    let mut session = db.connect();
    let day = "'2024-07-10 00:00+00', '2024-07-11 00:00+00'";
    let bars = row(
        &mut session,
        "SELECT count(*) FROM bqx.m1_eurusd \
         WHERE time >= '2024-07-10 00:00+00' AND time < '2024-07-11 00:00+00'",
    );
    run(&mut session, &format!("CREATE VIEW public.day AS SELECT * FROM bqx.bqx_metrics('EurUsd', {day})"));
    run(
        &mut session,
        &format!("CREATE TABLE public.day_kept AS SELECT * FROM bqx.reg_metrics('EURUSD', {day})"),
    );
    assert_eq!(row(&mut session, "SELECT count(*) FROM public.day"), bars);
    let joined = "SELECT count(*) FROM public.day AS d JOIN public.day_kept AS k USING (ts_utc, rate_index) \
                  JOIN bqx.m1_eurusd AS m ON m.time = d.ts_utc AND m.rate_index = d.rate_index";
    assert_eq!(row(&mut session, joined), bars);
    assert_eq!(
        rows(
            &mut session,
            "SELECT p, count(*) > 1000, min(m.w15_bqx_return) = (CASE p WHEN 'eurusd' \
             THEN (SELECT min(w15_bqx_return) FROM bqx.bqx_eurusd WHERE ts_utc::date = d) \
             ELSE (SELECT min(w15_bqx_return) FROM bqx.bqx_usdjpy WHERE ts_utc::date = d) END) \
             FROM unnest('{eurusd,usdjpy}'::text[], '{2024-07-10,2024-07-11}'::date[]) AS asked (p, d), \
                  LATERAL bqx.bqx_metrics(p, d, d + 1) AS m GROUP BY p, d ORDER BY p"
        ),
        ["eurusd|t|t", "usdjpy|t|t"]
    );
    let filtered = "SELECT ts_utc FROM bqx.bqx_metrics('eurusd', '2024-07-10', NULL) \
                     WHERE extract(minute FROM ts_utc) = 30 ORDER BY ts_utc DESC LIMIT 3";
    assert_eq!(rows(&mut session, filtered).len(), 3);
    let in_list =
        format!("SELECT count((m).w90_reg_a) FROM (SELECT bqx.reg_metrics('eurusd', {day}) AS m) AS q");
    assert_eq!(row(&mut session, &in_list), bars);
    run(
        &mut session,
        "PREPARE p (text, timestamptz, timestamptz) AS SELECT count(*) FROM bqx.bqx_metrics($1, $2, $3)",
    );
    run(&mut session, "SET plan_cache_mode = force_generic_plan");
    assert_eq!(row(&mut session, &format!("EXECUTE p ('eurusd', {day})")), bars);
    run(&mut session, "DROP VIEW public.day");
}

#[test]
fn rows_are_materialised_once() {
    let mut session = stored().connect();
    let plan = rows(
        &mut session,
        "EXPLAIN SELECT w15_bqx_return FROM bqx.bqx_metrics('eurusd', '2024-07-10', NULL) \
         WHERE rate_index > 100",
    );
    assert!(plan[0].starts_with("Function Scan on _computed_rows"), "{plan:#?}");
    assert!(!plan.join("").contains("Subquery"), "{plan:#?}");
}

#[test]
fn they_read_only_and_one_snapshot() {
    let db = Db::new("snapshot");
    let (mut session, mut other) = (db.connect(), db.connect());
    make_keyless(&mut other, "xauusd");
    let count = "SELECT count(*) FROM bqx.bqx_metrics('xauusd', '2024-07-28 00:00+00', NULL)";
    run(&mut session, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY");
    let before: usize = row(&mut session, count).parse().unwrap();
    run(&mut other, "BEGIN");
    run(&mut other, "INSERT INTO bqx.m1_xauusd VALUES ('2024-07-28 00:00:30+00', 1.08, 100)");
    let after = (before + 1).to_string();
    assert_eq!(row(&mut other, count), after, "the transaction's own bar counts");
    run(&mut other, "COMMIT");
    assert_eq!(row(&mut session, count), before.to_string());
    run(&mut session, "COMMIT");
    assert_eq!(row(&mut session, count), after);
}

#[test]
fn callers_see_what_they_may_see_of_the_bars() {
    let db = Db::new("rights");
    let mut owner = db.connect();
    make_keyless(&mut owner, "xauusd");
    run_each(
        &mut owner,
        &[
            "CREATE ROLE outsider LOGIN",
            "CREATE ROLE analyst LOGIN",
            "CREATE ROLE stranger LOGIN",
            "GRANT SELECT ON bqx.m1_xauusd TO analyst, stranger",
        ],
    );
    let whole = |family: &str| format!("SELECT count(*) FROM bqx.{family}_metrics('xauusd', NULL, NULL)");
    for family in FAMILIES {
        let error = error_of(&mut db.connect_as("outsider"), &whole(family));
        assert_eq!((error.code.as_str(), error.message.contains("m1_xauusd")), ("42501", true), "{error:?}");
        assert_eq!(row(&mut db.connect_as("analyst"), &whole(family)), "40000");
    }
    run_each(
        &mut owner,
        &[
            "ALTER TABLE bqx.m1_xauusd ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY every_third ON bqx.m1_xauusd TO analyst \
                 USING (extract(minute FROM time)::int % 3 = 0)",
            "INSERT INTO bqx.pairs (pair) VALUES ('xagusd')",
            "CREATE TABLE bqx.m1_xagusd AS \
                 SELECT * FROM bqx.m1_xauusd WHERE extract(minute FROM time)::int % 3 = 0",
            "GRANT SELECT ON bqx.m1_xagusd TO analyst",
        ],
    );
    for family in FAMILIES {
        let unlike = format!(
            "SELECT count(*), count(*) FILTER (WHERE NOT coalesce(a *= b, false)) \
               FROM bqx.{family}_metrics('xauusd', '2024-07-02 00:00+00', NULL) AS a \
               FULL JOIN bqx.{family}_metrics('xagusd', '2024-07-02 00:00+00', NULL) AS b USING (ts_utc)"
        );
        assert_eq!(row(&mut db.connect_as("analyst"), &unlike), "12854|0");
        assert_eq!(row(&mut db.connect_as("stranger"), &whole(family)), "0", "no visible bar, no row");
    }
}

/// An error's code, and whether message and hint have these in them.
fn assert_error(error: &SqlError, code: &str, says: &[&str], hints: &[&str]) {
    let named = says.iter().all(|part| error.message.contains(part));
    let hinted = hints.iter().all(|part| error.hint.contains(part));
    assert!(error.code == code && named && hinted, "expected {code}, {says:?}, {hints:?}; got {error:?}");
}

#[test]
fn what_cannot_be_computed_is_refused_with_the_way_on() {
    let db = Db::new("refused");
    let mut session = db.connect();
    run(&mut session, "SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German, DMY'");
    run(&mut session, "CALL bqx.simulate_m1('{eurusd,gbpusd}', '2024-07-01', '2024-07-01')");
    run(&mut session, "CALL bqx.set_baselines(pairs => '{eurusd}')");
    run(&mut session, "CALL bqx.create_m1('{usdchf}')");
    let known = "SELECT pair FROM bqx.pairs";
    let (june, july) = ("'2024-06-01 00:00+00'", "'2024-07-01 00:00+00'");
    for (arguments, code, says, hints) in [
        (
            format!("'eurxxx', {june}, {july}"),
            "22023",
            vec!["unknown pair 'eurxxx'"],
            vec![known, "INSERT INTO"],
        ),
        ("NULL, NULL, NULL".into(), "22023", vec!["unknown pair NULL"], vec![known]),
        (
            "'eurusd; DROP TABLE bqx.pairs', NULL, NULL".into(),
            "22023",
            vec!["unknown pair 'eurusd; "],
            vec![known],
        ),
        (
            format!("'eurusd', {july}, {june}"),
            "22023",
            vec!["from_ts 2024-07-01 00:00:00+00 is after to_ts 2024-06-01 00:00:00+00"],
            vec!["from_ts comes first"],
        ),
        (
            "'eurusd', 'infinity', '-infinity'".into(),
            "22023",
            vec!["from_ts infinity is after to_ts -infinity"],
            vec!["NULL leaves an end open"],
        ),
        (
            format!("'AUDUSD', {june}, {july}"),
            "42P01",
            vec!["bqx.m1_audusd does not exist"],
            vec!["CALL bqx.load_m1('audusd', ", "CALL bqx.create_m1(ARRAY['audusd']);"],
        ),
        (
            format!("'gbpusd', {june}, {july}"),
            "55000",
            vec!["pair \"gbpusd\" has no baseline"],
            vec!["CALL bqx.set_baselines(pairs => ARRAY['gbpusd']);", "CALL bqx.index_m1(ARRAY['gbpusd']);"],
        ),
        (
            format!("'eurusd', {june}, {july}"),
            "55000",
            vec!["pair \"eurusd\" has no rate_index yet"],
            vec!["CALL bqx.index_m1(ARRAY['eurusd']);"],
        ),
    ] {
        for family in FAMILIES {
            let query = format!("SELECT count(*) FROM bqx.{family}_metrics({arguments})");
            assert_error(&error_of(&mut session, &query), code, &says, &hints);
        }
    }
    // an empty table has no rows
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.bqx_metrics('usdchf', NULL, NULL)"), "0");
    run(&mut session, "CREATE VIEW bqx.m1_audusd AS SELECT * FROM bqx.m1_eurusd");
    let error = error_of(&mut session, "SELECT count(*) FROM bqx.bqx_metrics('audusd', NULL, NULL)");
    assert_error(&error, "42809", &["bqx.m1_audusd", "not a table"], &["rename"]);
    // and the way on leads there
    run(&mut session, "CALL bqx.index_m1('{eurusd}')");
    run(&mut session, "SELECT count(*) FROM bqx.reg_metrics('eurusd', NULL, NULL)");
}

#[test]
fn a_running_query_is_cancelled() {
    let mut session = stored().connect();
    run(&mut session, "SET statement_timeout = '5ms'");
    for family in FAMILIES {
        let query = format!("SELECT count(*) FROM bqx.{family}_metrics('eurusd', NULL, NULL)");
        assert_eq!(error_of(&mut session, &query).code, "57014");
    }
    run(&mut session, "RESET statement_timeout");
    assert_as_stored(&mut session, "eurusd", "time", "'2024-07-10 00:00+00'", "'2024-07-10 01:00+00'");
}

/// The most memory, in kB, that the session's backend had so far, with what it touched of the shared one.
fn peak_memory(session: &mut Client) -> i64 {
    let status = row(session, "SELECT pg_read_file(format('/proc/%s/status', pg_backend_pid()))");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux has it");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Room for what has nothing to do with the rows, in kB. A year of bars in one piece takes twice as much.
const SLACK: i64 = 4096;

#[test]
fn neither_long_ranges_nor_many_calls_take_more_memory() {
    // little shared memory, and no compiler, which would be counted, too
    let options = [("shared_buffers", "2MB"), ("work_mem", "4MB"), ("jit", "off")];
    let server = own_server("memory", &options);
    let db = Db::on(&server, "memory");
    for stage in
        ["simulate_m1('{eurusd}', '2024-07-01', '2025-06-01')", "set_baselines()", "index_m1('{eurusd}')"]
    {
        run(&mut db.connect(), &format!("CALL bqx.{stage}"));
    }
    for family in FAMILIES {
        let mut session = db.connect();
        let mut peak_after = |from_where: &str| {
            let rows: i64 = row(&mut session, &format!("SELECT count(*) FROM {from_where}")).parse().unwrap();
            (rows, peak_memory(&mut session))
        };
        let range = |to: &str| format!("bqx.{family}_metrics('eurusd', '2024-07-01 00:00+00', {to})");
        let (rows_of_month, month) = peak_after(&range("'2024-08-01 00:00+00'"));
        let (rows_of_year, year) = peak_after(&range("NULL"));
        assert!(
            rows_of_month > 30_000 && rows_of_year > 11 * rows_of_month,
            "{rows_of_month}, {rows_of_year}"
        );
        assert!(year - month < SLACK, "{family}: {month} kB for a month, {year} kB for a year");
        let (_, calls) = peak_after(&format!(
            "generate_series(timestamptz '2024-08-06 00:00+00', '2024-08-06 16:00+00', '1 minute') \
                 AS minute, LATERAL bqx.{family}_metrics('eurusd', minute, minute + interval '1 minute')"
        ));
        assert!(calls - year < SLACK, "{family}: {year} kB for a year, {calls} kB for 961 calls");
    }
}
