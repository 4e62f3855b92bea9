//! Doubles as integers on a common power-of-two grid, where sums are exact.
//!
//! Every finite double is an integer times a power of two. A run of values has a lowest power, 2^e, that all
//! are multiples of: `v = k * 2^e`. On that grid sums of values, of squares and of products with positions are
//! sums of integers, hence exact, and taking the oldest value out undoes putting it in.
//!
//! [`NarrowRun`] holds runs that fit machine integers, with room for the sums: all ordinary index series. Any
//! other value is a big integer ([`Grid::whole`]). Formulas are written once, over [`Whole`]. An [`Axis`] says how
//! values and small integers correspond; that of a frame which is not known beforehand grows with it
//! ([`crate::moving_sums`]).

use std::collections::TryReserveError;
use std::fmt;
use std::ops::{AddAssign, SubAssign};

use num_bigint::BigInt;
use num_traits::Zero;
use serde::{Deserialize, Serialize};

use crate::columns::MAX_WINDOW;
use crate::rounding::{self, decompose};

/// A value that is NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFinite {
    /// Index of the first such value.
    pub position: usize,
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "value {} is not a finite number", self.position)
    }
}

impl std::error::Error for NotFinite {}

/// The integers that sums are made of: machine integers where bounds allow it (see [`Axis::fits`]), else [`BigInt`].
pub trait Whole:
    Clone + fmt::Debug + Zero + for<'a> AddAssign<&'a Self> + for<'a> SubAssign<&'a Self>
{
    fn from_i128(n: i128) -> Self;
    fn times(&self, factor: i128) -> Self;
    fn product(&self, other: &Self) -> Self;
    /// `self * 2^bits`.
    fn scaled_up(&self, bits: u32) -> Self;
    fn to_big(&self) -> BigInt;

    #[inline(always)]
    fn squared(&self) -> Self {
        self.product(self)
    }

    /// `self + other`.
    #[inline(always)]
    fn plus(mut self, other: &Self) -> Self {
        self += other;
        self
    }

    /// `self - other`.
    #[inline(always)]
    fn minus(mut self, other: &Self) -> Self {
        self -= other;
        self
    }
}

/// Integers whose quotients can be rounded to doubles.
pub trait Quotient: Whole {
    /// See [`rounding::nearest_ratio`].
    fn nearest(num: &Self, den: &Self, exp2: i64) -> f64;
    /// See [`rounding::root_of_ratio`].
    fn root(num: &Self, den: &Self, exp2: i64) -> f64;
}

impl Whole for i128 {
    #[inline(always)]
    fn from_i128(n: i128) -> Self {
        n
    }

    #[inline(always)]
    fn times(&self, factor: i128) -> Self {
        self * factor
    }

    #[inline(always)]
    fn product(&self, other: &Self) -> Self {
        self * other
    }

    #[inline(always)]
    fn scaled_up(&self, bits: u32) -> Self {
        self << bits
    }

    fn to_big(&self) -> BigInt {
        (*self).into()
    }
}

impl Quotient for i128 {
    fn nearest(num: &Self, den: &Self, exp2: i64) -> f64 {
        rounding::nearest_quotient(*num, *den, exp2)
    }

    fn root(num: &Self, den: &Self, exp2: i64) -> f64 {
        rounding::root_of_quotient(*num, *den, exp2)
    }
}

impl Whole for BigInt {
    fn from_i128(n: i128) -> Self {
        n.into()
    }

    fn times(&self, factor: i128) -> Self {
        self * factor
    }

    fn product(&self, other: &Self) -> Self {
        self * other
    }

    fn scaled_up(&self, bits: u32) -> Self {
        self << bits
    }

    fn to_big(&self) -> BigInt {
        self.clone()
    }
}

impl Quotient for BigInt {
    fn nearest(num: &Self, den: &Self, exp2: i64) -> f64 {
        rounding::nearest_ratio(num, den, exp2)
    }

    fn root(num: &Self, den: &Self, exp2: i64) -> f64 {
        rounding::root_of_ratio(num, den, exp2)
    }
}

/// The finest grid that a run of values needs: all are integers times `2^exponent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    pub exponent: i32,
    /// All those integers are below `2^bits` in magnitude.
    pub bits: u32,
}

impl Grid {
    /// The grid of `values`; `2^0` if all are 0.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Result<Grid, NotFinite> {
        let (mut lowest, mut highest) = (i32::MAX, i32::MIN);
        for (position, value) in values.into_iter().enumerate() {
            if !value.is_finite() {
                return Err(NotFinite { position });
            }
            if value != 0.0 {
                let (significand, exponent) = decompose(value);
                lowest = lowest.min(exponent + significand.trailing_zeros() as i32);
                highest = highest.max(exponent + 64 - significand.unsigned_abs().leading_zeros() as i32);
            }
        }
        Ok(if lowest == i32::MAX {
            Grid { exponent: 0, bits: 0 }
        } else {
            Grid { exponent: lowest, bits: (highest - lowest) as u32 }
        })
    }

    /// The integer that `value`, one of the grid's, is.
    pub fn whole(self, value: f64) -> BigInt {
        big_whole(self.exponent, value)
    }
}

/// The integer of which `value` is `2^exponent` times as much. There must be one.
pub(crate) fn big_whole(exponent: i32, value: f64) -> BigInt {
    if value == 0.0 {
        return BigInt::ZERO;
    }
    let (significand, own) = decompose(value);
    let shift = own - exponent;
    match shift {
        64.. => BigInt::from(significand) << shift,
        0..64 => (i128::from(significand) << shift).into(),
        _ => BigInt::from(significand >> -shift),
    }
}

/// `2^exponent`, for the exponents of normal doubles.
pub(crate) fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// Significant bits of `n`.
pub(crate) fn bit_length(n: u64) -> u32 {
    u64::BITS - n.leading_zeros()
}

/// Values as small integers: `value = (y + reference) * 2^exponent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Axis {
    /// About half way between the least and the greatest value, or one of them: it keeps `y` small.
    reference: i64,
    exponent: i32,
    /// Bound on `|y|`.
    reach: u64,
}

impl Axis {
    /// Exponents of grids on which scaling, and all double arithmetic of this crate, stays among normal doubles.
    const EXPONENTS: std::ops::RangeInclusive<i32> = -300..=300;
    /// Bits that grid integers may have. (Those of values that were there before a grid became finer may have one
    /// more: their `y` and the reference have that many.) Differences of two stay within 64 bits.
    const BITS: u32 = 61;

    /// The axis of `values`, all on `grid`. `None` if they are too far apart, too large or too small for it.
    pub fn of(values: impl IntoIterator<Item = f64>, grid: Grid) -> Option<Axis> {
        if !Self::EXPONENTS.contains(&grid.exponent) || grid.bits > Self::BITS {
            return None;
        }
        let scale = power_of_two(-grid.exponent);
        let (mut low, mut high) = (i64::MAX, i64::MIN);
        for value in values {
            let whole = (value * scale) as i64;
            (low, high) = (low.min(whole), high.max(whole));
        }
        if low > high {
            (low, high) = (0, 0);
        }
        let reference = low + (high - low) / 2;
        let reach = (high - reference).unsigned_abs().max((low - reference).unsigned_abs());
        Some(Axis { reference, exponent: grid.exponent, reach })
    }

    /// The axis of one finite value.
    pub fn at(value: f64) -> Option<Axis> {
        Axis::of([value], Grid::of([value]).ok()?)
    }

    pub fn exponent(&self) -> i32 {
        self.exponent
    }

    pub fn reference(&self) -> i64 {
        self.reference
    }

    /// Bound on `|y|`.
    pub fn reach(&self) -> u64 {
        self.reach
    }

    /// `2^exponent`: multiplies grid integers into values, exactly.
    pub fn scale(&self) -> f64 {
        power_of_two(self.exponent)
    }

    /// `2^-exponent`: multiplies values into grid integers, exactly.
    pub fn inverse_scale(&self) -> f64 {
        power_of_two(-self.exponent)
    }

    /// The grid integer `y + reference` of `value`, one of the axis's.
    #[inline(always)]
    pub fn whole(&self, value: f64) -> i64 {
        (value * self.inverse_scale()) as i64
    }

    /// The `y` of `value`, one of the axis's.
    #[inline(always)]
    pub fn y(&self, value: f64) -> i64 {
        self.whole(value) - self.reference
    }

    /// The axis extended to hold the finite `value`, too, and the bits by which its grid is finer: every `y` so far
    /// is `2^bits` times as many units. `None` if there is none.
    pub fn extended(&self, value: f64) -> Option<(Axis, u32)> {
        let whole = self.whole(value);
        // Back again, because scaling down may underflow.
        if whole as f64 * self.scale() == value && bit_length(whole.unsigned_abs()) <= Self::BITS {
            let reach = self.reach.max((whole - self.reference).unsigned_abs());
            return Some((Axis { reach, ..*self }, 0));
        }
        let grid = Grid::of([value]).ok()?;
        if self.reference == 0 && self.reach == 0 {
            // So far there were only zeros, which lie on every grid.
            return Axis::of([0.0, value], grid).map(|axis| (axis.counted_from_zero(), 0));
        }
        let bits = u32::try_from(self.exponent - grid.exponent).ok().filter(|&bits| bits > 0)?;
        let room = |magnitude: u64| bit_length(magnitude) + bits <= Self::BITS;
        let finer_fits = Self::EXPONENTS.contains(&grid.exponent)
            && room(self.reference.unsigned_abs())
            && room(self.reach);
        finer_fits.then(|| {
            let finer = Axis {
                reference: self.reference << bits,
                exponent: grid.exponent,
                reach: self.reach << bits,
            };
            let reach = finer.reach.max(finer.y(value).unsigned_abs());
            (Axis { reach, ..finer }, bits)
        })
    }

    /// An axis for the values of this and of `other`, and what it takes for theirs to become its: the bits by which
    /// each grid gets finer, and then, for `other`'s, what is to be added to every `y`. `None` if there is none.
    pub fn merged(&self, other: &Axis) -> Option<(Axis, [u32; 2], i64)> {
        let exponent = self.exponent.min(other.exponent);
        let bits = [self, other].map(|axis| (axis.exponent - exponent) as u32);
        let finer = |axis: &Axis, bits: u32| {
            let room = |magnitude: u64| bit_length(magnitude) + bits <= Self::BITS;
            let fits = room(axis.reference.unsigned_abs()) && room(axis.reach);
            fits.then(|| (axis.reference << bits, axis.reach << bits))
        };
        let (reference, reach) = finer(self, bits[0])?;
        let (other_reference, other_reach) = finer(other, bits[1])?;
        let distance = other_reference - reference;
        let reach = reach.max(other_reach + distance.unsigned_abs());
        Some((Axis { reference, exponent, reach }, bits, distance))
    }

    /// The same axis with reference 0.
    fn counted_from_zero(self) -> Axis {
        Axis { reference: 0, reach: self.reach + self.reference.unsigned_abs(), ..self }
    }

    /// Whether all sums and numerators over `window` values fit their types.
    ///
    /// With Y the greatest `|y|`, the condition is W·Y < 2^63 and W <= 10,000 < 2^13.3. Then
    ///
    /// | quantity | bound | below |
    /// |---|---|---|
    /// | Σy, Σy - W·y | 2·W·Y | 2^64 |
    /// | W·Σy², (Σy)², their difference | W²·Y² | 2^126 |
    /// | Σuy, as Σ\|u\| <= W²/2 | W²·Y/2 | 2^76 |
    /// | Σu²y, as Σu² <= W³/3 | W³·Y/3 | 2^88.1 |
    /// | 3Σu²y - (W²-1)Σy | 2·W³·Y | 2^90.6 |
    /// | numerators of a, b, slope: 15·W·that + 6·W²·Σuy | 33·W⁴·Y | 2^108 |
    /// | numerators of c, ŷ: 2(W+1)(W+2)(Σy - W·y + W·k), \|k\| < 2^62 | 2^28·2^76 | 2^104 |
    /// | their denominators, W(W²-1)(W²-4) | W⁵ | 2^67 |
    ///
    /// so that i128 never overflows, [`rounding::nearest_quotient`] may divide, and all but the second line
    /// are exact as [`rounding::DoubleDouble`].
    ///
    /// Sums that do not fit, of at most 10,000 values, can still be estimated: in 256 bits, with |y| < 2^62 all lines but
    /// the second are below 2^106.
    pub fn fits(&self, window: usize) -> bool {
        window <= MAX_WINDOW && self.reach.checked_mul(window as u64).is_some_and(|r| r < 1 << 63)
    }
}

/// A run of values as the small integers of an axis.
#[derive(Clone, Debug)]
pub struct NarrowRun {
    pub y: Vec<i64>,
    pub axis: Axis,
}

impl NarrowRun {
    /// `None` if the values are too far apart, too large or too small for it.
    ///
    /// # Errors
    /// If there is no memory for as many integers as values.
    pub fn new(values: &[f64], grid: Grid) -> Result<Option<NarrowRun>, TryReserveError> {
        let Some(axis) = Axis::of(values.iter().copied(), grid) else { return Ok(None) };
        let mut y = Vec::new();
        y.try_reserve_exact(values.len())?;
        y.extend(values.iter().map(|&value| axis.y(value)));
        Ok(Some(NarrowRun { y, axis }))
    }
}
