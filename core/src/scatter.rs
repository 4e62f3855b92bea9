//! Quadratic least squares of points (x, y) with any x.
//!
//! With x and y in integers, let n be the number of points, Sk = Σ x^k,
//! Tk = Σ x^k·y, Q = Σ y², and
//!
//! * u2 = n·S2 - S1², u3 = n·S3 - S1·S2, u4 = n·S4 - S2²,
//! * v1 = n·T1 - S1·T0, v2 = n·T2 - S2·T0, V = n·Q - T0² (n times SStot),
//! * D = u2·u4 - u3², A = u2·v2 - u3·v1, B = u4·v1 - u3·v2, E = v1·B + v2·A,
//!
//! so that D is 0 if there are fewer than three distinct x, and otherwise, where R is what 0 is in x and X the
//! greatest x, with its y:
//!
//! | coefficient | of the integers |
//! |---|---|
//! | a | A / D |
//! | b | (B + 2·R·A) / D |
//! | slope_end | (B + 2·X·A) / D |
//! | above(x) | (B·(n·x - S1) + A·(n·x² - S2)) / (n·D): the fit minus the mean of y |
//! | c, yhat_end | T0 / n + above(R), T0 / n + above(X) |
//! | resid_end | y - T0 / n - above(X) |
//! | r2 | E / (D·V); 1 if V = 0 |
//! | rmse | sqrt(rn((D·V - E) / (n²·D))) |
//!
//! Each is one exact quotient, rounded once (see [`crate::rounding`]). [`ScatterSums`] are exact; the formulas are
//! written once, in [`Cramer`], over [`Ball`]s, which nearly always can tell the nearest double, and over big integers.
//! No linear system is solved in floating point, so that the result depends neither on the order of the points nor on
//! how they were spread over partial sums.

use std::ops::{Add, Mul, Sub};

use num_bigint::BigInt;
use num_traits::Zero;
use serde::{Deserialize, Serialize};

use crate::ball::Ball;
use crate::fixed::{Quotient, Whole, bit_length, power_of_two};
use crate::int256::Int256;
use crate::quadratic::QuadraticFit;
use crate::rounding::{Products, WithProducts};

// ---------------------------------------------------------------------------------------------------------
// Sums
// ---------------------------------------------------------------------------------------------------------

/// Exact sums of the points in a frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScatterSums<I> {
    len: usize,
    /// In the order of [`ScatterSums::DEGREES`].
    sums: [I; 8],
}

impl<I: Whole> Default for ScatterSums<I> {
    fn default() -> Self {
        ScatterSums { len: 0, sums: std::array::from_fn(|_| I::zero()) }
    }
}

impl<I> ScatterSums<I> {
    /// Of which powers of x and y each sum is.
    const DEGREES: [(u32, u32); 8] = [(1, 0), (2, 0), (3, 0), (4, 0), (0, 1), (1, 1), (2, 1), (0, 2)];
}

impl<I: Whole> ScatterSums<I> {
    /// Number of points.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a point.
    #[inline]
    pub fn push(&mut self, x: &I, y: &I) {
        self.len += 1;
        self.sums.iter_mut().zip(Self::terms(x, y)).for_each(|(sum, term)| *sum += &term);
    }

    /// Takes out a point that was pushed.
    #[inline]
    pub fn drop(&mut self, x: &I, y: &I) {
        self.len -= 1;
        self.sums.iter_mut().zip(Self::terms(x, y)).for_each(|(sum, term)| *sum -= &term);
    }

    /// What a point contributes to each sum.
    #[inline(always)]
    fn terms(x: &I, y: &I) -> [I; 8] {
        let square = x.squared();
        let (cube, fourth) = (square.product(x), square.squared());
        let (xy, xxy) = (x.product(y), square.product(y));
        [x.clone(), square, cube, fourth, y.clone(), xy, xxy, y.squared()]
    }

    /// Adds the points of other sums.
    pub fn merge(&mut self, other: &Self) {
        self.len += other.len;
        self.sums.iter_mut().zip(&other.sums).for_each(|(sum, more)| *sum += more);
    }

    /// Sums over `x * 2^x_bits` and `y * 2^y_bits`.
    pub fn refine(&mut self, x_bits: u32, y_bits: u32) {
        for (sum, (x, y)) in self.sums.iter_mut().zip(Self::DEGREES) {
            *sum = sum.scaled_up(x * x_bits + y * y_bits);
        }
    }

    /// Sums over `x + dx` and `y + dy`, by the binomial theorem.
    pub fn move_reference(&mut self, dx: &I, dy: &I) {
        let len = I::from_i128(self.len as i128);
        let [s1, s2, s3, s4, t0, t1, t2, q] = &mut self.sums;
        // Horner's rule in dx.
        let next = |sum: &I, term: &I| sum.product(dx).plus(term);
        let new_s1 = next(&len, s1);
        let new_s2 = next(&next(&len, &s1.times(2)), s2);
        let new_s3 = next(&next(&next(&len, &s1.times(3)), &s2.times(3)), s3);
        *s4 = next(&next(&next(&next(&len, &s1.times(4)), &s2.times(6)), &s3.times(4)), s4);
        let new_t1 = next(t0, t1);
        *t2 = next(&next(t0, &t1.times(2)), t2).plus(&new_s2.product(dy));
        *t1 = new_t1.plus(&new_s1.product(dy));
        *q += &t0.times(2).plus(&len.product(dy)).product(dy);
        *t0 += &len.product(dy);
        (*s1, *s2, *s3) = (new_s1, new_s2, new_s3);
    }

    /// The same sums in big integers.
    pub fn to_big(&self) -> ScatterSums<BigInt> {
        ScatterSums { len: self.len, sums: std::array::from_fn(|i| self.sums[i].to_big()) }
    }
}

impl ScatterSums<Int256> {
    /// Whether the sums of `len` points fit their 256 bits, if `|x| < 2^x_bits` and `|y| < 2^63` wherever within
    /// twice these the integers are counted from, also while they are [moved](Self::move_reference): Σ (x + d)⁴ and all
    /// of its terms then stay below n·(4x)⁴, which is n·x⁴·2^8.
    pub fn holds(len: usize, x_bits: u32) -> bool {
        bit_length(len as u64) + 4 * x_bits <= 246
    }

    /// [`push`](Self::push) and [`drop`](Self::drop) of machine integers, by `sign` 1 and -1.
    #[inline]
    pub fn apply(&mut self, x: i64, y: i64, sign: i64) {
        self.len = self.len.wrapping_add_signed(sign as isize);
        let (x, y, signed_x, signed_y) =
            (i128::from(x), i128::from(y), i128::from(x * sign), i128::from(y * sign));
        let square = Int256::from(x * x);
        let signed_square = Int256::from(x * signed_x);
        let terms = [
            signed_x.into(),
            signed_square,
            square.times(signed_x),
            square.product(&signed_square),
            signed_y.into(),
            (x * signed_y).into(),
            square.times(signed_y),
            (y * signed_y).into(),
        ];
        self.sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += &term);
    }

    /// The means of x and y, rounded to integers, if the points are much farther from 0 than from each other, so that
    /// formulas over the sums would cancel: x by twice its deviation (that counts four times), y by a thousand.
    #[inline]
    pub fn far_means(&self) -> Option<(i64, i64)> {
        let n = self.len as f64;
        let [s1, s2, _, _, t0, _, _, q] = [0, 1, 2, 3, 4, 5, 6, 7].map(|i| self.sums[i].to_f64());
        let far = |sum: f64, squares: f64, share: f64| sum.abs() >= n && sum * sum > share * n * squares;
        let is_far = far(s1, s2, 0.8) || far(t0, q, 1.0 - 1e-6);
        let mean = |sum: Int256| (sum.to_i128().expect("at most 2^64 times n") / self.len as i128) as i64;
        is_far.then(|| (mean(self.sums[0]), mean(self.sums[4])))
    }
}

// ---------------------------------------------------------------------------------------------------------
// The fit
// ---------------------------------------------------------------------------------------------------------

/// Sums, what they are counted from: x = (integer + x_reference) * 2^x_exponent, y likewise; and the point of
/// greatest x.
#[derive(Clone, Debug)]
pub struct ScatterFrame<I> {
    pub sums: ScatterSums<I>,
    pub x_reference: I,
    pub y_reference: I,
    pub x_exponent: i32,
    pub y_exponent: i32,
    /// As the sums count them.
    pub end: (I, I),
}

/// The numbers of the module's table.
struct Cramer<T> {
    n: T,
    s1: T,
    s2: T,
    t0: T,
    spread: T,
    det: T,
    quadratic: T,
    linear: T,
    explained: T,
}

/// What the formulas need of numbers.
trait Ring: Clone + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> {}

impl<T: Clone + Add<Output = T> + Sub<Output = T> + Mul<Output = T>> Ring for T {}

/// `a·b - c·d`.
#[inline(always)]
fn cross<T: Ring>(a: &T, b: &T, c: &T, d: &T) -> T {
    a.clone() * b.clone() - c.clone() * d.clone()
}

// Inlined, so that those over balls are compiled for the processor's fused products.
impl<T: Ring> Cramer<T> {
    /// From `n` and the sums, in the order of [`ScatterSums::DEGREES`].
    #[inline(always)]
    fn new(n: T, [s1, s2, s3, s4, t0, t1, t2, q]: [T; 8]) -> Cramer<T> {
        let (u2, u3, u4) = (cross(&n, &s2, &s1, &s1), cross(&n, &s3, &s1, &s2), cross(&n, &s4, &s2, &s2));
        let (v1, v2) = (cross(&n, &t1, &s1, &t0), cross(&n, &t2, &s2, &t0));
        let spread = cross(&n, &q, &t0, &t0);
        let quadratic = cross(&u2, &v2, &u3, &v1);
        let linear = cross(&u4, &v1, &u3, &v2);
        let explained = v1 * linear.clone() + v2 * quadratic.clone();
        Cramer { n, s1, s2, t0, spread, det: cross(&u2, &u4, &u3, &u3), quadratic, linear, explained }
    }

    /// D times the slope at x.
    #[inline(always)]
    fn slope(&self, x: T) -> T {
        self.linear.clone() + (x.clone() + x) * self.quadratic.clone()
    }

    /// n·D times the fit minus the mean at x.
    #[inline(always)]
    fn above_mean(&self, x: T) -> T {
        let square = x.clone() * x.clone();
        self.linear.clone() * (self.n.clone() * x - self.s1.clone())
            + self.quadratic.clone() * (self.n.clone() * square - self.s2.clone())
    }

    /// n·D times `y` minus the mean, y counted as the sums count it.
    #[inline(always)]
    fn distance_from_mean(&self, y: T) -> T {
        (self.n.clone() * y - self.t0.clone()) * self.det.clone()
    }

    /// D times n·SSres.
    #[inline(always)]
    fn unexplained(&self) -> T {
        self.spread.clone() * self.det.clone() - self.explained.clone()
    }
}

impl<I: Whole> ScatterFrame<I> {
    /// The fit, each metric the nearest double to its exact value, or (rmse) the root of one; `None` if there are
    /// fewer than three distinct x.
    pub fn fit(&self) -> Option<QuadraticFit> {
        let sums = self.sums.to_big();
        let cramer = Cramer::new(BigInt::from(sums.len), sums.sums);
        if cramer.det.is_zero() {
            return None;
        }
        let (x_exponent, y_exponent) = (i64::from(self.x_exponent), i64::from(self.y_exponent));
        let (x, y) = (self.end.0.to_big(), self.end.1.to_big());
        let (origin, zero) = (-self.x_reference.to_big(), -self.y_reference.to_big());
        let n_det = &cramer.n * &cramer.det;
        let level = |num: BigInt| BigInt::nearest(&num, &n_det, y_exponent);
        let slope = |num: BigInt| BigInt::nearest(&num, &cramer.det, y_exponent - x_exponent);
        let (at_origin, at_end) = (cramer.above_mean(origin.clone()), cramer.above_mean(x.clone()));
        let mean = -cramer.distance_from_mean(zero);
        Some(QuadraticFit {
            a: BigInt::nearest(&cramer.quadratic, &cramer.det, y_exponent - 2 * x_exponent),
            b: slope(cramer.slope(origin)),
            c: level(&mean + at_origin),
            r2: if cramer.spread.is_zero() {
                1.0
            } else {
                BigInt::nearest(&cramer.explained, &(&cramer.det * &cramer.spread), 0)
            },
            rmse: BigInt::root(&cramer.unexplained(), &(&cramer.n * &n_det), y_exponent),
            yhat_end: level(mean + &at_end),
            resid_end: level(cramer.distance_from_mean(y) - at_end),
            slope_end: slope(cramer.slope(x)),
        })
    }
}

impl<I: Whole> ScatterFrame<I> {
    /// Pearson's correlation of x and y: the root, signed, of the double nearest to its square; `None` if either does not vary.
    pub fn correlation(&self) -> Option<f64> {
        let sums = self.sums.to_big();
        let n = BigInt::from(sums.len);
        let [s1, s2, _, _, t0, t1, _, q] = &sums.sums;
        let (xx, xy, yy) = (cross(&n, s2, s1, s1), cross(&n, t1, s1, t0), cross(&n, q, t0, t0));
        let spread = xx * yy;
        if spread.is_zero() {
            return None;
        }
        let size = BigInt::nearest(&xy.squared(), &spread, 0).sqrt();
        Some(if xy < BigInt::ZERO { 0.0 - size } else { size })
    }

    /// Mean of y with the weights x: Σ x·y / Σ x, the nearest double; `None` if the weights sum to 0.
    pub fn weighted_mean(&self) -> Option<f64> {
        let sums = self.sums.to_big();
        let (x, y) = (self.x_reference.to_big(), self.y_reference.to_big());
        let [s1, _, _, _, t0, t1, _, _] = &sums.sums;
        let weight = s1 + &x * sums.len;
        let weighted = t1 + &y * s1 + &x * (t0 + &y * sums.len);
        (!weight.is_zero()).then(|| BigInt::nearest(&weighted, &weight, i64::from(self.y_exponent)))
    }
}

impl ScatterFrame<Int256> {
    /// [`fit`](Self::fit) without big integers, or `None` where that cannot tell every metric. That is rare if the
    /// points are not far from 0: see [`ScatterSums::far_means`].
    #[inline(always)]
    pub fn estimate<P: Products>(&self) -> Option<QuadraticFit> {
        let ball = |n: &Int256| Ball::<P>::from_i256(*n);
        let n = Ball::<P>::from(self.sums.len as i128);
        let [s1, s2, s3, s4, t0, t1, t2, q] = &self.sums.sums;
        let cramer =
            Cramer::new(n, [ball(s1), ball(s2), ball(s3), ball(s4), ball(t0), ball(t1), ball(t2), ball(q)]);
        if !cramer.det.is_not_zero() {
            return None;
        }
        let (x, y) = (ball(&self.end.0), ball(&self.end.1));
        let origin = Ball::from(0) - ball(&self.x_reference);
        let zero = Ball::from(0) - ball(&self.y_reference);
        let (at_origin, at_end) = (cramer.above_mean(origin), cramer.above_mean(x));
        let below_mean = cramer.distance_from_mean(zero);

        let per_det = cramer.det.reciprocal();
        let per_n = n.reciprocal();
        let per_n_det = per_n * per_det;
        let (per_x, unit) = (-self.x_exponent, self.y_exponent);
        let flat = cramer.spread.is_zero();
        let r2 = (cramer.explained * (cramer.det * cramer.spread).reciprocal()).decide();
        let fit = QuadraticFit {
            a: scaled((cramer.quadratic * per_det).decide(), unit + 2 * per_x),
            b: scaled((cramer.slope(origin) * per_det).decide(), unit + per_x),
            c: scaled(((at_origin - below_mean) * per_n_det).decide(), unit),
            r2: if flat { 1.0 } else { r2 },
            rmse: scaled((cramer.unexplained() * per_n * per_n_det).decide().sqrt(), unit),
            yhat_end: scaled(((at_end - below_mean) * per_n_det).decide(), unit),
            resid_end: scaled(((cramer.distance_from_mean(y) - at_end) * per_n_det).decide(), unit),
            slope_end: scaled((cramer.slope(x) * per_det).decide(), unit + per_x),
        };
        let decided = fit.to_array().iter().all(|metric| !metric.is_nan());
        decided.then_some(fit)
    }
}

/// [`ScatterFrame::estimate`] as a computation for [`with_best_products`](crate::rounding::with_best_products).
impl WithProducts for ScatterFrame<Int256> {
    type Output = Option<QuadraticFit>;

    #[inline(always)]
    fn run<P: Products>(&self, output: &mut Option<QuadraticFit>) {
        *output = self.estimate::<P>();
    }
}

/// `value * 2^exponent`, or NaN where that could be more than a change of the exponent. `exponent` is within ±900.
#[inline(always)]
fn scaled(value: f64, exponent: i32) -> f64 {
    let scaled = value * power_of_two(exponent);
    let safe = power_of_two(-1000)..=power_of_two(1000);
    if value == 0.0 || safe.contains(&scaled.abs()) { scaled } else { f64::NAN }
}
