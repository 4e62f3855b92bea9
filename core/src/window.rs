//! Backward-window metrics: what the `W` values before a bar say about the bar's own value.
//!
//! With p the current value and p_1 … p_W the past ones, oldest first:
//!
//! | metric | formula | as integers on the grid (see [`WindowMoments`]) |
//! |---|---|---|
//! | return | Σ (p_i - p) / p | D / k |
//! | max, min | | |
//! | avg | Σ p_i / W | (D + W·k) / W |
//! | stdev | sample deviation (n - 1) | sqrt(rn(T / (W(W - 1)))) |
//! | endpoint | (p_1 - p) / p | (k_1 - k) / k |
//! | range | (max - min) / p | (k_max - k_min) / k |
//! | volatility | stdev / p | |
//!
//! Three layers, apart so that any frame can use them: [`WindowSums`] add and drop values; [`WindowFrame`] turns
//! them into metrics exactly; [`estimate`] does it fast, with NaN for what it leaves to the exact layer.
//! How results are rounded: [`crate::rounding`].

use num_bigint::BigInt;

use crate::columns::{AggMetric, WindowMetric};
use crate::fixed::{Quotient, Whole, bit_length};
use crate::moving_sums::{Sums, SumsShape};
use crate::rounding::{DoubleDouble, Products, WithProducts, decide, two_sum};

/// The metrics of a backward window. The discriminants index [`WindowMetrics::to_array`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    Return,
    Max,
    Min,
    Avg,
    Stdev,
    Endpoint,
    Range,
    Volatility,
}

impl Metric {
    pub const ALL: [Metric; 8] = [
        Metric::Return,
        Metric::Max,
        Metric::Min,
        Metric::Avg,
        Metric::Stdev,
        Metric::Endpoint,
        Metric::Range,
        Metric::Volatility,
    ];
}

impl From<WindowMetric> for Metric {
    fn from(metric: WindowMetric) -> Self {
        match metric {
            WindowMetric::Return => Metric::Return,
            WindowMetric::Max => Metric::Max,
            WindowMetric::Min => Metric::Min,
            WindowMetric::Avg => Metric::Avg,
            WindowMetric::Stdev => Metric::Stdev,
            WindowMetric::Endpoint => Metric::Endpoint,
        }
    }
}

impl From<AggMetric> for Metric {
    fn from(metric: AggMetric) -> Self {
        match metric {
            AggMetric::Return => Metric::Return,
            AggMetric::Max => Metric::Max,
            AggMetric::Min => Metric::Min,
            AggMetric::Avg => Metric::Avg,
            AggMetric::Stdev => Metric::Stdev,
            AggMetric::Range => Metric::Range,
            AggMetric::Volatility => Metric::Volatility,
        }
    }
}

/// All metrics of one frame. `max`, `min`, `avg` and `stdev` have the values' unit, the others none. Metrics that
/// divide are NaN if the current value is 0; overflow gives ±∞.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WindowMetrics {
    pub bqx_return: f64,
    pub max: f64,
    pub min: f64,
    pub avg: f64,
    pub stdev: f64,
    pub endpoint: f64,
    pub range: f64,
    pub volatility: f64,
}

impl WindowMetrics {
    /// In the order of [`Metric::ALL`].
    #[inline(always)]
    pub fn to_array(self) -> [f64; 8] {
        let WindowMetrics { bqx_return, max, min, avg, stdev, endpoint, range, volatility } = self;
        [bqx_return, max, min, avg, stdev, endpoint, range, volatility]
    }

    /// Inverse of [`to_array`](Self::to_array).
    #[inline(always)]
    pub fn from_array([bqx_return, max, min, avg, stdev, endpoint, range, volatility]: [f64; 8]) -> Self {
        WindowMetrics { bqx_return, max, min, avg, stdev, endpoint, range, volatility }
    }
}

// ---------------------------------------------------------------------------------------------------------
// Sums
// ---------------------------------------------------------------------------------------------------------

/// Exact sums of the values in a frame, which may grow, slide and shrink.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowSums<I> {
    len: usize,
    sum: I,
    squares: I,
}

impl<I: Whole> Default for WindowSums<I> {
    fn default() -> Self {
        WindowSums { len: 0, sum: I::zero(), squares: I::zero() }
    }
}

impl WindowSums<i128> {
    /// The sums that pushing these values one by one gives, sooner. They must fit, as
    /// [`Axis::fits`](crate::fixed::Axis::fits) says.
    pub fn of(values: &[i64]) -> Self {
        let (mut sum, mut squares) = (0, 0);
        for &y in values {
            sum += i128::from(y);
            squares += i128::from(y) * i128::from(y);
        }
        WindowSums { len: values.len(), sum, squares }
    }
}

impl<I: Whole> WindowSums<I> {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn push(&mut self, y: &I) {
        self.len += 1;
        self.sum += y;
        self.squares += &y.squared();
    }

    /// Takes out a value that was pushed.
    pub fn drop_oldest(&mut self, y: &I) {
        self.len -= 1;
        self.sum -= y;
        self.squares -= &y.squared();
    }

    /// [`drop_oldest`](Self::drop_oldest) and [`push`](Self::push) in one.
    #[inline(always)]
    pub fn slide(&mut self, oldest: &I, newest: &I) {
        self.sum += newest;
        self.sum -= oldest;
        self.squares += &newest.squared();
        self.squares -= &oldest.squared();
    }

    /// The same sums in other integers.
    pub fn map<J>(&self, integer: impl Fn(&I) -> J) -> WindowSums<J> {
        WindowSums { len: self.len, sum: integer(&self.sum), squares: integer(&self.squares) }
    }

    /// What the metrics are made of, with the current value `y`.
    #[inline(always)]
    pub fn moments(&self, y: &I) -> WindowMoments<I> {
        let len = self.len as i128;
        WindowMoments {
            excess: self.sum.clone().minus(&y.times(len)),
            spread: self.squares.times(len).minus(&self.sum.squared()),
        }
    }
}

impl<I: Whole> Sums<I> for WindowSums<I> {
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
        self.sum = self.sum.scaled_up(bits);
        self.squares = self.squares.scaled_up(2 * bits);
    }

    fn move_reference(&mut self, by: &I) {
        let len = self.len as i128;
        // Σ (y + d)² = Σ y² + d·(2·Σ y + W·d)
        self.squares += &self.sum.times(2).plus(&by.times(len)).product(by);
        self.sum += &by.times(len);
    }
}

/// [`WindowSums`] for [`MovingSums`](crate::moving_sums::MovingSums).
#[derive(Clone, Debug)]
pub struct WindowShape;

impl SumsShape for WindowShape {
    type Sums<I: Whole> = WindowSums<I>;

    /// W·Y² < 2^126 bounds both sums.
    fn holds(len: usize, reach: u64) -> bool {
        bit_length(len as u64) + 2 * bit_length(reach) <= 126
    }

    fn widened(sums: &WindowSums<i128>) -> WindowSums<BigInt> {
        sums.map(Whole::to_big)
    }
}

/// Integers that do not depend on the reference that the `y` are relative to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WindowMoments<I> {
    /// D = Σ (y_i - y).
    pub excess: I,
    /// T = W·Σ y_i² - (Σ y_i)² = W(W - 1) times the sample variance.
    pub spread: I,
}

// ---------------------------------------------------------------------------------------------------------
// Exact metrics
// ---------------------------------------------------------------------------------------------------------

/// A frame of past values and the current one: values are integers times `2^exponent`.
#[derive(Clone, Copy, Debug)]
pub struct WindowFrame<I> {
    /// W, at least 2.
    pub len: usize,
    pub exponent: i32,
    pub moments: WindowMoments<I>,
    /// The current value.
    pub now: I,
    /// The oldest, greatest and least of the past values.
    pub oldest: I,
    pub max: I,
    pub min: I,
}

impl<I: Quotient> WindowFrame<I> {
    /// One metric, rounded as [`crate::rounding`] says. NaN if it divides by a current value of 0.
    pub fn metric(&self, metric: Metric) -> f64 {
        let len = self.len as i128;
        let exponent = i64::from(self.exponent);
        let one = I::from_i128(1);
        match metric {
            Metric::Return => I::nearest(&self.moments.excess, &self.now, 0),
            Metric::Max => I::nearest(&self.max, &one, exponent),
            Metric::Min => I::nearest(&self.min, &one, exponent),
            Metric::Avg => {
                let sum = self.moments.excess.clone().plus(&self.now.times(len));
                I::nearest(&sum, &I::from_i128(len), exponent)
            }
            Metric::Stdev => I::root(&self.moments.spread, &I::from_i128(len * (len - 1)), exponent),
            Metric::Endpoint => relative_change(&self.now, &self.oldest),
            Metric::Range => I::nearest(&self.max.clone().minus(&self.min), &self.now, 0),
            Metric::Volatility => {
                volatility(self.metric(Metric::Stdev), I::nearest(&self.now, &one, exponent))
            }
        }
    }

    /// All metrics.
    pub fn metrics(&self) -> WindowMetrics {
        let [bqx_return, max, min, avg, stdev, endpoint, range, volatility] =
            Metric::ALL.map(|metric| self.metric(metric));
        WindowMetrics { bqx_return, max, min, avg, stdev, endpoint, range, volatility }
    }
}

/// `(to - from) / from`, rounded once; NaN if `from` is 0.
pub fn relative_change<I: Quotient>(from: &I, to: &I) -> f64 {
    I::nearest(&to.clone().minus(from), from, 0)
}

/// The IEEE quotient of a rounded deviation and the current value; NaN if that is 0, never -0.
#[inline(always)]
fn volatility(stdev: f64, now: f64) -> f64 {
    let quotient = stdev / now + 0.0;
    if now == 0.0 { f64::NAN } else { quotient }
}

// ---------------------------------------------------------------------------------------------------------
// Fast metrics
// ---------------------------------------------------------------------------------------------------------

/// What [`estimate`] needs to know of a window length and an [`Axis`](crate::fixed::Axis).
#[derive(Clone, Copy, Debug)]
pub struct WindowConstants {
    /// 1 / W and 1 / (W(W - 1)).
    per_value: DoubleDouble,
    per_pair: DoubleDouble,
    scale: f64,
    inverse_scale: f64,
}

impl WindowConstants {
    /// `len` from 2; the scales are those of the axis.
    pub fn new(len: usize, scale: f64, inverse_scale: f64) -> WindowConstants {
        let len = len as i128;
        WindowConstants {
            per_value: DoubleDouble::from_quotient(1, len),
            per_pair: DoubleDouble::from_quotient(1, len * (len - 1)),
            scale,
            inverse_scale,
        }
    }
}

/// The moments as [`DoubleDouble`]s, and the values themselves.
#[derive(Clone, Copy, Debug)]
pub struct WindowInputs {
    pub excess: DoubleDouble,
    pub spread: DoubleDouble,
    pub now: f64,
    pub oldest: f64,
    pub max: f64,
    pub min: f64,
}

/// The metrics, each rounded as [`WindowFrame::metric`] rounds it, or NaN where the estimate cannot tell.
#[inline(always)]
pub fn estimate<P: Products>(constants: &WindowConstants, frame: &WindowInputs) -> WindowMetrics {
    let now = frame.now * constants.inverse_scale;
    let per_now = DoubleDouble::reciprocal::<P>(now.into());
    let quotient = |numerator: DoubleDouble| {
        let quotient = numerator.times::<P>(per_now);
        decide(quotient, quotient.magnitude())
    };
    let difference = |a: f64, b: f64| two_sum(a * constants.inverse_scale, -b * constants.inverse_scale);

    let above_now = frame.excess.times::<P>(constants.per_value);
    let avg = DoubleDouble::from(now).plus(above_now);
    let variance = frame.spread.times::<P>(constants.per_pair);
    let stdev = decide(variance, variance.magnitude()).sqrt() * constants.scale;
    WindowMetrics {
        bqx_return: quotient(frame.excess),
        max: frame.max,
        min: frame.min,
        avg: decide(avg, now.abs() + above_now.magnitude()) * constants.scale,
        stdev,
        endpoint: quotient(difference(frame.oldest, frame.now)),
        range: quotient(difference(frame.max, frame.min)),
        volatility: volatility(stdev, frame.now),
    }
}

/// [`estimate`] as a computation for [`with_best_products`](crate::rounding::with_best_products).
pub struct Estimate<'a> {
    pub constants: &'a WindowConstants,
    pub frame: &'a WindowInputs,
}

impl WithProducts for Estimate<'_> {
    type Output = WindowMetrics;

    #[inline(always)]
    fn run<P: Products>(&self, output: &mut WindowMetrics) {
        *output = estimate::<P>(self.constants, self.frame);
    }
}

/// [`relative_change`] of two values of a run, or NaN where the estimate cannot tell.
#[inline(always)]
pub fn estimate_change<P: Products>(from: f64, to: f64) -> f64 {
    let change = two_sum(to, -from).times::<P>(DoubleDouble::reciprocal::<P>(from.into()));
    decide(change, change.magnitude())
}
