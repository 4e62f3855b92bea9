//! The quadratic fit on x = 0 … n-1 as an aggregate: values come one by one.

use std::collections::{TryReserveError, VecDeque};

use crate::columns::{MAX_WINDOW, RegMetric};
use crate::extrema::give_back;
use crate::fixed::{Axis, Whole, big_whole};
use crate::int256::Int256;
use crate::moving_sums::{Form, MovingSums};
use crate::per_length::PerLength;
use crate::quadratic::{
    self, QuadraticConstants, QuadraticFit, QuadraticFrame, QuadraticInputs, QuadraticMoments,
    QuadraticShape, QuadraticSums,
};
use crate::rounding::{DoubleDouble, with_best_products};

/// The state of the aggregate.
///
/// A [growing](QuadraticAggregate::growing) one takes constant memory; a [moving](QuadraticAggregate::moving) one,
/// whose oldest values can be taken out, keeps the frame's.
#[derive(Clone, Debug)]
pub struct QuadraticAggregate {
    /// The frame's values, oldest first, if they are kept.
    values: Option<VecDeque<f64>>,
    /// The value added last, in a frame that is not empty.
    newest: f64,
    not_finite: usize,
    /// NULLs of the frame.
    nulls: usize,
    /// Over all values, [`stand_in`]s where they are not finite.
    sums: MovingSums<QuadraticShape>,
    constants: PerLength<QuadraticConstants>,
}

/// What sums hold for a value: where it is not finite, a place must be held in the sequence. Frames with such a value
/// have no fit, so that any finite number will do.
fn stand_in(value: f64) -> f64 {
    if value.is_finite() { value } else { 0.0 }
}

impl QuadraticAggregate {
    /// For frames that only grow.
    pub fn growing() -> QuadraticAggregate {
        QuadraticAggregate::new(None)
    }

    /// For frames whose oldest values leave.
    pub fn moving() -> QuadraticAggregate {
        QuadraticAggregate::new(Some(VecDeque::new()))
    }

    fn new(values: Option<VecDeque<f64>>) -> QuadraticAggregate {
        QuadraticAggregate {
            values,
            newest: f64::NAN,
            not_finite: 0,
            nulls: 0,
            sums: MovingSums::default(),
            constants: PerLength::default(),
        }
    }

    /// Number of values: NaN and infinities count.
    pub fn len(&self) -> usize {
        self.sums.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds the newest value, `None` for NULL.
    ///
    /// # Errors
    /// If there is no memory for a moving one's values. The state is not to be used any more.
    pub fn push(&mut self, value: Option<f64>) -> Result<(), TryReserveError> {
        let Some(value) = value else {
            self.nulls += 1;
            return Ok(());
        };
        let value = value + 0.0; // -0 becomes +0
        self.newest = value;
        self.not_finite += usize::from(!value.is_finite());
        self.sums.push(stand_in(value));
        if let Some(values) = &mut self.values {
            values.try_reserve(1)?;
            values.push_back(value);
            if self.sums.is_due() {
                self.sums.rebuild(values.iter().copied().map(stand_in), None);
            }
        }
        Ok(())
    }

    /// Takes out the oldest value, which must be `value`. False if it is not (of NULLs it is only known how many there
    /// are), or if values are not kept: the state is then as it was.
    pub fn drop_oldest(&mut self, value: Option<f64>) -> bool {
        let Some(values) = &mut self.values else { return false };
        let Some(value) = value else {
            let known = self.nulls > 0;
            self.nulls -= usize::from(known);
            return known;
        };
        match values.front() {
            Some(&oldest) if oldest.to_bits() == (value + 0.0).to_bits() => {
                values.pop_front();
                give_back(values);
                self.not_finite -= usize::from(!oldest.is_finite());
                self.sums.drop_oldest(stand_in(oldest));
                true
            }
            _ => false,
        }
    }

    /// The fit; `None` for fewer than three values, or if one is not finite. Overflow gives ±∞.
    pub fn fit(&mut self) -> Option<QuadraticFit> {
        let len = self.len();
        if len < 3 || self.not_finite > 0 {
            return None;
        }
        let newest = self.newest;
        Some(match self.sums.form() {
            Form::Narrow { axis, sums } => {
                let make = || QuadraticConstants::new(len, axis.scale(), axis.inverse_scale());
                let constants = (len <= MAX_WINDOW).then(|| self.constants.get(len, axis.exponent(), make));
                narrow_fit(axis, sums, newest, constants.flatten())
            }
            Form::Wide { exponent, sums } => {
                let newest = big_whole(*exponent, newest);
                frame(sums, &newest, newest.clone(), *exponent).fit()
            }
        })
    }
}

/// The frame in integers: `newest_y` is the newest value as the sums count it, `newest` counts from 0.
fn frame<I: Whole>(sums: &QuadraticSums<I>, newest_y: &I, newest: I, exponent: i32) -> QuadraticFrame<I> {
    QuadraticFrame { len: sums.len(), exponent, moments: sums.moments(newest_y), newest }
}

/// The fit of machine integers: estimated if there are constants, and otherwise exact.
fn narrow_fit(
    axis: &Axis,
    sums: &QuadraticSums<i128>,
    newest: f64,
    constants: Option<&QuadraticConstants>,
) -> QuadraticFit {
    let y = i128::from(axis.y(newest));
    let whole = i128::from(axis.whole(newest));
    if axis.fits(sums.len()) {
        let frame = frame(sums, &y, whole, axis.exponent());
        let Some(constants) = constants else { return frame.fit() };
        let QuadraticMoments { excess, linear, curvature, spread } = frame.moments;
        let inputs = QuadraticInputs {
            excess: DoubleDouble::from_integer(excess),
            linear: DoubleDouble::from_integer(linear),
            curvature: DoubleDouble::from_integer(curvature),
            spread: DoubleDouble::from_large(spread),
            newest,
        };
        return estimated(&inputs, constants, |metric| frame.metric(metric));
    }
    let in_big = || frame(&sums.map(Whole::to_big), &y.into(), whole.into(), axis.exponent());
    let Some(constants) = constants else { return in_big().fit() };
    let QuadraticMoments { excess, linear, curvature, spread } =
        sums.map(|&n| Int256::from(n)).moments(&y.into());
    let [(excess, _), (linear, _), (curvature, _), (spread, _)] =
        [excess, linear, curvature, spread].map(Int256::to_double_double);
    let inputs = QuadraticInputs { excess, linear, curvature, spread, newest };
    estimated(&inputs, constants, |metric| in_big().metric(metric))
}

/// The fit of these inputs; `exactly` settles what an estimate leaves open.
fn estimated(
    inputs: &QuadraticInputs,
    constants: &QuadraticConstants,
    exactly: impl Fn(RegMetric) -> f64,
) -> QuadraticFit {
    let estimate = quadratic::Estimate { constants, frame: inputs };
    let mut estimated = QuadraticFit::default();
    with_best_products(&estimate, false, &mut estimated);
    let mut fit = estimated.to_array();
    for (value, &metric) in fit.iter_mut().zip(RegMetric::ALL) {
        if value.is_nan() {
            *value = exactly(metric);
        }
    }
    QuadraticFit::from_array(fit)
}
