//! Arithmetic that bounds its own error, against exact rationals.

mod math_support;

use bqx_core::ball::Ball;
use bqx_core::fixed::Whole;
use bqx_core::int256::Int256;
use bqx_core::rounding::{Fused, Products, Split};
use bqx_core::scatter::{ScatterFrame, ScatterSums};
use math_support::{Random, Rational, exact, integer, is_nearest};
use num_bigint::BigInt;
use num_traits::{Signed, ToPrimitive, Zero};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 2000,
        rng_seed: RngSeed::Fixed(7),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// A ball with the number that it stands for.
struct Known<P> {
    ball: Ball<P>,
    exact: Rational,
}

impl<P: Products> Known<P> {
    fn check(&self) -> Result<(), TestCaseError> {
        let mid = exact(self.ball.mid().hi) + exact(self.ball.mid().lo);
        prop_assert!((mid - &self.exact).abs() <= exact(self.ball.radius()));
        let decided = self.ball.decide();
        prop_assert!(decided.is_nan() || is_nearest(decided, &self.exact));
        prop_assert!(!self.ball.is_not_zero() || !self.exact.is_zero());
        prop_assert!(!self.ball.is_zero() || self.exact.is_zero());
        Ok(())
    }

    /// An integer of up to `bits` bits.
    fn integer(random: &mut Random, bits: u64) -> Self {
        let size = 1 + random.below(bits) as u32;
        let n = (i128::from(random.bits() as i64) << 64 | i128::from(random.bits())) >> (128 - size);
        let wide = Int256::from(n).product(&Int256::from(random.bits() as i128 >> 32));
        if size > 100 {
            Known { ball: Ball::from_i256(wide), exact: Rational::from(wide.to_big()) }
        } else {
            Known { ball: Ball::from(n), exact: integer(n) }
        }
    }
}

/// A random walk through the four operations, each step checked.
fn walk<P: Products>(seed: u64, steps: usize) -> Result<(), TestCaseError> {
    let mut random = Random(seed);
    let mut known: Vec<Known<P>> = (0..4).map(|_| Known::integer(&mut random, 128)).collect();
    for _ in 0..steps {
        let mut pick = || &known[random.below(known.len() as u64) as usize];
        let (a, b) = (pick(), pick());
        let result = match random.below(4) {
            0 => Known { ball: a.ball + b.ball, exact: &a.exact + &b.exact },
            1 => Known { ball: a.ball - b.ball, exact: &a.exact - &b.exact },
            2 => Known { ball: a.ball * b.ball, exact: &a.exact * &b.exact },
            _ if b.ball.is_not_zero() => Known { ball: b.ball.reciprocal(), exact: b.exact.recip() },
            _ => continue,
        };
        result.check()?;
        let size = result.ball.mid().hi.abs();
        if size == 0.0 || (1e-60..1e60).contains(&size) {
            known.push(result);
        }
    }
    Ok(())
}

/// Sums of integers whose sizes in bits are given, far from their references or near.
fn frame(seed: u64, points: usize, x_bits: u32, y_bits: u32) -> ScatterFrame<Int256> {
    let mut random = Random(seed);
    let mut coordinate = |bits: u32| Int256::from(i128::from(random.bits() as i64 >> (63 - bits)));
    let all: Vec<_> = (0..points).map(|_| (coordinate(x_bits), coordinate(y_bits))).collect();
    let mut sums = ScatterSums::default();
    all.iter().for_each(|(x, y)| sums.push(x, y));
    let largest = |point: &&(Int256, Int256)| (point.0.to_i128(), point.1.to_i128());
    ScatterFrame {
        sums,
        x_reference: coordinate(x_bits),
        y_reference: coordinate(y_bits),
        x_exponent: random.below(601) as i32 - 300,
        y_exponent: random.below(601) as i32 - 300,
        end: *all.iter().max_by_key(largest).expect("points"),
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn balls_hold_their_numbers(seed: u64, steps in 1usize..40) {
        walk::<Fused>(seed, steps)?;
        walk::<Split>(seed, steps)?;
    }

    /// Estimated fits are the exact ones, with either kind of products.
    #[test]
    fn estimated_fits_are_exact(seed: u64, points in 3usize..60, x_bits in 2u32..58, y_bits in 1u32..61) {
        let frame = frame(seed, points, x_bits, y_bits);
        let exactly = frame.fit();
        for estimate in [frame.estimate::<Fused>(), frame.estimate::<Split>()].into_iter().flatten() {
            prop_assert_eq!(Some(estimate), exactly);
        }
    }
}

/// The point of estimating: ordinary frames need no big integers.
#[test]
fn nearly_all_ordinary_fits_are_decided() {
    let decided = (0..1000).filter(|&seed| {
        let mut frame = frame(seed, 60, 30, 50);
        (frame.x_exponent, frame.y_exponent) = (0, -46);
        frame.estimate::<Split>().is_some()
    });
    assert!(decided.count() >= 999);
}

#[test]
fn integers_of_256_bits_are_integers() {
    let mut random = Random(1);
    for _ in 0..1000 {
        let [a, b, c] = [0; 3].map(|_| i128::from(random.bits() as i64));
        let n = Int256::from(a).product(&Int256::from(b)).product(&Int256::from(c)).scaled_up(20).times(-3);
        let big = ((BigInt::from(a) * b * c) << 20) * -3;
        assert_eq!(n.to_big(), big);
        let about = big.to_f64().unwrap();
        assert!((n.to_f64() - about).abs() <= about.abs() * 2f64.powi(-50));
        let small = Int256::from(a);
        assert!((small.to_f64() - a as f64).abs() <= (a as f64).abs() * 2f64.powi(-50), "{a}");
        assert_eq!(u64::from(n.bit_length()), big.bits());
        assert_eq!(n.to_i128(), i128::try_from(&big).ok());
        assert_eq!(BigInt::from(n.shifted_right(130)), &big >> 130);
        assert_eq!(Int256::from(<(i128, u128)>::from(n)), n);
    }
}
