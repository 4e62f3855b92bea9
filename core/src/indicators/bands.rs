//! How far a value is from the average of the last ones.

use std::collections::TryReserveError;

use super::averages::mean;
use super::{HighLowClose, Indicator, Lookback, Reading};

/// Bollinger bands: parameters are the period and how many standard deviations (of the population) the bands are
/// away from the mean.
#[derive(Clone, Debug)]
pub struct Bollinger {
    last: Lookback,
    deviations: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BollingerReading {
    pub upper: f64,
    /// The simple moving average.
    pub middle: f64,
    pub lower: f64,
    /// (upper - lower) / middle.
    pub width: f64,
    /// Where the value is: 0 at the lower band, 1 at the upper. NaN if the last values are all equal.
    pub percent_b: f64,
}

impl Reading for BollingerReading {
    type Values = [f64; 5];

    fn values(self) -> [f64; 5] {
        [self.upper, self.middle, self.lower, self.width, self.percent_b]
    }
}

impl Indicator for Bollinger {
    type Parameters = (usize, f64);
    type Input = f64;
    type Reading = BollingerReading;

    fn new((period, deviations): (usize, f64)) -> Self {
        Bollinger { last: Lookback::new(period, 2), deviations }
    }

    fn push(&mut self, value: f64) -> Result<Option<BollingerReading>, TryReserveError> {
        self.last.push(value)?;
        Ok(self.last.is_full().then(|| {
            let middle = mean(self.last.iter());
            let reach = self.deviations * deviation(self.last.iter(), middle);
            BollingerReading {
                upper: middle + reach,
                middle,
                lower: middle - reach,
                width: 2.0 * reach / middle,
                percent_b: ((value - middle) / reach + 1.0) / 2.0,
            }
        }))
    }
}

/// The standard deviation of a population with this mean.
fn deviation(values: impl Iterator<Item = f64> + Clone, around: f64) -> f64 {
    mean(values.map(|value| (value - around) * (value - around))).sqrt()
}

/// Commodity channel index: the typical price's distance from its mean over the period, in 0.015 mean absolute
/// deviations; 0 if either is 0.
#[derive(Clone, Debug)]
pub struct Cci {
    last: Lookback,
}

impl Indicator for Cci {
    type Parameters = usize;
    type Input = HighLowClose;
    type Reading = f64;

    fn new(period: usize) -> Self {
        Cci { last: Lookback::new(period, 2) }
    }

    fn push(&mut self, bar: HighLowClose) -> Result<Option<f64>, TryReserveError> {
        let typical = bar.typical();
        self.last.push(typical)?;
        Ok(self.last.is_full().then(|| {
            let mean_typical = mean(self.last.iter());
            let distance = typical - mean_typical;
            let spread = mean(self.last.iter().map(|typical| (typical - mean_typical).abs()));
            if distance == 0.0 || spread == 0.0 { 0.0 } else { distance / (0.015 * spread) }
        }))
    }
}
