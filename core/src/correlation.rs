//! Correlation of many columns with one: Pearson's, and Spearman's, which is Pearson's of the ranks.

use std::collections::TryReserveError;

use num_bigint::BigInt;

use crate::rounding::{nearest_ratio, two_sum};

/// How one column goes with another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Correlation {
    /// Rows in which both have a finite value.
    pub n: usize,
    /// Between -1 and 1; `None` with fewer than two rows, or where one of them does not vary.
    pub pearson: Option<f64>,
    pub spearman: Option<f64>,
}

/// A column that others are compared with. Values that are not finite count as missing.
#[derive(Clone, Debug)]
pub struct Reference<'a> {
    values: &'a [f64],
    /// Of the rows where it has a value, if it has one everywhere.
    complete: Option<Ranks>,
}

/// The ranks of values, doubled: equal values share the mean of theirs, which may end in one half.
type Ranks = Vec<u64>;

impl<'a> Reference<'a> {
    /// # Errors
    /// If there is no memory for the ranks of as many values.
    pub fn new(values: &'a [f64]) -> Result<Self, TryReserveError> {
        let is_complete = values.iter().all(|value| value.is_finite());
        let complete = if is_complete { Some(doubled_ranks(values)?) } else { None };
        Ok(Reference { values, complete })
    }

    /// Compares a column with this one, row by row.
    ///
    /// # Errors
    /// If there is no memory for the ranks of as many values.
    ///
    /// # Panics
    /// If they have not the same number of rows.
    pub fn correlation(&self, values: &[f64]) -> Result<Correlation, TryReserveError> {
        assert_eq!(values.len(), self.values.len(), "columns of one table");
        if let Some(ranks) = self.complete.as_ref().filter(|_| values.iter().all(|value| value.is_finite())) {
            return Ok(Correlation {
                n: values.len(),
                pearson: pearson(values, self.values),
                spearman: correlation_of_ranks(&doubled_ranks(values)?, ranks),
            });
        }
        let (mut x, mut y) = (Vec::new(), Vec::new());
        x.try_reserve_exact(values.len())?;
        y.try_reserve_exact(values.len())?;
        for (&a, &b) in values.iter().zip(self.values).filter(|(a, b)| a.is_finite() && b.is_finite()) {
            x.push(a);
            y.push(b);
        }
        Ok(Correlation {
            n: x.len(),
            pearson: pearson(&x, &y),
            spearman: correlation_of_ranks(&doubled_ranks(&x)?, &doubled_ranks(&y)?),
        })
    }
}

/// A sum whose rounding errors are summed beside it (Neumaier).
#[derive(Clone, Copy, Default)]
struct Compensated {
    sum: f64,
    error: f64,
}

impl Compensated {
    #[inline]
    fn add(&mut self, value: f64) {
        let sum = two_sum(self.sum, value);
        self.sum = sum.hi;
        self.error += sum.lo;
    }

    fn value(self) -> f64 {
        self.sum + self.error
    }
}

/// Values around their mean, scaled so that no square overflows or vanishes.
struct Centred<'a> {
    values: &'a [f64],
    mean: f64,
    scale: f64,
}

impl<'a> Centred<'a> {
    /// `None` if they do not vary.
    fn new(values: &'a [f64]) -> Option<Self> {
        let first = *values.first()?;
        if values.iter().all(|&value| value == first) {
            return None;
        }
        // Halves: the difference of two doubles may be beyond the greatest.
        let half = |value: f64| value / 2.0 - first / 2.0;
        let mut sum = Compensated::default();
        values.iter().for_each(|&value| sum.add(half(value) / values.len() as f64));
        let mean = sum.value();
        let reach = values.iter().map(|&value| (half(value) - mean).abs()).fold(0.0, f64::max);
        (reach > 0.0).then_some(Centred { values, mean, scale: reach })
    }

    #[inline]
    fn get(&self, i: usize) -> f64 {
        ((self.values[i] / 2.0 - self.values[0] / 2.0) - self.mean) / self.scale
    }
}

/// Pearson's correlation of finite values, to some units in the last place; `None` if one of them does not vary.
pub fn pearson(x: &[f64], y: &[f64]) -> Option<f64> {
    let (a, b) = (Centred::new(x)?, Centred::new(y)?);
    let [mut xx, mut xy, mut yy] = [Compensated::default(); 3];
    for i in 0..x.len() {
        let (dx, dy) = (a.get(i), b.get(i));
        xx.add(dx * dx);
        xy.add(dx * dy);
        yy.add(dy * dy);
    }
    Some((xy.value() / (xx.value() * yy.value()).sqrt()).clamp(-1.0, 1.0))
}

/// A number whose order among integers is that of the values.
fn sortable(value: f64) -> u64 {
    let bits = (value + 0.0).to_bits(); // -0 becomes +0
    if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
}

/// Twice the rank of each value, from 1; equal ones share their mean.
fn doubled_ranks(values: &[f64]) -> Result<Ranks, TryReserveError> {
    let mut order: Vec<(u64, u32)> = Vec::new();
    order.try_reserve_exact(values.len())?;
    order.extend(values.iter().zip(0..).map(|(&value, row)| (sortable(value), row)));
    order.sort_unstable();
    let mut ranks = Vec::new();
    ranks.try_reserve_exact(values.len())?;
    ranks.resize(values.len(), 0);
    let mut before = 0;
    for equal in order.chunk_by(|a, b| a.0 == b.0) {
        let count = equal.len() as u64;
        for &(_, row) in equal {
            ranks[row as usize] = 2 * before + count + 1;
        }
        before += count;
    }
    Ok(ranks)
}

/// Pearson's correlation of doubled ranks, exact but for the last division and root; `None` if all are equal.
fn correlation_of_ranks(x: &[u64], y: &[u64]) -> Option<f64> {
    let mean = x.len() as i128 + 1; // twice the mean rank
    let [mut xx, mut xy, mut yy] = [0i128; 3];
    for (&x, &y) in x.iter().zip(y) {
        let (dx, dy) = (i128::from(x) - mean, i128::from(y) - mean);
        xx += dx * dx;
        xy += dx * dy;
        yy += dy * dy;
    }
    if xx == 0 || yy == 0 {
        return None;
    }
    let square = nearest_ratio(&(BigInt::from(xy) * xy), &(BigInt::from(xx) * yy), 0);
    Some(square.sqrt().copysign(xy as f64))
}
