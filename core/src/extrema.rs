//! Sliding maximum and minimum of a slice, at a cost per row that does not depend on the window.

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
    pub fn new(window: usize) -> SlidingExtrema {
        assert!(window > 0, "a window of no values has no extremes");
        SlidingExtrema {
            high: vec![0.0; window],
            low: vec![0.0; window],
            cut: 0,
            younger_high: f64::NEG_INFINITY,
            younger_low: f64::INFINITY,
        }
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
