//! Fits of points (x, y) with any x, against exact rationals and against a solver in floating point.

mod math_support;

use std::collections::VecDeque;

use bqx_core::quadratic::QuadraticFit;
use bqx_core::quadratic_aggregate::QuadraticAggregate;
use bqx_core::scatter_aggregate::ScatterAggregate;
use math_support::{Expected, Random, Rational, Series, exact, integer, is_nearest, root, solve_parabola};
use nalgebra::{Matrix3, Vector3};
use num_traits::{One, Signed, Zero};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

type Point = (f64, f64);

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 100,
        rng_seed: RngSeed::Fixed(6),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Kinds of x: what people have on that axis, and what is hard.
#[derive(Clone, Copy, Debug)]
enum Abscissa {
    Counter,
    /// Minutes, in seconds since 1970, with gaps.
    Epoch,
    /// Few different values.
    Repeated,
    Of(Series),
}

fn abscissa() -> impl Strategy<Value = Abscissa> {
    prop_oneof![
        Just(Abscissa::Counter),
        Just(Abscissa::Epoch),
        Just(Abscissa::Repeated),
        prop::sample::select(&Series::ALL[..]).prop_map(Abscissa::Of),
    ]
}

impl Abscissa {
    fn values(self, seed: u64, len: usize) -> Vec<f64> {
        let mut random = Random(seed ^ 3);
        match self {
            Abscissa::Counter => (0..len).map(|x| x as f64).collect(),
            Abscissa::Epoch => {
                let mut time = 1.72e9;
                let mut next = || {
                    time += 60.0 * (1 + random.below(4)) as f64;
                    time
                };
                (0..len).map(|_| next()).collect()
            }
            Abscissa::Repeated => (0..len).map(|_| random.below(4) as f64 / 3.0).collect(),
            Abscissa::Of(series) => series.values(seed ^ 9, len),
        }
    }
}

/// What the fit of points must be, straight from the definitions; `None` without three distinct x.
fn expected(points: &[Point]) -> Option<[Expected; 8]> {
    let exactly: Vec<(Rational, Rational)> = points.iter().map(|&(x, y)| (exact(x), exact(y))).collect();
    let [a, b, c] = solve_parabola(&exactly)?;
    let fit = |x: &Rational| (&a * x + &b) * x + &c;
    let sum = |terms: Vec<Rational>| terms.iter().fold(Rational::zero(), |sum, term| sum + term);
    let n = integer(points.len() as i128);
    let mean = sum(exactly.iter().map(|(_, y)| y.clone()).collect()) / &n;
    let square = |difference: Rational| &difference * &difference;
    let total = sum(exactly.iter().map(|(_, y)| square(y - &mean)).collect());
    let left = sum(exactly.iter().map(|(x, y)| square(y - fit(x))).collect());
    let (x, y) = exactly.iter().max().expect("points");
    let r2 = if total.is_zero() { Rational::one() } else { Rational::one() - &left / &total };
    Some([
        Expected::Nearest(a.clone()),
        Expected::Nearest(b.clone()),
        Expected::Nearest(c.clone()),
        Expected::Nearest(r2),
        Expected::Bits(root(&(left / n))),
        Expected::Nearest(fit(x)),
        Expected::Nearest(y - fit(x)),
        Expected::Nearest(integer(2) * &a * x + &b),
    ])
}

fn check(fit: Option<QuadraticFit>, points: &[Point]) -> Result<(), TestCaseError> {
    let finite = points.iter().all(|(x, y)| x.is_finite() && y.is_finite());
    let expected = if finite { expected(points) } else { None };
    prop_assert_eq!(fit.is_some(), expected.is_some(), "{:?}", points);
    let (Some(fit), Some(expected)) = (fit, expected) else { return Ok(()) };
    for (i, (value, expected)) in fit.to_array().into_iter().zip(&expected).enumerate() {
        prop_assert!(expected.is(value), "metric {i} = {value:e} of {points:?}");
    }
    Ok(())
}

/// Correlation and weighted mean of finite points, straight from the definitions: the root of a nearest double, and a nearest one.
fn check_means(aggregate: &ScatterAggregate, points: &[Point]) -> Result<(), TestCaseError> {
    let exactly: Vec<(Rational, Rational)> = points.iter().map(|&(x, y)| (exact(x), exact(y))).collect();
    let sum = |term: &dyn Fn(&(Rational, Rational)) -> Rational| exactly.iter().map(term).sum::<Rational>();
    let n = integer(points.len().max(1) as i128);
    let (x_mean, y_mean) = (sum(&|p| p.0.clone()) / &n, sum(&|p| p.1.clone()) / &n);
    let xx = sum(&|(x, _)| (x - &x_mean) * (x - &x_mean));
    let yy = sum(&|(_, y)| (y - &y_mean) * (y - &y_mean));
    let xy = sum(&|(x, y)| (x - &x_mean) * (y - &y_mean));
    let (weighted, weight) = (sum(&|(x, y)| x * y), sum(&|(x, _)| x.clone()));

    match aggregate.correlation() {
        Some(found) => {
            prop_assert!(Expected::Bits(root(&(&xy * &xy / (&xx * &yy)))).is(found.abs()), "{points:?}");
            prop_assert_eq!(found < 0.0, xy.is_negative() && found != 0.0);
        }
        None => prop_assert!(xx.is_zero() || yy.is_zero()),
    }
    match aggregate.weighted_mean() {
        Some(found) => prop_assert!(Expected::Nearest(weighted / weight).is(found), "{points:?}"),
        None => prop_assert!(weight.is_zero()),
    }
    Ok(())
}

fn points(x: Abscissa, y: Series, seed: u64, len: usize) -> Vec<Point> {
    x.values(seed, len).into_iter().zip(y.values(seed, len)).collect()
}

fn grown(points: &[Point]) -> ScatterAggregate {
    let mut aggregate = ScatterAggregate::growing();
    points.iter().for_each(|&point| aggregate.push(Some(point)).expect("memory"));
    aggregate
}

fn bits(fit: Option<QuadraticFit>) -> Option<[u64; 8]> {
    fit.map(|fit| fit.to_array().map(f64::to_bits))
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn moving_fits_are_exact(
        x in abscissa(),
        y in prop::sample::select(&Series::ALL[..]),
        hard in prop::sample::select(&Series::ALL[..]),
        seed: u64,
        longest in 1usize..14,
    ) {
        let mut all = points(x, y, seed, 30);
        all.extend(points(Abscissa::Of(hard), hard, seed, 10));
        all.push((1.0, f64::NAN));
        all.push((f64::INFINITY, 1.0));
        all.extend(points(x, y, seed ^ 1, 40));
        let mut aggregate = ScatterAggregate::moving();
        let mut frame = VecDeque::new();
        for (i, &(x, y)) in all.iter().enumerate() {
            frame.push_back((x, y));
            aggregate.push(Some((x, y))).expect("memory");
            while frame.len() > longest {
                let (x, y) = frame.pop_front().expect("not empty");
                prop_assert!(aggregate.drop_oldest(Some((x, y))));
            }
            prop_assert_eq!(aggregate.len(), frame.len());
            if i % 4 == 0 {
                check(aggregate.fit(), frame.make_contiguous())?;
                if frame.iter().all(|(x, y)| x.is_finite() && y.is_finite()) {
                    check_means(&aggregate, frame.make_contiguous())?;
                } else {
                    prop_assert_eq!((aggregate.correlation(), aggregate.weighted_mean()), (None, None));
                }
            }
        }
    }

    /// However the points are spread over partial aggregates, serialised or not, in whatever order: the same bits.
    #[test]
    fn partial_aggregates_give_the_same_bits(
        x in abscissa(),
        y in prop::sample::select(&Series::ALL[..]),
        seed: u64,
        cuts in prop::collection::vec(0usize..24, 0..4),
        reversed: bool,
    ) {
        let all = points(x, y, seed, 24);
        let whole = grown(&all).fit();
        check(whole, &all)?;
        let mut ends: Vec<usize> = cuts.into_iter().chain([0, all.len()]).collect();
        ends.sort();
        let mut parts: Vec<ScatterAggregate> = ends.windows(2).map(|cut| grown(&all[cut[0]..cut[1]])).collect();
        if reversed {
            parts.reverse();
        }
        let mut merged = ScatterAggregate::growing();
        for part in &parts {
            let bytes = postcard::to_allocvec(part).unwrap();
            merged.merge(&postcard::from_bytes(&bytes).unwrap());
        }
        prop_assert_eq!(merged.len(), all.len());
        prop_assert_eq!(bits(merged.fit()), bits(whole));
        check_means(&merged, &all)?;
    }

    /// On x = 0 … n-1 it is the other aggregate.
    #[test]
    fn the_counter_gives_the_fit_of_the_sequence(y in prop::sample::select(&Series::ALL[..]), seed: u64, len in 0usize..40) {
        let all = points(Abscissa::Counter, y, seed, len);
        let mut sequence = QuadraticAggregate::growing();
        all.iter().for_each(|&(_, y)| sequence.push(Some(y)).expect("memory"));
        prop_assert_eq!(bits(grown(&all).fit()), bits(sequence.fit()));
    }
}

/// A solver of another kind: nalgebra's LU decomposition of centred, scaled moments in doubles.
#[test]
fn a_floating_point_solver_agrees_to_its_precision() {
    for seed in 0..50 {
        let all = points(Abscissa::Epoch, Series::Ordinary, seed, 200);
        let fit = grown(&all).fit().expect("distinct x");
        let n = all.len() as f64;
        let mean = all.iter().map(|point| point.0).sum::<f64>() / n;
        let scale = all.iter().map(|point| (point.0 - mean).abs()).fold(0.0, f64::max);
        let mut normal = Matrix3::zeros();
        let mut right = Vector3::zeros();
        for &(x, y) in &all {
            let z = (x - mean) / scale;
            let powers = Vector3::new(z * z, z, 1.0);
            normal += powers * powers.transpose();
            right += powers * y;
        }
        let solution = normal.lu().solve(&right).expect("regular");
        let end = (all[all.len() - 1].0 - mean) / scale;
        let yhat = (solution[0] * end + solution[1]) * end + solution[2];
        let slope = (2.0 * solution[0] * end + solution[1]) / scale;
        let a = solution[0] / (scale * scale);
        let close = |one: f64, other: f64, size: f64| (one - other).abs() <= 1e-9 * size;
        assert!(close(fit.yhat_end, yhat, 100.0), "{} {yhat}", fit.yhat_end);
        assert!(close(fit.slope_end, slope, 1.0 / scale), "{} {slope}", fit.slope_end);
        assert!(close(fit.a, a, 1.0 / scale / scale), "{} {a}", fit.a);
    }
}

#[test]
fn the_end_is_the_point_of_greatest_x_in_any_order() {
    let ascending = [(1.0, 3.0), (2.0, 1.0), (4.0, 8.0), (5.0, 2.0), (5.0, 7.0)];
    let mut descending = ascending;
    descending.reverse();
    let fit = grown(&ascending).fit().unwrap();
    assert_eq!(Some(fit), grown(&descending).fit());
    assert!(is_nearest(
        fit.resid_end,
        &(exact(7.0) - {
            let [a, b, c] = solve_parabola(&ascending.map(|(x, y)| (exact(x), exact(y)))).unwrap();
            (a * integer(5) + b) * integer(5) + c
        })
    ));
}

#[test]
fn fewer_than_three_distinct_x_have_no_fit() {
    let two = [(1.5, 1.0), (2.5, 2.0), (1.5, 5.0), (2.5, 4.0), (1.5, 0.0)];
    assert_eq!(grown(&two).fit(), None);
    let apart = [(0.0, 1.0), (f64::from_bits(1), 2.0), (f64::MAX, 3.0)];
    assert!(grown(&apart).fit().is_some());
}
