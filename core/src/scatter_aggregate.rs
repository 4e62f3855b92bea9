//! The quadratic fit of points (x, y) as an aggregate: points come one by one, or as partial aggregates.

use std::collections::{TryReserveError, VecDeque};

use num_bigint::BigInt;
use serde::{Deserialize, Serialize};

use crate::extrema::{MovingMaximum, give_back};
use crate::fixed::{Axis, Grid, big_whole, bit_length};
use crate::int256::Int256;
use crate::quadratic::QuadraticFit;
use crate::rounding::{lowest_power, with_best_products};
use crate::scatter::{ScatterFrame, ScatterSums};

/// The state of the aggregate.
///
/// A [growing](ScatterAggregate::growing) one takes constant memory and can be [merged](ScatterAggregate::merge); a
/// [moving](ScatterAggregate::moving) one, whose oldest points can be taken out, keeps the frame's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ScatterAggregate {
    /// Number of points, and of those among them that are not finite.
    len: usize,
    not_finite: usize,
    /// Rows with a NULL.
    nulls: usize,
    /// Over the finite points.
    form: Form,
    points: Points,
}

/// Sums, and where their integers are counted from.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Form {
    /// Along the axes, from a point on them that is kept near the points.
    Narrow {
        x: Axis,
        y: Axis,
        centre: (i64, i64),
        sums: ScatterSums<Int256>,
    },
    Wide {
        x_exponent: i32,
        y_exponent: i32,
        sums: ScatterSums<BigInt>,
    },
}

/// What is known of the points besides their sums. The end is the finite point of greatest x and, among those, of
/// greatest y: unlike the last point, it does not depend on the order.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Points {
    Growing {
        end: Option<(f64, f64)>,
    },
    #[serde(skip)]
    Moving(Box<MovingPoints>),
}

#[derive(Clone, Debug, Default)]
struct MovingPoints {
    points: VecDeque<(f64, f64)>,
    end: MovingMaximum<(f64, f64)>,
    /// Points pushed since the sums were last made of all points.
    age: usize,
}

fn is_finite(point: (f64, f64)) -> bool {
    point.0.is_finite() && point.1.is_finite()
}

impl ScatterAggregate {
    /// For frames that only grow, and for partial aggregates.
    pub fn growing() -> ScatterAggregate {
        ScatterAggregate::new(Points::Growing { end: None })
    }

    /// For frames whose oldest points leave.
    pub fn moving() -> ScatterAggregate {
        ScatterAggregate::new(Points::Moving(Box::default()))
    }

    fn new(points: Points) -> ScatterAggregate {
        ScatterAggregate { len: 0, not_finite: 0, nulls: 0, form: Form::empty((0.0, 0.0)), points }
    }

    /// Number of points: those with a NaN or an infinity count.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a point, `None` for a row where x or y is NULL.
    ///
    /// # Errors
    /// If there is no memory for a moving one's points. The state is not to be used any more.
    pub fn push(&mut self, point: Option<(f64, f64)>) -> Result<(), TryReserveError> {
        let Some((x, y)) = point else {
            self.nulls += 1;
            return Ok(());
        };
        let point = (x + 0.0, y + 0.0); // -0 becomes +0
        self.len += 1;
        let finite = is_finite(point);
        if finite {
            self.form.push(point);
        } else {
            self.not_finite += 1;
        }
        match &mut self.points {
            Points::Growing { end } => {
                if finite && end.is_none_or(|end| end < point) {
                    *end = Some(point);
                }
            }
            Points::Moving(moving) => {
                moving.points.try_reserve(1)?;
                moving.points.push_back(point);
                moving.age += 1;
                if finite {
                    moving.end.push(point)?;
                }
                if matches!(self.form, Form::Wide { .. }) && moving.age > self.len {
                    self.form = Form::of(moving.points.iter().copied().filter(|&point| is_finite(point)));
                    moving.age = 0;
                }
            }
        }
        Ok(())
    }

    /// Takes out the oldest point, which must be this. False if it is not (of NULLs it is only known how many there
    /// are), or if points are not kept: the state is then as it was.
    pub fn drop_oldest(&mut self, point: Option<(f64, f64)>) -> bool {
        let Points::Moving(moving) = &mut self.points else { return false };
        let Some((x, y)) = point else {
            let known = self.nulls > 0;
            self.nulls -= usize::from(known);
            return known;
        };
        let bits = |(x, y): (f64, f64)| (x.to_bits(), y.to_bits());
        match moving.points.front() {
            Some(&oldest) if bits(oldest) == bits((x + 0.0, y + 0.0)) => {
                moving.points.pop_front();
                give_back(&mut moving.points);
                self.len -= 1;
                if is_finite(oldest) {
                    moving.end.drop_oldest();
                    self.form.drop(oldest);
                } else {
                    self.not_finite -= 1;
                }
                true
            }
            _ => false,
        }
    }

    /// Adds the points of another growing aggregate.
    ///
    /// # Panics
    /// If either is a moving one.
    pub fn merge(&mut self, other: &ScatterAggregate) {
        let (Points::Growing { end }, Points::Growing { end: other_end }) = (&mut self.points, &other.points)
        else {
            panic!("only growing aggregates can be merged");
        };
        if other_end.is_some_and(|other| end.is_none_or(|end| end < other)) {
            *end = *other_end;
        }
        self.len += other.len;
        self.not_finite += other.not_finite;
        self.form.merge(&other.form);
    }

    /// The fit; `None` for fewer than three distinct x, or if a point is not finite. Overflow gives ±∞.
    pub fn fit(&mut self) -> Option<QuadraticFit> {
        let end = self.end().filter(|_| self.len >= 3)?;
        self.form.fit(end)
    }

    /// Pearson's correlation of x and y, the root of the double nearest to its square; `None` if either does not vary, or if a
    /// point is not finite.
    pub fn correlation(&self) -> Option<f64> {
        match self.form.frame(self.end()?) {
            Frame::Narrow(frame) => frame.correlation(),
            Frame::Wide(frame) => frame.correlation(),
        }
    }

    /// Σ x·y / Σ x, the nearest double; `None` if the weights x sum to 0, or if a point is not finite. Overflow gives ±∞.
    pub fn weighted_mean(&self) -> Option<f64> {
        match self.form.frame(self.end()?) {
            Frame::Narrow(frame) => frame.weighted_mean(),
            Frame::Wide(frame) => frame.weighted_mean(),
        }
    }

    /// The end of points that are all finite, if there are any.
    fn end(&self) -> Option<(f64, f64)> {
        let end = match &self.points {
            Points::Growing { end } => *end,
            Points::Moving(moving) => moving.end.get(),
        };
        end.filter(|_| self.not_finite == 0)
    }
}

impl Form {
    /// Sums of nothing, with `point` to come.
    fn empty(point: (f64, f64)) -> Form {
        Form::of_none(axis_of([point.0].into_iter()), axis_of([point.1].into_iter()))
    }

    /// Sums of nothing, on these grids, counted along these axes.
    fn of_none((x_exponent, x): (i32, Option<Axis>), (y_exponent, y): (i32, Option<Axis>)) -> Form {
        match (x, y) {
            (Some(x), Some(y)) => Form::Narrow { x, y, centre: (0, 0), sums: Default::default() },
            _ => Form::Wide { x_exponent, y_exponent, sums: Default::default() },
        }
    }

    /// Sums of finite points, in the best form.
    fn of(points: impl Iterator<Item = (f64, f64)> + Clone) -> Form {
        let len = points.clone().count();
        let (x_exponent, x) = axis_of(points.clone().map(|point| point.0));
        let x = x.filter(|axis| holds(len, axis));
        let mut form = Form::of_none((x_exponent, x), axis_of(points.clone().map(|point| point.1)));
        points.for_each(|point| form.add(point));
        form
    }

    fn len(&self) -> usize {
        match self {
            Form::Narrow { sums, .. } => sums.len(),
            Form::Wide { sums, .. } => sums.len(),
        }
    }

    fn push(&mut self, point: (f64, f64)) {
        if self.len() == 0 {
            *self = Form::empty(point);
        }
        self.admit(point);
        self.add(point);
    }

    /// Makes room for the point.
    fn admit(&mut self, point: (f64, f64)) {
        if let Form::Narrow { x, y, centre, sums } = self {
            if let (Some((new_x, x_bits)), Some((new_y, y_bits))) = (x.extended(point.0), y.extended(point.1))
                && holds(sums.len() + 1, &new_x)
            {
                if x_bits + y_bits > 0 {
                    sums.refine(x_bits, y_bits);
                    *centre = (centre.0 << x_bits, centre.1 << y_bits);
                }
                (*x, *y) = (new_x, new_y);
                return;
            }
            self.widen();
        }
        self.refine_to(lowest_power(point.0), lowest_power(point.1));
    }

    /// Adds a point that there is room for.
    fn add(&mut self, point: (f64, f64)) {
        match self {
            Form::Narrow { x, y, centre, sums } => {
                sums.apply(x.y(point.0) - centre.0, y.y(point.1) - centre.1, 1);
            }
            Form::Wide { x_exponent, y_exponent, sums } => {
                sums.push(&big_whole(*x_exponent, point.0), &big_whole(*y_exponent, point.1));
            }
        }
    }

    fn drop(&mut self, point: (f64, f64)) {
        match self {
            Form::Narrow { x, y, centre, sums } => {
                sums.apply(x.y(point.0) - centre.0, y.y(point.1) - centre.1, -1);
            }
            Form::Wide { x_exponent, y_exponent, sums } => {
                sums.drop(&big_whole(*x_exponent, point.0), &big_whole(*y_exponent, point.1));
            }
        }
    }

    fn widen(&mut self) {
        if let Form::Narrow { x, y, centre, sums } = self {
            let mut sums = sums.to_big();
            sums.move_reference(&(x.reference() + centre.0).into(), &(y.reference() + centre.1).into());
            *self = Form::Wide { x_exponent: x.exponent(), y_exponent: y.exponent(), sums };
        }
    }

    /// Makes the grids of wide sums at least this fine.
    fn refine_to(&mut self, x: i32, y: i32) {
        if let Form::Wide { x_exponent, y_exponent, sums } = self {
            let bits = |from: i32, to: i32| (from - to.min(from)) as u32;
            let (x_bits, y_bits) = (bits(*x_exponent, x), bits(*y_exponent, y));
            sums.refine(x_bits, y_bits);
            *x_exponent -= x_bits as i32;
            *y_exponent -= y_bits as i32;
        }
    }

    fn merge(&mut self, other: &Form) {
        if other.len() == 0 {
            return;
        }
        if self.len() == 0 {
            self.clone_from(other);
        } else if !self.merge_narrow(other) {
            let mut other = other.clone();
            self.widen();
            other.widen();
            self.merge_wide(other);
        }
    }

    /// Merges narrow sums if there are axes for both.
    fn merge_narrow(&mut self, other: &Form) -> bool {
        let Form::Narrow { x, y, centre, sums } = self else { return false };
        let Form::Narrow { x: other_x, y: other_y, centre: other_centre, sums: more } = other else {
            return false;
        };
        let (Some((new_x, x_bits, dx)), Some((new_y, y_bits, dy))) = (x.merged(other_x), y.merged(other_y))
        else {
            return false;
        };
        let fits = holds(sums.len() + more.len(), &new_x);
        if fits {
            sums.refine(x_bits[0], y_bits[0]);
            *centre = (centre.0 << x_bits[0], centre.1 << y_bits[0]);
            let mut more = more.clone();
            more.refine(x_bits[1], y_bits[1]);
            let from_centre = |distance: i64, other: i64, bits: u32, own: i64| {
                Int256::from(i128::from(distance) + (i128::from(other) << bits) - i128::from(own))
            };
            let dx = from_centre(dx, other_centre.0, x_bits[1], centre.0);
            let dy = from_centre(dy, other_centre.1, y_bits[1], centre.1);
            more.move_reference(&dx, &dy);
            sums.merge(&more);
            (*x, *y) = (new_x, new_y);
        }
        fits
    }

    fn merge_wide(&mut self, mut other: Form) {
        if let Form::Wide { x_exponent, y_exponent, .. } = &other {
            self.refine_to(*x_exponent, *y_exponent);
        }
        if let Form::Wide { x_exponent, y_exponent, sums } = self {
            other.refine_to(*x_exponent, *y_exponent);
            if let Form::Wide { sums: more, .. } = &other {
                sums.merge(more);
            }
        }
    }

    /// Brings the centre near the points, if it is far from them.
    fn centre(&mut self) {
        if let Form::Narrow { centre, sums, .. } = self
            && let Some((x, y)) = sums.far_means()
        {
            sums.move_reference(&i128::from(-x).into(), &i128::from(-y).into());
            *centre = (centre.0 + x, centre.1 + y);
        }
    }

    fn fit(&mut self, end: (f64, f64)) -> Option<QuadraticFit> {
        self.centre();
        match self.frame(end) {
            Frame::Narrow(frame) => {
                let mut estimated = None;
                with_best_products(&frame, false, &mut estimated);
                estimated.or_else(|| frame.fit())
            }
            Frame::Wide(frame) => frame.fit(),
        }
    }

    /// The sums, and what they are counted from. `end` is as of [`Points`].
    fn frame(&self, end: (f64, f64)) -> Frame {
        match self {
            Form::Narrow { x, y, centre, sums } => {
                let whole = |n: i64| Int256::from(i128::from(n));
                Frame::Narrow(ScatterFrame {
                    sums: sums.clone(),
                    x_reference: whole(x.reference() + centre.0),
                    y_reference: whole(y.reference() + centre.1),
                    x_exponent: x.exponent(),
                    y_exponent: y.exponent(),
                    end: (whole(x.y(end.0) - centre.0), whole(y.y(end.1) - centre.1)),
                })
            }
            Form::Wide { x_exponent, y_exponent, sums } => Frame::Wide(ScatterFrame {
                sums: sums.clone(),
                x_reference: BigInt::ZERO,
                y_reference: BigInt::ZERO,
                x_exponent: *x_exponent,
                y_exponent: *y_exponent,
                end: (big_whole(*x_exponent, end.0), big_whole(*y_exponent, end.1)),
            }),
        }
    }
}

enum Frame {
    Narrow(ScatterFrame<Int256>),
    Wide(ScatterFrame<BigInt>),
}

/// The exponent of the grid of finite values, and their axis, if they fit one.
fn axis_of(values: impl Iterator<Item = f64> + Clone) -> (i32, Option<Axis>) {
    let grid = Grid::of(values.clone()).expect("the values are finite");
    (grid.exponent, Axis::of(values, grid))
}

fn holds(len: usize, x: &Axis) -> bool {
    ScatterSums::holds(len, bit_length(x.reach()))
}
