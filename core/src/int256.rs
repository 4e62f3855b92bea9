//! Integers of 256 bits, as [`Whole`] numbers.

use std::ops::{Add, AddAssign, SubAssign};

use ethnum::I256;
use num_bigint::BigInt;
use num_traits::Zero;
use serde::{Deserialize, Serialize};

use crate::fixed::{Whole, power_of_two};
use crate::rounding::DoubleDouble;

/// An integer of 256 bits. Whoever computes with them knows bounds: overflow is a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "(i128, u128)", from = "(i128, u128)")]
pub struct Int256(I256);

impl Int256 {
    /// `None` beyond 128 bits.
    #[inline(always)]
    pub fn to_i128(self) -> Option<i128> {
        let (high, low) = self.0.into_words();
        (high == low >> 127).then_some(low)
    }

    /// About the same number: within 2^-50 of it.
    #[inline(always)]
    pub fn to_f64(self) -> f64 {
        const HIGH: f64 = 2.0 * (1u128 << 127) as f64;
        let (high, low) = self.0.unsigned_abs().into_words();
        let magnitude = high as f64 * HIGH + low as f64;
        if self.0.is_negative() { -magnitude } else { magnitude }
    }

    /// The same number: exactly, if it has no more than 105 significant bits, else to within the error given, 2^-104 of
    /// it.
    #[inline(always)]
    pub fn to_double_double(self) -> (DoubleDouble, f64) {
        match self.to_i128().filter(|n| n.unsigned_abs() < 1 << 105) {
            Some(n) => (DoubleDouble::from_integer(n), 0.0),
            None => {
                let shift = self.bit_length().saturating_sub(105);
                let unit = power_of_two(shift as i32);
                let top = DoubleDouble::from_integer(self.shifted_right(shift));
                (DoubleDouble { hi: top.hi * unit, lo: top.lo * unit }, unit)
            }
        }
    }

    /// Significant bits.
    pub fn bit_length(self) -> u32 {
        256 - self.0.unsigned_abs().leading_zeros()
    }

    /// `self / 2^bits`, rounded down, which must fit 128 bits.
    pub fn shifted_right(self, bits: u32) -> i128 {
        (self.0 >> bits).as_i128()
    }
}

impl From<Int256> for (i128, u128) {
    fn from(n: Int256) -> Self {
        let (high, low) = n.0.into_words();
        (high, low as u128)
    }
}

impl From<(i128, u128)> for Int256 {
    fn from((high, low): (i128, u128)) -> Self {
        Int256(I256::from_words(high, low as i128))
    }
}

impl From<i128> for Int256 {
    #[inline(always)]
    fn from(n: i128) -> Self {
        Int256(I256::from(n))
    }
}

impl Add for Int256 {
    type Output = Int256;

    #[inline(always)]
    fn add(self, other: Int256) -> Int256 {
        Int256(self.0 + other.0)
    }
}

impl AddAssign<&Int256> for Int256 {
    #[inline(always)]
    fn add_assign(&mut self, other: &Int256) {
        self.0 += other.0;
    }
}

impl SubAssign<&Int256> for Int256 {
    #[inline(always)]
    fn sub_assign(&mut self, other: &Int256) {
        self.0 -= other.0;
    }
}

impl Zero for Int256 {
    fn zero() -> Int256 {
        Int256(I256::ZERO)
    }

    fn is_zero(&self) -> bool {
        self.0 == I256::ZERO
    }
}

impl Whole for Int256 {
    #[inline(always)]
    fn from_i128(n: i128) -> Int256 {
        n.into()
    }

    #[inline(always)]
    fn times(&self, factor: i128) -> Int256 {
        Int256(self.0 * I256::from(factor))
    }

    #[inline(always)]
    fn product(&self, other: &Int256) -> Int256 {
        Int256(self.0 * other.0)
    }

    #[inline(always)]
    fn scaled_up(&self, bits: u32) -> Int256 {
        Int256(self.0 << bits)
    }

    fn to_big(&self) -> BigInt {
        BigInt::from_signed_bytes_le(&self.0.to_le_bytes())
    }
}
