//! Results do not depend on how they were computed: arithmetic, start, chunks, company of other columns.

mod math_support;

use bqx_core::columns::{AGG_WINDOW, AggMetric, Column, Family, RegMetric, WindowMetric, columns};
use bqx_core::fixed::{Axis, Grid};
use bqx_core::frame_rows::{Arithmetic, FrameRows, NotFinite, RunError};
use math_support::{Random, Series};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(2),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// The computed columns of both families, mixed.
fn both(windows: &[usize]) -> Vec<Column> {
    let reg = columns(Family::Reg, windows).into_iter().rev();
    let all = columns(Family::Bqx, windows).into_iter().chain(reg);
    all.filter(|column| !matches!(column, Column::Time | Column::CreatedAt)).collect()
}

fn all_rows(values: &[f64], columns: &[Column], arithmetic: Arithmetic) -> Vec<f64> {
    let mut out = vec![f64::MAX; values.len() * columns.len()];
    FrameRows::with_arithmetic(values, columns, arithmetic).unwrap().fill(0..values.len(), &mut out);
    out
}

fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| if value.is_nan() { u64::MAX } else { value.to_bits() }).collect()
}

/// Names the first difference.
fn same(a: &[f64], b: &[f64], columns: &[Column]) -> Result<(), TestCaseError> {
    let different = bits(a).into_iter().zip(bits(b)).position(|(a, b)| a != b);
    if let Some(at) = different {
        let (row, column) = (at / columns.len(), columns[at % columns.len()]);
        return Err(TestCaseError::fail(format!("{column}, row {row}: {:e} or {:e}", a[at], b[at])));
    }
    Ok(())
}

#[test]
fn ordinary_indexes_are_narrow() {
    let narrow = |values: &[f64], window| {
        Axis::of(values.iter().copied(), Grid::of(values.iter().copied()).unwrap())
            .is_some_and(|axis| axis.fits(window))
    };
    for series in [Series::Ordinary, Series::Near60, Series::Near140, Series::FiftyToTwoHundred] {
        assert!(narrow(&series.values(1, 40_000), 630), "{series:?}");
    }
    assert!(narrow(&Series::Ordinary.values(1, 40_000), 10_000));
    for series in [Series::HugeRange, Series::Subnormal, Series::AnyBits] {
        assert!(!narrow(&series.values(1, 100), 15), "{series:?}");
    }
}

#[test]
fn arithmetics_agree_over_a_long_run() {
    for (series, len) in [
        (Series::Ordinary, 6_000),
        (Series::Near60, 3_000),
        (Series::FiftyToTwoHundred, 3_000),
        (Series::Jumping, 2_000),
        (Series::Parabola, 1_000),
    ] {
        let values = series.values(7, len);
        let columns = both(&[15, 30, 60, 75, 90, 390, 630]);
        let best = all_rows(&values, &columns, Arithmetic::Best);
        same(&best, &all_rows(&values, &columns, Arithmetic::Portable), &columns).unwrap();
        same(&best, &all_rows(&values, &columns, Arithmetic::Wide), &columns).unwrap();
    }
}

/// The bounds of the narrow path hold up to their edge: the widest values that fit a window. (Tests are built
/// with overflow checks.)
#[test]
fn arithmetics_agree_at_the_edge_of_narrow() {
    for window in [3usize, 4, 75, 630, 10_000] {
        let reach = (((1u64 << 63) / window as u64).min(1 << 61) - 512) >> 9 << 9; // 53 bits: a double
        let mut random = Random(window as u64);
        let mut mixed = || match random.below(3) {
            0 => reach as f64,
            1 => -(reach as f64),
            _ => (random.bits() >> 40) as f64,
        };
        let len = window + 40;
        let mixed: Vec<f64> = (0..len).map(|_| mixed()).collect();
        // Half low, half high: the greatest variance and slope. The 1 keeps the grid fine.
        let mut split: Vec<f64> =
            (0..len).map(|i| if i < window / 2 { -(reach as f64) } else { reach as f64 }).collect();
        split[len - 1] = 1.0;
        for values in [mixed, split] {
            let grid = Grid::of(values.iter().copied()).unwrap();
            let axis = Axis::of(values.iter().copied(), grid).expect("narrow");
            assert!(axis.fits(window) && !axis.fits(window * 2), "W = {window}");
            let columns = both(&[window]);
            let columns: Vec<Column> = columns.into_iter().filter(|c| !matches!(c, Column::Agg(_))).collect();
            let best = all_rows(&values, &columns, Arithmetic::Best);
            same(&best, &all_rows(&values, &columns, Arithmetic::Wide), &columns).unwrap();
            same(&best, &all_rows(&values, &columns, Arithmetic::Portable), &columns).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn arithmetics_agree(series in prop::sample::select(&Series::ALL[..]), seed: u64, window in 3usize..40) {
        let values = series.values(seed, 300);
        let columns = both(&[window]);
        let best = all_rows(&values, &columns, Arithmetic::Best);
        same(&best, &all_rows(&values, &columns, Arithmetic::Portable), &columns)?;
        same(&best, &all_rows(&values, &columns, Arithmetic::Wide), &columns)?;
    }

    #[test]
    fn starts_and_chunks_do_not_matter(
        series in prop::sample::select(&Series::ALL[..]),
        seed: u64,
        cuts in prop::collection::vec(0usize..500, 4),
    ) {
        let windows = [3, 15, 40];
        let values = series.values(seed, 500);
        let columns = both(&windows);
        let lookback = AGG_WINDOW;
        let whole = all_rows(&values, &columns, Arithmetic::Best);
        let width = columns.len();

        // Consecutive ranges, then a jump back.
        let mut ends = cuts.clone();
        ends.push(500);
        ends.sort_unstable();
        let mut chunked = vec![f64::MAX; whole.len()];
        let mut rows = FrameRows::new(&values, &columns).unwrap();
        let mut start = 0;
        for end in ends {
            rows.fill(start..end, &mut chunked[start * width..end * width]);
            start = end;
        }
        same(&whole, &chunked, &columns)?;
        let (from, to) = (cuts[0].min(cuts[1]), cuts[0].max(cuts[1]));
        rows.fill(from..to, &mut chunked[from * width..to * width]);
        same(&whole, &chunked, &columns)?;

        // A run that starts later: same bits from where its lookback suffices.
        let later = all_rows(&values[from..], &columns, Arithmetic::Best);
        let known = (from + lookback).min(500);
        same(&whole[known * width..], &later[(known - from) * width..], &columns)?;
    }

    #[test]
    fn null_exactly_where_fewer_than_the_window_precede(seed: u64, len in 0usize..100) {
        let values = Series::Ordinary.values(seed, len);
        let columns = both(&[3, 20, 80]);
        let out = all_rows(&values, &columns, Arithmetic::Best);
        for (at, value) in out.iter().enumerate() {
            let (row, column) = (at / columns.len(), columns[at % columns.len()]);
            prop_assert_eq!(value.is_nan(), row < column.window(), "{} at {}", column, row);
        }
    }

    #[test]
    fn no_negative_zero(series in prop::sample::select(&Series::ALL[..]), seed: u64) {
        let values: Vec<f64> = series.values(seed, 60).into_iter().map(|v| -v).collect();
        for arithmetic in [Arithmetic::Best, Arithmetic::Wide] {
            let out = all_rows(&values, &both(&[3, 15]), arithmetic);
            prop_assert!(out.iter().all(|value| value.to_bits() != (-0.0f64).to_bits()));
        }
    }
}

#[test]
fn zeros_leave_only_the_dividing_metrics_undefined() {
    // The current value is 0, and so is the oldest of the three before it.
    let mut values = vec![3.0; AGG_WINDOW];
    values.extend([-0.0, 5.0, 0.0, -0.0]);
    let (columns, row) = (both(&[3]), values.len() - 1);
    for arithmetic in [Arithmetic::Best, Arithmetic::Portable, Arithmetic::Wide] {
        let out = all_rows(&values, &columns, arithmetic);
        for (&column, value) in columns.iter().zip(&out[row * columns.len()..]) {
            let divides = matches!(
                column,
                Column::Window { metric: WindowMetric::Return | WindowMetric::Endpoint, .. }
                    | Column::Agg(AggMetric::Return | AggMetric::Range | AggMetric::Volatility)
                    | Column::Reg { metric: RegMetric::Endpoint, .. }
            );
            assert_eq!(value.is_nan(), divides, "{column} = {value} ({arithmetic:?})");
        }
    }
}

#[test]
fn overflow_is_infinite() {
    let values = [f64::MAX, -f64::MAX, 1.0];
    let columns = [
        WindowMetric::Return,
        WindowMetric::Avg,
        WindowMetric::Stdev,
        WindowMetric::Endpoint,
        WindowMetric::Max,
    ]
    .map(|metric| Column::Window { window: 2, metric });
    let out = all_rows(&values, &columns, Arithmetic::Best);
    assert_eq!(out[10..], [-2.0, 0.0, f64::INFINITY, f64::MAX, f64::MAX]);
}

#[test]
fn names_the_first_value_that_is_not_finite() {
    let error = FrameRows::new(&[1.0, f64::INFINITY, f64::NAN], &[Column::RateIndex]).err();
    assert_eq!(error, Some(RunError::NotFinite(NotFinite { position: 1 })));
}

#[test]
#[should_panic(expected = "created_at is not computed from bars")]
fn refuses_columns_that_are_not_computed() {
    let _ = FrameRows::new(&[1.0], &[Column::CreatedAt]);
}
