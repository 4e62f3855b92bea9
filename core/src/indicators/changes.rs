//! How much a value has changed.

use std::collections::TryReserveError;

use super::averages::Smoothed;
use super::{HighLowClose, Indicator, Lookback, MAX_PERIOD, check_period};
use crate::rounding::CompensatedSum;

/// Momentum: the value minus the one `period` rows before.
#[derive(Clone, Debug)]
pub struct Momentum {
    last: Lookback,
}

impl Indicator for Momentum {
    type Parameters = usize;
    type Input = f64;
    type Reading = f64;

    fn new(period: usize) -> Self {
        Momentum { last: Lookback::new(period, 1) }
    }

    fn push(&mut self, value: f64) -> Result<Option<f64>, TryReserveError> {
        Ok(self.last.push(value)?.map(|before| value - before))
    }
}

/// Rate of change: by how many per cent the value is above the one `period` rows before; 0 if that is 0.
#[derive(Clone, Debug)]
pub struct Roc {
    last: Lookback,
}

impl Indicator for Roc {
    type Parameters = usize;
    type Input = f64;
    type Reading = f64;

    fn new(period: usize) -> Self {
        Roc { last: Lookback::new(period, 1) }
    }

    fn push(&mut self, value: f64) -> Result<Option<f64>, TryReserveError> {
        let before = self.last.push(value)?;
        Ok(before.map(|before| if before == 0.0 { 0.0 } else { (value - before) / before * 100.0 }))
    }
}

/// Relative strength index (Wilder): the gains' share of all changes, in per cent, both smoothed; 0 where there are none.
#[derive(Clone, Debug)]
pub struct Rsi {
    before: Option<f64>,
    gains: Smoothed,
    losses: Smoothed,
}

impl Indicator for Rsi {
    type Parameters = usize;
    type Input = f64;
    type Reading = f64;

    fn new(period: usize) -> Self {
        check_period(period, 2..=MAX_PERIOD);
        Rsi { before: None, gains: Smoothed::wilder(period), losses: Smoothed::wilder(period) }
    }

    fn push(&mut self, value: f64) -> Result<Option<f64>, TryReserveError> {
        let Some(before) = self.before.replace(value) else { return Ok(None) };
        let (gain, loss) = ((value - before).max(0.0), (before - value).max(0.0));
        let smoothed = self.gains.push(gain).zip(self.losses.push(loss));
        Ok(smoothed.map(|(gain, loss)| if gain + loss == 0.0 { 0.0 } else { 100.0 * gain / (gain + loss) }))
    }
}

/// Average true range (Wilder): how far bars reach, the close before them included, smoothed.
#[derive(Clone, Debug)]
pub struct Atr {
    close: Option<f64>,
    ranges: Smoothed,
}

impl Indicator for Atr {
    type Parameters = usize;
    type Input = HighLowClose;
    type Reading = f64;

    fn new(period: usize) -> Self {
        Atr { close: None, ranges: Smoothed::wilder(period) }
    }

    fn push(&mut self, bar: HighLowClose) -> Result<Option<f64>, TryReserveError> {
        let before = self.close.replace(bar.close);
        Ok(before.and_then(|close| {
            let range = bar.high - bar.low;
            self.ranges.push(range.max((bar.high - close).abs()).max((bar.low - close).abs()))
        }))
    }
}

/// Realized volatility: the root of the sum of the last `period` squared logarithmic returns. Not of TA-Lib. A value that
/// is not positive has no logarithm: readings that it takes part in are NaN.
#[derive(Clone, Debug)]
pub struct RealizedVolatility {
    before: Option<f64>,
    returns: Lookback,
}

impl Indicator for RealizedVolatility {
    type Parameters = usize;
    type Input = f64;
    type Reading = f64;

    fn new(period: usize) -> Self {
        RealizedVolatility { before: None, returns: Lookback::new(period, 1) }
    }

    fn push(&mut self, value: f64) -> Result<Option<f64>, TryReserveError> {
        let Some(before) = self.before.replace(value) else { return Ok(None) };
        self.returns.push(log_return(before, value))?;
        Ok(self.returns.is_full().then(|| {
            self.returns.iter().map(|change| change * change).collect::<CompensatedSum>().value().sqrt()
        }))
    }
}

/// ln(value / before), without the rounding of the quotient where they are close, nor its overflow where they are not. (libm's logarithm, so
/// that it is the same double on every machine.)
fn log_return(before: f64, value: f64) -> f64 {
    if !(before > 0.0 && value > 0.0) {
        f64::NAN
    } else if (before / 2.0..=before * 2.0).contains(&value) {
        libm::log1p((value - before) / before)
    } else {
        libm::log(value) - libm::log(before)
    }
}
