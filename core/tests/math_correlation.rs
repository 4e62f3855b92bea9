//! Correlations against their definitions in rational arithmetic, and against ranks counted one by one.

mod math_support;

use bqx_core::correlation::{Correlation, Reference};
use bqx_core::rounding::nearest_ratio;
use math_support::{Rational, exact};
use num_traits::{Signed, Zero};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 200,
        rng_seed: RngSeed::Fixed(11),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn correlation(x: &[f64], y: &[f64]) -> Correlation {
    Reference::new(y.iter().copied()).unwrap().correlation(x.iter().copied()).unwrap()
}

/// The square of Pearson's correlation, with its sign; `None` if one does not vary.
fn signed_square(x: &[Rational], y: &[Rational]) -> Option<Rational> {
    if x.is_empty() {
        return None;
    }
    let n = Rational::from_integer(x.len().into());
    let mean = |values: &[Rational]| values.iter().sum::<Rational>() / &n;
    let (mx, my) = (mean(x), mean(y));
    let sum = |a: &[Rational], ma: &Rational, b: &[Rational], mb: &Rational| -> Rational {
        a.iter().zip(b).map(|(a, b)| (a - ma) * (b - mb)).sum()
    };
    let (xx, xy, yy) = (sum(x, &mx, x, &mx), sum(x, &mx, y, &my), sum(y, &my, y, &my));
    (!xx.is_zero() && !yy.is_zero()).then(|| &xy * xy.abs() / (xx * yy))
}

/// The correlation itself, to about a double's precision.
fn reference(x: &[Rational], y: &[Rational]) -> Option<f64> {
    let square = signed_square(x, y)?;
    let square = nearest_ratio(square.numer(), square.denom(), 0);
    Some(square.abs().sqrt().copysign(square))
}

/// Ranks by counting who is smaller, and half of the equal ones.
fn ranks(values: &[f64]) -> Vec<Rational> {
    let rank = |value: &f64| {
        let smaller = values.iter().filter(|other| *other < value).count();
        let equal = values.iter().filter(|other| *other == value).count();
        Rational::new((2 * smaller + equal + 1).into(), 2.into())
    };
    values.iter().map(rank).collect()
}

fn is_close(found: Option<f64>, expected: Option<f64>, tolerance: f64) -> bool {
    match (found, expected) {
        (Some(found), Some(expected)) => (found - expected).abs() <= tolerance && found.abs() <= 1.0,
        (found, expected) => found.is_none() && expected.is_none(),
    }
}

/// Prices around a level with some decimals, a few alike; now and then something else.
fn values() -> impl Strategy<Value = Vec<(f64, f64)>> {
    let price = |level: f64| prop_oneof![8 => (0..400i32).prop_map(move |i| level + f64::from(i) / 1e4), 1 => Just(level)];
    let any_size = any::<f64>().prop_filter("finite", |value| value.is_finite());
    let pair = prop_oneof![
        9 => (price(100.0), price(-1.25)),
        1 => (any_size, price(0.0)),
    ];
    prop_oneof![
        prop::collection::vec((price(100.0), price(-1.25)), 0..60),
        prop::collection::vec((price(1e6), price(1e-3)), 0..60),
        prop::collection::vec(pair, 0..20),
    ]
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn correlations_follow_their_definitions(rows in values()) {
        let (x, y): (Vec<f64>, Vec<f64>) = rows.into_iter().unzip();
        let found = correlation(&x, &y);
        prop_assert_eq!(found.n, x.len());
        let rational = |values: &[f64]| values.iter().map(|&value| exact(value)).collect::<Vec<_>>();
        let expected = reference(&rational(&x), &rational(&y));
        prop_assert!(is_close(found.pearson, expected, 1e-13), "{:?} {:?}", found, expected);
        let expected = reference(&ranks(&x), &ranks(&y));
        prop_assert!(is_close(found.spearman, expected, 1e-15), "{:?} {:?}", found, expected);
    }

    /// Rows in which one is missing count for nothing, whichever it is.
    #[test]
    fn missing_values_leave_their_rows_out(rows in values(), missing in prop::collection::vec(0..6u8, 60)) {
        let spoiled: Vec<(f64, f64)> = rows.iter().zip(&missing).map(|(&(x, y), kind)| match kind {
            0 => (f64::NAN, y),
            1 => (x, f64::INFINITY),
            _ => (x, y),
        }).collect();
        let kept = rows.iter().zip(&missing).filter(|(_, kind)| **kind > 1).map(|(row, _)| *row);
        let of = |rows: Vec<(f64, f64)>| -> Correlation {
            let (x, y): (Vec<f64>, Vec<f64>) = rows.into_iter().unzip();
            correlation(&x, &y)
        };
        prop_assert_eq!(of(spoiled.clone()), of(kept.collect()));

        // One after the other beside the same reference: what is kept of one does not get into the next.
        let (x, y): (Vec<f64>, Vec<f64>) = spoiled.into_iter().unzip();
        let mut reversed = x.clone();
        reversed.reverse();
        let mut reference = Reference::new(y.iter().copied()).unwrap();
        for column in [&x, &x, &reversed, &x, &y] {
            let found = reference.correlation(column.iter().copied()).unwrap();
            prop_assert_eq!(found, correlation(column, &y));
        }
    }
}

/// So many values that they are sorted another way: ranks are still those counted one by one.
#[test]
fn many_values_are_ranked_alike() {
    // two of Knuth's multipliers: any numbers, and some that often are the same
    let mixed = |i: u64| {
        i.wrapping_mul(6_364_136_223_846_793_005).rotate_left(29).wrapping_mul(1_442_695_040_888_963_407)
    };
    let x: Vec<f64> = (0..5_000).map(|i| (mixed(i) % 1_800) as f64 / 7.0 - 128.0).collect();
    let y: Vec<f64> = (0..5_000).map(|i| f64::from_bits(mixed(i))).collect();
    let y: Vec<f64> = y.into_iter().map(|y| if y.is_finite() { y } else { -0.0 }).collect();
    for (x, y) in [(&x, &y), (&y, &x), (&x, &x)] {
        let found = correlation(x, y);
        let expected = reference(&ranks(x), &ranks(y));
        assert!(is_close(found.spearman, expected, 1e-15), "{found:?} {expected:?}");
    }
}

#[test]
fn lines_and_constants() {
    let x: Vec<f64> = (0..1000).map(f64::from).collect();
    let line: Vec<f64> = x.iter().map(|x| 3.0 - 0.25 * x).collect();
    let cubes: Vec<f64> = x.iter().map(|x| x.powi(3)).collect();
    let of = |x: &[f64], y: &[f64]| correlation(x, y);
    assert_eq!(of(&x, &line), Correlation { n: 1000, pearson: Some(-1.0), spearman: Some(-1.0) });
    assert_eq!(of(&x, &cubes).spearman, Some(1.0), "they rise together");
    assert!(of(&x, &cubes).pearson.unwrap() < 0.95);
    assert_eq!(of(&x, &[7.0; 1000]), Correlation { n: 1000, pearson: None, spearman: None });
    assert_eq!(of(&[], &[]), Correlation { n: 0, pearson: None, spearman: None });
    assert_eq!(of(&[f64::MAX, f64::MIN, 0.0], &[1.0, -1.0, 0.0]).pearson, Some(1.0), "no overflow");
    assert_eq!(of(&[5e-324, 0.0, 1e-300], &[0.0, 0.0, 1.0]).pearson, Some(1.0), "nor underflow");
}
