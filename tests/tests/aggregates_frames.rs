//! Random frames over random series: a window aggregate, its twin without an inverse transition, and exact
//! fractions over the frame's contents agree to the bit.

mod common;
#[path = "../../core/tests/math_support/mod.rs"]
mod math_support;
mod reference;

use bqx_tests::{Db, error_of};
use common::{row, rows, run, run_each};
use math_support::{Random, Series};
use num_bigint::BigInt;
use postgres::Client;
use reference::fraction::Fraction;
use reference::{AGGREGATES, Aggregate, Answer, Contents, create_twins};

/// A database with the twins and a table for series.
fn prepared(name: &str) -> (Db<'static>, Client) {
    let db = Db::new(name);
    let mut session = db.connect();
    create_twins(&mut session);
    run(
        &mut session,
        "CREATE TABLE series (id bigint PRIMARY KEY, part int, step int, time timestamptz, \
                              position double precision, v double precision, width int, x double precision)",
    );
    (db, session)
}

// ---------------------------------------------------------------------------------------------------------
// Random series
// ---------------------------------------------------------------------------------------------------------

/// Values of one kind.
type Kind = fn(&mut Random) -> Vec<f64>;

fn generated(random: &mut Random, len: usize, value: impl Fn(&mut Random) -> f64) -> Vec<f64> {
    (0..len).map(|_| value(random)).collect()
}

fn one_of(random: &mut Random, values: &[f64]) -> f64 {
    values[random.below(values.len() as u64) as usize]
}

/// Enough rows for frames to fill, slide and drain several times.
const ROWS: usize = 80;
/// For values so far apart that exact fractions are slow.
const FEW_ROWS: usize = 24;

const KINDS: [(&str, Kind); 20] = [
    ("index near 100", |random| Series::Ordinary.values(random.bits(), ROWS)),
    ("index near 60", |random| Series::Near60.values(random.bits(), ROWS)),
    ("index near 140", |random| Series::Near140.values(random.bits(), ROWS)),
    ("index of 50 to 200", |random| Series::FiftyToTwoHundred.values(random.bits(), ROWS)),
    ("prices of yen", |random| generated(random, ROWS, |r| 150.123 + r.below(2000) as f64 / 1000.0)),
    ("small prices", |random| generated(random, ROWS, |r| 0.00001234 + r.below(100) as f64 * 1e-8)),
    ("volumes", |random| generated(random, ROWS, |r| 1e12 + r.below(1_000_000_000) as f64)),
    ("mixed magnitudes", |random| {
        generated(random, ROWS, |r| one_of(r, &[150.123, 0.00001234, 1e12, -3.5]) * (1.0 + r.unit()))
    }),
    ("negatives", |random| generated(random, ROWS, |r| -100.0 * r.unit())),
    ("around zero", |random| generated(random, ROWS, |r| (r.below(5) as f64 - 2.0) * 0.1)),
    ("huge", |random| generated(random, FEW_ROWS, |r| one_of(r, &[1e308, -1e308, 1.7e308, 9e307]))),
    ("huge and ordinary", |random| generated(random, FEW_ROWS, |r| one_of(r, &[1e308, 100.1, 0.0, -7.0]))),
    ("flat", |random| Series::Flat.values(random.bits(), ROWS)),
    ("jumps", |random| Series::Jumping.values(random.bits(), ROWS)),
    ("neighbouring doubles", |random| Series::TinyVariance.values(random.bits(), ROWS)),
    ("small integers", |random| Series::Integers.values(random.bits(), ROWS)),
    ("a parabola", |random| Series::Parabola.values(random.bits(), ROWS)),
    ("subnormals", |random| Series::Subnormal.values(random.bits(), FEW_ROWS)),
    // each fits a small grid of its own, and two of them seldom the same
    ("few bits anywhere", |random| {
        generated(random, FEW_ROWS, |r| (r.below(9) as f64 - 4.0) * 2f64.powi(r.below(1400) as i32 - 700))
    }),
    ("any bits", |random| Series::AnyBits.values(random.bits(), FEW_ROWS)),
];

/// What is strewn among the values, each of them about once in so many rows.
const STREWN: [(u64, &[Option<f64>]); 3] = [
    (u64::MAX, &[]),
    (5, &[None, Some(-0.0)]),
    (9, &[None, Some(f64::NAN), Some(f64::INFINITY), Some(f64::NEG_INFINITY), Some(0.0)]),
];

/// What people have on an x axis, and what is hard there.
const ABSCISSAE: [fn(&mut Random, usize) -> Vec<f64>; 5] = [
    |_, len| (0..len).map(|row| row as f64).collect(),
    // minutes in seconds since 1970, with gaps
    |random, len| (0..len).map(|row| 1.72e9 + 60.0 * (2 * row as u64 + random.below(2)) as f64).collect(),
    // hardly ever three different ones
    |random, len| generated(random, len, |r| r.below(3) as f64 / 3.0),
    |random, len| generated(random, len, |r| -0.5 + r.unit()),
    |random, len| generated(random, len, |r| one_of(r, &[1e-5, -1.0, 1e12]) * (1.0 + r.unit())),
];

/// `values`, with strange ones among them, about one in `strewn.0`.
fn with_strewn(random: &mut Random, values: Vec<f64>, strewn: (u64, &[Option<f64>])) -> Vec<Option<f64>> {
    let (interval, strange) = strewn;
    let choice = |value| match random.below(interval) {
        0 => strange[random.below(strange.len() as u64) as usize],
        _ => Some(value),
    };
    values.into_iter().map(choice).collect()
}

/// Keys with ties and gaps, some NULL.
fn random_steps(random: &mut Random, len: usize) -> Vec<Option<i32>> {
    let mut step = 0;
    let mut next = || {
        step += [0, 0, 1, 1, 1, 4][random.below(6) as usize];
        (random.below(30) > 0).then_some(step)
    };
    (0..len).map(|_| next()).collect()
}

/// Fills the table; widths are near the frames' lengths.
fn load(session: &mut Client, random: &mut Random, kind: Kind, strewn: (u64, &[Option<f64>])) {
    let values = kind(random);
    let len = values.len();
    let values = with_strewn(random, values, strewn);
    let steps = random_steps(random, len);
    let parts: Vec<i32> = (0..len).map(|_| random.below(3) as i32).collect();
    let widths: Vec<i32> = (0..len).map(|_| 2 + random.below(5) as i32).collect();
    let x = ABSCISSAE[random.below(ABSCISSAE.len() as u64) as usize](random, len);
    // less of it than among the values, or hardly a frame would have a fit
    let x = with_strewn(random, x, (strewn.0.saturating_mul(4), strewn.1));
    run(session, "TRUNCATE series");
    let insert = "INSERT INTO series \
                  SELECT id, part, step, '2024-07-01'::timestamptz + step * interval '1 minute', \
                         step * 0.25::double precision, v, width, x \
                  FROM unnest($1::double precision[], $2::int[], $3::int[], $4::int[], \
                              $5::double precision[]) \
                       WITH ORDINALITY AS given (v, step, part, width, x, id)";
    session.execute(insert, &[&values, &steps, &parts, &widths, &x]).expect("rows");
}

// ---------------------------------------------------------------------------------------------------------
// Random frames
// ---------------------------------------------------------------------------------------------------------

fn chosen<'a>(random: &mut Random, choices: &[&'a str]) -> &'a str {
    choices[random.below(choices.len() as u64) as usize]
}

/// `BETWEEN start AND end`, of all kinds that PostgreSQL takes, offsets by `offset`.
fn random_bounds(random: &mut Random, offset: impl Fn(&mut Random) -> String) -> String {
    const UNBOUNDED_PRECEDING: u64 = 0;
    const CURRENT_ROW: u64 = 2;
    const UNBOUNDED_FOLLOWING: u64 = 4;
    let start = random.below(UNBOUNDED_FOLLOWING);
    let first_end = start.max(UNBOUNDED_PRECEDING + 1);
    let end = first_end + random.below(UNBOUNDED_FOLLOWING + 1 - first_end);
    let mut bound = |kind: u64| match kind {
        UNBOUNDED_PRECEDING => "UNBOUNDED PRECEDING".to_owned(),
        CURRENT_ROW => "CURRENT ROW".to_owned(),
        UNBOUNDED_FOLLOWING => "UNBOUNDED FOLLOWING".to_owned(),
        kind => format!("{} {}", offset(random), if kind < CURRENT_ROW { "PRECEDING" } else { "FOLLOWING" }),
    };
    format!("BETWEEN {} AND {}", bound(start), bound(end))
}

/// A number of rows or groups, now and then as an expression.
fn random_count(random: &mut Random) -> String {
    let count = random.below(9);
    match random.below(6) {
        0 => format!("({count} + length('ab'))"),
        1 => format!("(SELECT {count} + min(part) FROM series)"),
        _ => count.to_string(),
    }
}

fn random_rows(random: &mut Random) -> String {
    let order = chosen(random, &["id", "id DESC", "step, id", "v, id"]);
    format!("ORDER BY {order} ROWS {}", random_bounds(random, random_count))
}

fn random_groups(random: &mut Random) -> String {
    let order = chosen(random, &["step", "time DESC", "position NULLS FIRST", "v"]);
    format!("ORDER BY {order} GROUPS {}", random_bounds(random, random_count))
}

fn random_range(random: &mut Random) -> String {
    type Offset = fn(&mut Random) -> String;
    let keys: [(&[&str], Offset); 3] = [
        (&["step", "step DESC", "step DESC NULLS LAST"], random_count),
        (&["time", "time DESC"], |random| format!("interval '{} seconds'", random.below(9) * 30)),
        (&["position", "position DESC"], |random| format!("{}", random.below(9) as f64 * 0.2)),
    ];
    let (orders, offset) = keys[random.below(3) as usize];
    format!("ORDER BY {} RANGE {}", chosen(random, orders), random_bounds(random, offset))
}

/// A window's definition, and the aggregates' FILTER clause.
fn random_window(random: &mut Random, frame: fn(&mut Random) -> String) -> (String, &'static str) {
    let partition = chosen(random, &["", "", "PARTITION BY part "]);
    let exclude = chosen(
        random,
        &["", "", "", " EXCLUDE CURRENT ROW", " EXCLUDE GROUP", " EXCLUDE TIES", " EXCLUDE NO OTHERS"],
    );
    let filter =
        chosen(random, &["", "", "", "FILTER (WHERE id % 3 <> 0)", "FILTER (WHERE v > 0 OR part = 1)"]);
    (format!("{partition}{}{exclude}", frame(random)), filter)
}

// ---------------------------------------------------------------------------------------------------------
// Comparison
// ---------------------------------------------------------------------------------------------------------

/// Evaluates `query`, whose `{answers}` stands for the contents, each aggregate and each twin, and compares
/// them row by row. `inside` and `after` are what belongs inside the calls, after the arguments, and behind
/// them. Returns the number of rows.
fn compare(session: &mut Client, query: &str, inside: &str, after: &str) -> usize {
    let call =
        |schema: &str, name: &str, arguments: &str| format!("{schema}.{name}({arguments} {inside}) {after}");
    let contents = ["v", "width", "x"];
    let mut answers: Vec<_> = (contents.iter())
        .map(|column| format!("{} AS {column}", call("pg_catalog", "array_agg", column)))
        .collect();
    let mut columns = contents.map(|column| format!("coalesce({column}, '{{}}')")).to_vec();
    for (index, aggregate) in AGGREGATES.iter().enumerate() {
        for schema in ["bqx", "twins"] {
            let answer = format!("{schema}_{index}");
            answers.push(format!("{} AS {answer}", call(schema, aggregate.name, aggregate.arguments)));
            columns.push(format!("({answer}).*"));
        }
    }
    let evaluated = query.replace("{answers}", &answers.join(", "));
    let query = format!("SELECT {} FROM ({evaluated}) AS answers", columns.join(", "));
    let rows = session.query(&query, &[]).unwrap_or_else(|error| panic!("{query}\n{error:?}"));
    for row in &rows {
        let frame = Contents { values: row.get(0), widths: row.get(1), x: row.get(2) };
        for (index, aggregate) in AGGREGATES.iter().enumerate() {
            let first_column = contents.len() + 2 * index * Answer::COLUMNS;
            let answer = Answer::read(row, first_column);
            let twins = Answer::read(row, first_column + Answer::COLUMNS);
            let Aggregate { name, arguments, expected, .. } = aggregate;
            let what = || format!("{evaluated}\n{name}({arguments}) of {frame:?}");
            assert_eq!(answer.bits(), twins.bits(), "{}\n{answer:?}\n{twins:?}", what());
            assert!(expected(&frame).is(&answer), "{}\n{answer:?}", what());
        }
    }
    rows.len()
}

/// Compares over windows made by `frame`, some for each kind of series.
fn compare_windows(database: &str, seed: u64, frame: fn(&mut Random) -> String) {
    let (_db, mut session) = prepared(database);
    let mut random = Random(seed);
    for (name, kind) in KINDS {
        for strewn in STREWN {
            load(&mut session, &mut random, kind, strewn);
            let rows: usize = row(&mut session, "SELECT count(*) FROM series").parse().unwrap();
            for _ in 0..WINDOWS {
                let (window, filter) = random_window(&mut random, frame);
                let query = format!("SELECT {{answers}} FROM series /* {name} */ WINDOW w AS ({window})");
                assert_eq!(compare(&mut session, &query, "", &format!("{filter} OVER w")), rows);
            }
        }
    }
}

/// Windows for each kind of series and of what is strewn there.
const WINDOWS: usize = 5;

/// The reference itself.
#[test]
fn the_nearest_double_is_told_from_its_neighbours() {
    let fraction = |numerator: i64, denominator: i64, exponent| {
        Fraction::new(BigInt::from(numerator), BigInt::from(denominator), exponent)
    };
    let third = fraction(1, 3, 0);
    assert!(third.is_nearest(1.0 / 3.0));
    assert!(!third.is_nearest((1.0f64 / 3.0).next_up()) && !third.is_nearest((1.0f64 / 3.0).next_down()));
    // 1 + 2^-53 is a tie, and 1 is even
    let tie = fraction((1 << 53) + 1, 1, -53);
    assert!(tie.is_nearest(1.0) && !tie.is_nearest(1.0f64.next_up()));
    let zero = fraction(0, -7, 0);
    assert!(zero.is_nearest(0.0) && !zero.is_nearest(-0.0) && !zero.is_nearest(f64::from_bits(1)));
    // the middle between the least double and what would come next rounds to infinity
    let overflow = fraction((1 << 54) - 1, -1, 970);
    assert!(overflow.is_nearest(f64::NEG_INFINITY) && !overflow.is_nearest(f64::MIN));
    let almost = fraction((1 << 55) - 3, 1, 969);
    assert!(almost.is_nearest(f64::MAX) && !almost.is_nearest(f64::INFINITY));
    assert_eq!(fraction(2, 1, 0).root(), 2f64.sqrt());
    assert_eq!(fraction(9, 4, -2148).root(), f64::from_bits(2), "1.5 of the least double");
}

#[test]
fn rows_frames_agree_with_the_definitions() {
    compare_windows("frames_rows", 1, random_rows);
}

#[test]
fn range_frames_agree_with_the_definitions() {
    compare_windows("frames_range", 2, random_range);
}

#[test]
fn groups_frames_agree_with_the_definitions() {
    compare_windows("frames_groups", 3, random_groups);
}

/// Long frames, from which outliers leave again: sums change their form, and change back.
#[test]
fn long_frames_agree_with_the_definitions() {
    let (_db, mut session) = prepared("frames_long");
    let outliers = [1e300, -1e-300, 1e12, f64::NAN, f64::INFINITY, 0.0];
    let kind: Kind = |random| Series::Ordinary.values(random.bits(), 900);
    for (seed, window) in
        [(4, "15 PRECEDING"), (5, "75 PRECEDING"), (6, "BETWEEN 240 PRECEDING AND 1 PRECEDING")]
    {
        let mut random = Random(seed);
        load(&mut session, &mut random, kind, (u64::MAX, &[]));
        for outlier in outliers {
            let place = random.below(900) as i64;
            session
                .execute("UPDATE series SET v = $1 WHERE id = $2", &[&outlier, &place])
                .expect("an outlier");
        }
        let query = format!("SELECT {{answers}} FROM series WINDOW w AS (ORDER BY id ROWS {window})");
        assert_eq!(compare(&mut session, &query, "", "OVER w"), 900);
    }
}

/// As plain aggregates, with ORDER BY inside the call.
#[test]
fn groups_agree_with_the_definitions() {
    let (_db, mut session) = prepared("frames_plain");
    let mut random = Random(7);
    let groupings =
        ["part", "id / 7", "GROUPING SETS ((part), (width), ())", "CUBE (part, id / 20)", "id", "()"];
    for (name, kind) in KINDS {
        for strewn in STREWN {
            load(&mut session, &mut random, kind, strewn);
            let grouping = chosen(&mut random, &groupings);
            let query = format!("SELECT {{answers}} FROM series /* {name} */ GROUP BY {grouping}");
            let order = chosen(&mut random, &["ORDER BY id", "ORDER BY id DESC", "ORDER BY v, id"]);
            let filter = chosen(&mut random, &["", "FILTER (WHERE id % 3 <> 0)", "FILTER (WHERE false)"]);
            assert!(compare(&mut session, &query, order, filter) > 0, "{query}");
        }
    }
}

/// No rows at all: n = 0, the rest NULL.
#[test]
fn groups_of_no_rows_have_n_0() {
    let (_db, mut session) = prepared("frames_empty");
    assert_eq!(compare(&mut session, "SELECT {answers} FROM series", "", ""), 1);
    let metrics = "SELECT bqx.bqx_window_metrics(v), bqx.quadratic_reg(v) FROM series";
    assert_eq!(row(&mut session, metrics), "(0,,,,,,,,)|(0,,,,,,,,)");
}

#[test]
fn distinct_values_are_aggregated_once() {
    let (_db, mut session) = prepared("frames_distinct");
    let mut random = Random(8);
    for strewn in STREWN {
        load(&mut session, &mut random, |random| Series::Integers.values(random.bits(), ROWS), strewn);
        for name in ["bqx_window_metrics", "quadratic_reg"] {
            let distinct = format!(
                "SELECT part, bqx.{name}(DISTINCT v ORDER BY v) FROM series GROUP BY part ORDER BY part"
            );
            let once = format!(
                "SELECT part, bqx.{name}(v ORDER BY v) FROM (SELECT DISTINCT part, v FROM series) AS s \
                 GROUP BY part ORDER BY part"
            );
            assert_eq!(rows(&mut session, &distinct), rows(&mut session, &once));
        }
    }
    let window = "SELECT bqx.quadratic_reg(DISTINCT v) OVER () FROM series";
    assert_eq!(error_of(&mut session, window).code, "0A000", "PostgreSQL's own limit");
}

/// A moving aggregate evaluates its argument for a row when the row comes and when it leaves. If an inverse
/// transition gave up, PostgreSQL would come back to the rows of the frame again.
#[test]
fn no_row_is_aggregated_twice() {
    let (_db, mut session) = prepared("frames_once");
    let statements = [
        "CREATE SEQUENCE evaluations",
        // not immutable at all: PostgreSQL must not know
        "CREATE FUNCTION counted(v double precision) RETURNS double precision IMMUTABLE LANGUAGE plpgsql \
         AS 'BEGIN PERFORM nextval(''evaluations''); RETURN v; END'",
    ];
    run_each(&mut session, &statements);
    let mut random = Random(9);
    for (name, kind) in KINDS {
        load(&mut session, &mut random, kind, STREWN[2]);
        for Aggregate { name: aggregate, arguments, .. } in AGGREGATES {
            run(&mut session, "ALTER SEQUENCE evaluations RESTART");
            let evaluated = format!(
                "SELECT bqx.{aggregate}({}) OVER (ORDER BY id ROWS BETWEEN 12 PRECEDING AND 2 PRECEDING) \
                 FROM series",
                arguments.replace('v', "counted(v)")
            );
            run(&mut session, &evaluated);
            let evaluations = "SELECT last_value <= 2 * count(*), last_value >= count(*) FROM series, \
                               evaluations GROUP BY last_value";
            assert_eq!(row(&mut session, evaluations), "t|t", "{name}: {evaluated}");
        }
    }
}
