//! Quadratic least squares on the grid x = 0 … W-1.
//!
//! In `u = 2x - (W-1)`, which is symmetric about 0 and an integer, the Gram (discrete Chebyshev) polynomials 1, u
//! and `3u² - (W²-1)` are orthogonal over the grid, so the fit needs no linear system: with
//!
//! * S0 = Σ y, S1 = Σ u·y, Q2 = Σ (3u² - (W²-1))·y, T = W·Σ y² - S0²,
//! * q1 = W²-1, q0 = W²-4, D = W·q1·q0, D2 = 2W(W+1)(W+2),
//!
//! | coefficient | of y on the grid |
//! |---|---|
//! | a | 15·Q2 / D |
//! | b | (6·q0·S1 - 15(W-1)·Q2) / D |
//! | slope_end = 2a(W-1) + b | (6·q0·S1 + 15(W-1)·Q2) / D |
//! | c | (2(W+1)(W+2)·S0 - 6(W+2)·S1 + 5·Q2) / D2 |
//! | yhat_end | (2(W+1)(W+2)·S0 + 6(W+2)·S1 + 5·Q2) / D2 |
//! | resid_end | newest value - yhat_end |
//! | r2 | E / F, with E = 12·q0·S1² + 5·Q2², F = 4·q1·q0·T; 1 if T = 0 |
//! | rmse | sqrt(rn((F - E) / (4W²·q1·q0))) |
//!
//! Each is one exact quotient, rounded once (see [`crate::rounding`]). As in [`crate::window`], sums, exact
//! finalisation and fast finalisation are apart: [`QuadraticSums`], [`QuadraticFrame`], [`estimate`].

use num_bigint::BigInt;

use crate::columns::RegMetric;
use crate::fixed::{Quotient, Whole, bit_length};
use crate::moving_sums::{Sums, SumsShape};
use crate::rounding::{DoubleDouble, Products, WithProducts, decide, two_sum};

/// A fitted parabola `a·x² + b·x + c`, x = 0 for the oldest value. All but `r2` have the values' unit (per step and
/// per step² for the slopes and `a`). Overflow gives ±∞.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QuadraticFit {
    pub a: f64,
    pub b: f64,
    pub c: f64,
    /// Share of the variance that the fit explains, 0 to 1.
    pub r2: f64,
    /// Root of the mean squared residual.
    pub rmse: f64,
    /// The fit at the newest value.
    pub yhat_end: f64,
    /// The newest value minus the fit.
    pub resid_end: f64,
    /// Slope of the fit at the newest value.
    pub slope_end: f64,
}

impl QuadraticFit {
    /// In the order of [`RegMetric::ALL`], without the endpoint.
    #[inline(always)]
    pub fn to_array(self) -> [f64; 8] {
        let QuadraticFit { a, b, c, r2, rmse, yhat_end, resid_end, slope_end } = self;
        [a, b, c, r2, rmse, yhat_end, resid_end, slope_end]
    }

    /// Inverse of [`to_array`](Self::to_array).
    #[inline(always)]
    pub fn from_array([a, b, c, r2, rmse, yhat_end, resid_end, slope_end]: [f64; 8]) -> Self {
        QuadraticFit { a, b, c, r2, rmse, yhat_end, resid_end, slope_end }
    }
}

// ---------------------------------------------------------------------------------------------------------
// Sums
// ---------------------------------------------------------------------------------------------------------

/// Exact sums of the values in a frame, which may grow, slide and shrink: Σ y, Σ u·y, Σ u²·y, Σ y².
#[derive(Clone, Debug, PartialEq)]
pub struct QuadraticSums<I> {
    len: usize,
    s0: I,
    s1: I,
    s2: I,
    squares: I,
}

impl<I: Whole> Default for QuadraticSums<I> {
    fn default() -> Self {
        QuadraticSums { len: 0, s0: I::zero(), s1: I::zero(), s2: I::zero(), squares: I::zero() }
    }
}

impl QuadraticSums<i128> {
    /// The sums that pushing these values one by one gives, sooner. They must fit, as
    /// [`Axis::fits`](crate::fixed::Axis::fits) says.
    pub fn of(values: &[i64]) -> Self {
        let mut sums = QuadraticSums { len: values.len(), ..Self::default() };
        let mut u = 1 - values.len() as i64;
        for &y in values {
            // products of two 64-bit numbers, which processors have
            let times = |factor: i64| i128::from(y) * i128::from(factor);
            sums.s0 += i128::from(y);
            sums.s1 += times(u);
            sums.s2 += times(u * u);
            sums.squares += times(y);
            u += 2;
        }
        sums
    }
}

impl<I: Whole> QuadraticSums<I> {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends the newest value. The centre moves half a step, every u by -1.
    pub fn push(&mut self, y: &I) {
        let u = self.len as i128;
        self.shift_by_one();
        self.len += 1;
        self.s0 += y;
        self.s1 += &y.times(u);
        self.s2 += &y.times(u * u);
        self.squares += &y.squared();
    }

    /// Takes out the oldest value. The centre moves half a step, every u by -1.
    pub fn drop_oldest(&mut self, y: &I) {
        let u = self.len as i128 - 1;
        self.s0 -= y;
        self.s1 += &y.times(u);
        self.s2 -= &y.times(u * u);
        self.squares -= &y.squared();
        self.len -= 1;
        self.shift_by_one();
    }

    /// Sums over `u - 1` from sums over `u`.
    fn shift_by_one(&mut self) {
        self.s2 -= &self.s1.times(2);
        self.s2 += &self.s0;
        self.s1 -= &self.s0;
    }

    /// [`drop_oldest`](Self::drop_oldest) and [`push`](Self::push) in one: every u moves by -2.
    #[inline(always)]
    pub fn slide(&mut self, oldest: &I, newest: &I) {
        let u = self.len as i128 - 1;
        self.s0 -= oldest;
        self.s1 += &oldest.times(u);
        self.s2 += &self.s0.clone().minus(&self.s1).times(4);
        self.s2 += &newest.clone().minus(oldest).times(u * u);
        self.s1 -= &self.s0.times(2);
        self.s1 += &newest.times(u);
        self.s0 += newest;
        self.squares += &newest.squared();
        self.squares -= &oldest.squared();
    }

    /// The same sums in other integers.
    pub fn map<J>(&self, integer: impl Fn(&I) -> J) -> QuadraticSums<J> {
        QuadraticSums {
            len: self.len,
            s0: integer(&self.s0),
            s1: integer(&self.s1),
            s2: integer(&self.s2),
            squares: integer(&self.squares),
        }
    }

    /// What the fit is made of, with the newest value `y`.
    #[inline(always)]
    pub fn moments(&self, y: &I) -> QuadraticMoments<I> {
        let len = self.len as i128;
        QuadraticMoments {
            excess: self.s0.clone().minus(&y.times(len)),
            linear: self.s1.clone(),
            curvature: self.s2.times(3).minus(&self.s0.times(len * len - 1)),
            spread: self.squares.times(len).minus(&self.s0.squared()),
        }
    }
}

impl<I: Whole> Sums<I> for QuadraticSums<I> {
    fn count(&self) -> usize {
        self.len
    }

    fn push(&mut self, y: &I) {
        self.push(y);
    }

    fn drop_oldest(&mut self, y: &I) {
        self.drop_oldest(y);
    }

    fn refine(&mut self, bits: u32) {
        self.s0 = self.s0.scaled_up(bits);
        self.s1 = self.s1.scaled_up(bits);
        self.s2 = self.s2.scaled_up(bits);
        self.squares = self.squares.scaled_up(2 * bits);
    }

    fn move_reference(&mut self, by: &I) {
        let len = self.len as i128;
        // Σ u = 0 and Σ u² = W(W² - 1) / 3; Σ (y + d)² = Σ y² + d·(2·Σ y + W·d).
        self.s2 += &by.times(len * (len * len - 1) / 3);
        self.squares += &self.s0.times(2).plus(&by.times(len)).product(by);
        self.s0 += &by.times(len);
    }
}

/// [`QuadraticSums`] for [`MovingSums`](crate::moving_sums::MovingSums).
#[derive(Clone, Debug)]
pub struct QuadraticShape;

impl SumsShape for QuadraticShape {
    type Sums<I: Whole> = QuadraticSums<I>;

    /// Σ u²·y, with what [`QuadraticSums::push`] adds on the way, stays below 2·W³·Y, and Σ y² below W·Y².
    fn holds(len: usize, reach: u64) -> bool {
        let (len, reach) = (bit_length(len as u64), bit_length(reach));
        3 * len + reach <= 125 && len + 2 * reach <= 126
    }

    fn widened(sums: &QuadraticSums<i128>) -> QuadraticSums<BigInt> {
        sums.map(Whole::to_big)
    }
}

/// Integers that do not depend on the reference that the `y` are relative to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QuadraticMoments<I> {
    /// Σ (y_i - y), y the newest value.
    pub excess: I,
    /// S1 = Σ u·y.
    pub linear: I,
    /// Q2 = Σ (3u² - (W²-1))·y.
    pub curvature: I,
    /// T = W·Σ y² - (Σ y)² = W·SStot.
    pub spread: I,
}

// ---------------------------------------------------------------------------------------------------------
// Exact fit
// ---------------------------------------------------------------------------------------------------------

/// A frame of values, integers times `2^exponent`.
#[derive(Clone, Copy, Debug)]
pub struct QuadraticFrame<I> {
    /// W, at least 3.
    pub len: usize,
    pub exponent: i32,
    pub moments: QuadraticMoments<I>,
    /// The newest value.
    pub newest: I,
}

impl<I: Quotient> QuadraticFrame<I> {
    /// One metric of the fit, rounded as [`crate::rounding`] says.
    ///
    /// # Panics
    /// For `endpoint`, which is not one: see [`crate::window::relative_change`].
    pub fn metric(&self, metric: RegMetric) -> f64 {
        match metric {
            RegMetric::A => self.slope(0, 15),
            RegMetric::B => self.slope(1, -15 * (self.len as i128 - 1)),
            RegMetric::SlopeEnd => self.slope(1, 15 * (self.len as i128 - 1)),
            RegMetric::C => self.level(-1),
            RegMetric::YhatEnd => self.level(1),
            RegMetric::ResidEnd => self.residual(),
            RegMetric::R2 => self.r2(),
            RegMetric::Rmse => self.rmse(),
            RegMetric::Endpoint => panic!("the endpoint is no metric of the fit"),
        }
    }

    /// The whole fit.
    pub fn fit(&self) -> QuadraticFit {
        QuadraticFit {
            a: self.metric(RegMetric::A),
            b: self.metric(RegMetric::B),
            c: self.metric(RegMetric::C),
            r2: self.metric(RegMetric::R2),
            rmse: self.metric(RegMetric::Rmse),
            yhat_end: self.metric(RegMetric::YhatEnd),
            resid_end: self.metric(RegMetric::ResidEnd),
            slope_end: self.metric(RegMetric::SlopeEnd),
        }
    }

    /// `(6·q0·linear·S1 + curvature·Q2) / D`.
    fn slope(&self, linear: i128, curvature: i128) -> f64 {
        let Factors { len, q0, q1 } = Factors::new(self.len);
        let linear = self.moments.linear.times(6 * q0 * linear);
        let num = self.moments.curvature.times(curvature).plus(&linear);
        I::nearest(&num, &I::from_i128(len).times(q0).times(q1), self.exponent.into())
    }

    /// The fit's distance from `base` at the newest (`end` = 1) or oldest (-1) value, as numerator and denominator;
    /// `sum` = Σ (y_i - base).
    fn level_ratio(&self, sum: &I, end: i128) -> (I, I) {
        let len = self.len as i128;
        let num = sum
            .times(2 * (len + 1) * (len + 2))
            .plus(&self.moments.linear.times(6 * (len + 2) * end))
            .plus(&self.moments.curvature.times(5));
        (num, I::from_i128(2 * len * (len + 1) * (len + 2)))
    }

    fn level(&self, end: i128) -> f64 {
        let sum = self.moments.excess.clone().plus(&self.newest.times(self.len as i128));
        let (num, den) = self.level_ratio(&sum, end);
        I::nearest(&num, &den, self.exponent.into())
    }

    fn residual(&self) -> f64 {
        let (num, den) = self.level_ratio(&self.moments.excess, 1);
        I::nearest(&num.times(-1), &den, self.exponent.into())
    }

    /// E and F of the module's table.
    fn explained_and_total(&self) -> (BigInt, BigInt) {
        let Factors { q0, q1, .. } = Factors::new(self.len);
        let [linear, curvature] =
            [&self.moments.linear, &self.moments.curvature].map(|s| s.to_big().squared());
        (linear.times(12 * q0).plus(&curvature.times(5)), self.moments.spread.to_big().times(4 * q0 * q1))
    }

    fn r2(&self) -> f64 {
        if self.moments.spread.is_zero() {
            return 1.0;
        }
        let (explained, total) = self.explained_and_total();
        Quotient::nearest(&explained, &total, 0)
    }

    fn rmse(&self) -> f64 {
        let Factors { len, q0, q1 } = Factors::new(self.len);
        let (explained, total) = self.explained_and_total();
        Quotient::root(
            &total.minus(&explained),
            &BigInt::from(4 * len * len).times(q0).times(q1),
            self.exponent.into(),
        )
    }
}

/// W, W²-4 and W²-1.
struct Factors {
    len: i128,
    q0: i128,
    q1: i128,
}

impl Factors {
    /// Products of four lengths, and what is done with them here, fit 128 bits up to this length; longer products are
    /// left to the numbers that are multiplied.
    const LONGEST: usize = 1 << 31;

    fn new(len: usize) -> Factors {
        assert!(len <= Self::LONGEST, "a frame of {len} values is too long");
        let len = len as i128;
        Factors { len, q0: len * len - 4, q1: len * len - 1 }
    }
}

// ---------------------------------------------------------------------------------------------------------
// Fast fit
// ---------------------------------------------------------------------------------------------------------

/// What [`estimate`] needs to know of a window length and an [`Axis`](crate::fixed::Axis).
#[derive(Clone, Copy, Debug)]
pub struct QuadraticConstants {
    /// 1 / W and 1 / W².
    mean: DoubleDouble,
    mean_square: DoubleDouble,
    /// Of S1 in the slopes, 6·q0 / D, and in the levels, 6(W+2) / D2.
    linear_slope: DoubleDouble,
    linear_level: DoubleDouble,
    /// Of Q2 in a, 15 / D, in the slopes, 15(W-1) / D, and in the levels, 5 / D2.
    curvature: DoubleDouble,
    curvature_slope: DoubleDouble,
    curvature_level: DoubleDouble,
    /// Of S1² and Q2² in T·r2: 3 / q1 and 5 / (4·q0·q1).
    linear_explains: DoubleDouble,
    curvature_explains: DoubleDouble,
    scale: f64,
    inverse_scale: f64,
}

impl QuadraticConstants {
    /// `len` from 3; the scales are those of the axis.
    pub fn new(len: usize, scale: f64, inverse_scale: f64) -> QuadraticConstants {
        let Factors { len, q0, q1 } = Factors::new(len);
        let ratio = DoubleDouble::from_quotient;
        QuadraticConstants {
            mean: ratio(1, len),
            mean_square: ratio(1, len * len),
            linear_slope: ratio(6, len * q1),
            linear_level: ratio(3, len * (len + 1)),
            curvature: ratio(15, len * q0 * q1),
            curvature_slope: ratio(15, len * (len + 1) * q0),
            curvature_level: ratio(5, 2 * len * (len + 1) * (len + 2)),
            linear_explains: ratio(3, q1),
            curvature_explains: ratio(5, 4 * q0 * q1),
            scale,
            inverse_scale,
        }
    }
}

/// The moments as [`DoubleDouble`]s, and the newest value itself.
#[derive(Clone, Copy, Debug)]
pub struct QuadraticInputs {
    pub excess: DoubleDouble,
    pub linear: DoubleDouble,
    pub curvature: DoubleDouble,
    pub spread: DoubleDouble,
    pub newest: f64,
}

/// The fit, each metric rounded as [`QuadraticFrame::metric`] rounds it, or NaN where the estimate cannot tell.
#[inline(always)]
pub fn estimate<P: Products>(constants: &QuadraticConstants, frame: &QuadraticInputs) -> QuadraticFit {
    let QuadraticInputs { excess, linear, curvature, spread, newest } = *frame;
    let scale = constants.scale;
    let newest = newest * constants.inverse_scale;
    let magnitudes = |terms: &[DoubleDouble]| terms.iter().map(|term| term.magnitude()).sum::<f64>();

    let a = curvature.times::<P>(constants.curvature);
    let middle_slope = linear.times::<P>(constants.linear_slope);
    let half_turn = curvature.times::<P>(constants.curvature_slope);
    let slopes = magnitudes(&[middle_slope, half_turn]);

    // The levels are relative to the newest value.
    let mean = excess.times::<P>(constants.mean);
    let half_rise = linear.times::<P>(constants.linear_level);
    let bend = curvature.times::<P>(constants.curvature_level);
    let ends = mean.plus(bend);
    let rise_to_end = ends.plus(half_rise);
    let levels = magnitudes(&[mean, half_rise, bend]);
    let level = |above_newest: DoubleDouble| {
        decide(two_sum(newest, above_newest.hi).plus(above_newest.lo.into()), newest.abs() + levels) * scale
    };

    // T·r2 and T·(1 - r2).
    let explained = linear
        .times::<P>(linear)
        .times::<P>(constants.linear_explains)
        .plus(curvature.times::<P>(curvature).times::<P>(constants.curvature_explains));
    let r2 = explained.times::<P>(DoubleDouble::reciprocal::<P>(spread));
    let left = spread.minus(explained).times::<P>(constants.mean_square);
    let total = spread.magnitude() * constants.mean_square.hi;

    QuadraticFit {
        a: decide(a, a.magnitude()) * scale,
        b: decide(middle_slope.minus(half_turn), slopes) * scale,
        c: level(ends.minus(half_rise)),
        r2: if spread.hi == 0.0 { 1.0 } else { decide(r2, r2.magnitude()) },
        rmse: decide(left, 2.0 * total).sqrt() * scale,
        yhat_end: level(rise_to_end),
        resid_end: decide(rise_to_end.negated(), levels) * scale,
        slope_end: decide(middle_slope.plus(half_turn), slopes) * scale,
    }
}

/// [`estimate`] as a computation for [`with_best_products`](crate::rounding::with_best_products).
pub struct Estimate<'a> {
    pub constants: &'a QuadraticConstants,
    pub frame: &'a QuadraticInputs,
}

impl WithProducts for Estimate<'_> {
    type Output = QuadraticFit;

    #[inline(always)]
    fn run<P: Products>(&self, output: &mut QuadraticFit) {
        *output = estimate::<P>(self.constants, self.frame);
    }
}
