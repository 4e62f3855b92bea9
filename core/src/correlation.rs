//! Correlation of many columns with one: Pearson's, and Spearman's, which is Pearson's of the ranks.

use std::collections::TryReserveError;

use num_bigint::BigInt;

use crate::rounding::{CompensatedSum, nearest_ratio};

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
pub struct Reference {
    /// Of the whole column, the rows that have a value.
    rows: Vec<usize>,
    values: Vec<f64>,
    sample: Sample,
    len: usize,
}

impl Reference {
    /// # Errors
    /// If there is no memory for what is to be known of as many values.
    pub fn new(column: &[f64]) -> Result<Self, TryReserveError> {
        let mut rows = Vec::new();
        rows.try_reserve_exact(column.len())?;
        rows.extend((0..column.len()).filter(|&row| column[row].is_finite()));
        let values = gathered(column, &rows)?;
        Ok(Reference { sample: Sample::of(&values)?, rows, values, len: column.len() })
    }

    /// Compares a column with this one, row by row.
    ///
    /// # Errors
    /// If there is no memory for what is to be known of as many values.
    ///
    /// # Panics
    /// If they have not the same number of rows.
    pub fn correlation(&self, column: &[f64]) -> Result<Correlation, TryReserveError> {
        assert_eq!(column.len(), self.len, "columns of one table");
        let values = gathered(column, &self.rows)?;
        if is_complete(&values) {
            return Ok(Sample::of(&values)?.correlation(&self.sample));
        }
        let mut both = Vec::new();
        both.try_reserve_exact(values.len())?;
        both.extend((0..values.len()).filter(|&row| values[row].is_finite()));
        let (x, y) = (gathered(&values, &both)?, gathered(&self.values, &both)?);
        Ok(Sample::of(&x)?.correlation(&Sample::of(&y)?))
    }
}

/// A column's values in some rows.
fn gathered(column: &[f64], rows: &[usize]) -> Result<Vec<f64>, TryReserveError> {
    let mut values = Vec::new();
    values.try_reserve_exact(rows.len())?;
    values.extend(rows.iter().map(|&row| column[row]));
    Ok(values)
}

fn is_complete(values: &[f64]) -> bool {
    values.iter().all(|value| value.is_finite())
}

/// What correlations are made of, of finite values.
#[derive(Clone, Debug)]
struct Sample {
    /// Around their mean, scaled so that no square overflows or vanishes, and the sum of their squares; `None` if they do not vary.
    deviations: Option<(Vec<f64>, f64)>,
    ranks: Ranks,
}

/// The ranks of values, doubled: equal values share the mean of theirs, which may end in one half.
type Ranks = Vec<u64>;

impl Sample {
    fn of(values: &[f64]) -> Result<Self, TryReserveError> {
        Ok(Sample { deviations: deviations(values)?, ranks: doubled_ranks(values)? })
    }

    fn correlation(&self, other: &Sample) -> Correlation {
        let pearson = self.deviations.as_ref().zip(other.deviations.as_ref());
        Correlation {
            n: self.ranks.len(),
            pearson: pearson.map(|((x, xx), (y, yy))| {
                let mut xy = CompensatedSum::default();
                x.iter().zip(y).for_each(|(x, y)| xy.add(x * y));
                (xy.value() / (xx * yy).sqrt()).clamp(-1.0, 1.0)
            }),
            spearman: correlation_of_ranks(&self.ranks, &other.ranks),
        }
    }
}

/// See [`Sample`]. Sums are compensated, so what is rounded is each deviation and each product, once.
fn deviations(values: &[f64]) -> Result<Option<(Vec<f64>, f64)>, TryReserveError> {
    let Some(&first) = values.first() else { return Ok(None) };
    // Halves: the difference of two doubles may be beyond the greatest.
    let half = |value: f64| value / 2.0 - first / 2.0;
    let mut mean = CompensatedSum::default();
    values.iter().for_each(|&value| mean.add(half(value) / values.len() as f64));
    let mean = mean.value();
    let (least, greatest) = values.iter().fold((first, first), |(a, b), &value| (a.min(value), b.max(value)));
    let reach = (half(greatest) - mean).max(mean - half(least));
    if least == greatest || reach <= 0.0 {
        return Ok(None);
    }
    let mut deviations = Vec::new();
    deviations.try_reserve_exact(values.len())?;
    let mut squares = CompensatedSum::default();
    for &value in values {
        let deviation = (half(value) - mean) / reach;
        squares.add(deviation * deviation);
        deviations.push(deviation);
    }
    Ok(Some((deviations, squares.value())))
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
    sort_by_value(&mut order)?;
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

/// Bits that [`sort_by_value`] sorts by at a time: as many counters as the first-level cache has room for.
const DIGIT: usize = 11;
const PASSES: usize = u64::BITS.div_ceil(DIGIT as u32) as usize;

/// Sorts digit by digit, the least first, where there are more values than counters. Ranks are most of what correlations cost, and this
/// is several times as fast as comparing; digits that all values share, as the first ones of prices do, cost nothing.
fn sort_by_value(order: &mut Vec<(u64, u32)>) -> Result<(), TryReserveError> {
    if order.len() <= 1 << DIGIT {
        order.sort_unstable();
        return Ok(());
    }
    let digit = |value: u64, pass: usize| (value >> (pass * DIGIT)) as usize % (1 << DIGIT);
    let mut counts = [[0usize; 1 << DIGIT]; PASSES];
    for &(value, _) in order.iter() {
        counts.iter_mut().enumerate().for_each(|(pass, counts)| counts[digit(value, pass)] += 1);
    }
    let mut sorted = Vec::new();
    sorted.try_reserve_exact(order.len())?;
    sorted.resize(order.len(), (0, 0));
    for (pass, counts) in counts.iter_mut().enumerate() {
        if counts[digit(order[0].0, pass)] == order.len() {
            continue;
        }
        let mut next = 0;
        for count in counts.iter_mut() {
            (*count, next) = (next, next + *count);
        }
        for &(value, row) in order.iter() {
            let place = &mut counts[digit(value, pass)];
            sorted[*place] = (value, row);
            *place += 1;
        }
        std::mem::swap(order, &mut sorted);
    }
    Ok(())
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
