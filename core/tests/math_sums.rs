//! Sums that grow, slide and shrink; sliding extremes; grids.

mod math_support;

use bqx_core::extrema::SlidingExtrema;
use bqx_core::fixed::{Grid, NarrowRun, NotFinite};
use bqx_core::quadratic::QuadraticSums;
use bqx_core::window::WindowSums;
use math_support::{Series, exact, integer, power_of_two};
use num_bigint::BigInt;
use num_traits::Zero;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 300,
        rng_seed: RngSeed::Fixed(4),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn window_sums(values: &[i128]) -> WindowSums<i128> {
    let mut sums = WindowSums::default();
    values.iter().for_each(|y| sums.push(y));
    sums
}

fn quadratic_sums(values: &[i128]) -> QuadraticSums<i128> {
    let mut sums = QuadraticSums::default();
    values.iter().for_each(|y| sums.push(y));
    sums
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn moments_follow_their_definitions(values in prop::collection::vec(-1000i128..1000, 1..20)) {
        let n = values.len() as i128;
        let newest = values[values.len() - 1];
        let u: Vec<i128> = (0..n).map(|x| 2 * x - (n - 1)).collect();
        let weighted = |weight: &dyn Fn(i128) -> i128| u.iter().zip(&values).map(|(&u, y)| weight(u) * y).sum::<i128>();
        let sum: i128 = values.iter().sum();
        let spread = n * values.iter().map(|y| y * y).sum::<i128>() - sum * sum;

        let moments = quadratic_sums(&values).moments(&newest);
        prop_assert_eq!(moments.excess, values.iter().map(|y| y - newest).sum::<i128>());
        prop_assert_eq!(moments.linear, weighted(&|u| u));
        prop_assert_eq!(moments.curvature, weighted(&|u| 3 * u * u - (n * n - 1)));
        prop_assert_eq!(moments.spread, spread);

        let moments = window_sums(&values).moments(&7);
        prop_assert_eq!(moments.excess, sum - 7 * n);
        prop_assert_eq!(moments.spread, spread);
    }

    #[test]
    fn sums_of_all_at_once_are_those_of_one_by_one(values in prop::collection::vec(-(1i64 << 52)..1 << 52, 0..700)) {
        let one_by_one: Vec<i128> = values.iter().map(|&y| y.into()).collect();
        prop_assert_eq!(WindowSums::of(&values), window_sums(&one_by_one));
        prop_assert_eq!(QuadraticSums::of(&values), quadratic_sums(&one_by_one));
    }

    /// Any way of growing and shrinking leads to the sums of what is in the frame.
    #[test]
    fn sums_forget_what_left(
        values in prop::collection::vec(-(1i128 << 50)..1 << 50, 3..40),
        moves in prop::collection::vec(0..3, 0..60),
    ) {
        let (mut from, mut to) = (0, 0);
        let (mut window, mut quadratic) = (WindowSums::default(), QuadraticSums::default());
        for step in moves {
            match step {
                0 if to < values.len() => {
                    window.push(&values[to]);
                    quadratic.push(&values[to]);
                    to += 1;
                }
                1 if from < to => {
                    window.drop_oldest(&values[from]);
                    quadratic.drop_oldest(&values[from]);
                    from += 1;
                }
                2 if from < to && to < values.len() => {
                    window.slide(&values[from], &values[to]);
                    quadratic.slide(&values[from], &values[to]);
                    from += 1;
                    to += 1;
                }
                _ => {}
            }
            prop_assert_eq!(&window, &window_sums(&values[from..to]));
            prop_assert_eq!(&quadratic, &quadratic_sums(&values[from..to]));
            prop_assert_eq!((window.len(), quadratic.len()), (to - from, to - from));
            prop_assert_eq!(quadratic.is_empty(), from == to);
        }
    }

    #[test]
    fn extremes_are_those_of_the_window(
        series in prop::sample::select(&Series::ALL[..]),
        seed: u64,
        window in 1usize..40,
        chunk in 1usize..50,
        skipped in 0usize..30,
    ) {
        let values = series.values(seed, 150);
        let first = window + skipped;
        let mut sliding = SlidingExtrema::new(window).unwrap();
        sliding.seed(&values, first);
        for start in (first..values.len()).step_by(chunk) {
            let stop = values.len().min(start + chunk);
            let (mut highs, mut lows) = (vec![0.0; stop - start], vec![0.0; stop - start]);
            sliding.fill(&values, start..stop, &mut highs, &mut lows);
            for (i, row) in (start..stop).enumerate() {
                let past = &values[row - window..row];
                prop_assert_eq!(highs[i], past.iter().copied().fold(f64::NEG_INFINITY, f64::max));
                prop_assert_eq!(lows[i], past.iter().copied().fold(f64::INFINITY, f64::min));
                prop_assert!([highs[i], lows[i]].iter().all(|v| v.to_bits() != (-0.0f64).to_bits()));
            }
        }
    }

    #[test]
    fn grids_hold_every_value_exactly(series in prop::sample::select(&Series::ALL[..]), seed: u64) {
        let values = series.values(seed, 50);
        let grid = Grid::of(values.iter().copied()).unwrap();
        let unit = power_of_two(grid.exponent.into());
        let wide: Vec<BigInt> = values.iter().map(|&value| grid.whole(value)).collect();
        for (y, &value) in wide.iter().zip(&values) {
            prop_assert_eq!(math_support::Rational::from(y.clone()) * &unit, exact(value));
            prop_assert!(y.bits() <= grid.bits.into());
        }
        let odd = wide.iter().any(|y| y.bit(0));
        prop_assert!(odd || wide.iter().all(Zero::is_zero), "no finer than needed");
        if let Some(narrow) = NarrowRun::new(&values, grid).unwrap() {
            for (&y, &value) in narrow.y.iter().zip(&values) {
                prop_assert_eq!(integer(y as i128 + narrow.axis.reference() as i128) * &unit, exact(value));
                prop_assert_eq!(BigInt::from(narrow.axis.whole(value)), grid.whole(value));
            }
        }
    }
}

#[test]
fn grids_want_finite_values() {
    assert_eq!(Grid::of([1.0, f64::NAN]), Err(NotFinite { position: 1 }));
    assert_eq!(Grid::of([]), Ok(Grid { exponent: 0, bits: 0 }));
    assert_eq!(Grid::of([0.0, -0.0]), Ok(Grid { exponent: 0, bits: 0 }));
    assert_eq!(Grid::of([0.0, 6.0]), Ok(Grid { exponent: 1, bits: 2 }));
    assert_eq!(NotFinite { position: 3 }.to_string(), "value 3 is not a finite number");
}
