//! The window aggregates wherever PostgreSQL lets an aggregate stand, and next to the stored tables.

mod common;

use bqx_tests::{Db, error_of};
use common::{row, rows, run, run_each};
use postgres::Client;

// ---------------------------------------------------------------------------------------------------------
// The stored tables
// ---------------------------------------------------------------------------------------------------------

/// Suffixes of the stored columns, and what the aggregates call the same.
const WINDOW_METRICS: [(&str, &str); 6] = [
    ("return", "bqx_return"),
    ("max_index", "bqx_max"),
    ("min_index", "bqx_min"),
    ("avg_index", "bqx_avg"),
    ("stdev_index", "bqx_stdev"),
    ("endpoint", "bqx_endpoint"),
];
const AGG_METRICS: [(&str, &str); 7] = [
    ("return", "bqx_return"),
    ("max_index", "bqx_max"),
    ("min_index", "bqx_min"),
    ("avg_index", "bqx_avg"),
    ("stdev_index", "bqx_stdev"),
    ("range", "bqx_range"),
    ("volatility", "bqx_volatility"),
];
const FIT: [(&str, &str); 8] = [
    ("a", "reg_a"),
    ("b", "reg_b"),
    ("c", "reg_c"),
    ("r2", "reg_r2"),
    ("rmse", "reg_rmse"),
    ("yhat_end", "reg_yhat_end"),
    ("resid_end", "reg_resid_end"),
    ("slope_end", "reg_slope_end"),
];

/// Compares a table's columns with an aggregate's metrics in every row that has `window` values before it, to
/// the bit; the others must have NULLs.
fn assert_stored(session: &mut Client, table: &str, window: u32, call: &str, columns: &[(String, &str)]) {
    let any = |comparisons: Vec<String>| comparisons.join(" OR ");
    let other_bits = |(column, metric): &(String, &str)| {
        format!("float8send(t.{column}) IS DISTINCT FROM float8send((m).{metric})")
    };
    let not_null = |(column, _): &(String, &str)| format!("t.{column} IS NOT NULL");
    let query = format!(
        "SELECT count(*) = count(DISTINCT ts_utc), \
                count(*) FILTER (WHERE (m).n = {window}) = count(*) - {window}, \
                count(*) FILTER (WHERE (m).n = {window} AND ({})), \
                count(*) FILTER (WHERE (m).n < {window} AND ({})) \
         FROM bqx.{table} AS t \
              LEFT JOIN (SELECT time, {call} AS m FROM bqx.m1_{}) AS s ON t.ts_utc = s.time",
        any(columns.iter().map(other_bits).collect()),
        any(columns.iter().map(not_null).collect()),
        &table[4..]
    );
    assert_eq!(row(session, &query), "t|t|0|0", "{query}");
}

/// The index of usdjpy is around 64, where doubles get finer.
#[test]
fn stored_numbers_are_the_aggregates() {
    let db = Db::new("aggregates_stored");
    let mut session = db.connect();
    let statements = [
        "CALL bqx.simulate_m1('{eurusd,usdjpy}', '2024-07-01', '2024-07-01', 3)",
        "CALL bqx.set_baselines()",
        "UPDATE bqx.baseline_rates SET baseline_rate = (SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY \
         close) FROM bqx.m1_usdjpy) / 0.64 WHERE pair = 'usdjpy'",
        "CALL bqx.run_pipeline('{eurusd,usdjpy}', workers => 0)",
    ];
    run_each(&mut session, &statements);
    for pair in ["eurusd", "usdjpy"] {
        for window in [15, 30, 45, 60, 75] {
            let call =
                format!("bqx.bqx_window_metrics(rate_index) OVER (ORDER BY time ROWS {window} PRECEDING)");
            let mut columns = WINDOW_METRICS.map(|(c, m)| (format!("w{window}_bqx_{c}"), m)).to_vec();
            if window == 75 {
                columns.extend(AGG_METRICS.map(|(c, m)| (format!("agg_bqx_{c}"), m)));
            }
            assert_stored(&mut session, &format!("bqx_{pair}"), window, &call, &columns);
        }
        for window in [60, 90, 150, 240, 390, 630] {
            let frame = format!("ROWS BETWEEN {window} PRECEDING AND 1 PRECEDING");
            let call = format!("bqx.quadratic_reg(rate_index) OVER (ORDER BY time {frame})");
            let columns = FIT.map(|(c, m)| (format!("w{window}_reg_{c}"), m));
            assert_stored(&mut session, &format!("reg_{pair}"), window, &call, &columns);
        }
    }
    // the comparison would see one bit in one row
    let call = "bqx.bqx_window_metrics(rate_index) OVER (ORDER BY time ROWS 15 PRECEDING)";
    let spoilt = "UPDATE bqx.bqx_eurusd SET w15_bqx_avg_index = w15_bqx_avg_index + 2.0 ^ -46 \
                  WHERE ts_utc = (SELECT max(ts_utc) FROM bqx.bqx_eurusd)";
    run(&mut session, spoilt);
    let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        assert_stored(&mut session, "bqx_eurusd", 15, call, &[("w15_bqx_avg_index".to_owned(), "bqx_avg")]);
    }));
    assert!(seen.is_err());
}

// ---------------------------------------------------------------------------------------------------------
// Where aggregates can stand
// ---------------------------------------------------------------------------------------------------------

/// A database with a table `ticks` of 2,000 rows in four partitions.
fn with_ticks(name: &str) -> (Db<'static>, Client) {
    let db = Db::new(name);
    let mut session = db.connect();
    let statements = [
        "CREATE TABLE ticks (id int, part int, v double precision, x double precision) PARTITION BY LIST \
         (part)",
        "CREATE TABLE ticks_0 PARTITION OF ticks FOR VALUES IN (0)",
        "CREATE TABLE ticks_1 PARTITION OF ticks FOR VALUES IN (1)",
        "CREATE TABLE ticks_2 PARTITION OF ticks FOR VALUES IN (2)",
        "CREATE TABLE ticks_3 PARTITION OF ticks FOR VALUES IN (3)",
        "INSERT INTO ticks SELECT i, i % 4, 100 + sin(i) * i / 300.0, i / 7.0 FROM generate_series(1, 2000) \
         AS i",
        "ANALYZE ticks",
        "SET search_path = public, bqx",
    ];
    run_each(&mut session, &statements);
    (db, session)
}

/// The fits and metrics of a moving frame, by which other queries are judged.
const MOVING: &str = "SELECT id, bqx_window_metrics(v) OVER w, bqx_window_metrics(v, 5) OVER w, \
                             quadratic_reg(v) OVER w, quadratic_reg(v, x) OVER w \
                      FROM ticks WINDOW w AS (PARTITION BY part ORDER BY id ROWS 5 PRECEDING) ORDER BY id";

/// And of groups.
const GROUPED: &str = "SELECT part, bqx_window_metrics(v ORDER BY id), \
                              bqx_window_metrics(v, 499 ORDER BY id), \
                              quadratic_reg(v ORDER BY id), quadratic_reg(v, x) \
                       FROM ticks GROUP BY part ORDER BY part";

#[test]
fn views_and_subqueries_return_the_same() {
    let (_db, mut session) = with_ticks("aggregates_views");
    for query in [MOVING, GROUPED] {
        let wanted = rows(&mut session, query);
        assert!(wanted.len() == 2000 || wanted.len() == 4);
        let columns = "(key, a, b, c, d)";
        run(&mut session, &format!("CREATE OR REPLACE VIEW seen {columns} AS {query}"));
        run(&mut session, &format!("CREATE MATERIALIZED VIEW kept {columns} AS {query}"));
        run(&mut session, &format!("CREATE TABLE stored {columns} AS {query}"));
        for from in [
            "seen".to_owned(),
            "kept".to_owned(),
            "stored".to_owned(),
            format!("({query}) AS s {columns}"),
            format!("(VALUES (1)) AS one, LATERAL ({query}) AS s {columns}"),
        ] {
            let got = rows(&mut session, &format!("SELECT key, a, b, c, d FROM {from} ORDER BY key"));
            assert_eq!(got, wanted, "{from}");
        }
        let with = format!("WITH s {columns} AS MATERIALIZED ({query}) SELECT * FROM s ORDER BY key");
        assert_eq!(rows(&mut session, &with), wanted);
        run(
            &mut session,
            "REFRESH MATERIALIZED VIEW kept; DROP VIEW seen; DROP MATERIALIZED VIEW kept; DROP TABLE stored",
        );
    }
}

#[test]
fn lateral_frames_return_what_window_frames_do() {
    let (_db, mut session) = with_ticks("aggregates_lateral");
    let window = "SELECT id, bqx_window_metrics(v) OVER w, quadratic_reg(v) OVER w, quadratic_reg(v, x) OVER \
                  w FROM ticks_2 WINDOW w AS (ORDER BY id ROWS 5 PRECEDING) ORDER BY id";
    let lateral = "SELECT t.id, s.* FROM ticks_2 AS t, LATERAL \
                   (SELECT bqx_window_metrics(v ORDER BY id), quadratic_reg(v ORDER BY id), \
                           quadratic_reg(v, x) \
                    FROM ticks_2 AS f WHERE f.id BETWEEN t.id - 20 AND t.id) AS s ORDER BY t.id";
    assert_eq!(rows(&mut session, lateral), rows(&mut session, window));
}

/// `(aggregate OVER w).*` is one aggregate, not one for each column.
#[test]
fn expanded_composites_are_evaluated_once() {
    let (_db, mut session) = with_ticks("aggregates_expanded");
    let statements = [
        "CREATE SEQUENCE evaluations",
        // not immutable at all: PostgreSQL must not know
        "CREATE FUNCTION counted(v double precision) RETURNS double precision IMMUTABLE LANGUAGE plpgsql \
         AS 'BEGIN PERFORM nextval(''evaluations''); RETURN v; END'",
    ];
    run_each(&mut session, &statements);
    let over = "OVER (ORDER BY id ROWS UNBOUNDED PRECEDING)";
    for query in [
        format!("SELECT (bqx_window_metrics(counted(v)) {over}).* FROM ticks_0"),
        format!("SELECT (m).* FROM (SELECT quadratic_reg(counted(v)) {over} AS m FROM ticks_0) AS s"),
        "SELECT (m).* FROM (SELECT quadratic_reg(counted(v)) AS m FROM ticks_0 OFFSET 0) AS s".to_owned(),
    ] {
        run(&mut session, "ALTER SEQUENCE evaluations RESTART");
        run(&mut session, &query);
        assert_eq!(row(&mut session, "SELECT last_value FROM evaluations"), "500", "{query}");
    }
}

/// Whether a query's plan has a node.
fn plan_has(session: &mut Client, query: &str, node: &str) -> bool {
    rows(session, &format!("EXPLAIN (VERBOSE, COSTS off) {query}")).iter().any(|line| line.contains(node))
}

#[test]
fn plans_do_not_show_in_results() {
    let (_db, mut session) = with_ticks("aggregates_plans");
    let unordered =
        "SELECT part, quadratic_reg(v, x), quadratic_reg(x, v) FROM ticks GROUP BY part ORDER BY part";
    let [wanted, wanted_unordered] = [GROUPED, unordered].map(|query| rows(&mut session, query));
    let cheap_workers =
        "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0";
    for (settings, query, node) in [
        ("SET enable_hashagg = off", unordered, "GroupAggregate"),
        ("SET enable_hashagg = on; SET enable_sort = off", unordered, "HashAggregate"),
        (cheap_workers, unordered, "Partial HashAggregate"),
        ("SET enable_partitionwise_aggregate = on; SET enable_sort = on", GROUPED, "Parallel Append"),
    ] {
        run(&mut session, settings);
        assert!(
            plan_has(&mut session, query, node),
            "{node}: {:?}",
            rows(&mut session, &format!("EXPLAIN {query}"))
        );
        let wanted = if query == GROUPED { &wanted } else { &wanted_unordered };
        assert_eq!(&rows(&mut session, query), wanted, "{node}");
    }
}

/// The whole query in a worker: PostgreSQL lets any but window functions go there.
#[test]
fn workers_return_the_same() {
    let (_db, mut session) = with_ticks("aggregates_workers");
    let before_16 = row(&mut session, "SELECT current_setting('server_version_num')::int < 160000") == "t";
    let wanted = rows(&mut session, GROUPED);
    run(
        &mut session,
        if before_16 { "SET force_parallel_mode = on" } else { "SET debug_parallel_query = on" },
    );
    assert!(plan_has(&mut session, GROUPED, "Single Copy: true"));
    assert_eq!(rows(&mut session, GROUPED), wanted);
}

#[test]
fn grouping_sets_return_each_grouping() {
    let (_db, mut session) = with_ticks("aggregates_sets");
    let metrics = "bqx_window_metrics(v ORDER BY id), quadratic_reg(v ORDER BY id), quadratic_reg(v, x)";
    let sets = format!(
        "SELECT part, id / 500, {metrics} FROM ticks GROUP BY ROLLUP (part, id / 500) ORDER BY part, id / 500"
    );
    let apart = format!(
        "SELECT part, id / 500, {metrics} FROM ticks GROUP BY part, id / 500 \
         UNION ALL SELECT part, NULL, {metrics} FROM ticks GROUP BY part \
         UNION ALL SELECT NULL, NULL, {metrics} FROM ticks ORDER BY 1, 2"
    );
    let wanted = rows(&mut session, &apart);
    assert_eq!(rows(&mut session, &sets), wanted);
    run(&mut session, "SET enable_sort = off");
    assert_eq!(rows(&mut session, &sets), wanted);
}

#[test]
fn prepared_statements_take_offsets_and_widths() {
    let (_db, mut session) = with_ticks("aggregates_prepared");
    run(
        &mut session,
        "PREPARE metrics (int, int) AS SELECT id, bqx_window_metrics(v, $2) OVER w, quadratic_reg(v) OVER w \
         FROM ticks_1 WINDOW w AS (ORDER BY id ROWS $1 PRECEDING) ORDER BY id",
    );
    // custom plans first, then generic ones
    for round in 0..8 {
        let (offset, width) = (3 + round % 3, 3 + round % 2);
        let plain = format!(
            "SELECT id, bqx_window_metrics(v, {width}) OVER w, quadratic_reg(v) OVER w FROM ticks_1 WINDOW w \
             AS (ORDER BY id ROWS {offset} PRECEDING) ORDER BY id"
        );
        let wanted = rows(&mut session, &plain);
        assert_eq!(rows(&mut session, &format!("EXECUTE metrics ({offset}, {width})")), wanted);
    }
}

#[test]
fn cursors_go_back_and_forth() {
    let (_db, mut session) = with_ticks("aggregates_cursors");
    let wanted = rows(&mut session, MOVING);
    run(&mut session, &format!("BEGIN; DECLARE c SCROLL CURSOR FOR {MOVING}"));
    assert_eq!(rows(&mut session, "FETCH 1200 FROM c"), wanted[..1200]);
    let back: Vec<_> = wanted[..1199].iter().rev().cloned().collect();
    assert_eq!(rows(&mut session, "FETCH BACKWARD ALL FROM c"), back);
    assert_eq!(rows(&mut session, "FETCH ABSOLUTE 700 FROM c"), wanted[699..700]);
    assert_eq!(rows(&mut session, "FETCH ALL FROM c"), wanted[700..]);
    run(&mut session, "COMMIT");
}

#[test]
fn functions_can_use_them() {
    let (_db, mut session) = with_ticks("aggregates_functions");
    let statements = [
        "CREATE FUNCTION last_average(p int) RETURNS double precision LANGUAGE plpgsql AS $$ \
         DECLARE m window_metrics; fit quadratic_fit; \
         BEGIN SELECT (bqx_window_metrics(v ORDER BY id)).* INTO m FROM ticks WHERE part = p; \
           fit := (SELECT quadratic_reg(v, x) FROM ticks WHERE part = p); \
           RETURN m.bqx_avg + fit.reg_a; END $$",
        "CREATE FUNCTION average_of(values_given double precision[]) RETURNS double precision LANGUAGE sql \
         IMMUTABLE RETURN (SELECT (bqx_window_metrics(v ORDER BY i)).bqx_avg FROM unnest(values_given) WITH \
         ORDINALITY AS g (v, i))",
        "CREATE INDEX ON ticks (average_of(ARRAY[v, x, 0]))",
    ];
    run_each(&mut session, &statements);
    let query = "SELECT last_average(2) = (SELECT (bqx_window_metrics(v ORDER BY id)).bqx_avg + \
                 (quadratic_reg(v, x)).reg_a FROM ticks WHERE part = 2), average_of('{1, 2, 4}')";
    assert_eq!(row(&mut session, query), "t|1.5");
}

/// Where PostgreSQL may not take a row out again, it computes each frame anew.
#[test]
fn volatile_and_subquery_arguments_return_the_same() {
    let (_db, mut session) = with_ticks("aggregates_volatile");
    let wanted = rows(&mut session, MOVING);
    for argument in ["random() * 0 + v", "(SELECT t.v FROM (VALUES (ticks.v)) AS t (v))"] {
        let query = MOVING.replace("(v)", &format!("({argument})")).replace("(v,", &format!("({argument},"));
        assert_eq!(rows(&mut session, &query), wanted, "{argument}");
    }
}

// ---------------------------------------------------------------------------------------------------------
// What is refused
// ---------------------------------------------------------------------------------------------------------

#[test]
fn widths_that_no_window_has_are_refused() {
    let (_db, mut session) = with_ticks("aggregates_widths");
    for width in ["1", "0", "-1", "-2147483648", "NULL"] {
        for over in ["", "OVER (ORDER BY id ROWS 3 PRECEDING)", "OVER ()"] {
            let query = format!("SELECT bqx_window_metrics(v, {width}) {over} FROM ticks");
            let error = error_of(&mut session, &query);
            assert_eq!(error.code, "22023", "{query}");
            assert!(error.message.contains(width) && !error.hint.is_empty(), "{error:?}");
        }
    }
    // no row, no width
    assert_eq!(row(&mut session, "SELECT bqx_window_metrics(v, 1) FROM ticks WHERE false"), "(0,,,,,,,,)");
}

/// States are told apart by nothing: whoever could mix them could crash the server.
#[test]
fn nobody_gets_hold_of_a_state() {
    let (_db, mut session) = with_ticks("aggregates_states");
    let functions = "SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'bqx'::regnamespace \
                     AND ('internal'::regtype = ANY (proargtypes) OR prorettype = 'internal'::regtype)";
    let functions = rows(&mut session, functions);
    assert!(functions.len() >= 12, "{functions:?}");
    for function in &functions {
        // what a client can write for an internal value: nothing
        let nulls =
            function.split_once('(').expect("arguments").1.split(',').map(|_| "NULL").collect::<Vec<_>>();
        let name = function.split_once('(').expect("arguments").0;
        for arguments in [nulls.join(", "), nulls.join(", ").replacen("NULL", "NULL::internal", 1)] {
            let code = error_of(&mut session, &format!("SELECT {name}({arguments})")).code;
            // no such function, no such cast, or, from PostgreSQL 18: cannot accept a value of type internal
            assert!(["42883", "42846", "0A000"].contains(&code.as_str()), "{name}({arguments}): {code}");
        }
    }
    run_each(&mut session, &["CREATE ROLE maker LOGIN", "CREATE SCHEMA made AUTHORIZATION maker"]);
    run(&mut session, "SET ROLE maker");
    let mixed = "CREATE AGGREGATE made.mixed (double precision) (SFUNC = bqx._window_metrics_grow, STYPE = \
                 internal, FINALFUNC = bqx._quadratic_reg_final)";
    assert_eq!(error_of(&mut session, mixed).code, "42P13");
}
