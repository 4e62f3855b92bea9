//! Every metric against exact rational arithmetic straight from its definition, on ordinary and nasty series.

mod math_support;

use bqx_core::columns::{AggMetric, Column, RegMetric, WindowMetric};
use bqx_core::frame_rows::{Arithmetic, FrameRows};
use math_support::{Expected, Frame, Rational, Series, exact, integer};
use num_traits::{Signed, Zero};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn window_columns(window: usize) -> Vec<Column> {
    let metrics = WindowMetric::ALL.iter().map(|&metric| Column::Window { window, metric });
    if window == 75 {
        metrics.chain(AggMetric::ALL.iter().map(|&m| Column::Agg(m))).collect()
    } else {
        metrics.collect()
    }
}

fn reg_columns(window: usize) -> Vec<Column> {
    RegMetric::ALL.iter().map(|&metric| Column::Reg { window, metric }).collect()
}

/// Checks the rows in `rows` of both families; `window` from 3.
fn check(values: &[f64], window: usize, rows: &[usize], arithmetic: Arithmetic) -> Result<(), TestCaseError> {
    let columns = [window_columns(window), reg_columns(window)].concat();
    let mut out = vec![0.0; values.len() * columns.len()];
    FrameRows::with_arithmetic(values, &columns, arithmetic).unwrap().fill(0..values.len(), &mut out);
    for &row in rows {
        let frame = Frame::of(values, row, window);
        let results = &out[row * columns.len()..][..columns.len()];
        for (&column, &result) in columns.iter().zip(results) {
            prop_assert!(frame.column(column).is(result), "{column} at {row} of {values:?}: {result:e}");
        }
        check_contract(&frame, &columns, results)?;
    }
    Ok(())
}

/// The bounds that users were promised, much wider than "nearest".
fn check_contract(frame: &Frame, columns: &[Column], results: &[f64]) -> Result<(), TestCaseError> {
    let to_rational = |value: &f64| value.is_finite().then(|| exact(*value));
    let of = |wanted: RegMetric| {
        let at = columns.iter().position(|c| matches!(c, Column::Reg { metric, .. } if *metric == wanted));
        to_rational(&results[at.unwrap()])
    };
    for (column, result) in columns.iter().zip(results) {
        if let (Column::Window { .. } | Column::Agg(_), Expected::Nearest(target)) =
            (column, frame.column(*column))
        {
            // Subnormal results have fewer digits than the bound speaks of.
            if result.is_normal() {
                let error = (exact(*result) - &target).abs();
                prop_assert!(error <= target.abs() / integer(10i128.pow(13)), "{column}");
            }
        }
    }
    let largest = frame.past.iter().map(|value| value.abs()).max().unwrap();
    let ordinary = largest > integer(1) / integer(1 << 60) && largest < integer(1 << 60);
    if let (true, Some(a), Some(b), Some(c)) =
        (ordinary, of(RegMetric::A), of(RegMetric::B), of(RegMetric::C))
    {
        let [ea, eb, ec] = frame.parabola();
        let spread = frame.past.iter().max().unwrap() - frame.past.iter().min().unwrap();
        for x in (0..frame.past.len() as i128).map(integer) {
            let error = ((&a - ea) * &x + (&b - eb)) * &x + (&c - ec);
            let fit = ((ea * &x) + eb) * &x + ec;
            let ulp = (if fit.is_zero() { largest.clone() } else { fit.abs() }) / integer(1 << 52);
            prop_assert!(error.abs() <= &spread / integer(10i128.pow(12)) + ulp, "the curve at {x}");
        }
        let Expected::Nearest(r2) = frame.regression(RegMetric::R2) else { unreachable!() };
        let error: Rational = of(RegMetric::R2).unwrap() - r2;
        prop_assert!(error.abs() <= integer(1) / integer(10i128.pow(12)), "r2");
    }
    Ok(())
}

fn arithmetic() -> impl Strategy<Value = Arithmetic> {
    prop_oneof![Just(Arithmetic::Best), Just(Arithmetic::Portable), Just(Arithmetic::Wide)]
}

proptest! {
    #![proptest_config(config(1_000))]

    #[test]
    fn short_windows(
        series in prop::sample::select(&Series::ALL[..]),
        seed: u64,
        window in prop::sample::select(&[3usize, 4, 5, 15][..]),
        arithmetic in arithmetic(),
    ) {
        let values = series.values(seed, window + 8);
        let rows: Vec<usize> = (window..values.len()).step_by(3).collect();
        check(&values, window, &rows, arithmetic)?;
    }

    #[test]
    fn two_values(series in prop::sample::select(&Series::ALL[..]), seed: u64, arithmetic in arithmetic()) {
        let values = series.values(seed, 12);
        let columns = window_columns(2);
        let mut out = vec![0.0; values.len() * columns.len()];
        FrameRows::with_arithmetic(&values, &columns, arithmetic).unwrap().fill(0..values.len(), &mut out);
        for row in 2..values.len() {
            let frame = Frame::of(&values, row, 2);
            for (&column, &result) in columns.iter().zip(&out[row * columns.len()..]) {
                prop_assert!(frame.column(column).is(result), "{column} at {row} of {values:?}: {result:e}");
            }
        }
    }
}

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn aggregate_window(
        series in prop::sample::select(&Series::ALL[..]),
        seed: u64,
        arithmetic in arithmetic(),
    ) {
        // Any bits make rationals of thousands of digits.
        prop_assume!(!matches!(series, Series::AnyBits | Series::Subnormal));
        let values = series.values(seed, 80);
        check(&values, 75, &[79], arithmetic)?;
    }
}

proptest! {
    #![proptest_config(config(20))]

    #[test]
    fn long_window(
        series in prop::sample::select(&[Series::Ordinary, Series::Near60, Series::FiftyToTwoHundred][..]),
        seed: u64,
    ) {
        let values = series.values(seed, 900);
        check(&values, 630, &[899], Arithmetic::Best)?;
    }
}
