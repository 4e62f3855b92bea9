//! Moving averages, and what is made of them alone.

use std::collections::TryReserveError;

use super::{Indicator, Lookback, MAX_PERIOD, Reading, check_period};
use crate::rounding::CompensatedSum;

/// Simple moving average: the mean of the last `period` values.
#[derive(Clone, Debug)]
pub struct Sma {
    last: Lookback,
}

impl Indicator for Sma {
    type Parameters = usize;
    type Input = f64;
    type Reading = f64;

    fn new(period: usize) -> Self {
        Sma { last: Lookback::new(period, 1) }
    }

    fn push(&mut self, value: f64) -> Result<Option<f64>, TryReserveError> {
        self.last.push(value)?;
        Ok(self.last.is_full().then(|| mean(self.last.iter())))
    }
}

/// The mean of values, which there must be. That of equal ones is exactly theirs, so that they deviate by 0.
pub(super) fn mean(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let (mut rest, mut len) = (values.clone(), 0u32);
    let first = rest.next().expect("there are values");
    if rest.all(|value| value == first) {
        return first;
    }
    let sum: CompensatedSum = values.inspect(|_| len += 1).collect();
    sum.value() / f64::from(len)
}

/// Linearly weighted moving average: the newest of the last `period` values has the weight `period`, the oldest 1.
#[derive(Clone, Debug)]
pub struct Wma {
    last: Lookback,
}

impl Indicator for Wma {
    type Parameters = usize;
    type Input = f64;
    type Reading = f64;

    fn new(period: usize) -> Self {
        Wma { last: Lookback::new(period, 1) }
    }

    fn push(&mut self, value: f64) -> Result<Option<f64>, TryReserveError> {
        self.last.push(value)?;
        Ok(self.last.is_full().then(|| {
            let weighted = self.last.iter().zip(1u32..).map(|(value, weight)| value * f64::from(weight));
            let period = self.last.period as f64;
            weighted.collect::<CompensatedSum>().value() / (period * (period + 1.0) / 2.0)
        }))
    }
}

/// Exponential moving average: the mean of the first `period` values, then each value with weight 2 / (period + 1).
#[derive(Clone, Debug)]
pub struct Ema(Smoothed);

impl Indicator for Ema {
    type Parameters = usize;
    type Input = f64;
    type Reading = f64;

    fn new(period: usize) -> Self {
        Ema(Smoothed::exponential(period))
    }

    fn push(&mut self, value: f64) -> Result<Option<f64>, TryReserveError> {
        Ok(self.0.push(value))
    }
}

/// An average that moves towards each new value by a share of the distance, beginning at the mean of the first few.
#[derive(Clone, Debug)]
pub(super) struct Smoothed {
    period: usize,
    share: f64,
    count: usize,
    /// The sum of values until there are enough for a mean; then the average.
    value: f64,
}

impl Smoothed {
    fn exponential(period: usize) -> Smoothed {
        Smoothed::new(period, 2.0 / (period as f64 + 1.0))
    }

    /// Wilder's smoothing.
    pub(super) fn wilder(period: usize) -> Smoothed {
        Smoothed::new(period, 1.0 / period as f64)
    }

    fn new(period: usize, share: f64) -> Smoothed {
        check_period(period, 1..=MAX_PERIOD);
        Smoothed { period, share, count: 0, value: 0.0 }
    }

    pub(super) fn push(&mut self, value: f64) -> Option<f64> {
        if self.count == self.period {
            self.value += (value - self.value) * self.share;
            return Some(self.value);
        }
        self.count += 1;
        self.value += value;
        (self.count == self.period).then(|| {
            self.value /= self.period as f64;
            self.value
        })
    }
}

/// Moving average convergence/divergence: parameters are the periods of the fast average, of the slow one, which must
/// be the longer, and of the signal's.
///
/// As in TA-Lib, both averages have their first value where the slow one can (so the fast one begins at the mean of the
/// `fast` values that end there), and there are no readings before the signal has one.
#[derive(Clone, Debug)]
pub struct Macd {
    /// Values to come before those that the fast average is to see.
    skipped: usize,
    fast: Smoothed,
    slow: Smoothed,
    signal: Smoothed,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MacdReading {
    /// The fast average minus the slow one.
    pub line: f64,
    /// The line's exponential average.
    pub signal: f64,
    /// The line minus the signal.
    pub histogram: f64,
}

impl Reading for MacdReading {
    type Values = [f64; 3];

    fn values(self) -> [f64; 3] {
        [self.line, self.signal, self.histogram]
    }
}

impl Indicator for Macd {
    type Parameters = [usize; 3];
    type Input = f64;
    type Reading = MacdReading;

    fn new([fast, slow, signal]: [usize; 3]) -> Self {
        check_period(fast, 2..=slow - 1);
        Macd {
            skipped: slow - fast,
            fast: Smoothed::exponential(fast),
            slow: Smoothed::exponential(slow),
            signal: Smoothed::exponential(signal),
        }
    }

    fn push(&mut self, value: f64) -> Result<Option<MacdReading>, TryReserveError> {
        let slow = self.slow.push(value);
        if self.skipped > 0 {
            self.skipped -= 1;
            return Ok(None);
        }
        let fast = self.fast.push(value);
        Ok(fast.zip(slow).and_then(|(fast, slow)| {
            let line = fast - slow;
            let signal = self.signal.push(line)?;
            Some(MacdReading { line, signal, histogram: line - signal })
        }))
    }
}
