//! Sliding maximum and minimum, at a cost per row that does not depend on the window: [`SlidingExtrema`] of a slice,
//! [`MovingMaximum`] of a frame that comes and goes value by value.

use std::collections::{TryReserveError, VecDeque};
use std::ops::Range;

/// Maximum and minimum of the `window` values before a row, for rows in ascending order.
///
/// After van Herk (1992) and Gil & Werman (1993): the slice is cut at a position; a window across the cut is a
/// suffix of what lies before it and a prefix of what lies after. The suffixes' extremes are computed once per
/// cut, the prefix's grow with the rows, and after `window` rows comes the next cut: about three comparisons per
/// row and extreme.
#[derive(Clone, Debug)]
pub struct SlidingExtrema {
    /// Extremes of the suffixes of the `window` values before the cut, longest suffix first.
    high: Vec<f64>,
    low: Vec<f64>,
    cut: usize,
    /// Extremes of the values from the cut to the row last filled, that row's included.
    younger_high: f64,
    younger_low: f64,
}

impl SlidingExtrema {
    /// `window` must not be 0.
    ///
    /// # Errors
    /// If there is no memory for two numbers per value of the window.
    pub fn new(window: usize) -> Result<SlidingExtrema, TryReserveError> {
        assert!(window > 0, "a window of no values has no extremes");
        let zeros = || -> Result<Vec<f64>, TryReserveError> {
            let mut zeros = Vec::new();
            zeros.try_reserve_exact(window)?;
            zeros.resize(window, 0.0);
            Ok(zeros)
        };
        Ok(SlidingExtrema {
            high: zeros()?,
            low: zeros()?,
            cut: 0,
            younger_high: f64::NEG_INFINITY,
            younger_low: f64::INFINITY,
        })
    }

    /// Makes `row` the next to fill. At least `window` values must precede it.
    pub fn seed(&mut self, values: &[f64], row: usize) {
        let window = self.high.len();
        let (mut high, mut low) = (f64::NEG_INFINITY, f64::INFINITY);
        let suffixes = self.high.iter_mut().zip(&mut self.low).zip(&values[row - window..row]);
        for ((suffix_high, suffix_low), &value) in suffixes.rev() {
            high = greater(high, value);
            low = lesser(low, value);
            (*suffix_high, *suffix_low) = (high, low);
        }
        self.cut = row;
        self.younger_high = f64::NEG_INFINITY;
        self.younger_low = f64::INFINITY;
    }

    /// Writes the extremes of the `window` finite values before each of `rows`, which must start where the last
    /// call ended, or at the seed. Zeros come out as +0.
    pub fn fill(&mut self, values: &[f64], rows: Range<usize>, highs: &mut [f64], lows: &mut [f64]) {
        let window = self.high.len();
        let mut row = rows.start;
        while row < rows.end {
            if row == self.cut + window {
                self.seed(values, row);
            }
            let stop = rows.end.min(self.cut + window);
            let suffixes = row - self.cut..stop - self.cut;
            let out = row - rows.start..stop - rows.start;
            let older = self.high[suffixes.clone()].iter().zip(&self.low[suffixes]);
            let written = highs[out.clone()].iter_mut().zip(&mut lows[out]);
            let (mut younger_high, mut younger_low) = (self.younger_high, self.younger_low);
            for (((high, low), (&older_high, &older_low)), &value) in
                written.zip(older).zip(&values[row..stop])
            {
                *high = greater(younger_high, older_high) + 0.0;
                *low = lesser(younger_low, older_low) + 0.0;
                younger_high = greater(younger_high, value);
                younger_low = lesser(younger_low, value);
            }
            (self.younger_high, self.younger_low) = (younger_high, younger_low);
            row = stop;
        }
    }
}

/// `a` or `b`, whichever is greater. Unlike [`f64::max`] it is one instruction: NaN does not occur here.
#[inline(always)]
fn greater(a: f64, b: f64) -> f64 {
    if a > b { a } else { b }
}

#[inline(always)]
fn lesser(a: f64, b: f64) -> f64 {
    if a < b { a } else { b }
}

/// The greatest value of a frame that grows at one end and shrinks at the other.
///
/// Only values that no later one reaches are kept, so they descend and the first is the greatest (the "monotone
/// queue"). Every value is put in and taken out once.
#[derive(Clone, Debug)]
pub struct MovingMaximum<T> {
    /// Candidates with their positions in the sequence of all values.
    candidates: VecDeque<(u64, T)>,
    /// Positions of the oldest value in the frame and of the next to come.
    oldest: u64,
    next: u64,
}

impl<T> Default for MovingMaximum<T> {
    fn default() -> Self {
        MovingMaximum { candidates: VecDeque::new(), oldest: 0, next: 0 }
    }
}

impl<T: PartialOrd + Copy> MovingMaximum<T> {
    /// Adds the newest value, which must be comparable with all others.
    ///
    /// # Errors
    /// If there is no memory.
    #[inline]
    pub fn push(&mut self, value: T) -> Result<(), TryReserveError> {
        while self.candidates.back().is_some_and(|&(_, last)| last <= value) {
            self.candidates.pop_back();
        }
        self.candidates.try_reserve(1)?;
        self.candidates.push_back((self.next, value));
        self.next += 1;
        Ok(())
    }

    /// Takes out the oldest value.
    #[inline]
    pub fn drop_oldest(&mut self) {
        if self.candidates.front().is_some_and(|&(position, _)| position == self.oldest) {
            self.candidates.pop_front();
            give_back(&mut self.candidates);
        }
        self.oldest += 1;
    }

    /// `None` in an empty frame.
    #[inline]
    pub fn get(&self) -> Option<T> {
        self.candidates.front().map(|&(_, value)| value)
    }
}

/// Returns memory of a queue that was much longer: a frame's memory follows its length.
pub(crate) fn give_back<T>(queue: &mut VecDeque<T>) {
    const SMALL: usize = 1024;
    if queue.capacity() > SMALL && queue.len() < queue.capacity() / 8 {
        queue.shrink_to(queue.len() * 2);
    }
}
