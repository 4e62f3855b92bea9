//! Technical indicators as states that a series' values are pushed into, one by one, oldest first.
//!
//! Definitions, and how many values each needs before its first reading, are those of TA-Lib (<https://ta-lib.org>),
//! for the indicators that it has. They are of two kinds:
//!
//! * *Windowed* ones ([`Sma`], [`Wma`], [`Bollinger`], [`Cci`], …) are made of the last values alone. They are computed
//!   anew for each row, in the order of the values and with compensated sums, so that a reading does not depend on what
//!   came before its window. (TA-Lib keeps running sums, which drift.)
//! * *Recursive* ones ([`Ema`], [`Rsi`], [`Macd`], [`Atr`], [`Obv`]) carry all values since the series' start with them,
//!   as their definitions want it.
//!
//! A value that is not finite ends the series: after it, the indicator starts anew ([`Running`]). So does a gap that the caller
//! makes of it; a gap in time is none.

use std::collections::{TryReserveError, VecDeque};
use std::ops::RangeInclusive;

mod averages;
mod bands;
mod changes;
mod channel;
mod volume;

pub use averages::{Ema, Macd, MacdReading, Sma, Wma};
pub use bands::{Bollinger, BollingerReading, Cci};
pub use changes::{Atr, Momentum, RealizedVolatility, Roc, Rsi};
pub use channel::{Stochastic, StochasticReading, WilliamsR};
pub use volume::Obv;

/// The longest period, TA-Lib's.
pub const MAX_PERIOD: usize = 100_000;

/// What an indicator reads of a bar.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HighLowClose {
    pub high: f64,
    pub low: f64,
    pub close: f64,
}

impl HighLowClose {
    /// The "typical price".
    fn typical(self) -> f64 {
        (self.high + self.low + self.close) / 3.0
    }
}

/// What is pushed.
pub trait Input: Copy {
    fn is_finite(self) -> bool;
}

impl Input for f64 {
    fn is_finite(self) -> bool {
        self.is_finite()
    }
}

/// A price and its volume.
impl Input for (f64, f64) {
    fn is_finite(self) -> bool {
        self.0.is_finite() && self.1.is_finite()
    }
}

impl Input for HighLowClose {
    fn is_finite(self) -> bool {
        [self.high, self.low, self.close].into_iter().all(f64::is_finite)
    }
}

/// What comes out: one number or a few, in the order of their type's fields.
pub trait Reading: Copy {
    type Values: AsRef<[f64]>;

    fn values(self) -> Self::Values;
}

impl Reading for f64 {
    type Values = [f64; 1];

    fn values(self) -> [f64; 1] {
        [self]
    }
}

/// An indicator of finite values.
pub trait Indicator: Sized {
    /// Periods and the like. [`Indicator::new`] has no room for those beyond [`MAX_PERIOD`], and panics at those below the
    /// indicator's least.
    type Parameters: Copy + PartialEq;
    type Input: Input;
    type Reading: Reading;

    fn new(parameters: Self::Parameters) -> Self;

    /// The reading once this value has come; `None` during the warm-up.
    ///
    /// # Errors
    /// If there is no memory.
    fn push(&mut self, input: Self::Input) -> Result<Option<Self::Reading>, TryReserveError>;
}

/// An indicator along a series, starting anew after each value that is not finite.
#[derive(Clone, Debug)]
pub struct Running<I: Indicator> {
    parameters: I::Parameters,
    indicator: I,
}

impl<I: Indicator> Running<I> {
    pub fn new(parameters: I::Parameters) -> Self {
        Running { parameters, indicator: I::new(parameters) }
    }

    pub fn parameters(&self) -> I::Parameters {
        self.parameters
    }

    /// As [`Indicator::push`]; `None` also for what is not finite. A reading's numbers may be infinite or NaN where they overflow.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn push(&mut self, input: I::Input) -> Result<Option<I::Reading>, TryReserveError> {
        if input.is_finite() {
            return self.indicator.push(input);
        }
        self.indicator = I::new(self.parameters);
        Ok(None)
    }
}

/// The last values of a series, so many of them.
#[derive(Clone, Debug)]
struct Lookback {
    period: usize,
    values: VecDeque<f64>,
}

impl Lookback {
    fn new(period: usize, least: usize) -> Lookback {
        check_period(period, least..=MAX_PERIOD);
        Lookback { period, values: VecDeque::new() }
    }

    /// Adds the newest value. The one so many rows before it goes, and is returned. (Memory comes with the values: there may be
    /// many short series of long periods.)
    fn push(&mut self, value: f64) -> Result<Option<f64>, TryReserveError> {
        let oldest = if self.is_full() { self.values.pop_front() } else { None };
        self.values.try_reserve(1)?;
        self.values.push_back(value);
        Ok(oldest)
    }

    fn is_full(&self) -> bool {
        self.values.len() == self.period
    }

    /// Oldest first.
    fn iter(&self) -> impl Iterator<Item = f64> + Clone {
        self.values.iter().copied()
    }
}

/// A panic for a period that is not within these.
fn check_period(period: usize, allowed: RangeInclusive<usize>) {
    assert!(allowed.contains(&period), "a period of {period} is not within {allowed:?}");
}
