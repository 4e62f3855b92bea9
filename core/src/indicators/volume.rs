//! Volume as prices go.

use std::collections::TryReserveError;

use super::Indicator;

/// On-balance volume: begins with the first volume, adds that of each value above the one before, and takes off that of each
/// below. Values are (price, volume).
#[derive(Clone, Debug)]
pub struct Obv {
    balance: f64,
    before: Option<f64>,
}

impl Indicator for Obv {
    type Parameters = ();
    type Input = (f64, f64);
    type Reading = f64;

    fn new((): ()) -> Self {
        Obv { balance: 0.0, before: None }
    }

    fn push(&mut self, (price, volume): (f64, f64)) -> Result<Option<f64>, TryReserveError> {
        match self.before.replace(price) {
            Some(before) if price == before => {}
            Some(before) if price < before => self.balance -= volume,
            _ => self.balance += volume,
        }
        Ok(Some(self.balance))
    }
}
