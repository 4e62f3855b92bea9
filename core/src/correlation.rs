//! Correlation of many columns with one: Pearson's, and Spearman's, which is Pearson's of the ranks.

use std::collections::TryReserveError;
use std::mem;

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

/// A column that others are compared with. Values that are not finite count as missing; where all are there, and in the other column,
/// too, it takes half the time.
#[derive(Clone, Debug)]
pub struct Reference {
    own: Sample,
    is_complete: bool,
    /// What a column is made into, kept for the next.
    other: Sample,
    /// Of the own values those that stand beside one, and the rows where the column had none.
    own_beside: Sample,
    missing_beside: Vec<u32>,
}

impl Reference {
    /// # Errors
    /// If there is no memory for what is to be known of as many values.
    ///
    /// # Panics
    /// If there are 2^31 values or more.
    pub fn new(column: impl ExactSizeIterator<Item = f64>) -> Result<Self, TryReserveError> {
        assert!(i32::try_from(column.len()).is_ok(), "ranks are of 32 bits");
        let mut own = Sample::default();
        own.take(column)?;
        let is_complete = own.is_complete();
        if is_complete {
            own.measure()?;
        }
        let (other, own_beside, missing_beside) = Default::default();
        Ok(Reference { own, is_complete, other, own_beside, missing_beside })
    }

    /// Compares a column with this one, row by row.
    ///
    /// # Errors
    /// If there is no memory for what is to be known of as many values.
    ///
    /// # Panics
    /// If they have not the same number of rows.
    pub fn correlation(
        &mut self,
        column: impl ExactSizeIterator<Item = f64>,
    ) -> Result<Correlation, TryReserveError> {
        assert_eq!(column.len(), self.own.values.len(), "columns of one table");
        self.other.take(column)?;
        if self.is_complete && self.other.is_complete() {
            self.other.measure()?;
            return Ok(self.other.correlation(&self.own));
        }
        self.put_own_beside()?;
        self.other.keep_beside(&self.own);
        self.other.values.retain(|value| value.is_finite());
        self.other.measure()?;
        Ok(self.other.correlation(&self.own_beside))
    }

    /// Makes the own values beside the other ones, as they mostly are already: columns of one window begin in the same row.
    fn put_own_beside(&mut self) -> Result<(), TryReserveError> {
        let rows = (0u32..).zip(&self.other.values);
        let mut missing = emptied(Vec::new(), self.other.values.len())?;
        missing.extend(rows.filter(|(_, value)| !value.is_finite()).map(|(row, _)| row));
        if self.own_beside.values.is_empty() || missing != self.missing_beside {
            self.own_beside.take(self.own.values.iter().copied())?;
            self.own_beside.keep_beside(&self.other);
            self.own_beside.values.retain(|value| value.is_finite());
            self.own_beside.measure()?;
            self.missing_beside = missing;
        }
        Ok(())
    }
}

/// The vector without its elements, and with room for so many.
fn emptied<T>(mut vector: Vec<T>, len: usize) -> Result<Vec<T>, TryReserveError> {
    vector.clear();
    vector.try_reserve_exact(len)?;
    Ok(vector)
}

/// Finite values, and what correlations are made of. It is filled again and again, since most of the time would go into
/// memory otherwise.
#[derive(Clone, Debug, Default)]
struct Sample {
    values: Vec<f64>,
    /// Around their mean, scaled so that no square overflows or vanishes; empty if they do not vary.
    deviations: Vec<f64>,
    /// The sum of their squares.
    squares: f64,
    ranks: Ranks,
}

impl Sample {
    fn take(&mut self, values: impl ExactSizeIterator<Item = f64>) -> Result<(), TryReserveError> {
        self.values = emptied(mem::take(&mut self.values), values.len())?;
        self.values.extend(values);
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.values.iter().all(|value| value.is_finite())
    }

    /// Makes values missing that another sample, of the same rows, has none beside.
    fn keep_beside(&mut self, other: &Sample) {
        for (value, other) in self.values.iter_mut().zip(&other.values) {
            *value = if other.is_finite() { *value } else { f64::NAN };
        }
    }

    /// Brings the rest up to the values.
    fn measure(&mut self) -> Result<(), TryReserveError> {
        let extremes = Extremes::of(&self.values);
        self.ranks.of(&self.values, &extremes)?;
        self.deviations = emptied(mem::take(&mut self.deviations), self.values.len())?;
        let Some(scale) = Scale::of(&self.values, &extremes) else { return Ok(()) };
        self.deviations.extend(self.values.iter().map(|&value| scale.scaled(value)));
        let mean = sum(&self.deviations) / self.deviations.len() as f64;
        self.deviations.iter_mut().for_each(|deviation| *deviation -= mean);
        self.squares = sum_of_products(&self.deviations, &self.deviations);
        Ok(())
    }

    /// Of samples that have been measured and are of the same rows.
    fn correlation(&self, other: &Sample) -> Correlation {
        let pearson = (!self.deviations.is_empty() && !other.deviations.is_empty()).then(|| {
            let products = sum_of_products(&self.deviations, &other.deviations);
            (products / (self.squares * other.squares).sqrt()).clamp(-1.0, 1.0)
        });
        Correlation { n: self.values.len(), pearson, spearman: self.ranks.correlation(&other.ranks) }
    }
}

/// Of no values, ∞ and -∞.
struct Extremes {
    least: f64,
    greatest: f64,
}

impl Extremes {
    fn of(values: &[f64]) -> Extremes {
        let none = Extremes { least: f64::INFINITY, greatest: f64::NEG_INFINITY };
        values.iter().fold(none, |Extremes { least, greatest }, &value| Extremes {
            least: if value < least { value } else { least },
            greatest: if value > greatest { value } else { greatest },
        })
    }
}

/// Where values lie around the first of them.
struct Scale {
    half_first: f64,
    reach: f64,
}

impl Scale {
    /// `None` if they do not vary.
    fn of(values: &[f64], extremes: &Extremes) -> Option<Scale> {
        // Halves: the difference of two doubles may be beyond the greatest.
        let half_first = values.first()? / 2.0;
        let reach = (extremes.greatest / 2.0 - half_first).max(half_first - extremes.least / 2.0);
        (reach > 0.0).then_some(Scale { half_first, reach })
    }

    /// Between -1 and 1.
    fn scaled(&self, value: f64) -> f64 {
        (value / 2.0 - self.half_first) / self.reach
    }
}

/// Sums are compensated, in four lanes, so that one addition need not wait for the last.
const LANES: usize = 4;

fn sum(values: &[f64]) -> f64 {
    let (fours, rest) = values.as_chunks::<LANES>();
    sum_in_lanes(fours.iter().copied(), rest.iter().copied())
}

fn sum_of_products(x: &[f64], y: &[f64]) -> f64 {
    let ((x_fours, x_rest), (y_fours, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let fours = x_fours.iter().zip(y_fours).map(|(x, y)| std::array::from_fn(|lane| x[lane] * y[lane]));
    sum_in_lanes(fours, x_rest.iter().zip(y_rest).map(|(x, y)| x * y))
}

#[inline(always)]
fn sum_in_lanes(fours: impl Iterator<Item = [f64; LANES]>, rest: impl Iterator<Item = f64>) -> f64 {
    let mut lanes = [CompensatedSum::default(); LANES];
    for four in fours {
        lanes.iter_mut().zip(four).for_each(|(lane, value)| lane.add(value));
    }
    let mut total: CompensatedSum = rest.collect();
    lanes.into_iter().for_each(|lane| total.merge(lane));
    total.value()
}

/// The ranks of values, doubled and around their mean: equal values share the mean of theirs, which may end in one half.
#[derive(Clone, Debug, Default)]
struct Ranks {
    ranks: Vec<i32>,
    /// The sum of their squares.
    squares: i128,
    /// For sorting: the first bits of a value, and its row.
    order: Vec<u64>,
    sorted: Vec<u64>,
}

/// Bits that rows are sorted by at a time: as many counters as the first-level cache has room for.
const DIGIT: usize = 11;
const DIGITS: usize = (u32::BITS as usize).div_ceil(DIGIT);

impl Ranks {
    fn of(&mut self, values: &[f64], extremes: &Extremes) -> Result<(), TryReserveError> {
        self.ranks = emptied(mem::take(&mut self.ranks), values.len())?;
        self.ranks.resize(values.len(), 0);
        self.sort_by_first_bits(values, extremes)?;
        let cubes_less = |n: usize| (n as i128).pow(3) - n as i128;
        let mut shared = 0;
        let mut order = self.order.as_mut_slice();
        let mut rank = 1 - values.len() as i32; // twice the first one, less twice the mean of all
        while let Some(&first) = order.first() {
            let alike = order[1..].iter().take_while(|&&entry| entry >> 32 == first >> 32).count() + 1;
            let (run, rest) = mem::take(&mut order).split_at_mut(alike);
            order = rest;
            if alike == 1 {
                self.ranks[row(first)] = rank;
                rank += 2;
                continue;
            }
            if !run.is_sorted_by_key(|&entry| sortable(values[row(entry)])) {
                run.sort_unstable_by_key(|&entry| sortable(values[row(entry)]));
            }
            for equal in run.chunk_by(|&a, &b| values[row(a)] == values[row(b)]) {
                let step = equal.len() as i32;
                equal.iter().for_each(|&entry| self.ranks[row(entry)] = rank + step - 1);
                rank += 2 * step;
                shared += cubes_less(equal.len());
            }
        }
        // Of ranks from 1 to n, doubled and around their mean, it is (n³ - n) / 3, and as much less for each group that shares one.
        self.squares = (cubes_less(values.len()) - shared) / 3;
        Ok(())
    }

    /// Makes `order` ascend by the first 32 of the bits in which values differ: digit by digit, the least first. Ranks are most of
    /// what correlations cost, and this is several times as fast as comparing.
    fn sort_by_first_bits(&mut self, values: &[f64], extremes: &Extremes) -> Result<(), TryReserveError> {
        let (least, greatest) = (sortable(extremes.least), sortable(extremes.greatest));
        let shift = greatest.saturating_sub(least).leading_zeros().min(32);
        let entry =
            |(&value, row): (&f64, u32)| (((sortable(value) - least) << shift) >> 32 << 32) | u64::from(row);
        self.order = emptied(mem::take(&mut self.order), values.len())?;
        self.order.extend(values.iter().zip(0..).map(entry));
        if values.len() <= 1 << DIGIT {
            self.order.sort_unstable();
            return Ok(());
        }
        self.sorted = emptied(mem::take(&mut self.sorted), values.len())?;
        self.sorted.resize(values.len(), 0);
        let mut counts = [[0u32; 1 << DIGIT]; DIGITS];
        for &entry in &self.order {
            counts.iter_mut().enumerate().for_each(|(place, counts)| counts[digit(entry, place)] += 1);
        }
        for (place, counts) in counts.iter_mut().enumerate() {
            sort_by_digit(&self.order, &mut self.sorted, place, counts);
            mem::swap(&mut self.order, &mut self.sorted);
        }
        Ok(())
    }

    /// Pearson's correlation of the ranks, exact but for the last division and root; `None` if all are equal.
    fn correlation(&self, other: &Ranks) -> Option<f64> {
        if self.squares == 0 || other.squares == 0 {
            return None;
        }
        let products = exact_products(&self.ranks, &other.ranks);
        let spread = BigInt::from(self.squares) * other.squares;
        let square = nearest_ratio(&(BigInt::from(products) * products), &spread, 0);
        Some(square.sqrt().copysign(products as f64))
    }
}

/// A number whose order among integers is that of the values.
#[inline(always)]
fn sortable(value: f64) -> u64 {
    let bits = (value + 0.0).to_bits() as i64; // -0 becomes +0
    (bits ^ (bits >> 63 | i64::MIN)) as u64
}

/// The row of an entry.
#[inline(always)]
fn row(entry: u64) -> usize {
    entry as u32 as usize
}

/// The digit at a place, from the least on, of what entries are sorted by.
#[inline(always)]
fn digit(entry: u64, place: usize) -> usize {
    (entry >> (u32::BITS as usize + place * DIGIT)) as usize % (1 << DIGIT)
}

/// Sorts by a digit, of which each value has been counted, keeping the order of entries that share it.
fn sort_by_digit(entries: &[u64], sorted: &mut [u64], place: usize, counts: &mut [u32; 1 << DIGIT]) {
    let mut next = 0;
    for count in counts.iter_mut() {
        (*count, next) = (next, next + *count);
    }
    for &entry in entries {
        let position = &mut counts[digit(entry, place)];
        sorted[*position as usize] = entry;
        *position += 1;
    }
}

/// Σ x·y of doubled ranks around their mean, which are at most as many as there are.
fn exact_products(x: &[i32], y: &[i32]) -> i128 {
    let largest = (x.len() as u64).pow(2).max(1);
    let at_once = ((1 << 62) / largest).max(1) as usize; // as many as a machine integer holds the sum of
    let part = |(x, y): (&[i32], &[i32])| -> i64 {
        x.iter().zip(y).map(|(&x, &y)| i64::from(x) * i64::from(y)).sum()
    };
    x.chunks(at_once).zip(y.chunks(at_once)).map(|parts| i128::from(part(parts))).sum()
}
