//! What verify() finds in a month by one pass over its rows is what a join of rows and bars finds, whatever is stored.

mod common;

use bqx_tests::Db;
use common::{row, rows, run, run_each};
use postgres::Client;

/// The findings as a join has them, from the same columns: slower, and plain to read.
const JOINED: &str = r#"
CREATE FUNCTION joined_month(family text, m1 regclass, derived regclass, month date) RETURNS TABLE (
    n bigint, bars bigint, without_bar bigint, without_row bigint, unlike_at timestamptz, different_times bigint,
    null_faults bigint, null_fault_at timestamptz, infinite bigint, infinite_at timestamptz,
    index_faults bigint, index_fault_at timestamptz, first_row timestamptz, last_row timestamptz)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    lookback int := (bqx._own_columns(family, derived)).lookback;
    index_type text := bqx._column_type(derived, 'rate_index');
    null_fault text := (
        SELECT string_agg(format('num_nulls(%s) <> CASE WHEN row_time < coalesce($3[%s], ''infinity'') THEN %s ELSE 0 END',
                                 columns, w + 1, n), ' OR ')
          FROM (SELECT c.lookback AS w, count(*) AS n, string_agg(quote_ident(c.name), ', ') AS columns
                  FROM bqx._value_columns(family, derived) AS c WHERE c.lookback > 0 GROUP BY 1) AS by_window);
    infinite text := (
        SELECT format('(greatest(%1$s) >= ''Infinity'' OR least(%1$s) = ''-Infinity'')', string_agg(c.as_double, ', '))
          FROM bqx._value_columns(family, derived) AS c);
BEGIN
    RETURN QUERY EXECUTE format(
        'WITH bars AS MATERIALIZED ('
        '    SELECT %1$s AS at, %2$s::double precision AS rate_index FROM %3$s WHERE time >= %4$s AND time < %5$s), '
        'stored AS ('
        '    SELECT row_time AS at, %6$s AS rate_index, %7$s AS null_fault, %8$s AS infinite '
        '      FROM (SELECT *, %9$s AS row_time FROM %10$s WHERE ts_utc >= %11$s AND ts_utc < %12$s) AS t OFFSET 0), '
        'compared AS ('
        '    SELECT coalesce(s.at, b.at) AS at, s.at AS row_at, b.at AS bar_at, null_fault, infinite, '
        '           s.at IS NOT NULL AND b.at IS NOT NULL AND %13$s AS index_fault '
        '      FROM stored AS s FULL JOIN bars AS b ON b.at = s.at) '
        'SELECT count(row_at), (SELECT count(*) FROM bars), '
        '       count(*) FILTER (WHERE bar_at IS NULL), count(*) FILTER (WHERE row_at IS NULL), '
        '       min(at) FILTER (WHERE bar_at IS NULL OR row_at IS NULL), count(DISTINCT row_at), '
        '       count(*) FILTER (WHERE null_fault AND bar_at IS NOT NULL), '
        '       min(at) FILTER (WHERE null_fault AND bar_at IS NOT NULL), '
        '       count(*) FILTER (WHERE infinite), min(at) FILTER (WHERE infinite), '
        '       count(*) FILTER (WHERE index_fault), min(at) FILTER (WHERE index_fault), '
        '       min(row_at), max(row_at) FROM compared',
        bqx._as_instant(m1, 'time'), CASE WHEN bqx._column_type(m1, 'rate_index') IS NULL THEN 'NULL' ELSE 'rate_index' END,
        m1, bqx._as_key(m1, 'time', '$1'), bqx._as_key(m1, 'time', '$2'),
        CASE WHEN index_type IS NULL THEN 'NULL' ELSE 'rate_index' END,
        null_fault, infinite, bqx._as_instant(derived, 'ts_utc'), derived,
        bqx._as_key(derived, 'ts_utc', '$1'), bqx._as_key(derived, 'ts_utc', '$2'),
        CASE WHEN index_type IS NULL THEN 'false'
             ELSE format('s.rate_index IS DISTINCT FROM b.rate_index::%s', index_type) END)
      USING bqx._month_start(month), bqx._month_start(bqx._next_month(month)), bqx._first_bars(m1, lookback + 1);
END
$$;

CREATE FUNCTION seen_month(family text, m1 regclass, derived regclass, month date) RETURNS TABLE (
    n bigint, bars bigint, without_bar bigint, without_row bigint, unlike_at timestamptz, different_times bigint,
    null_faults bigint, null_fault_at timestamptz, infinite bigint, infinite_at timestamptz,
    index_faults bigint, index_fault_at timestamptz, first_row timestamptz, last_row timestamptz)
LANGUAGE plpgsql AS $$
DECLARE
    checked bqx._verified_table := bqx._verified_table(family, 'oldusd', m1, derived);
BEGIN
    RETURN QUERY
        SELECT s.* FROM (SELECT b FROM month_bars(m1, month, checked.lookback) AS b) AS read,
               bqx._month_seen(checked, month, read.b) AS s (
                   n bigint, bars bigint, without_bar bigint, without_row bigint, unlike_at timestamptz,
                   different_times bigint, null_faults bigint, null_fault_at timestamptz, infinite bigint,
                   infinite_at timestamptz, index_faults bigint, index_fault_at timestamptz,
                   first_row timestamptz, last_row timestamptz);
END
$$;

CREATE FUNCTION month_bars(m1 regclass, month date, lookback int) RETURNS bqx._bars_of_month
LANGUAGE sql AS $$
    SELECT b::bqx._bars_of_month
      FROM bqx._month_bars(m1, bqx._month_start(month), bqx._month_start(bqx._next_month(month)), lookback,
                           bqx._index_fault(m1, NULL), NULL) AS b
$$;

-- What a month's rows are computed from; the SQLSTATE where they can't be.
CREATE FUNCTION fingerprint(m1 regclass, month date, lookback int) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT f.input_fingerprint
              FROM bqx._input_fingerprint(m1, bqx._month_start(month), bqx._month_start(bqx._next_month(month)),
                                          lookback, 'a shape') AS f);
EXCEPTION
    WHEN numeric_value_out_of_range OR unique_violation THEN RETURN SQLSTATE;
END
$$;

-- The bar at an instant and those before it.
CREATE FUNCTION bars_up_to(m1 regclass, instant timestamptz, lookback int) RETURNS double precision[]
LANGUAGE plpgsql AS $$
DECLARE
    found_bars double precision[];
BEGIN
    EXECUTE format('SELECT CASE WHEN max(at) = $1 AND count(*) = count(p) AND min(p) > 0 AND max(p) < ''Infinity'' '
                   '       THEN array_agg(p ORDER BY at) END '
                   '  FROM (SELECT %1$s AS at, rate_index::double precision AS p FROM %2$s WHERE %1$s <= $1 '
                   '         ORDER BY time DESC LIMIT $2) AS b', bqx._as_instant(m1, 'time'), m1)
       INTO found_bars USING instant, lookback + 1;
    RETURN found_bars;
END
$$;
"#;

/// Fifteen hours around the beginning of July with gaps: 600 bars, fewer than the longest window has.
const BARS: &str = "SELECT t, 1.1 + 0.02 * sin(extract(epoch FROM t) / 3000)
      FROM generate_series('2024-06-30 18:00+00'::timestamptz, '2024-07-01 09:00+00', '1 minute') AS t
     WHERE extract(minute FROM t) < 40";

/// Tables without keys, which can hold anything.
struct Shape {
    family: &'static str,
    tables: &'static str,
    /// A column with computed values that may be NaN.
    column: &'static str,
    /// One that may be infinite.
    double: &'static str,
}

/// The columns that bqx makes, all doubles.
const ALL_DOUBLES: Shape = Shape {
    family: "reg",
    tables: "DO $$BEGIN EXECUTE (SELECT format('CREATE TABLE bqx.reg_oldusd (%s)',
                 string_agg(format('%I %s', name, sql_type), ', ' ORDER BY position))
                 FROM bqx._metric_columns('reg', NULL)); END$$;
             CREATE TABLE bqx.m1_oldusd (time timestamptz, close float8, rate_index float8)",
    column: "w60_reg_b",
    double: "w630_reg_r2",
};

/// Columns in another order, others' among them, and some that are gone.
const OTHER_ORDER: Shape = Shape {
    family: "bqx",
    tables: "CREATE TABLE bqx.bqx_oldusd (gone int, w40_bqx_return float8, note text DEFAULT 'x', agg_bqx_range float8,
                 w15_bqx_stdev_index float8, gone_too float8, ts_utc timestamptz, w500_bqx_avg_index float8,
                 at float8 DEFAULT 'NaN', rate_index float8, w40_bqx_endpoint float8);
             ALTER TABLE bqx.bqx_oldusd DROP COLUMN gone, DROP COLUMN gone_too;
             CREATE TABLE bqx.m1_oldusd (gone int, rate_index float8, close float8, at int, time timestamptz);
             ALTER TABLE bqx.m1_oldusd DROP COLUMN gone",
    column: "w40_bqx_return",
    double: "w500_bqx_avg_index",
};

/// Columns of other types.
const OTHER_TYPES: Shape = Shape {
    family: "bqx",
    tables: "CREATE DOMAIN ratio AS float8;
             CREATE TABLE bqx.bqx_oldusd (ts_utc timestamp, rate_index numeric(12,4), w15_bqx_return numeric(20,10),
                 w15_bqx_max_index real, w40_bqx_stdev_index ratio, w40_bqx_endpoint numeric, agg_bqx_range float8);
             CREATE TABLE bqx.m1_oldusd (time timestamp, close numeric(12,5), rate_index numeric(12,6))",
    column: "w15_bqx_return",
    double: "agg_bqx_range",
};

impl Shape {
    fn derived(&self) -> String {
        format!("bqx.{}_oldusd", self.family)
    }

    /// A database with such tables, filled; what the others compute lies in its `public`.
    fn filled(&self, name: &str) -> (Db<'static>, Client) {
        let db = Db::new(name);
        let mut session = db.connect();
        run_each(
            &mut session,
            &[
                JOINED.to_owned(),
                "INSERT INTO bqx.pairs (pair) VALUES ('oldusd')".to_owned(),
                self.tables.to_owned(),
                format!(
                    "INSERT INTO bqx.m1_oldusd (time, close, rate_index)
                     SELECT t AT TIME ZONE 'UTC', round(p::numeric, 5), round(p::numeric, 5) * 58
                       FROM ({BARS}) AS b (t, p)"
                ),
                format!("CALL bqx.backfill('{{{}}}', '{{oldusd}}', workers => 0)", self.family),
            ],
        );
        (db, session)
    }

    /// What may happen to the tables.
    fn damages(&self) -> Vec<String> {
        let (derived, column, double) = (self.derived(), self.column, self.double);
        [
            "DELETE FROM {derived} WHERE random() < 0.1",
            "INSERT INTO {derived} SELECT * FROM {derived} WHERE random() < 0.1",
            "INSERT INTO {derived} SELECT * FROM {derived} WHERE random() < 0.1",
            "UPDATE {derived} SET ts_utc = ts_utc + interval '30 seconds' WHERE random() < 0.1",
            "UPDATE {derived} SET ts_utc = '2024-07-01 00:00+00' WHERE random() < 0.02",
            "UPDATE {derived} SET ts_utc = '2024-06-30 23:59:59.999999+00' WHERE random() < 0.02",
            "UPDATE {derived} SET ts_utc = 'infinity' WHERE random() < 0.02",
            "UPDATE {derived} SET {column} = NULL WHERE random() < 0.02",
            "UPDATE {derived} SET {column} = 0 WHERE {column} IS NULL AND random() < 0.1",
            "UPDATE {derived} SET {double} = 0 WHERE {double} IS NULL AND random() < 0.1",
            "UPDATE {derived} SET {column} = 'NaN' WHERE random() < 0.02",
            "UPDATE {derived} SET {double} = 'Infinity' WHERE random() < 0.02",
            "UPDATE {derived} SET {double} = '-Infinity' WHERE random() < 0.02",
            "UPDATE {derived} SET rate_index = NULL WHERE random() < 0.1",
            "UPDATE {derived} SET rate_index = 'NaN' WHERE random() < 0.1",
            "UPDATE {derived} SET rate_index = rate_index * 1.001 WHERE random() < 0.1",
            // a row with all values among the first ones, which have none
            "UPDATE {derived} SET ts_utc = '2024-06-30 18:05+00'
              WHERE ts_utc = (SELECT max(ts_utc) FROM {derived} WHERE isfinite(ts_utc))",
            "UPDATE {derived} SET rate_index = NULL WHERE extract(minute FROM ts_utc) < 9;
             UPDATE bqx.m1_oldusd SET rate_index = NULL WHERE extract(minute FROM time) < 9",
            "DELETE FROM bqx.m1_oldusd WHERE random() < 0.1",
            "DELETE FROM bqx.m1_oldusd WHERE time < '2024-07-01 00:00'",
            "DELETE FROM bqx.m1_oldusd WHERE time < '2024-06-30 22:00'",
            "DELETE FROM bqx.m1_oldusd",
            "INSERT INTO bqx.m1_oldusd SELECT * FROM bqx.m1_oldusd WHERE random() < 0.1",
            "INSERT INTO bqx.m1_oldusd (time, close, rate_index) VALUES (NULL, 1, 58)",
            "UPDATE bqx.m1_oldusd SET rate_index = NULL WHERE random() < 0.1",
            "UPDATE bqx.m1_oldusd SET rate_index = 'NaN' WHERE random() < 0.1",
            "UPDATE bqx.m1_oldusd SET rate_index = 0 WHERE random() < 0.01",
            "UPDATE bqx.m1_oldusd SET close = NULL WHERE random() < 0.01",
            "UPDATE bqx.m1_oldusd SET close = -1 WHERE random() < 0.01",
            "UPDATE bqx.m1_oldusd SET time = time + interval '17 hours' WHERE random() < 0.02",
            "ALTER TABLE {derived} DROP COLUMN rate_index",
            "ALTER TABLE {derived} ALTER COLUMN rate_index TYPE text",
            "ALTER TABLE {derived} ALTER COLUMN rate_index TYPE real",
            "ALTER TABLE {derived} DROP COLUMN {column}",
        ]
        .iter()
        .map(|damage| {
            damage.replace("{derived}", &derived).replace("{column}", column).replace("{double}", double)
        })
        .collect()
    }

    /// The rows in another order on disk.
    fn reorder(&self, order: &str) -> String {
        let derived = self.derived();
        format!(
            "CREATE TEMP TABLE reordered ON COMMIT DROP AS SELECT * FROM {derived} ORDER BY {order};
             TRUNCATE {derived};
             INSERT INTO {derived} SELECT * FROM reordered"
        )
    }

    fn month(&self, source: &str, month: &str) -> String {
        let Shape { family, .. } = self;
        format!("SELECT * FROM {source}('{family}', 'bqx.m1_oldusd', 'bqx.{family}_oldusd', '{month}-01')")
    }
}

const MONTHS: [&str; 3] = ["2024-06", "2024-07", "2024-08"];

/// Damages that are chosen by a number, and the same for it every time. Each is tried alone, and then several at once.
fn chosen(damages: &[String], round: usize) -> Vec<&String> {
    if round < damages.len() {
        return vec![&damages[round]];
    }
    let mut state = round as u64;
    let mut dice = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    // what changes columns or leaves no bars comes hardly ever
    let is_rare = |damage: &str| damage.starts_with("ALTER") || damage == "DELETE FROM bqx.m1_oldusd";
    damages.iter().filter(|damage| dice() % if is_rare(damage) { 12 } else { 3 } == 0).collect()
}

/// Runs `look` in tables with all kinds of damage, each time in a transaction that is rolled back.
fn in_damaged_tables(shape: &Shape, session: &mut Client, mut look: impl FnMut(&mut Client, &str)) {
    let damages = shape.damages();
    for round in 0..damages.len() + 40 {
        run(session, &format!("BEGIN; SELECT setseed({round} / 100.0)"));
        run(session, &shape.reorder(["ts_utc", "ts_utc DESC", "random()"][round % 3]));
        let mut done = Vec::new();
        for damage in chosen(&damages, round) {
            // not all are possible in each shape, or after the others
            run(session, "SAVEPOINT before");
            match session.batch_execute(damage) {
                Ok(()) => done.push(damage.as_str()),
                Err(_) => run(session, "ROLLBACK TO before"),
            }
        }
        look(session, &format!("round {round}: {}", done.join("; ")));
        run(session, "ROLLBACK");
    }
}

fn one_pass_finds_what_a_join_finds(shape: &Shape, name: &str) {
    let (_db, mut session) = shape.filled(name);
    let mut faults_of_each_kind = [0; 6];
    in_damaged_tables(shape, &mut session, |session, damage| {
        for month in MONTHS {
            let joined = row(session, &shape.month("joined_month", month));
            assert_eq!(row(session, &shape.month("seen_month", month)), joined, "{month} after {damage}");
            let counts: Vec<i64> = joined.split('|').filter_map(|field| field.parse().ok()).collect();
            let [n, _, without_bar, without_row, different, null, infinite, index] = counts[..] else {
                panic!("eight counts: {joined}")
            };
            let kinds = [without_bar, without_row, n - different, null, infinite, index];
            faults_of_each_kind.iter_mut().zip(kinds).for_each(|(sum, count)| *sum += count);
        }
    });
    assert!(faults_of_each_kind.iter().all(|&faults| faults > 100), "{faults_of_each_kind:?}");
}

#[test]
fn one_pass_finds_what_a_join_finds_in_doubles() {
    one_pass_finds_what_a_join_finds(&ALL_DOUBLES, "verify_month_doubles");
}

#[test]
fn one_pass_finds_what_a_join_finds_in_another_order_of_columns() {
    one_pass_finds_what_a_join_finds(&OTHER_ORDER, "verify_month_order");
}

#[test]
fn one_pass_finds_what_a_join_finds_in_other_types() {
    one_pass_finds_what_a_join_finds(&OTHER_TYPES, "verify_month_types");
}

#[test]
fn months_that_are_called_sound_have_the_fingerprint_of_the_backfill_and_others_have_none() {
    let (_db, mut session) = ALL_DOUBLES.filled("verify_month_sound");
    let (mut sound, mut refused) = (0, 0);
    in_damaged_tables(&ALL_DOUBLES, &mut session, |session, damage| {
        for (month, lookback) in
            MONTHS.iter().flat_map(|month| [0, 75, 630].map(|lookback| (month, lookback)))
        {
            let seen = row(
                session,
                &format!(
                    "SELECT CASE WHEN b.sound THEN bqx._fingerprint_of_bars(
                                b.times, b.rate_index, b.bars_before, {lookback}, 'a shape') ELSE 'not sound' END,
                            fingerprint('bqx.m1_oldusd', '{month}-01', {lookback})
                       FROM month_bars('bqx.m1_oldusd', '{month}-01', {lookback}) AS b"
                ),
            );
            let (ours, backfills) = seen.split_once('|').unwrap();
            if backfills.len() == 32 {
                assert_eq!(ours, backfills, "{month} with {lookback} bars before, after {damage}");
                sound += 1;
            } else {
                assert_eq!(
                    ours, "not sound",
                    "{month} with {lookback} bars before, after {damage}: {backfills}"
                );
                refused += 1;
            }
        }
    });
    assert!(sound > 100 && refused > 100, "{sound} and {refused}");
}

#[test]
fn fingerprints_of_fewer_bars_come_from_the_same_read() {
    let (_db, mut session) = ALL_DOUBLES.filled("verify_month_fewer");
    let differing = rows(
        &mut session,
        "SELECT lookback FROM generate_series(0, 630, 15) AS lookback,
                month_bars('bqx.m1_oldusd', '2024-07-01', 630) AS b
          WHERE bqx._fingerprint_of_bars(b.times, b.rate_index, b.bars_before, lookback, 'a shape')
                IS DISTINCT FROM fingerprint('bqx.m1_oldusd', '2024-07-01', lookback)",
    );
    assert_eq!(differing, [""; 0]);
}

#[test]
fn a_sampled_row_is_recomputed_from_the_bars_up_to_its_own() {
    let (_db, mut session) = OTHER_TYPES.filled("verify_month_bars");
    let mut found = 0;
    in_damaged_tables(&OTHER_TYPES, &mut session, |session, damage| {
        // which of two bars of one minute comes first is left open
        if row(session, "SELECT count(time) <> count(DISTINCT time) FROM bqx.m1_oldusd") == "t" {
            return;
        }
        let compared = row(
            session,
            "SELECT count(*) FILTER (WHERE ours IS DISTINCT FROM theirs), count(theirs)
               FROM (SELECT bqx._bars_up_to(b, t, lookback) AS ours,
                            bars_up_to('bqx.m1_oldusd', t, lookback) AS theirs
                       FROM (VALUES (date '2024-06-01'), ('2024-07-01')) AS m (month),
                            unnest('{1, 15, 75, 300}'::int[]) AS lookback,
                            LATERAL (SELECT b FROM month_bars('bqx.m1_oldusd', month, 300) AS b) AS read,
                            generate_series(month::timestamptz, month + interval '1 month' - interval '1 minute',
                                            '10 minutes') AS t
                      WHERE t BETWEEN '2024-06-30 17:00+00' AND '2024-07-01 10:00+00') AS frames",
        );
        let (differing, theirs) = compared.split_once('|').unwrap();
        assert_eq!(differing, "0", "after {damage}");
        found += theirs.parse::<i64>().unwrap();
    });
    assert!(found > 1000, "{found}");
}

#[test]
fn bars_that_are_no_prices_are_counted_and_the_first_is_named() {
    let (_db, mut session) = ALL_DOUBLES.filled("verify_month_prices");
    let mut detail_after = |damage: &str| {
        run(&mut session, &format!("BEGIN; {damage}"));
        let detail = row(
            &mut session,
            "SELECT string_agg(ok || ' ' || detail, ', ' ORDER BY month) FROM bqx.verify('{reg}', '{oldusd}', '2024-07-01')
              WHERE check_name = 'index_range' AND family IS NULL",
        );
        run(&mut session, "ROLLBACK");
        detail
    };
    let at = |minute: &str| format!("WHERE time = '2024-07-01 {minute}+00'");
    assert_eq!(detail_after(""), "true 361 bars");
    for close in ["NULL", "0", "-1", "'NaN'", "'Infinity'"] {
        assert_eq!(
            detail_after(&format!(
                "UPDATE bqx.m1_oldusd SET close = {close} {}; UPDATE bqx.m1_oldusd SET close = {close} {}",
                at("03:00"),
                at("01:00")
            )),
            "false close is not a positive finite number (bars: 2, first at 2024-07-01 01:00:00 UTC)",
        );
    }
    for index in ["NULL", "0", "'-Infinity'", "'NaN'"] {
        assert_eq!(
            detail_after(&format!("UPDATE bqx.m1_oldusd SET rate_index = {index} {}", at("00:00"))),
            "false rate_index is not a positive finite number (bars: 1, first at 2024-07-01 00:00:00 UTC)",
        );
    }
    // bars of the month before are another month's fault
    assert_eq!(
        detail_after(
            "UPDATE bqx.m1_oldusd SET close = NULL, rate_index = NULL WHERE time < '2024-07-01 00:00+00'"
        ),
        "true 361 bars"
    );
    // with a baseline, by the last digit
    let baseline = "INSERT INTO bqx.baseline_rates (pair, baseline_date, baseline_time, baseline_rate, applied_at)
                    SELECT 'oldusd', '2024-06-30', time, close, now() FROM bqx.m1_oldusd WHERE time = '2024-06-30 18:00+00';
                    UPDATE bqx.m1_oldusd SET rate_index = close / (SELECT baseline_rate FROM bqx.baseline_rates) * 100";
    assert_eq!(detail_after(baseline), "true 361 bars");
    assert_eq!(
        detail_after(&format!(
            "{baseline}; UPDATE bqx.m1_oldusd SET rate_index = rate_index + 2.0 ^ -45 {};
             UPDATE bqx.m1_oldusd SET close = 0 {}",
            at("08:39"),
            at("07:00")
        )),
        "false close is not a positive finite number (bars: 1, first at 2024-07-01 07:00:00 UTC); \
         rate_index is not close / 1.08357 * 100 (bars: 1, first at 2024-07-01 08:39:00 UTC)"
    );
}
