//! The aggregates on NIST's Statistical Reference Datasets (tests/nist): how many digits of the certified
//! values they give. docs/accuracy.md shows it; `BLESS=1` writes its tables.

mod common;

use std::fs;
use std::io::Write;
use std::sync::OnceLock;

use bqx_tests::Db;
use bqx_tests::exact::{Decimal, Fit, mean, nearest, of_double, variance};
use common::run;
use num_rational::BigRational;
use pgcluster::workspace_root;
use similar::TextDiff;

/// A set of which NIST certifies mean and standard deviation.
struct Sample {
    name: &'static str,
    stresses: &'static str,
    /// The least digits that mean and standard deviation must have: 15, or what the doubles that stand for
    /// the decimal observations allow.
    floors: [f64; 2],
}

const SAMPLES: [Sample; 8] = [
    Sample { name: "Lew", stresses: "integers of both signs", floors: [15.0, 15.0] },
    Sample { name: "Lottery", stresses: "integers", floors: [15.0, 15.0] },
    Sample { name: "Mavro", stresses: "a spread of 0.0014 around 2.002", floors: [15.0, 13.0] },
    Sample { name: "Michelso", stresses: "a spread of 0.45 around 299.85", floors: [15.0, 13.0] },
    Sample { name: "NumAcc1", stresses: "a spread of 2 around 10000002", floors: [15.0, 15.0] },
    Sample { name: "NumAcc2", stresses: "a spread of 0.2 around 1.2", floors: [15.0, 15.0] },
    Sample { name: "NumAcc3", stresses: "a spread of 0.2 around 1000000.2", floors: [15.0, 9.4] },
    Sample { name: "NumAcc4", stresses: "a spread of 0.2 around 10000000.2", floors: [15.0, 8.2] },
];

/// NIST gives 15 digits.
const MOST_DIGITS: f64 = 15.0;

/// What the digits of coefficients, R² and residual standard deviation may not be fewer than.
const LEAST_DIGITS_OF_FITS: f64 = 13.0;

/// A database with a table of each set, `i` numbering the observations.
fn db() -> &'static Db<'static> {
    static LOADED: OnceLock<Db<'static>> = OnceLock::new();
    LOADED.get_or_init(|| {
        let db = Db::new("nist");
        let mut session = db.connect();
        for set in SAMPLES.iter().map(|sample| sample.name).chain(["Norris", "Pontius"]) {
            let columns = "(i bigint GENERATED ALWAYS AS IDENTITY, x double precision, y double precision)";
            run(&mut session, &format!("CREATE TABLE {set} {columns}"));
            let csv = observations(set);
            let header = csv.lines().next().expect("a header");
            let copy = format!("COPY {set} ({header}) FROM STDIN WITH (FORMAT csv, HEADER)");
            let mut rows = session.copy_in(&copy).unwrap();
            rows.write_all(csv.as_bytes()).unwrap();
            rows.finish().unwrap();
        }
        db
    })
}

/// A set's observations as CSV, with a header.
fn observations(set: &str) -> String {
    match set {
        "NumAcc2" => alternating("1"),
        "NumAcc3" => alternating("1000000"),
        "NumAcc4" => alternating("10000000"),
        _ => file(&format!("{}.csv", set.to_lowercase())),
    }
}

/// NIST's rule for the constructed sets of 1001 observations.
fn alternating(integer: &str) -> String {
    format!("y\n{integer}.2\n") + &format!("{integer}.1\n{integer}.3\n").repeat(500)
}

fn file(name: &str) -> String {
    fs::read_to_string(workspace_root().join("tests/nist").join(name)).expect("a readable file")
}

/// A column of a set as it is written.
fn column(set: &str, name: &str) -> Vec<String> {
    let csv = observations(set);
    let mut lines = csv.lines().map(|line| line.split(',').map(str::to_owned).collect::<Vec<_>>());
    let header = lines.next().expect("a header");
    let place = header.iter().position(|column| column == name).expect("the column");
    lines.map(|mut fields| fields.swap_remove(place)).collect()
}

/// A column's decimals.
fn decimals(set: &str, name: &str) -> Vec<BigRational> {
    column(set, name).iter().map(|text| Decimal::parse(text).value).collect()
}

/// The doubles nearest to them, which is what PostgreSQL stores.
fn doubles(set: &str, name: &str) -> Vec<BigRational> {
    let numbers = column(set, name).into_iter().map(|text| text.parse().expect("a number"));
    numbers.map(of_double).collect()
}

/// What NIST says of a set.
fn certified(set: &str, statistic: &str) -> String {
    let key = format!("{set},{statistic},");
    let values = file("certified.csv");
    let value = values.lines().find_map(|line| line.strip_prefix(&key));
    value.unwrap_or_else(|| panic!("no {statistic} of {set}")).to_owned()
}

fn certified_number(set: &str, statistic: &str) -> f64 {
    certified(set, statistic).parse().expect("a number")
}

/// Mean and standard deviation as the aggregate has them. It takes the last row for the current one, which is
/// no part of the window, so all observations are put before a row of no matter which value.
fn summary(set: &str) -> [f64; 2] {
    let query = format!(
        "SELECT (m).bqx_avg, (m).bqx_stdev, (m).n FROM (SELECT bqx.bqx_window_metrics(y ORDER BY i) AS m \
           FROM (SELECT i, y FROM {set} UNION ALL SELECT max(i) + 1, 1 FROM {set}) AS past_and_current) AS t"
    );
    let row = db().connect().query_one(&query, &[]).unwrap();
    assert_eq!(row.get::<_, i64>(2).to_string(), certified(set, "n"), "{set}");
    [row.get(0), row.get(1)]
}

/// What the regression aggregate says of a set.
struct Parabola {
    /// Of 1, x and x².
    coefficients: [f64; 3],
    r2: f64,
    rmse: f64,
    /// With n - 3 degrees of freedom, as NIST has it.
    residual_sd: f64,
}

fn parabola(set: &str) -> Parabola {
    let query = format!(
        "SELECT (f).reg_c, (f).reg_b, (f).reg_a, (f).reg_r2, (f).reg_rmse, \
                (f).reg_rmse * sqrt((f).n / ((f).n - 3)::double precision), (f).n \
           FROM (SELECT bqx.quadratic_reg(y, x) AS f FROM {set}) AS fits"
    );
    let row = db().connect().query_one(&query, &[]).unwrap();
    assert_eq!(row.get::<_, i64>(6).to_string(), certified(set, "n"), "{set}");
    Parabola {
        coefficients: [row.get(0), row.get(1), row.get(2)],
        r2: row.get(3),
        rmse: row.get(4),
        residual_sd: row.get(5),
    }
}

/// How many digits two numbers share: -log10 of the relative error, at most 15; infinitely many if they are
/// equal.
fn digits(computed: f64, reference: f64) -> f64 {
    if computed == reference {
        return f64::INFINITY;
    }
    (-((computed - reference) / reference).abs().log10()).min(MOST_DIGITS)
}

/// Digits of mean and standard deviation.
fn digits_of_summary(set: &str) -> [f64; 2] {
    let [mean, stdev] = summary(set);
    [digits(mean, certified_number(set, "mean")), digits(stdev, certified_number(set, "stdev"))]
}

/// Digits of the coefficients, R² and residual standard deviation. The reference is NIST's parabola for
/// Pontius. For Norris NIST certifies a line, so there it is the exact parabola through the decimals.
fn digits_of_parabola(set: &str) -> [f64; 5] {
    let reference = if set == "Pontius" {
        ["B0", "B1", "B2", "R2", "residual_sd"].map(|statistic| certified_number(set, statistic))
    } else {
        let exact = Fit::new(2, &decimals(set, "x"), &decimals(set, "y"));
        let [c, b, a] = [0, 1, 2].map(|power| nearest(&exact.coefficients[power]));
        [c, b, a, nearest(&exact.r2), nearest(&residual_variance(&exact, set)).sqrt()]
    };
    let fit = parabola(set);
    let [c, b, a] = fit.coefficients;
    let computed = [c, b, a, fit.r2, fit.residual_sd];
    std::array::from_fn(|i| digits(computed[i], reference[i]))
}

fn residual_variance(fit: &Fit, set: &str) -> BigRational {
    let n = Decimal::parse(&certified(set, "n")).value;
    let parameters = BigRational::from_integer(fit.coefficients.len().into());
    &fit.residual / (n - parameters)
}

#[test]
fn exact_arithmetic_on_the_observations_gives_the_certified_summaries() {
    for Sample { name: set, .. } in &SAMPLES {
        let y = decimals(set, "y");
        assert_eq!(y.len().to_string(), certified(set, "n"), "{set}");
        assert!(Decimal::parse(&certified(set, "mean")).is_rounded(&mean(&y)), "mean of {set}");
        assert!(Decimal::parse(&certified(set, "stdev")).is_rounded_root(&variance(&y)), "stdev of {set}");
    }
}

#[test]
fn exact_arithmetic_on_the_observations_gives_the_certified_regressions() {
    for (set, degree) in [("Norris", 1), ("Pontius", 2)] {
        let fit = Fit::new(degree, &decimals(set, "x"), &decimals(set, "y"));
        for (power, coefficient) in fit.coefficients.iter().enumerate() {
            let value = certified(set, &format!("B{power}"));
            assert!(Decimal::parse(&value).is_rounded(coefficient), "B{power} of {set}");
        }
        assert!(Decimal::parse(&certified(set, "R2")).is_rounded(&fit.r2), "R² of {set}");
        let residual_sd = Decimal::parse(&certified(set, "residual_sd"));
        assert!(residual_sd.is_rounded_root(&residual_variance(&fit, set)), "residual sd of {set}");
    }
}

#[test]
fn summaries_are_the_doubles_nearest_to_those_of_the_doubles() {
    for Sample { name: set, .. } in &SAMPLES {
        let y = doubles(set, "y");
        assert_eq!(summary(set), [nearest(&mean(&y)), nearest(&variance(&y)).sqrt()], "{set}");
    }
}

#[test]
fn parabolas_are_the_doubles_nearest_to_those_of_the_doubles() {
    for set in ["Norris", "Pontius"] {
        let exact = Fit::new(2, &doubles(set, "x"), &doubles(set, "y"));
        let computed = parabola(set);
        let coefficients: Vec<f64> = exact.coefficients.iter().map(nearest).collect();
        assert_eq!(computed.coefficients.to_vec(), coefficients, "{set}");
        assert_eq!(computed.r2, nearest(&exact.r2), "{set}");
        let n = Decimal::parse(&certified(set, "n")).value;
        assert_eq!(computed.rmse, nearest(&(exact.residual / n)).sqrt(), "{set}");
    }
}

#[test]
fn summaries_have_the_digits_that_doubles_allow() {
    for Sample { name: set, floors, .. } in &SAMPLES {
        let digits = digits_of_summary(set);
        assert!(digits[0] >= floors[0] && digits[1] >= floors[1], "{set}: {digits:?}, not {floors:?}");
    }
}

#[test]
fn parabolas_have_the_digits_that_doubles_allow() {
    for set in ["Norris", "Pontius"] {
        let digits = digits_of_parabola(set);
        assert!(digits.iter().all(|&digits| digits >= LEAST_DIGITS_OF_FITS), "{set}: {digits:?}");
    }
}

#[test]
fn the_tables_in_the_document_are_what_is_measured() {
    let path = workspace_root().join("docs/accuracy.md");
    let document = fs::read_to_string(&path).unwrap();
    let measured = with_table(&with_table(&document, &table_of_summaries()), &table_of_parabolas());
    if std::env::var_os("BLESS").is_some() {
        return fs::write(&path, measured).unwrap();
    }
    let diff = TextDiff::from_lines(&document, &measured);
    let shown = diff.unified_diff().header("docs/accuracy.md", "measured").to_string();
    assert!(
        shown.is_empty(),
        "{shown}\n(BLESS=1 cargo test -p bqx-tests --test nist accepts what was measured)"
    );
}

fn table_of_summaries() -> String {
    let mut table = String::from("| set | n | what it stresses | mean | stdev |\n|---|--:|---|--:|--:|\n");
    for Sample { name: set, stresses, .. } in &SAMPLES {
        let [mean, stdev] = digits_of_summary(set).map(shown);
        table += &format!("| {set} | {} | {stresses} | {mean} | {stdev} |\n", certified(set, "n"));
    }
    table
}

fn table_of_parabolas() -> String {
    let mut table = String::from(
        "| set | n | reference | B0 | B1 | B2 | R² | residual sd |\n|---|--:|---|--:|--:|--:|--:|--:|\n",
    );
    for (set, reference) in [("Pontius", "certified by NIST"), ("Norris", "the exact parabola")] {
        let digits = digits_of_parabola(set).map(shown).join(" | ");
        table += &format!("| {set} | {} | {reference} | {digits} |\n", certified(set, "n"));
    }
    table
}

/// A count of digits, its tenths cut off.
fn shown(digits: f64) -> String {
    match digits {
        f64::INFINITY => "exact".to_owned(),
        MOST_DIGITS => "15".to_owned(),
        _ => format!("{:.1}", (digits * 10.0).floor() / 10.0),
    }
}

/// A document with a table in the place of the one that has the same header.
fn with_table(document: &str, table: &str) -> String {
    let header = table.lines().next().expect("tables have headers");
    let (before, rest) = document.split_once(header).unwrap_or_else(|| panic!("no table with {header}"));
    let after = rest.lines().skip(1).skip_while(|line| line.starts_with('|'));
    after.fold(format!("{before}{table}"), |document, line| document + line + "\n")
}
