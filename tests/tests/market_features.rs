//! What can be said of bars besides their metrics: the clock, pairs and currencies together, regimes; and the check that none
//! of it, nor metrics and indicators, knows of later bars.

mod common;

use std::sync::OnceLock;

use bqx_tests::Db;
use common::{attempt, row, rows, run, run_each};
use postgres::Client;

/// Two months of three pairs, with derived tables; one bar of gbpusd is missing.
fn filled() -> &'static Db<'static> {
    static FILLED: OnceLock<Db<'static>> = OnceLock::new();
    FILLED.get_or_init(|| {
        let db = Db::new("market_features");
        run_each(
            &mut db.connect(),
            &[
                "CALL bqx.simulate_m1('{eurgbp,eurusd,gbpusd}', '2024-07-01', '2024-08-01', 5)",
                "DELETE FROM bqx.m1_gbpusd WHERE time = '2024-08-06 10:00+00'",
                "CALL bqx.set_baselines()",
                "CALL bqx.index_m1()",
                "CALL bqx.create_tables()",
                "CALL bqx.backfill(workers => 1)",
            ],
        );
        db
    })
}

/// The number of rows in which two columns of a query, `a` and `b`, are further apart than 1e-9, or only one is NULL; and the
/// number of those in which they are not NULL.
fn apart(query: &str) -> String {
    let session = &mut filled().connect();
    row(
        session,
        &format!(
            "SELECT count(*) FILTER (WHERE abs(a - b) > 1e-9 OR (a IS NULL) <> (b IS NULL)), count(a) FROM ({query}) AS q"
        ),
    )
}

#[test]
fn sessions_go_by_local_clocks_and_the_week_by_new_york() {
    let seen = |instant: &str| {
        row(
            &mut filled().connect(),
            &format!(
                "SELECT (f).session, (f).minutes_since_open, (f).near_weekend, (f).asia::int || ((f).europe::int)::text || (f).us::int \
                 FROM (SELECT bqx.time_features('{instant}')) AS q (f)"
            ),
        )
    };
    assert_eq!(seen("2024-07-07 20:59+00"), "closed|10079|t|000");
    assert_eq!(seen("2024-07-07 21:00+00"), "none|0|f|000", "Sunday 17:00 in New York, Tokyo still asleep");
    assert_eq!(seen("2024-07-08 00:00+00"), "asia|180|f|100");
    assert_eq!(seen("2024-07-08 07:00+00"), "asia+europe|600|f|110", "8:00 in London");
    assert_eq!(seen("2024-07-08 09:00+00"), "europe|720|f|010", "18:00 in Tokyo");
    assert_eq!(seen("2024-07-08 12:00+00"), "europe+us|900|f|011");
    assert_eq!(seen("2024-07-08 16:00+00"), "us|1140|f|001");
    assert_eq!(seen("2024-07-08 21:00+00"), "none|1440|f|000");
    assert_eq!(seen("2024-07-12 16:59:59+00"), "us|6959|f|001");
    assert_eq!(seen("2024-07-12 17:00+00"), "us|6960|t|001", "four hours before the close");
    assert_eq!(seen("2024-07-12 21:00+00"), "closed|7200|t|000");
    // Between the changes of clocks in March, London is four hours from New York.
    assert_eq!(seen("2024-03-11 07:59+00"), "asia|659|f|100");
    assert_eq!(seen("2024-03-11 08:00+00"), "asia+europe|660|f|110");
    assert_eq!(seen("2024-03-11 12:00+00"), "europe+us|900|f|011");
    assert_eq!(seen("2024-01-08 12:59+00"), "europe|899|f|010", "winter");
    assert_eq!(seen("2024-01-07 22:00+00"), "none|0|f|000");
}

#[test]
fn angles_of_hour_and_weekday() {
    let angle = "SELECT round((f).hour_sin::numeric, 9), round((f).hour_cos::numeric, 9), round((f).weekday_sin::numeric, 9), \
                 round((f).weekday_cos::numeric, 9) FROM (SELECT bqx.time_features($1)) AS q (f)";
    let seen = |instant: &str| row(&mut filled().connect(), &angle.replace("$1", &format!("'{instant}'")));
    assert_eq!(seen("2024-07-08 00:00+00"), "0.000000000|1.000000000|0.000000000|1.000000000", "Monday");
    assert_eq!(seen("2024-07-08 06:00+00"), "1.000000000|0.000000000|0.000000000|1.000000000");
    assert_eq!(seen("2024-07-11 18:30+00"), "-0.991444861|0.130526192|0.433883739|-0.900968868");
    let mut session = filled().connect();
    run(&mut session, "SET TimeZone = 'Asia/Tokyo'");
    let elsewhere = row(&mut session, &angle.replace("$1", "'2024-07-08 06:00+00'"));
    assert_eq!(elsewhere, seen("2024-07-08 06:00+00"), "whatever the session's time zone");
    for nothing in ["NULL::timestamptz", "'infinity'::timestamptz", "'-infinity'::timestamptz"] {
        let query = format!(
            "SELECT num_nonnulls((f).hour_sin, (f).weekday_cos, (f).us, (f).minutes_since_open, (f).near_weekend) FROM (SELECT bqx.time_features({nothing})) AS q (f)"
        );
        assert_eq!(row(&mut session, &query), "0", "{nothing}");
    }
    let of_no_zone = row(&mut session, &angle.replace("$1", "timestamp '2024-07-08 06:00'"));
    assert_eq!(of_no_zone, elsewhere, "times without a zone are UTC");
    let plan = rows(
        &mut session,
        "EXPLAIN (VERBOSE, COSTS off) SELECT (bqx.time_features(time)).* FROM bqx.m1_eurusd",
    );
    assert!(!plan.join("\n").contains("time_features"), "the planner sees through it: {plan:?}");
}

#[test]
fn rolling_correlations_are_those_of_corr() {
    let bars = "(SELECT *, row_number() OVER (ORDER BY time) AS i FROM bqx.m1_eurusd WHERE time < '2024-07-03') AS m";
    for width in [20, 60, 390] {
        let seen = apart(&format!(
            "SELECT bqx.rolling_corr(close, low) OVER w AS a, corr(close, low) OVER w AS b FROM {bars} \
             WINDOW w AS (ORDER BY time ROWS {} PRECEDING)",
            width - 1
        ));
        assert!(seen.starts_with("0|2"), "{width}: {seen}");
    }
    // Moving, and begun anew for every row (which a frame that ends before the row's own makes of it): the same bits.
    let both = format!(
        "SELECT count(*) FILTER (WHERE a IS DISTINCT FROM b), count(a) > 2000 FROM (SELECT bqx.rolling_corr(close, low) OVER \
         (ORDER BY time ROWS 29 PRECEDING) AS a, (SELECT bqx.rolling_corr(n.close, n.low) FROM {} WHERE n.i BETWEEN m.i - 29 AND m.i) AS b \
         FROM {bars}) AS q",
        bars.replace("AS m", "AS n")
    );
    assert_eq!(row(&mut filled().connect(), &both), "0|t");
    let mut session = filled().connect();
    assert_eq!(
        row(
            &mut session,
            "SELECT bqx.rolling_corr(y, x), bqx.rolling_corr(y, 1), bqx.vwap(y, x) FROM (VALUES (1, 2), (2, 4), (4, NULL), (3, 6.0)) AS l (y, x)"
        ),
        "1|NULL|2.3333333333333335"
    );
    assert_eq!(
        row(
            &mut session,
            "SELECT bqx.rolling_corr(y, 'NaN'), bqx.vwap(1, 0), bqx.vwap(y, y), bqx.rolling_corr(y, y) FROM (VALUES (1.5)) AS l (y)"
        ),
        "NULL|NULL|1.5|NULL"
    );
}

#[test]
fn correlations_of_pairs_are_of_their_returns_at_common_bars() {
    let by_hand = "SELECT ts_utc, CASE WHEN count(*) OVER w = 60 THEN corr(one, other) OVER w END AS correlation FROM ( \
                   SELECT a.time AS ts_utc, a.close / lag(a.close) OVER (ORDER BY a.time) - 1 AS one, \
                   b.close / lag(b.close) OVER (ORDER BY a.time) - 1 AS other FROM bqx.m1_eurusd AS a JOIN bqx.m1_gbpusd AS b USING (time)) AS r \
                   WHERE one IS NOT NULL WINDOW w AS (ORDER BY ts_utc ROWS 59 PRECEDING)";
    let seen = apart(&format!(
        "SELECT c.correlation AS a, h.correlation AS b FROM bqx.cross_pair_correlation('{{eurusd,gbpusd}}', NULL, NULL, 60) AS c \
         FULL JOIN ({by_hand}) AS h USING (ts_utc)"
    ));
    assert!(seen.starts_with("0|6"), "{seen}");

    let mut session = filled().connect();
    let monday = |from: &str| {
        format!(
            "SELECT ts_utc, pair, other, correlation FROM bqx.cross_pair_correlation('{{eurusd,gbpusd}}', {from}, '2024-08-05 02:00+00', 60) \
             WHERE ts_utc >= '2024-08-04 22:00+00'"
        )
    };
    let (from_monday, from_start) =
        (rows(&mut session, &monday("'2024-08-04 22:00+00'")), rows(&mut session, &monday("NULL")));
    assert_eq!(from_monday, from_start, "windows reach over the weekend");
    assert!(from_monday.len() > 200 && !from_monday[0].contains("NULL"), "{}", from_monday[0]);
    assert_eq!(
        rows(
            &mut session,
            "SELECT DISTINCT pair, other FROM bqx.cross_pair_correlation(NULL, '2024-08-06 10:00+00', '2024-08-06 10:01+00', 60)"
        ),
        ["eurgbp|eurusd"],
        "gbpusd has no bar then"
    );
    let wide = "SELECT count(*), count(correlation), sum(correlation) FROM bqx.cross_pair_correlation('{eurusd,gbpusd}', $1, NULL, 30000) \
                WHERE ts_utc >= '2024-08-29'";
    let [from_day, from_start] =
        ["'2024-08-29'", "NULL"].map(|from| row(&mut session, &wide.replace("$1", from)));
    assert_eq!(from_day, from_start, "wide windows reach back as far as they have to");
    for (arguments, message) in [
        ("'{eurusd}', NULL, NULL, 60", "there are no two pairs to compare"),
        ("NULL, NULL, NULL, 1", "width must be between 2 and 100000, not 1"),
        ("NULL, NULL, NULL, NULL", "width must be between 2 and 100000, not NULL"),
        ("'{eurusd,xyz}', NULL, NULL, 60", "unknown pair 'xyz'"),
    ] {
        let error =
            attempt(&mut session, &format!("SELECT bqx.cross_pair_correlation({arguments})")).unwrap_err();
        assert_eq!((error.code.as_str(), error.message.as_str()), ("22023", message), "{arguments}");
    }
}

#[test]
fn a_currency_is_as_strong_as_its_pairs() {
    // Seen from GBP, of which eurgbp and gbpusd are: one up, the other down.
    let by_hand = "SELECT ts_utc, 100 * exp((-ln(e.rate_index / 100) + ln(g.rate_index / 100)) / 2) AS strength \
                   FROM bqx.m1_eurgbp AS e JOIN bqx.m1_gbpusd AS g ON g.time = e.time CROSS JOIN LATERAL (SELECT e.time) AS t (ts_utc)";
    let seen = apart(&format!(
        "SELECT s.strength AS a, h.strength AS b FROM bqx_ml.currency_strength('gbp', NULL, NULL) AS s \
         FULL JOIN ({by_hand}) AS h USING (ts_utc) WHERE s.bars IS DISTINCT FROM 1"
    ));
    assert!(seen.starts_with("0|6"), "{seen}");
    let around = "SELECT s.bars, abs(s.strength - 100 * exp((-ln(e.rate_index / 100) + ln(g.rate_index / 100)) / 2)) < 1e-9 \
                  FROM bqx_ml.currency_strength('GBP', '2024-08-06 10:00+00', '2024-08-06 10:01+00') AS s, bqx.m1_eurgbp AS e, \
                  (SELECT rate_index FROM bqx.m1_gbpusd WHERE time < '2024-08-06 10:00+00' ORDER BY time DESC LIMIT 1) AS g WHERE e.time = s.ts_utc";
    let mut session = filled().connect();
    assert_eq!(row(&mut session, around), "1|t", "a pair without a bar stands where it stood");
    run_each(
        &mut session,
        &["BEGIN", "DELETE FROM bqx.m1_gbpusd WHERE time >= '2024-07-20' AND time < '2024-08-02'"],
    );
    let day = "SELECT count(*), count(strength), sum(strength) FROM bqx_ml.currency_strength('GBP', $1, '2024-08-02') WHERE ts_utc >= '2024-08-01'";
    let [from_day, from_start] =
        ["'2024-08-01'", "NULL"].map(|from| row(&mut session, &day.replace("$1", from)));
    assert_eq!(from_day, from_start, "however long ago that was");
    assert!(!from_day.contains("NULL"), "{from_day}");
    let seen_from = |session: &mut Client, from: &str| {
        row(
            session,
            &format!(
                "SELECT string_agg(strength::text, ',' ORDER BY ts_utc) FROM bqx_ml.currency_strength('GBP', {from}, '2024-08-01 00:20') WHERE ts_utc >= '2024-08-01'"
            ),
        )
    };
    run_each(
        &mut session,
        &[
            "ROLLBACK",
            "BEGIN",
            "ALTER TABLE bqx.m1_eurgbp DISABLE TRIGGER ALL",
            "UPDATE bqx.m1_eurgbp SET rate_index = NULL, close = NULL WHERE time >= '2024-07-31 23:40' AND time < '2024-08-01 00:10'",
            "UPDATE bqx.m1_eurgbp SET rate_index = 'NaN' WHERE time = '2024-08-01 00:12'",
            "UPDATE bqx.m1_eurgbp SET rate_index = 0 WHERE time = '2024-08-01 00:14'",
        ],
    );
    let strengths = seen_from(&mut session, "'2024-08-01'");
    assert_eq!(strengths, seen_from(&mut session, "NULL"), "bars that have no index stand for nothing");
    assert!(strengths.split(',').count() > 15 && !strengths.contains("NaN"), "{strengths}");
    let correlations = |session: &mut Client, from: &str| {
        row(
            session,
            &format!(
                "SELECT count(correlation), count(*), sum(correlation) FROM bqx.cross_pair_correlation('{{eurgbp,eurusd}}', {from}, '2024-08-01 01:00', 60) WHERE ts_utc >= '2024-08-01 00:10'"
            ),
        )
    };
    let of_hour = correlations(&mut session, "'2024-08-01 00:10'");
    assert_eq!(of_hour, correlations(&mut session, "NULL"), "nor do those without a close");
    let counts: Vec<_> = of_hour.split('|').collect();
    assert!(counts[0] == counts[1] && counts[0].parse::<u32>().unwrap() > 40, "{of_hour}");
    run_each(&mut session, &["ROLLBACK", "BEGIN"]);
    run(&mut session, "ALTER TABLE bqx.m1_eurgbp DISABLE TRIGGER ALL");
    run(&mut session, "UPDATE bqx.m1_eurgbp SET rate_index = NULL");
    let error = attempt(&mut session, "SELECT bqx_ml.currency_strength('GBP', NULL, NULL)").unwrap_err();
    assert_eq!(error.code, "55000", "{error:?}");
    run(&mut session, "ROLLBACK");
    let error = attempt(&mut session, "SELECT bqx_ml.currency_strength('xau', NULL, NULL)").unwrap_err();
    assert_eq!((error.code.as_str(), error.hint.as_str()), ("22023", "There are bars of EUR, GBP, USD."));
}

#[test]
fn regimes_are_by_the_fit_and_by_the_month_before() {
    let mut session = filled().connect();
    let wrong = row(
        &mut session,
        "SELECT count(*), count(*) FILTER (WHERE m.trend IS DISTINCT FROM CASE WHEN r.w60_reg_r2 < 0.5 THEN 'range' \
             WHEN r.w60_reg_slope_end > 0 THEN 'up' ELSE 'down' END), \
           count(*) FILTER (WHERE m.volatility_tercile IS DISTINCT FROM CASE WHEN b.w60_bqx_stdev_index < t.a THEN 'low' \
             WHEN b.w60_bqx_stdev_index < t.b THEN 'medium' ELSE 'high' END), count(DISTINCT m.volatility_tercile), count(DISTINCT m.trend) \
         FROM bqx_ml.market_regime('eurusd', '2024-08-01 00:00+00', '2024-09-01 00:00+00') AS m JOIN bqx.reg_eurusd AS r USING (ts_utc) \
         JOIN bqx.bqx_eurusd AS b USING (ts_utc) CROSS JOIN (SELECT percentile_disc(1 / 3.0) WITHIN GROUP (ORDER BY w60_bqx_stdev_index) AS a, \
           percentile_disc(2 / 3.0) WITHIN GROUP (ORDER BY w60_bqx_stdev_index) AS b FROM bqx.bqx_eurusd WHERE ts_utc < '2024-08-01 00:00+00') AS t",
    );
    let count =
        row(&mut session, "SELECT count(*) FROM bqx.reg_eurusd WHERE ts_utc >= '2024-08-01 00:00+00'");
    assert_eq!(wrong, format!("{count}|0|0|3|3"));
    assert_eq!(
        row(
            &mut session,
            "SELECT count(*) > 30000, count(trend) > 30000, count(volatility_tercile) FROM bqx_ml.market_regime('eurusd', NULL, '2024-08-01 00:00+00')"
        ),
        "t|t|0",
        "nothing is known of the month before the first"
    );
    let whole = "SELECT * FROM bqx_ml.market_regime('eurusd', $1, NULL) WHERE ts_utc >= '2024-08-15 00:00+00' ORDER BY ts_utc LIMIT 500";
    let from = |start: &str| rows(&mut filled().connect(), &whole.replace("$1", start));
    assert_eq!(from("'2024-08-15 00:00+00'"), from("NULL"), "the same from wherever it is asked");
    assert_eq!(from("'-infinity'"), from("NULL"));
    for (arguments, message) in [
        ("trend_width => 61", "bqx.reg_eurusd has no column w61_reg_r2"),
        ("volatility_width => 90", "bqx.bqx_eurusd has no column w90_bqx_stdev_index"),
        ("trend_r2 => 1.5", "trend_r2 must be between 0 and 1, not 1.5"),
    ] {
        let call = format!("SELECT bqx_ml.market_regime('eurusd', NULL, NULL, {arguments})");
        let error = attempt(&mut session, &call).unwrap_err();
        assert_eq!((error.code.as_str(), error.message.as_str()), ("22023", message), "{arguments}");
    }
}

#[test]
fn nothing_knows_of_later_bars() {
    let mut session = filled().connect();
    let features =
        rows(&mut session, "SELECT feature, is_causal, changed_until FROM bqx.verify_causality('eurusd')");
    let unproven: Vec<_> = features.iter().filter(|line| !line.ends_with("|t|0")).collect();
    assert!(unproven.is_empty(), "{unproven:?}");
    let named = |name: &str| features.iter().any(|line| line.starts_with(&format!("{name}|")));
    let metrics = rows(
        &mut session,
        "SELECT n FROM (SELECT unnest(bqx._metric_names('bqx') || bqx._metric_names('reg'))) AS u (n) \
         UNION ALL SELECT 'candlesticks_' || n FROM unnest(bqx._candle_pattern_names()) AS n",
    );
    assert_eq!(metrics.len(), 37 + 54 + 13);
    metrics.iter().for_each(|name| assert!(named(name), "{name} is not checked"));
    // Every aggregate of bqx is there.
    let unknown = rows(
        &mut session,
        "SELECT proname FROM pg_proc WHERE pronamespace = 'bqx'::regnamespace AND prokind = 'a' \
         AND NOT EXISTS (SELECT FROM bqx._indicator_expressions() AS e WHERE e.expression ~ ('bqx\\.' || proname || '\\('))",
    );
    assert!(unknown.is_empty(), "{unknown:?}");
    assert_eq!(
        row(&mut session, "SELECT count(*) FROM pg_class WHERE relpersistence = 't'"),
        "0",
        "no copy is left"
    );
}

#[test]
fn what_knows_of_later_bars_is_found() {
    let mut session = filled().connect();
    let found = rows(
        &mut session,
        "SELECT feature, is_causal, rows_until, changed_until, rows_after FROM bqx.verify_causality('eurusd', \
         '2024-08-06 12:00+00', 100, ARRAY['lead(close) OVER w', 'close - avg(close) OVER ()', 'extract(hour FROM time)', 'lag(low) OVER w']) \
         WHERE feature ~ 'OVER|extract' ORDER BY feature",
    );
    assert_eq!(
        found,
        [
            "close - avg(close) OVER ()|f|100|100|100",
            "extract(hour FROM time)|NULL|100|0|100",
            "lag(low) OVER w|t|99|0|100",
            "lead(close) OVER w|f|100|1|99"
        ]
    );
    // Long expressions that begin alike, a comment, and one that has a value after the instant only.
    let long = format!("{}coalesce(close, 1.0){}", "coalesce(".repeat(8), ", 1.0)".repeat(8));
    let found = rows(
        &mut session,
        &format!(
            "SELECT is_causal, changed_until FROM bqx.verify_causality('eurusd', NULL, 400, ARRAY['{long} + lead(close) OVER w', \
             '{long} + lag(close) OVER w -- ahead?', 'CASE WHEN row_number() OVER w > 400 THEN lead(close) OVER w END']) \
             WHERE feature ~ 'coalesce|CASE' ORDER BY feature"
        ),
    );
    assert_eq!(found, ["NULL|0", "t|0", "f|1"]);
    // Whichever way the next bar goes, whenever it comes, and however many there are.
    let leaks = [
        "lead(close) OVER w > close",
        "(lead(close) OVER w < close)::int * 100 + close",
        "coalesce(sign(lead(volume) OVER w - volume), 0) + close",
        "close / extract(epoch FROM lead(time) OVER w - time)",
        "close + count(*) OVER ()",
        "close * row_number() OVER (ORDER BY time DESC)",
    ];
    let quoted = leaks.map(|leak| format!("'{leak}'")).join(", ");
    let causal = "SELECT feature FROM bqx.verify_causality('eurusd', $1, 100, ARRAY[$2]) WHERE feature = ANY (ARRAY[$2]) AND is_causal IS NOT FALSE";
    for at in ["2024-08-06 12:00+00", "2024-08-06 12:01+00", "2024-08-06 12:02+00", "2024-08-06 12:03+00"] {
        let unseen = rows(&mut session, &causal.replace("$1", &format!("'{at}'")).replace("$2", &quoted));
        assert!(unseen.is_empty(), "{at}: {unseen:?}");
    }
    for (expressions, code, message) in [
        ("'close', 'close +'", "42601", "expression 2 cannot be computed: 'close +'"),
        ("'clos'", "42703", "expression 1 cannot be computed: 'clos'"),
        ("NULL", "22023", "expression 1 is not over bars alone: NULL"),
        ("' '", "22023", "expression 1 is not over bars alone: ' '"),
        (
            "'close / (SELECT avg(close) FROM bqx.m1_eurusd)'",
            "22023",
            "expression 1 is not over bars alone: 'close / (SELECT avg(close) FROM bqx.m1_eurusd)'",
        ),
    ] {
        let call = format!("SELECT bqx.verify_causality('eurusd', NULL, 100, ARRAY[{expressions}])");
        let error = attempt(&mut session, &call).unwrap_err();
        assert_eq!((error.code.as_str(), error.message.as_str()), (code, message), "{expressions}");
    }
    for (arguments, code, message) in [
        ("'eurusd', bars => 1", "22023", "bars must be between 2 and 100000, not 1"),
        ("'eurusd', bars => 100000", "P0002", "bqx.m1_eurusd has fewer than 100001 bars"),
        (
            "'eurusd', '2030-01-01 00:00+00'",
            "P0002",
            "bqx.m1_eurusd has no bars on both sides of 2030-01-01 00:00:00+00",
        ),
        ("'usdjpy'", "42P01", "table bqx.m1_usdjpy does not exist"),
    ] {
        let error = attempt(&mut session, &format!("SELECT bqx.verify_causality({arguments})")).unwrap_err();
        assert_eq!((error.code.as_str(), error.message.as_str()), (code, message), "{arguments}");
    }
}
