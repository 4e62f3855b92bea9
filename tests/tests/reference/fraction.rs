//! Exact numbers, and which double is nearest to them.

use std::cmp::Ordering;

use num_bigint::BigInt;
use num_traits::{One, Signed, ToPrimitive, Zero};

/// `numerator / denominator * 2^exponent`. Not reduced: common divisors take longer to find than they save.
pub struct Fraction {
    pub numerator: BigInt,
    /// Positive.
    pub denominator: BigInt,
    pub exponent: i64,
}

/// A finite double as `significand * 2^exponent`. Infinities are what would follow the greatest double.
fn parts(value: f64) -> (BigInt, i64) {
    assert!(!value.is_nan());
    let bits = value.to_bits();
    let (field, fraction) = ((bits >> 52) & 0x7ff, bits & ((1 << 52) - 1));
    let (significand, exponent) =
        if field == 0 { (fraction, -1074) } else { (fraction + (1 << 52), field as i64 - 1075) };
    let magnitude = BigInt::from(significand);
    (if value < 0.0 { -magnitude } else { magnitude }, exponent)
}

/// Finite doubles as integers times one power of two, whose exponent comes second.
pub fn on_one_grid(values: &[f64]) -> (Vec<BigInt>, i64) {
    let parts: Vec<_> = values.iter().map(|&value| parts(value)).collect();
    let exponent = parts.iter().map(|&(_, exponent)| exponent).min().unwrap_or(0);
    (parts.into_iter().map(|(significand, own)| significand << (own - exponent)).collect(), exponent)
}

impl Fraction {
    /// `denominator` may be negative, but not 0.
    pub fn new(numerator: BigInt, denominator: BigInt, exponent: i64) -> Fraction {
        assert!(!denominator.is_zero());
        let (numerator, denominator) =
            if denominator.is_negative() { (-numerator, -denominator) } else { (numerator, denominator) };
        Fraction { numerator, denominator, exponent }
    }

    fn scaled(&self, bits: i64) -> Fraction {
        let Fraction { numerator, denominator, exponent } = self;
        Fraction::new(numerator.clone(), denominator.clone(), exponent + bits)
    }

    /// Against `significand * 2^exponent`.
    fn compare(&self, significand: &BigInt, exponent: i64) -> Ordering {
        let lowest = self.exponent.min(exponent);
        let own = &self.numerator << (self.exponent - lowest);
        own.cmp(&((significand * &self.denominator) << (exponent - lowest)))
    }

    /// Against what lies in the middle of two neighbouring doubles.
    fn compare_middle(&self, value: f64, neighbour: f64) -> Ordering {
        let (both, exponent) = on_one_grid(&[value, neighbour]);
        self.compare(&(&both[0] + &both[1]), exponent - 1)
    }

    /// Whether `value` is the nearest double, ties to even, overflow to ±∞, and not -0.
    pub fn is_nearest(&self, value: f64) -> bool {
        if value.is_nan() || value.to_bits() == (-0.0f64).to_bits() {
            return false;
        }
        let even = value.to_bits() & 1 == 0;
        let reaches = |neighbour: f64, beyond: Ordering| {
            let side =
                if neighbour == value { Ordering::Equal } else { self.compare_middle(value, neighbour) };
            neighbour == value || side != beyond && (side != Ordering::Equal || even)
        };
        reaches(value.next_down(), Ordering::Less) && reaches(value.next_up(), Ordering::Greater)
    }

    /// `sqrt(rn(self))`, the documented sequence: rounded to 53 bits with an unbounded exponent, an even
    /// power of two away from trouble, and scaled back.
    pub fn root(&self) -> f64 {
        if self.numerator.is_zero() {
            return 0.0;
        }
        let size = self.numerator.bits() as i64 - self.denominator.bits() as i64 + self.exponent;
        let shift = size.div_euclid(2) * 2;
        let root = self.scaled(-shift).nearest_in_middle().sqrt();
        let (significand, exponent) = parts(root);
        let exact = Fraction::new(significand, BigInt::one(), exponent + shift / 2);
        let scaled = libm::ldexp(root, (shift / 2) as i32);
        assert!(exact.is_nearest(scaled));
        scaled
    }

    /// The nearest double of a positive number that is neither tiny nor huge.
    fn nearest_in_middle(&self) -> f64 {
        let bits = self.exponent + 60;
        let up = bits.max(0);
        let quotient = (&self.numerator << up) / (&self.denominator << (up - bits));
        let guess = quotient.to_f64().expect("middling") / 2f64.powi(60);
        [guess.next_down(), guess, guess.next_up()]
            .into_iter()
            .find(|&candidate| self.is_nearest(candidate))
            .expect("the guess is within an ulp")
    }
}
