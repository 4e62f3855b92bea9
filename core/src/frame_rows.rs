//! The value columns of a family, row by row, for a run of bars.
//!
//! [`FrameRows`] slides the exact sums of each window over the run, by blocks of some hundred rows: sums in
//! integers, metrics estimated for the whole block at once (the loops over a block have no branches, so they
//! become vector instructions), the few undecided ones settled in integers, and the block written out by rows.
//! The cost per row does not depend on the window. Windows whose sums could outgrow machine integers, see
//! [`Axis::fits`](crate::fixed::Axis::fits), slide big integers; their results are the same bits, later.

use std::collections::TryReserveError;
use std::fmt;
use std::ops::Range;

use num_bigint::BigInt;

use crate::columns::{AGG_WINDOW, Column, Family, RegMetric};
use crate::extrema::SlidingExtrema;
pub use crate::fixed::NotFinite;
use crate::fixed::{Grid, NarrowRun};
use crate::quadratic::{
    self, QuadraticConstants, QuadraticFrame, QuadraticInputs, QuadraticMoments, QuadraticSums,
};
use crate::rounding::{DoubleDouble, Products, WithProducts, with_best_products};
use crate::window::{self, Metric, WindowConstants, WindowFrame, WindowInputs, WindowMoments, WindowSums};

/// Rows computed at a time: the working set of a window stays in the first-level cache.
const BLOCK: usize = 128;
/// Metrics of the family that has most.
const METRICS: usize = 9;

/// One number per row of a block.
type Lane = [f64; BLOCK];
/// The metrics of one window: `[metric][row]`.
type Block = [Lane; METRICS];

/// Which arithmetic computes. Results do not depend on it; tests say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// The fastest that the processor and the values allow.
    Best,
    /// Like `Best`, without fused multiply-add.
    Portable,
    /// Big integers throughout.
    Wide,
}

/// Why a run of values can't be computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunError {
    /// A value is NaN or infinite.
    NotFinite(NotFinite),
    /// There is no memory for the run.
    OutOfMemory(TryReserveError),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::NotFinite(error) => error.fmt(f),
            RunError::OutOfMemory(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for RunError {}

impl From<NotFinite> for RunError {
    fn from(error: NotFinite) -> Self {
        RunError::NotFinite(error)
    }
}

impl From<TryReserveError> for RunError {
    fn from(error: TryReserveError) -> Self {
        RunError::OutOfMemory(error)
    }
}

/// Computes the value columns of a run of bars, in row order.
pub struct FrameRows<'a> {
    run: Run<'a>,
    width: usize,
    /// Columns that repeat the value itself.
    rate_index: Vec<usize>,
    groups: Vec<Group>,
    scratch: Box<Scratch>,
}

impl<'a> FrameRows<'a> {
    /// `values`: rate_index of consecutive bars, oldest first, lookback included. `columns`: any of
    /// [`Column::RateIndex`], [`Column::Window`], [`Column::Agg`] and [`Column::Reg`], in any order.
    ///
    /// # Errors
    /// [`RunError`] if a value is NaN or infinite, or if there is no memory for the run: it takes 8 bytes per value
    /// and, for windows with extremes, 16 per value of the window.
    ///
    /// # Panics
    /// If a column holds no double computed here (`ts_utc`, `created_at`) or its window is too short for its
    /// family: a caller's bug.
    pub fn new(values: &'a [f64], columns: &[Column]) -> Result<Self, RunError> {
        Self::with_arithmetic(values, columns, Arithmetic::Best)
    }

    /// [`FrameRows::new`] with a given arithmetic, for tests and benchmarks.
    pub fn with_arithmetic(
        values: &'a [f64],
        columns: &[Column],
        arithmetic: Arithmetic,
    ) -> Result<Self, RunError> {
        let grid = Grid::of(values.iter().copied())?;
        let narrow = if arithmetic == Arithmetic::Wide { None } else { NarrowRun::new(values, grid)? };
        let run = Run { values, grid, narrow, portable: arithmetic == Arithmetic::Portable };
        let mut rate_index = Vec::new();
        let mut groups: Vec<Group> = Vec::new();
        for (position, &column) in columns.iter().enumerate() {
            let (family, window, metric) = match column {
                Column::RateIndex => {
                    rate_index.push(position);
                    continue;
                }
                Column::Window { window, metric } => (Family::Bqx, window, Metric::from(metric) as usize),
                Column::Agg(metric) => (Family::Bqx, AGG_WINDOW, Metric::from(metric) as usize),
                Column::Reg { window, metric } => (Family::Reg, window, metric as usize),
                Column::Time | Column::CreatedAt => panic!("{column} is not computed from bars"),
            };
            assert!(window >= family.min_window(), "{column}: the window is too short");
            let cell = Cell { metric, column: position };
            match groups.iter_mut().find(|group| (group.family, group.window) == (family, window)) {
                Some(group) => group.cells.push(cell),
                None => groups.push(Group {
                    family,
                    window,
                    cells: vec![cell],
                    kernel: run.kernel(family, window)?,
                    next: None,
                }),
            }
        }
        Ok(FrameRows { run, width: columns.len(), rate_index, groups, scratch: Box::default() })
    }

    /// Computes `rows`, positions in `values`, into `out`, row-major, one double per column.
    ///
    /// NaN marks NULL: where fewer than the column's window bars precede within `values`, or where a metric
    /// divides by 0. Overflow gives ±∞. Calls with adjoining ranges continue sliding; a jump costs one pass over
    /// the windows.
    ///
    /// # Panics
    /// If `rows` reaches beyond `values`, or `out` has another length than rows times columns.
    pub fn fill(&mut self, rows: Range<usize>, out: &mut [f64]) {
        assert!(rows.end <= self.run.values.len(), "rows {rows:?} of {} values", self.run.values.len());
        assert_eq!(out.len(), rows.len() * self.width, "room for {} columns", self.width);
        for start in rows.clone().step_by(BLOCK) {
            let stop = rows.end.min(start + BLOCK);
            let out = &mut out[(start - rows.start) * self.width..(stop - rows.start) * self.width];
            for &column in &self.rate_index {
                for (row, &value) in out.chunks_exact_mut(self.width).zip(&self.run.values[start..stop]) {
                    row[column] = value + 0.0; // -0 becomes +0
                }
            }
            for group in &mut self.groups {
                group.fill(&self.run, start..stop, &mut self.scratch, out, self.width);
            }
        }
    }
}

/// The values, in all the forms that kernels need.
struct Run<'a> {
    values: &'a [f64],
    grid: Grid,
    narrow: Option<NarrowRun>,
    portable: bool,
}

impl Run<'_> {
    fn kernel(&self, family: Family, window: usize) -> Result<Box<dyn Kernel>, TryReserveError> {
        Ok(match (&self.narrow, family) {
            (Some(run), Family::Bqx) if run.axis.fits(window) => Box::new(NarrowWindow::new(window, run)?),
            (Some(run), Family::Reg) if run.axis.fits(window) => Box::new(NarrowQuadratic::new(window, run)),
            (_, Family::Bqx) => Box::new(WideWindow::new(window)?),
            (_, Family::Reg) => Box::new(WideQuadratic::new(window)),
        })
    }

    fn narrow(&self) -> &NarrowRun {
        self.narrow.as_ref().expect("narrow kernels are made for narrow runs")
    }

    /// A value as an integer on the run's grid.
    fn whole(&self, row: usize) -> BigInt {
        self.grid.whole(self.values[row])
    }
}

/// Where a metric goes.
struct Cell {
    metric: usize,
    column: usize,
}

/// The columns of one family and window, which share their sums.
struct Group {
    family: Family,
    window: usize,
    cells: Vec<Cell>,
    kernel: Box<dyn Kernel>,
    /// The row that the kernel's sums are ready for.
    next: Option<usize>,
}

impl Group {
    /// Computes at most [`BLOCK`] rows into their columns of `out`, which has `width` of them.
    fn fill(&mut self, run: &Run, rows: Range<usize>, scratch: &mut Scratch, out: &mut [f64], width: usize) {
        let first = self.window.clamp(rows.start, rows.end);
        let (without, with) = out.split_at_mut((first - rows.start) * width);
        for row in without.chunks_exact_mut(width) {
            self.cells.iter().for_each(|cell| row[cell.column] = f64::NAN);
        }
        if first == rows.end {
            return;
        }
        if self.next != Some(first) {
            self.kernel.seed(run, first);
        }
        self.kernel.fill(run, first..rows.end, &self.cells, scratch);
        self.next = Some(rows.end);
        for (i, row) in with.chunks_exact_mut(width).enumerate() {
            for cell in &self.cells {
                row[cell.column] = scratch.block[cell.metric][i];
            }
        }
    }
}

/// Slides one window over a run.
trait Kernel {
    /// Makes `row` the next to fill. At least a window must precede it.
    fn seed(&mut self, run: &Run, row: usize);
    /// Computes the metrics of `cells` for `rows`, at most [`BLOCK`], into the scratch's block; other metrics are left
    /// to chance.
    fn fill(&mut self, run: &Run, rows: Range<usize>, cells: &[Cell], scratch: &mut Scratch);
}

/// What computing a block takes, whichever the window: nothing in it outlives a [`Kernel::fill`].
struct Scratch {
    block: Block,
    window_moments: [WindowMoments<i128>; BLOCK],
    window_lanes: WindowLanes,
    quadratic_moments: [QuadraticMoments<i128>; BLOCK],
    quadratic_lanes: QuadraticLanes,
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch {
            block: [[0.0; BLOCK]; METRICS],
            window_moments: [WindowMoments::default(); BLOCK],
            window_lanes: WindowLanes::ZERO,
            quadratic_moments: [QuadraticMoments::default(); BLOCK],
            quadratic_lanes: QuadraticLanes::ZERO,
        }
    }
}

/// The value before, the oldest value of the window before and the value itself, for each of `rows`.
fn around<T>(values: &[T], rows: Range<usize>, window: usize) -> impl Iterator<Item = (&T, &T, &T)> {
    let before = &values[rows.start - 1..rows.end - 1];
    let oldest = &values[rows.start - window..rows.end - window];
    before.iter().zip(oldest).zip(&values[rows]).map(|((before, oldest), now)| (before, oldest, now))
}

/// Replaces what an estimate left undecided (NaN) by `exact(row, metric)`.
fn settle(cells: &[Cell], rows: usize, block: &mut Block, exact: impl Fn(usize, usize) -> f64) {
    for cell in cells {
        let lane = &mut block[cell.metric][..rows];
        if lane.iter().fold(false, |any, value| any | value.is_nan()) {
            for (row, value) in lane.iter_mut().enumerate().filter(|(_, value)| value.is_nan()) {
                *value = exact(row, cell.metric);
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------
// Estimates of a block
// ---------------------------------------------------------------------------------------------------------

/// The inputs of a block's estimates, by lanes.
trait Lanes {
    type Constants;

    fn estimate<P: Products>(&self, constants: &Self::Constants, block: &mut Block);
}

/// The estimates of a block.
struct BlockEstimate<'a, L: Lanes> {
    lanes: &'a L,
    constants: &'a L::Constants,
}

impl<L: Lanes> WithProducts for BlockEstimate<'_, L> {
    type Output = Block;

    #[inline(always)]
    fn run<P: Products>(&self, block: &mut Block) {
        self.lanes.estimate::<P>(self.constants, block);
    }
}

/// A lane of [`DoubleDouble`]s.
struct DoubleLane {
    hi: Lane,
    lo: Lane,
}

impl DoubleLane {
    const ZERO: DoubleLane = DoubleLane { hi: [0.0; BLOCK], lo: [0.0; BLOCK] };

    #[inline(always)]
    fn get(&self, i: usize) -> DoubleDouble {
        DoubleDouble { hi: self.hi[i], lo: self.lo[i] }
    }

    #[inline(always)]
    fn set(&mut self, i: usize, value: DoubleDouble) {
        (self.hi[i], self.lo[i]) = (value.hi, value.lo);
    }
}

struct WindowLanes {
    excess: DoubleLane,
    spread: DoubleLane,
    now: Lane,
    oldest: Lane,
    max: Lane,
    min: Lane,
}

impl WindowLanes {
    const ZERO: WindowLanes = WindowLanes {
        excess: DoubleLane::ZERO,
        spread: DoubleLane::ZERO,
        now: [0.0; BLOCK],
        oldest: [0.0; BLOCK],
        max: [0.0; BLOCK],
        min: [0.0; BLOCK],
    };
}

impl Lanes for WindowLanes {
    type Constants = WindowConstants;

    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "the row indexes a dozen lanes")]
    fn estimate<P: Products>(&self, constants: &WindowConstants, block: &mut Block) {
        for i in 0..BLOCK {
            let inputs = WindowInputs {
                excess: self.excess.get(i),
                spread: self.spread.get(i),
                now: self.now[i],
                oldest: self.oldest[i],
                max: self.max[i],
                min: self.min[i],
            };
            let metrics = window::estimate::<P>(constants, &inputs).to_array();
            for (metric, value) in metrics.into_iter().enumerate() {
                block[metric][i] = value;
            }
        }
    }
}

struct QuadraticLanes {
    excess: DoubleLane,
    linear: DoubleLane,
    curvature: DoubleLane,
    spread: DoubleLane,
    newest: Lane,
    oldest: Lane,
    now: Lane,
}

impl QuadraticLanes {
    const ZERO: QuadraticLanes = QuadraticLanes {
        excess: DoubleLane::ZERO,
        linear: DoubleLane::ZERO,
        curvature: DoubleLane::ZERO,
        spread: DoubleLane::ZERO,
        newest: [0.0; BLOCK],
        oldest: [0.0; BLOCK],
        now: [0.0; BLOCK],
    };
}

impl Lanes for QuadraticLanes {
    type Constants = QuadraticConstants;

    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "the row indexes a dozen lanes")]
    fn estimate<P: Products>(&self, constants: &QuadraticConstants, block: &mut Block) {
        for i in 0..BLOCK {
            let inputs = QuadraticInputs {
                excess: self.excess.get(i),
                linear: self.linear.get(i),
                curvature: self.curvature.get(i),
                spread: self.spread.get(i),
                newest: self.newest[i],
            };
            let fit = quadratic::estimate::<P>(constants, &inputs).to_array();
            for (metric, value) in fit.into_iter().enumerate() {
                block[metric][i] = value;
            }
            block[RegMetric::Endpoint as usize][i] =
                window::estimate_change::<P>(self.oldest[i], self.now[i]);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------
// BQX kernels
// ---------------------------------------------------------------------------------------------------------

struct NarrowWindow {
    window: usize,
    sums: WindowSums<i128>,
    extrema: SlidingExtrema,
    constants: WindowConstants,
}

impl NarrowWindow {
    fn new(window: usize, run: &NarrowRun) -> Result<Self, TryReserveError> {
        Ok(NarrowWindow {
            window,
            sums: WindowSums::default(),
            extrema: SlidingExtrema::new(window)?,
            constants: WindowConstants::new(window, run.axis.scale(), run.axis.inverse_scale()),
        })
    }

    fn frame(
        &self,
        run: &NarrowRun,
        lanes: &WindowLanes,
        row: usize,
        moments: WindowMoments<i128>,
    ) -> WindowFrame<i128> {
        let whole = |lane: &Lane| run.axis.whole(lane[row]).into();
        WindowFrame {
            len: self.window,
            exponent: run.axis.exponent(),
            moments,
            now: whole(&lanes.now),
            oldest: whole(&lanes.oldest),
            max: whole(&lanes.max),
            min: whole(&lanes.min),
        }
    }
}

impl Kernel for NarrowWindow {
    fn seed(&mut self, run: &Run, row: usize) {
        self.extrema.seed(run.values, row);
        self.sums = WindowSums::of(&run.narrow().y[row - self.window..row]);
    }

    fn fill(&mut self, run: &Run, rows: Range<usize>, cells: &[Cell], scratch: &mut Scratch) {
        let Scratch { block, window_moments: all_moments, window_lanes: lanes, .. } = scratch;
        let (narrow, n) = (run.narrow(), rows.len());
        lanes.now[..n].copy_from_slice(&run.values[rows.clone()]);
        lanes.oldest[..n].copy_from_slice(&run.values[rows.start - self.window..rows.end - self.window]);
        self.extrema.fill(run.values, rows.clone(), &mut lanes.max, &mut lanes.min);
        let around = around(&narrow.y, rows, self.window);
        for (i, (moments, (_, &oldest, &now))) in all_moments.iter_mut().zip(around).enumerate() {
            let now = now.into();
            *moments = self.sums.moments(&now);
            self.sums.slide(&oldest.into(), &now);
            lanes.excess.set(i, DoubleDouble::from_integer(moments.excess));
            lanes.spread.set(i, DoubleDouble::from_large(moments.spread));
        }
        let constants = &self.constants;
        with_best_products(&BlockEstimate { lanes, constants }, run.portable, block);
        settle(cells, n, block, |row, metric| {
            self.frame(narrow, lanes, row, all_moments[row]).metric(Metric::ALL[metric])
        });
    }
}

struct WideWindow {
    window: usize,
    sums: WindowSums<BigInt>,
    extrema: SlidingExtrema,
    max: Lane,
    min: Lane,
}

impl WideWindow {
    fn new(window: usize) -> Result<Self, TryReserveError> {
        Ok(WideWindow {
            window,
            sums: WindowSums::default(),
            extrema: SlidingExtrema::new(window)?,
            max: [0.0; BLOCK],
            min: [0.0; BLOCK],
        })
    }
}

impl Kernel for WideWindow {
    fn seed(&mut self, run: &Run, row: usize) {
        self.extrema.seed(run.values, row);
        self.sums = WindowSums::default();
        (row - self.window..row).for_each(|row| self.sums.push(&run.whole(row)));
    }

    fn fill(&mut self, run: &Run, rows: Range<usize>, cells: &[Cell], scratch: &mut Scratch) {
        self.extrema.fill(run.values, rows.clone(), &mut self.max, &mut self.min);
        for (i, row) in rows.enumerate() {
            let now = run.whole(row);
            let frame = WindowFrame {
                len: self.window,
                exponent: run.grid.exponent,
                moments: self.sums.moments(&now),
                now,
                oldest: run.whole(row - self.window),
                max: run.grid.whole(self.max[i]),
                min: run.grid.whole(self.min[i]),
            };
            self.sums.slide(&frame.oldest, &frame.now);
            for cell in cells {
                scratch.block[cell.metric][i] = frame.metric(Metric::ALL[cell.metric]);
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------
// REG kernels
// ---------------------------------------------------------------------------------------------------------

struct NarrowQuadratic {
    window: usize,
    sums: QuadraticSums<i128>,
    constants: QuadraticConstants,
}

impl NarrowQuadratic {
    fn new(window: usize, run: &NarrowRun) -> Self {
        NarrowQuadratic {
            window,
            sums: QuadraticSums::default(),
            constants: QuadraticConstants::new(window, run.axis.scale(), run.axis.inverse_scale()),
        }
    }

    fn metric(
        &self,
        run: &NarrowRun,
        lanes: &QuadraticLanes,
        row: usize,
        moments: QuadraticMoments<i128>,
        metric: RegMetric,
    ) -> f64 {
        let whole = |lane: &Lane| i128::from(run.axis.whole(lane[row]));
        if metric == RegMetric::Endpoint {
            return window::relative_change(&whole(&lanes.oldest), &whole(&lanes.now));
        }
        let frame = QuadraticFrame {
            len: self.window,
            exponent: run.axis.exponent(),
            moments,
            newest: whole(&lanes.newest),
        };
        frame.metric(metric)
    }
}

impl Kernel for NarrowQuadratic {
    fn seed(&mut self, run: &Run, row: usize) {
        self.sums = QuadraticSums::of(&run.narrow().y[row - self.window..row]);
    }

    fn fill(&mut self, run: &Run, rows: Range<usize>, cells: &[Cell], scratch: &mut Scratch) {
        let Scratch { block, quadratic_moments: all_moments, quadratic_lanes: lanes, .. } = scratch;
        let (narrow, n) = (run.narrow(), rows.len());
        lanes.now[..n].copy_from_slice(&run.values[rows.clone()]);
        lanes.newest[..n].copy_from_slice(&run.values[rows.start - 1..rows.end - 1]);
        lanes.oldest[..n].copy_from_slice(&run.values[rows.start - self.window..rows.end - self.window]);
        let around = around(&narrow.y, rows, self.window);
        for (i, (moments, (&newest, &oldest, &now))) in all_moments.iter_mut().zip(around).enumerate() {
            *moments = self.sums.moments(&newest.into());
            self.sums.slide(&oldest.into(), &now.into());
            lanes.excess.set(i, DoubleDouble::from_integer(moments.excess));
            lanes.linear.set(i, DoubleDouble::from_integer(moments.linear));
            lanes.curvature.set(i, DoubleDouble::from_integer(moments.curvature));
            lanes.spread.set(i, DoubleDouble::from_large(moments.spread));
        }
        let constants = &self.constants;
        with_best_products(&BlockEstimate { lanes, constants }, run.portable, block);
        settle(cells, n, block, |row, metric| {
            self.metric(narrow, lanes, row, all_moments[row], RegMetric::ALL[metric])
        });
    }
}

struct WideQuadratic {
    window: usize,
    sums: QuadraticSums<BigInt>,
}

impl WideQuadratic {
    fn new(window: usize) -> Self {
        WideQuadratic { window, sums: QuadraticSums::default() }
    }
}

impl Kernel for WideQuadratic {
    fn seed(&mut self, run: &Run, row: usize) {
        self.sums = QuadraticSums::default();
        (row - self.window..row).for_each(|row| self.sums.push(&run.whole(row)));
    }

    fn fill(&mut self, run: &Run, rows: Range<usize>, cells: &[Cell], scratch: &mut Scratch) {
        for (i, row) in rows.enumerate() {
            let (oldest, newest, now) = (run.whole(row - self.window), run.whole(row - 1), run.whole(row));
            let frame = QuadraticFrame {
                len: self.window,
                exponent: run.grid.exponent,
                moments: self.sums.moments(&newest),
                newest,
            };
            self.sums.slide(&oldest, &now);
            for cell in cells {
                scratch.block[cell.metric][i] = match RegMetric::ALL[cell.metric] {
                    RegMetric::Endpoint => window::relative_change(&oldest, &now),
                    metric => frame.metric(metric),
                };
            }
        }
    }
}
