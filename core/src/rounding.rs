//! The double nearest to an exact quotient.
//!
//! **The rule.** A result of this crate is the double nearest (ties to even) to the exact rational value of
//! its formula on the input doubles, with subnormals and overflow to ±∞ as IEEE 754 has them, and 0 always
//! +0. The exceptions are roots and what is made of them:
//!
//! * `stdev = sqrt(rn(V))` and `rmse = sqrt(rn(SSres / W))`, where `rn` is the nearest double with an unbounded
//!   exponent. The root is taken of an even power of two times that, so that nothing over- or underflows
//!   before it, and scaled back (which rounds only if the result is subnormal);
//! * `volatility = stdev / p(t)`, the IEEE quotient of the rounded deviation.
//!
//! A nearest double does not depend on how it was found. That is why the results do not depend on the
//! processor, on the position where a run started or on which of the paths below computed them.
//!
//! **The paths.** [`DoubleDouble`] values (unevaluated sums of two doubles, Dekker 1971) approximate a quotient
//! to about 100 bits; [`decide`] rounds them if their error bound allows one answer only (Ziv's test, 1991). What
//! stays undecided, about one in 2^44 of ordinary cases and every exact tie, goes to integers:
//! [`nearest_quotient`] or, without bounds, [`nearest_ratio`].

use num_bigint::{BigInt, BigUint, Sign};
use num_integer::Integer;
use num_traits::ToPrimitive;

/// Significant bits of a double.
const PRECISION: i64 = 53;
/// Exponent of the smallest positive double.
const LEAST_EXPONENT: i64 = -1074;

// ---------------------------------------------------------------------------------------------------------
// Integers: exact
// ---------------------------------------------------------------------------------------------------------

/// A positive number `(bits + something in [0, 1)) * 2^exponent`; the something is not 0 if `inexact`.
#[derive(Clone, Copy)]
struct Truncated {
    bits: u128,
    inexact: bool,
    exponent: i64,
}

impl Truncated {
    /// `num / den * 2^exp2`, to at least 56 bits. `den` must be below 2^72 and not 0, `num` not 0.
    fn quotient(num: u128, den: u128, exp2: i64) -> Truncated {
        debug_assert!(num != 0 && den != 0 && den < 1 << 72);
        let shift = num.leading_zeros();
        let (bits, rest) = (num << shift).div_rem(&den);
        Truncated { bits, inexact: rest != 0, exponent: exp2 - i64::from(shift) }
    }

    /// `num / den * 2^exp2`, to at least 66 bits. Neither may be 0.
    fn ratio(num: &BigUint, den: &BigUint, exp2: i64) -> Truncated {
        let shift = 67 - (num.bits() as i64 - den.bits() as i64);
        let (bits, rest) = if shift >= 0 {
            (num << shift as u64).div_rem(den)
        } else {
            num.div_rem(&(den << (-shift) as u64))
        };
        let bits = bits.to_u128().expect("a quotient of 68 bits");
        Truncated { bits, inexact: rest != BigUint::ZERO, exponent: exp2 - shift }
    }

    fn bit_length(self) -> i64 {
        i64::from(128 - self.bits.leading_zeros())
    }

    /// The nearest multiple of `2^unit`, ties to even, as that multiple.
    fn round_to(self, unit: i64) -> u64 {
        let drop = unit - self.exponent;
        if drop > self.bit_length() {
            return 0; // less than half a unit
        }
        debug_assert!((1..=128).contains(&drop), "too few bits to round");
        let kept = if drop == 128 { 0 } else { self.bits >> drop };
        let rest = self.bits << (128 - drop);
        const HALF: u128 = 1 << 127;
        let up = rest > HALF || rest == HALF && (self.inexact || kept & 1 == 1);
        kept as u64 + u64::from(up)
    }

    /// The nearest double.
    fn to_f64(self) -> f64 {
        let unit = (self.exponent + self.bit_length() - PRECISION).max(LEAST_EXPONENT);
        if unit > 1023 {
            return f64::INFINITY;
        }
        // The leading bit of a normal significand, 2^52, adds one to the exponent field; a carry to 2^53 two.
        let bits = (((unit - LEAST_EXPONENT) as u64) << 52) + self.round_to(unit);
        f64::from_bits(bits.min(f64::INFINITY.to_bits()))
    }

    /// `sqrt(rn(self)) * 2^exp2`, `rn` with an unbounded exponent.
    fn root(self, exp2: i64) -> f64 {
        let unit = self.exponent + self.bit_length() - PRECISION;
        let odd = unit.rem_euclid(2);
        let root = ((self.round_to(unit) << odd) as f64).sqrt();
        let (significand, exponent) = decompose(root);
        let bits = u128::from(significand.unsigned_abs()) << 11;
        Truncated { bits, inexact: false, exponent: i64::from(exponent) - 11 + (unit - odd) / 2 + exp2 }
            .to_f64()
    }
}

/// `value = significand * 2^exponent` of a finite value; the significand carries the sign and has at most 53 bits.
pub fn decompose(value: f64) -> (i64, i32) {
    let bits = value.to_bits();
    let field = (bits >> 52 & 0x7ff) as i32;
    let fraction = (bits & ((1 << 52) - 1)) as i64;
    let (magnitude, exponent) =
        if field == 0 { (fraction, -1074) } else { (fraction | 1 << 52, field - 1075) };
    (if value.is_sign_negative() { -magnitude } else { magnitude }, exponent)
}

/// Exponent of the lowest power of two in a finite value; that of 0 is above all.
pub(crate) fn lowest_power(value: f64) -> i32 {
    match decompose(value) {
        (0, _) => i32::MAX,
        (significand, exponent) => exponent + significand.trailing_zeros() as i32,
    }
}

/// `magnitude` with a sign, but never -0.
fn signed(negative: bool, magnitude: f64) -> f64 {
    (if negative { -magnitude } else { magnitude }) + 0.0
}

/// The double nearest to `num / den * 2^exp2`, ties to even; ±∞ on overflow, NaN if `den` is 0.
///
/// This is the slow path that everything else is measured against: it has no bounds.
pub fn nearest_ratio(num: &BigInt, den: &BigInt, exp2: i64) -> f64 {
    match (num.sign(), den.sign()) {
        (_, Sign::NoSign) => f64::NAN,
        (Sign::NoSign, _) => 0.0,
        (n, d) => signed(n != d, Truncated::ratio(num.magnitude(), den.magnitude(), exp2).to_f64()),
    }
}

/// [`nearest_ratio`] of machine integers; `den` must be below 2^72.
pub fn nearest_quotient(num: i128, den: i128, exp2: i64) -> f64 {
    match (num, den) {
        (_, 0) => f64::NAN,
        (0, _) => 0.0,
        _ => {
            let negative = (num < 0) != (den < 0);
            signed(negative, Truncated::quotient(num.unsigned_abs(), den.unsigned_abs(), exp2).to_f64())
        }
    }
}

/// `sqrt(rn(num / den)) * 2^exp2` for `num >= 0`, `den > 0`; `rn` is the nearest double with an unbounded
/// exponent.
pub fn root_of_ratio(num: &BigInt, den: &BigInt, exp2: i64) -> f64 {
    debug_assert!(num.sign() != Sign::Minus && den.sign() == Sign::Plus);
    if num.sign() == Sign::NoSign {
        return 0.0;
    }
    Truncated::ratio(num.magnitude(), den.magnitude(), 0).root(exp2)
}

/// [`root_of_ratio`] of machine integers; `den` must be below 2^72.
pub fn root_of_quotient(num: i128, den: i128, exp2: i64) -> f64 {
    debug_assert!(num >= 0 && den > 0);
    if num == 0 {
        return 0.0;
    }
    Truncated::quotient(num.unsigned_abs(), den.unsigned_abs(), 0).root(exp2)
}

// ---------------------------------------------------------------------------------------------------------
// Double-doubles: nearly exact, and they know how nearly
// ---------------------------------------------------------------------------------------------------------

/// Bound on the error of an estimate, relative to the sum of the magnitudes of its terms: 2^-98.
///
/// With u = 2^-53 and to first order in u²: constants are within u² of themselves, truncated integers within 4u²,
/// [`reciprocal`](DoubleDouble::reciprocal) adds 11u², [`times`](DoubleDouble::times) 12u², and
/// [`plus`](DoubleDouble::plus) 6u² of the magnitudes of what it adds (each is the sum of its roundings and of the
/// products that it leaves out; compare Joldes, Muller, Popescu 2017). An estimate here is a sum of at most five
/// terms, each a product of at most four factors whose own errors add up to at most 16u²:
/// 16u² + 3·12u² + 4·6u² = 76u². [`decide`] rounds `lo ± bound`, another 2u². The bound, 256u², is three times
/// that.
const RELATIVE_BOUND: f64 = f64::from_bits((1023 - 98) << 52);

/// An unevaluated sum `hi + lo` with `|lo|` at most a few units in the last place of `hi`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DoubleDouble {
    pub hi: f64,
    pub lo: f64,
}

/// How to get the exact product of two doubles. Implementations give the same bits.
pub trait Products {
    /// `a * b` exactly, as long as nothing over- or underflows.
    fn product(a: f64, b: f64) -> DoubleDouble;
}

/// Products by fused multiply-add: for processors that have it.
pub struct Fused;

impl Products for Fused {
    #[inline(always)]
    fn product(a: f64, b: f64) -> DoubleDouble {
        let hi = a * b;
        DoubleDouble { hi, lo: a.mul_add(b, -hi) }
    }
}

impl Fused {
    /// Whether the processor has fused multiply-add (and 256-bit vectors where that is a question).
    fn is_available() -> bool {
        #[cfg(target_arch = "x86_64")]
        return is_x86_feature_detected!("fma") && is_x86_feature_detected!("avx2");
        #[cfg(not(target_arch = "x86_64"))]
        return cfg!(target_arch = "aarch64");
    }
}

/// A computation with products of either kind, whose results do not depend on the kind.
pub trait WithProducts {
    type Output;

    /// To be `#[inline(always)]`: compiled once for each kind of processor. (Results go through a reference of their
    /// own so that loops over lanes become vector instructions: the compiler knows that it aliases nothing.)
    fn run<P: Products>(&self, output: &mut Self::Output);
}

/// Runs a computation with the products that the processor does best; portable ones, if asked for.
#[inline]
pub fn with_best_products<C: WithProducts>(computation: &C, portable: bool, output: &mut C::Output) {
    if !portable && Fused::is_available() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: [`Fused::is_available`] asks the processor for both features.
        return unsafe { run_fused(computation, output) };
        #[cfg(target_arch = "aarch64")]
        return computation.run::<Fused>(output);
    }
    computation.run::<Split>(output)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_fused<C: WithProducts>(computation: &C, output: &mut C::Output) {
    computation.run::<Fused>(output)
}

/// Products by splitting the factors into halves (Dekker, Veltkamp): for all processors.
pub struct Split;

impl Split {
    #[inline(always)]
    fn halves(a: f64) -> (f64, f64) {
        const SPLITTER: f64 = 134_217_729.0; // 2^27 + 1
        let scaled = SPLITTER * a;
        let high = scaled - (scaled - a);
        (high, a - high)
    }
}

impl Products for Split {
    #[inline(always)]
    fn product(a: f64, b: f64) -> DoubleDouble {
        let ((ah, al), (bh, bl)) = (Self::halves(a), Self::halves(b));
        let hi = a * b;
        DoubleDouble { hi, lo: ((ah * bh - hi) + ah * bl + al * bh) + al * bl }
    }
}

/// `a + b` exactly (Knuth's two-sum).
#[inline(always)]
pub fn two_sum(a: f64, b: f64) -> DoubleDouble {
    let hi = a + b;
    let b_part = hi - a;
    DoubleDouble { hi, lo: (a - (hi - b_part)) + (b - b_part) }
}

/// A sum whose rounding errors are summed beside it (Neumaier 1974).
#[derive(Clone, Copy, Debug, Default)]
pub struct CompensatedSum {
    sum: f64,
    error: f64,
}

impl CompensatedSum {
    #[inline]
    pub fn add(&mut self, value: f64) {
        let sum = two_sum(self.sum, value);
        self.sum = sum.hi;
        self.error += sum.lo;
    }

    /// Adds what another has summed.
    #[inline]
    pub fn merge(&mut self, other: CompensatedSum) {
        self.add(other.sum);
        self.error += other.error;
    }

    #[inline]
    pub fn value(self) -> f64 {
        self.sum + self.error
    }
}

impl FromIterator<f64> for CompensatedSum {
    #[inline]
    fn from_iter<V: IntoIterator<Item = f64>>(values: V) -> CompensatedSum {
        let mut sum = CompensatedSum::default();
        values.into_iter().for_each(|value| sum.add(value));
        sum
    }
}

impl DoubleDouble {
    /// `hi + lo` exactly, if `hi` is 0 or not smaller than `lo` (Dekker's fast two-sum).
    #[inline(always)]
    fn normalized(hi: f64, lo: f64) -> DoubleDouble {
        let sum = hi + lo;
        DoubleDouble { hi: sum, lo: lo - (sum - hi) }
    }

    /// `n` exactly, for |n| < 2^106.
    #[inline(always)]
    pub fn from_integer(n: i128) -> DoubleDouble {
        const UNIT: f64 = (1u64 << 53) as f64;
        debug_assert!(n.unsigned_abs() < 1 << 106);
        let low = n as i64 & ((1 << 53) - 1);
        Self::normalized((n >> 53) as i64 as f64 * UNIT, low as f64)
    }

    /// `n` to within 2^-104 of itself, for 0 <= n < 2^127.
    #[inline(always)]
    pub fn from_large(n: i128) -> DoubleDouble {
        const MASK: i64 = (1 << 42) - 1;
        const UNIT: f64 = (1u64 << 42) as f64;
        debug_assert!(n >= 0);
        let parts = [(n >> 84) as i64, (n >> 42) as i64 & MASK, n as i64 & MASK].map(|part| part as f64);
        let top = Self::normalized(parts[0] * (UNIT * UNIT), parts[1] * UNIT);
        Self::normalized(top.hi, top.lo + parts[2])
    }

    /// `num / den` to within 2^-106 of itself; `den` must be below 2^72 and not 0.
    pub fn from_quotient(num: i128, den: i128) -> DoubleDouble {
        const EXACT: u128 = 1 << f64::MANTISSA_DIGITS;
        if num.unsigned_abs() <= EXACT && den.unsigned_abs() <= EXACT {
            // Both are doubles, and so is the remainder of a rounded quotient: fused multiply-add finds it exactly.
            let (num, den) = (num as f64, den as f64);
            let hi = num / den;
            return DoubleDouble { hi, lo: (-hi).mul_add(den, num) / den };
        }
        Self::from_long_quotient(num, den)
    }

    fn from_long_quotient(num: i128, den: i128) -> DoubleDouble {
        let hi = nearest_quotient(num, den, 0);
        let (significand, exponent) = decompose(hi);
        let rest = |num: BigInt, significand: BigInt| num - significand * den;
        let lo = if exponent < 0 {
            let rest = rest(BigInt::from(num) << -exponent, significand.into());
            nearest_ratio(&rest, &den.into(), exponent.into())
        } else {
            nearest_ratio(&rest(num.into(), BigInt::from(significand) << exponent), &den.into(), 0)
        };
        DoubleDouble { hi, lo }
    }

    /// `1 / a`; infinities and NaN if `a` is 0.
    #[inline(always)]
    pub fn reciprocal<P: Products>(a: DoubleDouble) -> DoubleDouble {
        let hi = 1.0 / a.hi;
        // One Newton step: the residual 1 - hi·a is about u, its first subtraction exact (Sterbenz).
        let product = P::product(hi, a.hi);
        let residual = ((1.0 - product.hi) - product.lo) - hi * a.lo;
        DoubleDouble { hi, lo: hi * residual }
    }

    #[inline(always)]
    pub fn times<P: Products>(self, other: DoubleDouble) -> DoubleDouble {
        let product = P::product(self.hi, other.hi);
        Self::normalized(product.hi, product.lo + (self.hi * other.lo + self.lo * other.hi))
    }

    /// The sum, to within 6u² of the sum of the magnitudes (not of the result, which may cancel).
    #[inline(always)]
    pub fn plus(self, other: DoubleDouble) -> DoubleDouble {
        let sum = two_sum(self.hi, other.hi);
        Self::normalized(sum.hi, sum.lo + (self.lo + other.lo))
    }

    #[inline(always)]
    pub fn minus(self, other: DoubleDouble) -> DoubleDouble {
        self.plus(other.negated())
    }

    #[inline(always)]
    pub fn negated(self) -> DoubleDouble {
        DoubleDouble { hi: -self.hi, lo: -self.lo }
    }

    /// About the absolute value: what bounds are relative to.
    #[inline(always)]
    pub fn magnitude(self) -> f64 {
        self.hi.abs()
    }
}

impl From<f64> for DoubleDouble {
    #[inline(always)]
    fn from(hi: f64) -> Self {
        DoubleDouble { hi, lo: 0.0 }
    }
}

/// The double nearest to the exact value behind `estimate`, or NaN if that cannot be told (Ziv's test).
/// `magnitude` is the sum of the magnitudes of the estimate's terms. Never -0.
///
/// The exact value lies between `hi + (lo - bound)` and `hi + (lo + bound)`; rounding is monotonic, so if both
/// round to the same double, that is the one. Estimates of exact zeros, all terms 0, pass.
#[inline(always)]
pub fn decide(estimate: DoubleDouble, magnitude: f64) -> f64 {
    let bound = magnitude * RELATIVE_BOUND;
    let below = estimate.hi + (estimate.lo - bound);
    let above = estimate.hi + (estimate.lo + bound);
    (if below == above { below } else { f64::NAN }) + 0.0
}
