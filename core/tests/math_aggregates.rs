//! Aggregates over frames that grow, slide, shrink and jump, against exact rationals of what is in the frame.

mod math_support;

use std::collections::VecDeque;

use bqx_core::columns::RegMetric;
use bqx_core::moving_sums::{Form, MovingSums};
use bqx_core::quadratic_aggregate::QuadraticAggregate;
use bqx_core::scatter_aggregate::ScatterAggregate;
use bqx_core::window::{Metric, WindowShape};
use bqx_core::window_aggregate::WindowAggregate;
use math_support::{Expected, Frame, Random, Series};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 70,
        rng_seed: RngSeed::Fixed(5),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// How a frame goes from row to row: with what chance, in 16ths, its oldest row leaves once a new one has come.
#[derive(Clone, Copy, Debug)]
struct Pace {
    sixteenths: u64,
    longest: usize,
}

fn pace() -> impl Strategy<Value = Pace> {
    (prop::sample::select(vec![0, 8, 14, 16, 24]), 1usize..40)
        .prop_map(|(sixteenths, longest)| Pace { sixteenths, longest })
}

/// Values of one series, then of another, then of the first again, so that hard ones come and go; with NULLs and
/// NaNs if asked for.
fn values(first: Series, second: Series, seed: u64, holes: bool) -> Vec<Option<f64>> {
    let mut random = Random(seed ^ 77);
    let blocks = [(first, 60), (second, 25), (first, 120)];
    let all = blocks.into_iter().flat_map(|(series, len)| series.values(seed, len));
    all.map(|value| match random.below(if holes { 24 } else { 1 }) {
        1 => None,
        2 => Some(f64::NAN),
        3 => Some(f64::NEG_INFINITY),
        _ => Some(value),
    })
    .collect()
}

/// Calls `look` with the frame after every row; `add` and `drop` bring the aggregate there.
fn play<A>(
    rows: &[Option<f64>],
    pace: Pace,
    seed: u64,
    aggregate: &mut A,
    add: impl Fn(&mut A, Option<f64>),
    drop: impl Fn(&mut A, Option<f64>) -> bool,
    mut look: impl FnMut(&mut A, &VecDeque<Option<f64>>) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    let mut random = Random(seed);
    let mut frame = VecDeque::new();
    for &row in rows {
        frame.push_back(row);
        add(aggregate, row);
        let mut chances = pace.sixteenths;
        while frame.len() > 1 && (frame.len() > pace.longest || random.below(16) < chances) {
            let oldest = frame.pop_front().expect("more than one");
            prop_assert!(drop(aggregate, oldest), "{oldest:?} is the oldest");
            chances = chances.saturating_sub(16);
        }
        look(aggregate, &frame)?;
    }
    Ok(())
}

type Look<A> = fn(&mut A, &VecDeque<Option<f64>>) -> Result<(), TestCaseError>;

/// Looks at every third frame, since the exact reference is slow.
fn every_third<A>(look: Look<A>) -> impl FnMut(&mut A, &VecDeque<Option<f64>>) -> Result<(), TestCaseError> {
    let mut rows = 0;
    move |aggregate, frame| {
        rows += 1;
        if rows % 3 == 0 { look(aggregate, frame) } else { Ok(()) }
    }
}

fn check(expected: &Expected, value: f64, what: &str) -> Result<(), TestCaseError> {
    prop_assert!(expected.is(value), "{what} = {value:e}");
    Ok(())
}

fn add_window(aggregate: &mut WindowAggregate, row: Option<f64>) {
    aggregate.push(row).expect("memory");
}

fn check_window(aggregate: &mut WindowAggregate, rows: &VecDeque<Option<f64>>) -> Result<(), TestCaseError> {
    let (current, past) = rows
        .iter()
        .copied()
        .collect::<Vec<_>>()
        .split_last()
        .map_or((None, vec![]), |(c, p)| (*c, p.to_vec()));
    let mut values: Vec<f64> = past.into_iter().flatten().collect();
    prop_assert_eq!(aggregate.past_len(), values.len());
    let metrics = aggregate.metrics();
    let known =
        current.is_some_and(f64::is_finite) && !values.is_empty() && values.iter().all(|v| v.is_finite());
    prop_assert_eq!(metrics.is_some(), known);
    let Some(metrics) = metrics else { return Ok(()) };
    values.extend(current);
    let len = values.len() - 1;
    let frame = Frame::of(&values, len, len);
    for (metric, value) in Metric::ALL.into_iter().zip(metrics.to_array()) {
        if len == 1 && matches!(metric, Metric::Stdev | Metric::Volatility) {
            prop_assert!(value.is_nan(), "{metric:?} of one value is {value}");
        } else {
            check(&frame.window(metric), value, &format!("{metric:?} of {values:?}"))?;
        }
    }
    Ok(())
}

fn check_fit(aggregate: &mut QuadraticAggregate, rows: &VecDeque<Option<f64>>) -> Result<(), TestCaseError> {
    let mut values: Vec<f64> = rows.iter().copied().flatten().collect();
    prop_assert_eq!(aggregate.len(), values.len());
    let fit = aggregate.fit();
    prop_assert_eq!(fit.is_some(), values.len() >= 3 && values.iter().all(|v| v.is_finite()));
    let Some(fit) = fit else { return Ok(()) };
    let len = values.len();
    values.push(1.0);
    let frame = Frame::of(&values, len, len);
    for (&metric, value) in RegMetric::ALL.iter().zip(fit.to_array()) {
        check(&frame.regression(metric), value, &format!("{metric:?} of {values:?}"))?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn moving_windows_are_exact(
        first in prop::sample::select(&Series::ALL[..]),
        second in prop::sample::select(&Series::ALL[..]),
        pace in pace(),
        seed: u64,
        holes: bool,
    ) {
        let rows = values(first, second, seed, holes);
        let drop = |aggregate: &mut WindowAggregate, row| aggregate.drop_oldest(row);
        let (mut aggregate, look) = (WindowAggregate::moving(), every_third(check_window));
        play(&rows, pace, seed, &mut aggregate, add_window, drop, look)?;
    }

    #[test]
    fn growing_windows_are_exact(
        first in prop::sample::select(&Series::ALL[..]),
        second in prop::sample::select(&Series::ALL[..]),
        seed: u64,
        holes: bool,
    ) {
        let rows = values(first, second, seed, holes);
        let forever = Pace { sixteenths: 0, longest: usize::MAX };
        let never = |_: &mut WindowAggregate, _| unreachable!("nothing leaves");
        let add = add_window;
        let look = every_third(check_window);
        play(&rows[..70], forever, seed, &mut WindowAggregate::growing(), add, never, look)?;
    }

    #[test]
    fn moving_fits_are_exact(
        first in prop::sample::select(&Series::ALL[..]),
        second in prop::sample::select(&Series::ALL[..]),
        pace in pace(),
        seed: u64,
        holes: bool,
    ) {
        let rows = values(first, second, seed, holes);
        let add = |aggregate: &mut QuadraticAggregate, row| aggregate.push(row).expect("memory");
        let drop = |aggregate: &mut QuadraticAggregate, row| aggregate.drop_oldest(row);
        play(&rows, pace, seed, &mut QuadraticAggregate::moving(), add, drop, every_third(check_fit))?;
    }

    #[test]
    fn growing_fits_are_exact(
        first in prop::sample::select(&Series::ALL[..]),
        second in prop::sample::select(&Series::ALL[..]),
        seed: u64,
        holes: bool,
    ) {
        let rows = values(first, second, seed, holes);
        let mut aggregate = QuadraticAggregate::growing();
        let mut frame = VecDeque::new();
        for (i, &row) in rows[..75].iter().enumerate() {
            frame.push_back(row);
            aggregate.push(row).expect("memory");
            if i % 7 == 0 {
                check_fit(&mut aggregate, &frame)?;
            }
        }
    }
}

#[test]
fn a_value_that_is_not_the_oldest_is_refused_and_changes_nothing() {
    let mut window = WindowAggregate::moving();
    let mut fit = QuadraticAggregate::moving();
    for value in [100.25, 99.5, 101.125, 100.0] {
        add_window(&mut window, Some(value));
        fit.push(Some(value)).expect("memory");
    }
    let before = (window.metrics(), fit.fit());
    assert!(!window.drop_oldest(Some(99.5)) && !fit.drop_oldest(Some(99.5)));
    assert!(!window.drop_oldest(None) && !fit.drop_oldest(None), "there are no NULLs");
    assert_eq!((window.metrics(), fit.fit()), before);
    assert!(window.drop_oldest(Some(100.25)) && fit.drop_oldest(Some(100.25)));
    assert_ne!((window.metrics(), fit.fit()), before);
    assert!(
        !WindowAggregate::growing().drop_oldest(None)
            && !QuadraticAggregate::growing().drop_oldest(Some(1.0))
    );
}

/// A long frame, beyond the windows that machine integers finalise, then short ones again.
#[test]
fn long_frames_are_exact() {
    let values = Series::Ordinary.values(3, 24_000);
    let mut window = WindowAggregate::moving();
    let mut fit = QuadraticAggregate::moving();
    let mut first = 0;
    for (row, &value) in values.iter().enumerate() {
        add_window(&mut window, Some(value));
        fit.push(Some(value)).expect("memory");
        let longest = if row < 13_000 { 12_000 } else { 300 };
        while row + 1 - first > longest {
            assert!(window.drop_oldest(Some(values[first])) && fit.drop_oldest(Some(values[first])));
            first += 1;
        }
        if [11_999, 12_999, 13_005, 23_999].contains(&row) {
            let mut fresh = (WindowAggregate::growing(), QuadraticAggregate::growing());
            for &value in &values[first..=row] {
                add_window(&mut fresh.0, Some(value));
                fresh.1.push(Some(value)).expect("memory");
            }
            assert_eq!(window.metrics(), fresh.0.metrics(), "row {row}");
            assert_eq!(fit.fit(), fresh.1.fit(), "row {row}");
            let frame = Frame::of(&values, row, row - first);
            for (metric, value) in Metric::ALL.into_iter().zip(window.metrics().unwrap().to_array()) {
                assert!(frame.window(metric).is(value), "{metric:?} at {row}");
            }
        }
    }
}

/// Millions of rows, where products of lengths no longer fit 128 bits. The sum of squared residuals is known: values
/// that alternate have no trend to speak of.
#[test]
fn very_long_frames_are_exact() {
    const LEN: usize = 2_000_001;
    let mut fit = QuadraticAggregate::growing();
    let mut scatter = ScatterAggregate::growing();
    for x in 0..LEN {
        let y = 100.0 + (x % 2) as f64;
        fit.push(Some(y)).expect("memory");
        scatter.push(Some((x as f64, y))).expect("memory");
        if [1_000_000, 1_868_001, LEN - 1].contains(&x) {
            assert_eq!(fit.fit(), scatter.fit(), "{x}");
        }
    }
    let fit = fit.fit().expect("a fit");
    assert!((fit.rmse - 0.5).abs() < 1e-9 && fit.r2 < 1e-9, "{fit:?}");
}

/// Zeros lie on every grid: those at the start of a series must not bind it to one.
#[test]
fn zeros_do_not_choose_the_grid() {
    for value in [1e-4 / 3.0, 1e40, 1e-40] {
        let mut sums = MovingSums::<WindowShape>::default();
        [0.0, -0.0, value, 0.0, 2.0 * value].into_iter().for_each(|value| sums.push(value));
        assert!(matches!(sums.form(), Form::Narrow { .. }), "{value}");
        let mut window = WindowAggregate::moving();
        let mut frame = VecDeque::new();
        for value in [0.0, 0.0, value, -value, 0.0, value / 7.0] {
            frame.push_back(Some(value));
            add_window(&mut window, Some(value));
            check_window(&mut window, &frame).unwrap();
        }
        assert!(window.drop_oldest(Some(0.0)) && frame.pop_front().is_some());
        check_window(&mut window, &frame).unwrap();
    }
}
