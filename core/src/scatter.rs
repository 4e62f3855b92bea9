//! Quadratic least squares of points (x, y) with any x.
//!
//! With x and y in integers, each relative to about its mean, let n be the number of points, Sk = Σ x^k,
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
use crate::fixed::{Quotient, Whole, power_of_two};
use crate::int256::Int256;
use crate::quadratic::QuadraticFit;
use crate::rounding::Products;

// ---------------------------------------------------------------------------------------------------------
// Sums
// ---------------------------------------------------------------------------------------------------------

/// Exact sums of the points in a frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScatterSums<I> {
    len: usize,
    /// Σ x … Σ x⁴.
    x: [I; 4],
    /// Σ y, Σ x·y, Σ x²·y.
    y: [I; 3],
    /// Σ y².
    yy: I,
}

impl<I: Whole> Default for ScatterSums<I> {
    fn default() -> Self {
        let zeros = || std::array::from_fn(|_| I::zero());
        ScatterSums { len: 0, x: zeros(), y: std::array::from_fn(|_| I::zero()), yy: I::zero() }
    }
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
        for (sum, term) in self.terms(x, y) {
            *sum += &term;
        }
    }

    /// Takes out a point that was pushed.
    #[inline]
    pub fn drop(&mut self, x: &I, y: &I) {
        self.len -= 1;
        for (sum, term) in self.terms(x, y) {
            *sum -= &term;
        }
    }

    /// Each sum with what a point contributes.
    #[inline(always)]
    fn terms(&mut self, x: &I, y: &I) -> [(&mut I, I); 8] {
        let square = x.squared();
        let terms = [
            x.clone(),
            square.clone(),
            square.product(x),
            square.squared(),
            y.clone(),
            x.product(y),
            square.product(y),
            y.squared(),
        ];
        let [x1, x2, x3, x4] = &mut self.x;
        let [y0, y1, y2] = &mut self.y;
        let mut sums = [x1, x2, x3, x4, y0, y1, y2, &mut self.yy].into_iter();
        terms.map(|term| (sums.next().expect("eight sums"), term))
    }

    /// Adds the points of other sums.
    pub fn merge(&mut self, other: &Self) {
        self.len += other.len;
        let own = self.x.iter_mut().chain(&mut self.y).chain([&mut self.yy]);
        for (sum, more) in own.zip(other.x.iter().chain(&other.y).chain([&other.yy])) {
            *sum += more;
        }
    }

    /// Sums over `x * 2^x_bits` and `y * 2^y_bits`.
    pub fn refine(&mut self, x_bits: u32, y_bits: u32) {
        for (power, sum) in (1..).zip(&mut self.x) {
            *sum = sum.scaled_up(power * x_bits);
        }
        for (power, sum) in (0..).zip(&mut self.y) {
            *sum = sum.scaled_up(power * x_bits + y_bits);
        }
        self.yy = self.yy.scaled_up(2 * y_bits);
    }

    /// Sums over `x + dx` and `y + dy`, by the binomial theorem.
    pub fn move_reference(&mut self, dx: &I, dy: &I) {
        let len = I::from_i128(self.len as i128);
        let [s1, s2, s3, s4] = &mut self.x;
        let [t0, t1, t2] = &mut self.y;
        let moved = |terms: &[(&I, i128)]| {
            // Horner's rule in dx: the terms are coefficients of descending powers.
            let horner = |sum: I, &(term, times): &(&I, i128)| sum.product(dx).plus(&term.times(times));
            terms.iter().fold(I::zero(), horner)
        };
        let new_s4 = moved(&[(&len, 1), (s1, 4), (s2, 6), (s3, 4), (s4, 1)]);
        let new_s3 = moved(&[(&len, 1), (s1, 3), (s2, 3), (s3, 1)]);
        let new_s2 = moved(&[(&len, 1), (s1, 2), (s2, 1)]);
        let new_s1 = moved(&[(&len, 1), (s1, 1)]);
        let new_t2 = moved(&[(t0, 1), (t1, 2), (t2, 1)]);
        let new_t1 = moved(&[(t0, 1), (t1, 1)]);
        self.yy += &t0.times(2).plus(&len.product(dy)).product(dy);
        *t2 = new_t2.plus(&new_s2.product(dy));
        *t1 = new_t1.plus(&new_s1.product(dy));
        *t0 += &len.product(dy);
        self.x = [new_s1, new_s2, new_s3, new_s4];
    }

    /// The same sums in big integers.
    pub fn to_big(&self) -> ScatterSums<BigInt> {
        ScatterSums {
            len: self.len,
            x: std::array::from_fn(|i| self.x[i].to_big()),
            y: std::array::from_fn(|i| self.y[i].to_big()),
            yy: self.yy.to_big(),
        }
    }
}

impl ScatterSums<Int256> {
    /// Whether sums of `len` points, `|x| <= 2^x_bits` and `|y| <= 2^62`, fit their 256 bits, also while and after
    /// they are moved to the mean: that takes 2^4 times the bound of Σ x⁴, n·x⁴.
    pub fn holds(len: usize, x_bits: u32) -> bool {
        u64::BITS - (len as u64).leading_zeros() + 4 * x_bits <= 250
    }

    /// About the means of x and y, within a unit.
    fn means(&self) -> (i128, i128) {
        let mean =
            |sum: Int256| sum.to_i128().expect("62 bits times the number of points") / self.len as i128;
        (mean(self.x[0]), mean(self.y[0]))
    }
}

// ---------------------------------------------------------------------------------------------------------
// The fit
// ---------------------------------------------------------------------------------------------------------

/// Where results are counted from: x = (integer + x_reference) * 2^x_exponent, y likewise, and the point of
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

impl<T: Clone + Add<Output = T> + Sub<Output = T> + Mul<Output = T>> Cramer<T> {
    fn new<I>(sums: &ScatterSums<I>, number: impl Fn(&I) -> T, n: T) -> Cramer<T> {
        let [s1, s2, s3, s4] = [0, 1, 2, 3].map(|i| number(&sums.x[i]));
        let [t0, t1, t2] = [0, 1, 2].map(|i| number(&sums.y[i]));
        let centred = |sum: T, a: &T, b: &T| n.clone() * sum - a.clone() * b.clone();
        let (u2, u3, u4) = (centred(s2.clone(), &s1, &s1), centred(s3, &s1, &s2), centred(s4, &s2, &s2));
        let (v1, v2) = (centred(t1, &s1, &t0), centred(t2, &s2, &t0));
        let spread = centred(number(&sums.yy), &t0, &t0);
        let cross = |a: &T, b: &T, c: &T, d: &T| a.clone() * b.clone() - c.clone() * d.clone();
        let quadratic = cross(&u2, &v2, &u3, &v1);
        let linear = cross(&u4, &v1, &u3, &v2);
        let explained = v1 * linear.clone() + v2 * quadratic.clone();
        Cramer { s1, s2, t0, spread, det: cross(&u2, &u4, &u3, &u3), quadratic, linear, explained, n }
    }

    /// D times the slope at x.
    fn slope(&self, x: T) -> T {
        self.linear.clone() + (x.clone() + x) * self.quadratic.clone()
    }

    /// n·D times the fit minus the mean at x.
    fn above_mean(&self, x: T) -> T {
        let square = x.clone() * x.clone();
        self.linear.clone() * (self.n.clone() * x - self.s1.clone())
            + self.quadratic.clone() * (self.n.clone() * square - self.s2.clone())
    }

    /// n·D times the fit at x, relative to -base.
    fn level(&self, x: T, base: T) -> T {
        (self.t0.clone() + self.n.clone() * base) * self.det.clone() + self.above_mean(x)
    }

    /// n·D times the residual of (x, y).
    fn residual(&self, x: T, y: T) -> T {
        (self.n.clone() * y - self.t0.clone()) * self.det.clone() - self.above_mean(x)
    }

    /// D times n·SSres.
    fn unexplained(&self) -> T {
        self.spread.clone() * self.det.clone() - self.explained.clone()
    }
}

impl<I: Whole> ScatterFrame<I> {
    /// The fit, each metric the nearest double to its exact value, or (rmse) the root of one; `None` if there are
    /// fewer than three distinct x.
    pub fn fit(&self) -> Option<QuadraticFit> {
        let sums = self.sums.to_big();
        let cramer = Cramer::new(&sums, BigInt::clone, BigInt::from(sums.len));
        if cramer.det.is_zero() {
            return None;
        }
        let (x_exponent, y_exponent) = (i64::from(self.x_exponent), i64::from(self.y_exponent));
        let (x, y) = (self.end.0.to_big(), self.end.1.to_big());
        let (origin, base) = (-self.x_reference.to_big(), self.y_reference.to_big());
        let n_det = &cramer.n * &cramer.det;
        let level = |x| BigInt::nearest(&cramer.level(x, base.clone()), &n_det, y_exponent);
        let slope = |x| BigInt::nearest(&cramer.slope(x), &cramer.det, y_exponent - x_exponent);
        Some(QuadraticFit {
            a: BigInt::nearest(&cramer.quadratic, &cramer.det, y_exponent - 2 * x_exponent),
            b: slope(origin.clone()),
            c: level(origin.clone()),
            r2: if cramer.spread.is_zero() {
                1.0
            } else {
                BigInt::nearest(&cramer.explained, &(&cramer.det * &cramer.spread), 0)
            },
            rmse: BigInt::root(&cramer.unexplained(), &(&cramer.n * &n_det), y_exponent),
            yhat_end: level(x.clone()),
            resid_end: BigInt::nearest(&cramer.residual(x.clone(), y), &n_det, y_exponent),
            slope_end: slope(x),
        })
    }
}

impl ScatterFrame<Int256> {
    /// [`fit`](Self::fit) without big integers, or `None` where that cannot tell every metric.
    ///
    /// Moving the sums to the mean first keeps the cancellation in u2 … V small.
    #[inline(always)]
    pub fn estimate<P: Products>(&self) -> Option<QuadraticFit> {
        let mut sums = self.sums.clone();
        let (mean_x, mean_y) = sums.means();
        sums.move_reference(&(-mean_x).into(), &(-mean_y).into());
        let number = |n: i128| Ball::<P>::from(n);
        let cramer = Cramer::new(&sums, |&sum| Ball::<P>::from_i256(sum), number(sums.len as i128));
        if !cramer.det.is_not_zero() {
            return None;
        }
        let small = |n: Int256| n.to_i128().expect("of 62 bits");
        let (x, y) = (number(small(self.end.0) - mean_x), number(small(self.end.1) - mean_y));
        let origin = number(-small(self.x_reference) - mean_x);
        let base = number(small(self.y_reference) + mean_y);

        let per_det = cramer.det.reciprocal();
        let per_n = cramer.n.reciprocal();
        let per_n_det = per_n * per_det;
        let level = |x| (cramer.level(x, base) * per_n_det).decide();
        let slope = |x| (cramer.slope(x) * per_det).decide();
        let (per_x, unit) = (-self.x_exponent, self.y_exponent);
        let fit = QuadraticFit {
            a: scaled((cramer.quadratic * per_det).decide(), unit + 2 * per_x),
            b: scaled(slope(origin), unit + per_x),
            c: scaled(level(origin), unit),
            r2: if cramer.spread.is_zero() {
                1.0
            } else {
                (cramer.explained * (cramer.det * cramer.spread).reciprocal()).decide()
            },
            rmse: scaled((cramer.unexplained() * per_n * per_n_det).decide().sqrt(), unit),
            yhat_end: scaled(level(x), unit),
            resid_end: scaled((cramer.residual(x, y) * per_n_det).decide(), unit),
            slope_end: scaled(slope(x), unit + per_x),
        };
        let decided = fit.to_array().iter().all(|metric| !metric.is_nan());
        decided.then_some(fit)
    }
}

/// `value * 2^exponent`, or NaN where that could be more than a change of the exponent. `exponent` is within ±900.
fn scaled(value: f64, exponent: i32) -> f64 {
    let scaled = value * power_of_two(exponent);
    let safe = power_of_two(-1000)..=power_of_two(1000);
    if value == 0.0 || safe.contains(&scaled.abs()) { scaled } else { f64::NAN }
}
