//! Where the close is between the highest high and the lowest low.

use std::collections::TryReserveError;

use super::averages::Sma;
use super::{HighLowClose, Indicator, MAX_PERIOD, Reading, check_period};
use crate::extrema::MovingMaximum;

/// The highest high and the lowest low of the last bars.
#[derive(Clone, Debug)]
struct Channel {
    period: usize,
    count: usize,
    high: MovingMaximum<f64>,
    /// Of the lows' negatives.
    low: MovingMaximum<f64>,
}

impl Channel {
    fn new(period: usize) -> Channel {
        check_period(period, 1..=MAX_PERIOD);
        Channel { period, count: 0, high: MovingMaximum::default(), low: MovingMaximum::default() }
    }

    /// (Highest, lowest) once there are enough bars.
    fn push(&mut self, bar: HighLowClose) -> Result<Option<(f64, f64)>, TryReserveError> {
        if self.count == self.period {
            self.high.drop_oldest();
            self.low.drop_oldest();
        } else {
            self.count += 1;
        }
        self.high.push(bar.high)?;
        self.low.push(-bar.low)?;
        let extremes = self.high.get().zip(self.low.get()).map(|(high, low)| (high, -low));
        Ok(extremes.filter(|_| self.count == self.period))
    }
}

/// Williams' %R: 0 where the close is the highest high of the last `period` bars, -100 where it is the lowest low; 0 where
/// these are the same.
#[derive(Clone, Debug)]
pub struct WilliamsR {
    channel: Channel,
}

impl Indicator for WilliamsR {
    type Parameters = usize;
    type Input = HighLowClose;
    type Reading = f64;

    fn new(period: usize) -> Self {
        check_period(period, 2..=MAX_PERIOD);
        WilliamsR { channel: Channel::new(period) }
    }

    fn push(&mut self, bar: HighLowClose) -> Result<Option<f64>, TryReserveError> {
        Ok(self.channel.push(bar)?.map(|(high, low)| -share(high - bar.close, high - low)))
    }
}

/// Stochastic oscillator: parameters are the bars that the close is compared with, the bars over which that is
/// averaged (k), and over which k is (d). There are no readings before d has one.
#[derive(Clone, Debug)]
pub struct Stochastic {
    channel: Channel,
    slow_k: Sma,
    slow_d: Sma,
}

/// Between 0, the lowest low, and 100, the highest high; 0 where these are the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StochasticReading {
    pub k: f64,
    pub d: f64,
}

impl Reading for StochasticReading {
    type Values = [f64; 2];

    fn values(self) -> [f64; 2] {
        [self.k, self.d]
    }
}

impl Indicator for Stochastic {
    type Parameters = [usize; 3];
    type Input = HighLowClose;
    type Reading = StochasticReading;

    fn new([period, slow_k, slow_d]: [usize; 3]) -> Self {
        Stochastic { channel: Channel::new(period), slow_k: Sma::new(slow_k), slow_d: Sma::new(slow_d) }
    }

    fn push(&mut self, bar: HighLowClose) -> Result<Option<StochasticReading>, TryReserveError> {
        let Some((high, low)) = self.channel.push(bar)? else { return Ok(None) };
        let Some(k) = self.slow_k.push(share(bar.close - low, high - low))? else { return Ok(None) };
        Ok(self.slow_d.push(k)?.map(|d| StochasticReading { k, d }))
    }
}

/// Per cent that a part is of the whole; 0 of 0.
fn share(part: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { part / whole * 100.0 }
}
