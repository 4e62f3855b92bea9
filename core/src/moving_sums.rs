//! Exact sums over a frame that is not known beforehand: values come at one end and leave at the other.
//!
//! [`MovingSums`] start with the grid of the first value and follow what comes: a value off the grid makes it finer,
//! one too far for machine integers makes the sums big integers. Each of these steps is exact and costs no pass over
//! the frame; a caller who still has the frame's values can [`rebuild`](MovingSums::rebuild) them once the troublesome
//! ones have left.

use std::fmt::Debug;

use num_bigint::BigInt;

use crate::columns::MAX_WINDOW;
use crate::fixed::{Axis, Grid, Whole, big_whole};
use crate::rounding::lowest_power;

/// Sums of functions of the values `y` of a frame.
pub trait Sums<I>: Clone + Debug + Default {
    /// Number of values.
    fn count(&self) -> usize;
    fn push(&mut self, y: &I);
    /// Takes out the oldest value.
    fn drop_oldest(&mut self, y: &I);
    /// Sums over `y * 2^bits`.
    fn refine(&mut self, bits: u32);
    /// Sums over `y + by`.
    fn move_reference(&mut self, by: &I);
}

/// One kind of sums, in machine integers and in big ones.
pub trait SumsShape {
    type Sums<I: Whole>: Sums<I>;

    /// Whether the sums of `len` values, all `|y| <= reach`, fit 128 bits.
    fn holds(len: usize, reach: u64) -> bool;

    fn widened(sums: &Self::Sums<i128>) -> Self::Sums<BigInt>;
}

/// Sums, and where their integers are counted from.
#[derive(Clone, Debug)]
pub enum Form<S: SumsShape> {
    Narrow { axis: Axis, sums: S::Sums<i128> },
    Wide { exponent: i32, sums: S::Sums<BigInt> },
}

/// Exact sums over a frame of finite values.
#[derive(Clone, Debug)]
pub struct MovingSums<S: SumsShape> {
    form: Form<S>,
    /// Values pushed since the sums were begun or last rebuilt.
    age: u64,
}

impl<S: SumsShape> Default for MovingSums<S> {
    fn default() -> Self {
        MovingSums { form: Form::empty(0.0), age: 0 }
    }
}

impl<S: SumsShape> Form<S> {
    /// Sums of nothing, with `value` to come.
    fn empty(value: f64) -> Self {
        match Axis::at(value) {
            Some(axis) => Form::Narrow { axis, sums: Default::default() },
            None => Form::Wide { exponent: lowest_power(value), sums: Default::default() },
        }
    }

    fn widen(&mut self) {
        if let Form::Narrow { axis, sums } = self {
            let mut sums = S::widened(sums);
            sums.move_reference(&axis.reference().into());
            *self = Form::Wide { exponent: axis.exponent(), sums };
        }
    }
}

impl<S: SumsShape> MovingSums<S> {
    /// Number of values.
    pub fn len(&self) -> usize {
        match &self.form {
            Form::Narrow { sums, .. } => sums.count(),
            Form::Wide { sums, .. } => sums.count(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn form(&self) -> &Form<S> {
        &self.form
    }

    /// Whether a [`rebuild`](Self::rebuild) is worth a pass over the frame: results could be had more quickly in
    /// another form (see [`Axis::fits`]), and since this one was chosen as many values have come as the pass will
    /// see. That keeps the cost per value constant.
    pub fn is_due(&self) -> bool {
        let len = self.len();
        let slow = match &self.form {
            Form::Narrow { axis, .. } => len <= MAX_WINDOW && !axis.fits(len),
            Form::Wide { .. } => true,
        };
        slow && self.age > len as u64
    }

    /// Makes room for the finite `value` on the grid, without adding it.
    #[inline]
    pub fn admit(&mut self, value: f64) {
        if self.is_empty() {
            self.form = Form::empty(value);
            self.age = 0;
        }
        if let Form::Narrow { axis, sums } = &mut self.form {
            match axis.extended(value) {
                Some((extended, bits)) if S::holds(sums.count() + 1, extended.reach()) => {
                    if bits > 0 {
                        sums.refine(bits);
                    }
                    *axis = extended;
                    return;
                }
                _ => self.form.widen(),
            }
        }
        if let Form::Wide { exponent, sums } = &mut self.form {
            let lowest = lowest_power(value);
            if lowest < *exponent {
                sums.refine((*exponent - lowest) as u32);
                *exponent = lowest;
            }
        }
    }

    /// Adds the newest value, which must be finite.
    #[inline]
    pub fn push(&mut self, value: f64) {
        self.admit(value);
        self.age += 1;
        match &mut self.form {
            Form::Narrow { axis, sums } => sums.push(&axis.y(value).into()),
            Form::Wide { exponent, sums } => sums.push(&big_whole(*exponent, value)),
        }
    }

    /// Takes out the oldest value, exactly as it was pushed.
    #[inline]
    pub fn drop_oldest(&mut self, value: f64) {
        match &mut self.form {
            Form::Narrow { axis, sums } => sums.drop_oldest(&axis.y(value).into()),
            Form::Wide { exponent, sums } => sums.drop_oldest(&big_whole(*exponent, value)),
        }
    }

    /// The same sums in the best form for these `values`, the frame's, oldest first, with room for one `more`.
    pub fn rebuild(&mut self, values: impl Iterator<Item = f64> + Clone, more: Option<f64>) {
        let all = || values.clone().chain(more);
        let grid = Grid::of(all()).expect("only finite values are pushed");
        let len = all().count();
        self.form = match Axis::of(all(), grid).filter(|axis| S::holds(len, axis.reach())) {
            Some(axis) => Form::Narrow { axis, sums: Default::default() },
            None => Form::Wide { exponent: grid.exponent, sums: Default::default() },
        };
        match &mut self.form {
            Form::Narrow { axis, sums } => values.for_each(|value| sums.push(&axis.y(value).into())),
            Form::Wide { exponent, sums } => values.for_each(|value| sums.push(&big_whole(*exponent, value))),
        }
        self.age = 0;
    }
}
