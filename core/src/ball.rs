//! Midpoint-radius arithmetic: double-doubles that carry a bound on their own error.
//!
//! For formulas too long to bound by hand: every operation adds what it may have lost to the radius, and at the end
//! [`Ball::decide`] rounds the result if all numbers within the radius round to the same double (after F. Johansson,
//! "Arb", 2017; the rounding test is Ziv's).

use std::marker::PhantomData;
use std::ops::{Add, Mul, Sub};

use crate::int256::Int256;
use crate::rounding::{DoubleDouble, Products};

/// A number within `radius` of `mid`. Exact as long as nothing over- or underflows; an infinite or NaN radius stands
/// for "unknown".
#[derive(Debug)]
pub struct Ball<P> {
    mid: DoubleDouble,
    radius: f64,
    products: PhantomData<P>,
}

impl<P> Clone for Ball<P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for Ball<P> {}

/// What a sum may lose, relative to the magnitudes of its terms: [`DoubleDouble::plus`] loses at most 6·2^-106.
const SUM_LOSS: f64 = power(-102);
/// What a product may lose, relative to itself: [`DoubleDouble::times`] loses at most 12·2^-106.
const PRODUCT_LOSS: f64 = power(-101);
/// What a reciprocal may lose, relative to itself: [`DoubleDouble::reciprocal`] loses at most 11·2^-106.
const RECIPROCAL_LOSS: f64 = power(-101);
/// Covers the roundings of a radius itself, and that magnitudes are taken of the upper halves.
const SLACK: f64 = 1.0 + power(-40);

const fn power(exponent: i32) -> f64 {
    f64::from_bits(((1023 + exponent) as u64) << 52)
}

impl<P: Products> Ball<P> {
    fn new(mid: DoubleDouble, radius: f64) -> Self {
        Ball { mid, radius: radius * SLACK, products: PhantomData }
    }

    /// `n`, exactly if it has no more than 105 significant bits.
    #[inline(always)]
    pub fn from_i256(n: Int256) -> Self {
        let (mid, error) = n.to_double_double();
        Ball::new(mid, error)
    }

    /// The number is within `radius` of this.
    pub fn mid(self) -> DoubleDouble {
        self.mid
    }

    pub fn radius(self) -> f64 {
        self.radius
    }

    /// `1 / self`; unknown if 0 is within the radius.
    #[inline(always)]
    pub fn reciprocal(self) -> Self {
        let mid = DoubleDouble::reciprocal::<P>(self.mid);
        let left = self.mid.magnitude() - self.radius * SLACK;
        // |1/(m + r) - 1/m| <= r / (|m|·(|m| - r))
        let radius =
            if left > 0.0 { mid.magnitude() * (self.radius / left + RECIPROCAL_LOSS) } else { f64::NAN };
        Ball::new(mid, radius)
    }

    /// The double nearest to the number, or NaN if the radius leaves a choice. Never -0.
    #[inline(always)]
    pub fn decide(self) -> f64 {
        let below = self.mid.hi + (self.mid.lo - self.radius);
        let above = self.mid.hi + (self.mid.lo + self.radius);
        (if below == above { below } else { f64::NAN }) + 0.0
    }

    /// Whether the number cannot be 0.
    #[inline(always)]
    pub fn is_not_zero(self) -> bool {
        self.mid.magnitude() > self.radius * 2.0
    }

    /// Whether the number is 0.
    #[inline(always)]
    pub fn is_zero(self) -> bool {
        self.mid.hi == 0.0 && self.mid.lo == 0.0 && self.radius == 0.0
    }
}

/// Exactly, for |n| < 2^106.
impl<P: Products> From<i128> for Ball<P> {
    #[inline(always)]
    fn from(n: i128) -> Self {
        Ball::new(DoubleDouble::from_integer(n), 0.0)
    }
}

impl<P: Products> Add for Ball<P> {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        let loss = (self.mid.magnitude() + other.mid.magnitude()) * SUM_LOSS;
        Ball::new(self.mid.plus(other.mid), self.radius + other.radius + loss)
    }
}

impl<P: Products> Sub for Ball<P> {
    type Output = Self;

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        let loss = (self.mid.magnitude() + other.mid.magnitude()) * SUM_LOSS;
        Ball::new(self.mid.minus(other.mid), self.radius + other.radius + loss)
    }
}

impl<P: Products> Mul for Ball<P> {
    type Output = Self;

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        let mid = self.mid.times::<P>(other.mid);
        let (a, b) = (self.mid.magnitude(), other.mid.magnitude());
        let radius =
            a * other.radius + b * self.radius + self.radius * other.radius + mid.magnitude() * PRODUCT_LOSS;
        Ball::new(mid, radius)
    }
}
