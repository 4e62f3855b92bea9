//! Backward-window metrics as an aggregate: values come one by one, the last one is the current value, those before
//! it are the past.

use std::collections::{TryReserveError, VecDeque};

use crate::columns::MAX_WINDOW;
use crate::extrema::{MovingMaximum, give_back};
use crate::fixed::{Axis, Quotient, Whole, big_whole};
use crate::int256::Int256;
use crate::moving_sums::{Form, MovingSums};
use crate::per_length::PerLength;
use crate::rounding::{DoubleDouble, with_best_products};
use crate::window::{
    self, Metric, WindowConstants, WindowFrame, WindowInputs, WindowMetrics, WindowShape, WindowSums,
};

/// The state of the aggregate.
///
/// A [growing](WindowAggregate::growing) one takes constant memory; a [moving](WindowAggregate::moving) one, whose
/// oldest values can be taken out, keeps the frame's.
#[derive(Clone, Debug)]
pub struct WindowAggregate {
    /// The last value given; `None` for NULL, or before the first.
    current: Option<f64>,
    past: Past,
    /// Values of the past, and those among them that are NaN or infinite.
    len: usize,
    not_finite: usize,
    /// NULLs of the frame.
    nulls: usize,
    /// Over the finite values of the past.
    sums: MovingSums<WindowShape>,
    constants: PerLength<WindowConstants>,
}

/// What is known of the past besides its sums.
#[derive(Clone, Debug)]
enum Past {
    Growing { oldest: f64, max: f64, min: f64 },
    Moving(Box<MovingPast>),
}

#[derive(Clone, Debug, Default)]
struct MovingPast {
    values: VecDeque<f64>,
    /// Of the finite values, and of their negatives.
    max: MovingMaximum<f64>,
    min_negated: MovingMaximum<f64>,
}

impl WindowAggregate {
    /// For frames that only grow.
    pub fn growing() -> WindowAggregate {
        WindowAggregate::new(Past::Growing { oldest: f64::NAN, max: f64::NEG_INFINITY, min: f64::INFINITY })
    }

    /// For frames whose oldest values leave.
    pub fn moving() -> WindowAggregate {
        WindowAggregate::new(Past::Moving(Box::default()))
    }

    fn new(past: Past) -> WindowAggregate {
        WindowAggregate {
            current: None,
            past,
            len: 0,
            not_finite: 0,
            nulls: 0,
            sums: MovingSums::default(),
            constants: PerLength::default(),
        }
    }

    /// Values of the past: NaN and infinities count, NULLs do not.
    pub fn past_len(&self) -> usize {
        self.len
    }

    /// Adds the newest value, `None` for NULL: it is the current one, and the one that was joins the past.
    ///
    /// # Errors
    /// If there is no memory for a moving one's values. The state is not to be used any more.
    pub fn push(&mut self, value: Option<f64>) -> Result<(), TryReserveError> {
        if let Some(value) = self.current {
            self.push_past(value)?;
        }
        self.nulls += usize::from(value.is_none());
        self.current = value.map(|value| value + 0.0); // -0 becomes +0
        if let Some(value) = self.finite_current() {
            self.sums.admit(value);
        }
        self.rebuild_if_due();
        Ok(())
    }

    fn push_past(&mut self, value: f64) -> Result<(), TryReserveError> {
        self.len += 1;
        let finite = value.is_finite();
        if finite {
            self.sums.push(value);
        } else {
            self.not_finite += 1;
        }
        match &mut self.past {
            Past::Growing { oldest, max, min } => {
                if self.len == 1 {
                    *oldest = value;
                }
                if finite {
                    (*max, *min) = (max.max(value), min.min(value));
                }
            }
            Past::Moving(past) => {
                past.values.try_reserve(1)?;
                past.values.push_back(value);
                if finite {
                    past.max.push(value)?;
                    past.min_negated.push(-value)?;
                }
            }
        }
        Ok(())
    }

    /// Takes out the oldest value, which must be `value`. False if it is not (of NULLs it is only known how many there
    /// are), or if values of the past are not kept: the state is then as it was.
    pub fn drop_oldest(&mut self, value: Option<f64>) -> bool {
        let Past::Moving(past) = &mut self.past else { return false };
        let Some(value) = value else {
            let known = self.nulls > 0;
            self.nulls -= usize::from(known);
            return known;
        };
        match past.values.front() {
            Some(&oldest) if oldest.to_bits() == (value + 0.0).to_bits() => {
                past.values.pop_front();
                give_back(&mut past.values);
                self.len -= 1;
                if oldest.is_finite() {
                    past.max.drop_oldest();
                    past.min_negated.drop_oldest();
                    self.sums.drop_oldest(oldest);
                } else {
                    self.not_finite -= 1;
                }
                true
            }
            _ => false,
        }
    }

    fn rebuild_if_due(&mut self) {
        if let Past::Moving(past) = &self.past
            && self.sums.is_due()
        {
            let finite = past.values.iter().copied().filter(|value| value.is_finite());
            self.sums.rebuild(finite, self.finite_current());
        }
    }

    fn finite_current(&self) -> Option<f64> {
        self.current.filter(|value| value.is_finite())
    }

    /// All metrics. Undefined ones are NaN, `None` if all are: the current value is NULL, or nothing precedes it, or
    /// a value of the frame is not finite. Overflow gives ±∞.
    pub fn metrics(&mut self) -> Option<WindowMetrics> {
        let now = self.finite_current().filter(|_| self.not_finite == 0 && self.len > 0)?;
        let (oldest, max, min) = self.ends();
        let values = Values { now, oldest, max, min };
        Some(match self.sums.form() {
            Form::Narrow { axis, sums } => {
                let make = || WindowConstants::new(self.len, axis.scale(), axis.inverse_scale());
                let can_estimate = (2..=MAX_WINDOW).contains(&self.len);
                let constants = can_estimate.then(|| self.constants.get(self.len, axis.exponent(), make));
                narrow_metrics(axis, sums, &values, constants.flatten())
            }
            Form::Wide { exponent, sums } => {
                let whole = |value| big_whole(*exponent, value);
                exact(&values.frame(sums, &whole(now), *exponent, whole))
            }
        })
    }

    /// Oldest, greatest and least value of a past that is not empty and finite.
    fn ends(&self) -> (f64, f64, f64) {
        match &self.past {
            Past::Growing { oldest, max, min } => (*oldest, *max, *min),
            Past::Moving(past) => {
                let known = "the past is not empty";
                let max = past.max.get().expect(known);
                let min = -past.min_negated.get().expect(known) + 0.0;
                (*past.values.front().expect(known), max, min)
            }
        }
    }
}

/// The values that metrics name, all finite.
struct Values {
    now: f64,
    oldest: f64,
    max: f64,
    min: f64,
}

impl Values {
    /// The frame in integers: `y` is the current value as the sums count it, `whole` counts from 0.
    fn frame<I: Whole>(
        &self,
        sums: &WindowSums<I>,
        y: &I,
        exponent: i32,
        whole: impl Fn(f64) -> I,
    ) -> WindowFrame<I> {
        WindowFrame {
            len: sums.len(),
            exponent,
            moments: sums.moments(y),
            now: whole(self.now),
            oldest: whole(self.oldest),
            max: whole(self.max),
            min: whole(self.min),
        }
    }
}

fn exact<I: Quotient>(frame: &WindowFrame<I>) -> WindowMetrics {
    if frame.len > 1 {
        return frame.metrics();
    }
    // One value deviates from nothing.
    let metric = |metric| frame.metric(metric);
    WindowMetrics {
        bqx_return: metric(Metric::Return),
        max: metric(Metric::Max),
        min: metric(Metric::Min),
        avg: metric(Metric::Avg),
        stdev: f64::NAN,
        endpoint: metric(Metric::Endpoint),
        range: metric(Metric::Range),
        volatility: f64::NAN,
    }
}

/// Metrics of machine integers: estimated if there are constants, and otherwise exact.
fn narrow_metrics(
    axis: &Axis,
    sums: &WindowSums<i128>,
    values: &Values,
    constants: Option<&WindowConstants>,
) -> WindowMetrics {
    let y = i128::from(axis.y(values.now));
    if axis.fits(sums.len()) {
        let frame = values.frame(sums, &y, axis.exponent(), |value| axis.whole(value).into());
        let Some(constants) = constants else { return exact(&frame) };
        let excess = DoubleDouble::from_integer(frame.moments.excess);
        let spread = DoubleDouble::from_large(frame.moments.spread);
        return estimated(excess, spread, constants, values, |metric| frame.metric(metric));
    }
    let in_big = || {
        let sums = sums.map(Whole::to_big);
        values.frame(&sums, &y.into(), axis.exponent(), |value| axis.whole(value).into())
    };
    let Some(constants) = constants else { return exact(&in_big()) };
    let moments = sums.map(|&n| Int256::from(n)).moments(&y.into());
    let [(excess, _), (spread, _)] = [moments.excess, moments.spread].map(Int256::to_double_double);
    estimated(excess, spread, constants, values, |metric| in_big().metric(metric))
}

/// The metrics of these moments; `exactly` settles what an estimate leaves open.
fn estimated(
    excess: DoubleDouble,
    spread: DoubleDouble,
    constants: &WindowConstants,
    values: &Values,
    exactly: impl Fn(Metric) -> f64,
) -> WindowMetrics {
    let Values { now, oldest, max, min } = *values;
    let inputs = WindowInputs { excess, spread, now, oldest, max, min };
    let estimate = window::Estimate { constants, frame: &inputs };
    let mut estimated = WindowMetrics::default();
    with_best_products(&estimate, false, &mut estimated);
    let mut metrics = estimated.to_array();
    for (value, metric) in metrics.iter_mut().zip(Metric::ALL) {
        if value.is_nan() {
            *value = exactly(metric);
        }
    }
    WindowMetrics::from_array(metrics)
}
