//! Rounding: the slow paths against rationals, the fast ones against the slow.

mod math_support;

use bqx_core::rounding::*;
use math_support::{Rational, exact, integer, is_nearest, power_of_two, root};
use num_bigint::BigInt;
use num_traits::{Signed, Zero};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 2_000,
        rng_seed: RngSeed::Fixed(3),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn ratio(num: impl Into<BigInt>, den: impl Into<BigInt>, exp2: i64) -> Rational {
    Rational::new(num.into(), den.into()) * power_of_two(exp2)
}

fn is_close(value: DoubleDouble, target: &Rational, bits: i64) -> bool {
    (exact(value.hi) + exact(value.lo) - target).abs() <= target.abs() * power_of_two(-bits)
}

/// Integers of all lengths up to `bits`.
fn sized(bits: u32) -> impl Strategy<Value = i128> {
    (any::<i128>(), 128 - bits..128).prop_map(|(n, shift)| n >> shift)
}

#[test]
fn ties_subnormals_and_overflow() {
    let one = BigInt::from(1);
    let nearest = |n: i64, exp2| nearest_ratio(&BigInt::from(n), &one, exp2);
    let two_53 = 1i64 << 53;
    assert_eq!(nearest(two_53 + 1, 0), two_53 as f64, "a tie goes to even, down");
    assert_eq!(nearest(two_53 + 3, 0), (two_53 + 4) as f64, "a tie goes to even, up");
    assert_eq!(nearest(1, -1075), 0.0, "half the least double is a tie");
    assert_eq!(nearest(3, -1076), f64::from_bits(1));
    assert_eq!(nearest(3, -1075), f64::from_bits(2));
    assert_eq!(nearest(-1, -1075).to_bits(), 0, "never -0");
    assert_eq!(nearest(two_53 - 1, 971), f64::MAX);
    assert_eq!(
        nearest_ratio(&BigInt::from((1i128 << 54) - 1), &one, 970),
        f64::INFINITY,
        "a tie beyond the greatest"
    );
    assert_eq!(nearest(-1, 1024), f64::NEG_INFINITY);
    assert_eq!(nearest(1, i64::from(i32::MAX)), f64::INFINITY);
    assert_eq!(nearest(1, i64::from(i32::MIN)), 0.0);
    assert!(nearest_ratio(&one, &BigInt::ZERO, 0).is_nan());
    assert!(nearest_quotient(1, 0, 0).is_nan());
}

#[test]
fn roots_of_the_tiny_and_the_huge() {
    let one = BigInt::from(1);
    assert_eq!(root_of_ratio(&one, &one, -1074), f64::from_bits(1));
    assert_eq!(root_of_ratio(&one, &BigInt::from(5), -1074), 0.0);
    assert_eq!(root_of_ratio(&one, &BigInt::from(3), -1074), f64::from_bits(1));
    assert_eq!(root_of_ratio(&(BigInt::from(1) << 4000), &one, -2000), 1.0);
    assert_eq!(root_of_quotient(2, 1, 1024), f64::INFINITY);
    assert_eq!(root_of_quotient(0, 7, 0), 0.0);
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn nearest_ratio_is_nearest(num in sized(127), den in sized(120), exp2 in -1300i64..1200) {
        prop_assume!(den != 0);
        prop_assert!(is_nearest(nearest_ratio(&num.into(), &den.into(), exp2), &ratio(num, den, exp2)));
    }

    #[test]
    fn nearest_ratio_of_near_ties(value: u64, offset in -1i64..=1, exp2 in -1200i64..1000) {
        // 54 bits, and a little more or less than that.
        let num = (BigInt::from(value >> 10) << 70u32) + offset;
        prop_assert!(is_nearest(nearest_ratio(&num, &BigInt::from(1), exp2), &ratio(num, 1, exp2)));
    }

    #[test]
    fn nearest_quotient_is_nearest_ratio(num in sized(127), den in sized(72), exp2 in -1300i64..1200) {
        prop_assume!(den != 0);
        let wide = nearest_ratio(&num.into(), &den.into(), exp2);
        prop_assert_eq!(nearest_quotient(num, den, exp2).to_bits(), wide.to_bits());
    }

    #[test]
    fn roots_follow_the_documented_sequence(num in sized(127), den in sized(71)) {
        prop_assume!(den != 0);
        let (num, den) = (num.abs(), den.abs());
        let expected = root(&ratio(num, den, 0)).to_bits();
        prop_assert_eq!(root_of_quotient(num, den, 0).to_bits(), expected);
        prop_assert_eq!(root_of_ratio(&num.into(), &den.into(), 0).to_bits(), expected);
        prop_assert_eq!(root_of_ratio(&num.into(), &(BigInt::from(den) << 2000u32), 1000).to_bits(), expected);
    }

    #[test]
    fn integers_convert_exactly(n in sized(106)) {
        let converted = DoubleDouble::from_integer(n);
        prop_assert_eq!(exact(converted.hi) + exact(converted.lo), integer(n));
        prop_assert_eq!(converted.hi, n as f64, "normalised");
    }

    #[test]
    fn large_integers_convert_closely(n in sized(127)) {
        let n = n.abs();
        prop_assert!(is_close(DoubleDouble::from_large(n), &integer(n), 104));
    }

    #[test]
    fn quotients_and_reciprocals_are_close(num in sized(100), den in sized(72)) {
        prop_assume!(den != 0);
        prop_assert!(is_close(DoubleDouble::from_quotient(num, den), &ratio(num, den, 0), 105));
        let n = DoubleDouble::from_integer(den);
        prop_assert!(is_close(DoubleDouble::reciprocal::<Split>(n), &ratio(1, den, 0), 103));
        prop_assert!(is_close(DoubleDouble::reciprocal::<Fused>(n), &ratio(1, den, 0), 103));
    }

    #[test]
    fn products_are_exact_and_the_same(a in sized(106), b in sized(106)) {
        let (a, b) = (DoubleDouble::from_integer(a), DoubleDouble::from_integer(b));
        let product = Split::product(a.hi, b.hi);
        prop_assert_eq!(exact(product.hi) + exact(product.lo), exact(a.hi) * exact(b.hi));
        prop_assert_eq!(Fused::product(a.hi, b.hi), product);
        let both = (exact(a.hi) + exact(a.lo)) * (exact(b.hi) + exact(b.lo));
        prop_assert!(is_close(a.times::<Split>(b), &both, 103));
    }

    #[test]
    fn sums_are_close_to_their_terms(a in sized(106), b in sized(106), cancel: bool) {
        let b = if cancel { (b % 1000) - a } else { b };
        prop_assume!(b.unsigned_abs() < 1 << 106);
        let sum = DoubleDouble::from_integer(a).plus(DoubleDouble::from_integer(b));
        let error = (exact(sum.hi) + exact(sum.lo) - integer(a) - integer(b)).abs();
        prop_assert!(error <= (integer(a).abs() + integer(b).abs()) * power_of_two(-104));
    }

    /// A decision is right for everything within the bound, not only for the estimate itself.
    #[test]
    fn decisions_hold_within_the_bound(n in sized(106), den in 1i128..1000, tie: bool, side in -1i128..=1) {
        let n = if tie { ((n >> 53) * 2 + 1) * (1 << 20) * den } else { n };
        prop_assume!(n.unsigned_abs() < 1 << 106);
        let estimate = DoubleDouble::from_quotient(n, den);
        let decided = decide(estimate, estimate.magnitude());
        let target = ratio(n, den, 0);
        let at = &target + target.abs() * integer(side) * power_of_two(-99);
        prop_assert!(decided.is_nan() || is_nearest(decided, &at));
    }
}

#[test]
fn ties_are_left_undecided() {
    let tie = DoubleDouble { hi: 1.0, lo: f64::EPSILON / 2.0 };
    assert!(decide(tie, 1.0).is_nan());
    assert!(decide(DoubleDouble { hi: 1.0, lo: f64::EPSILON / 2.1 }, 1.0) == 1.0);
    assert!(decide(0.0.into(), 0.0).to_bits() == 0);
    assert!(exact(0.0).is_zero());
}
