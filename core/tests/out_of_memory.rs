//! What grows with the values, or with a frame, is an error where there is no memory for it, and not the end of the
//! process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bqx_core::columns::{Column, Family, columns};
use bqx_core::extrema::SlidingExtrema;
use bqx_core::frame_rows::{Arithmetic, FrameRows, RunError};
use bqx_core::quadratic_aggregate::QuadraticAggregate;
use bqx_core::scatter_aggregate::ScatterAggregate;
use bqx_core::window_aggregate::WindowAggregate;

/// The system's allocator, as if there were no larger pieces than a thread's limit.
struct Limited;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(usize::MAX) };
}

// Safety: what it returns is the system allocator's, or null, which an allocator may always return.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > LARGEST.get() {
            return std::ptr::null_mut();
        }
        // Safety: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // Safety: it came from `alloc`, so from the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Limited = Limited;

/// What `work` gives where no piece of memory is larger than this.
fn within<R>(bytes: usize, work: impl FnOnce() -> R) -> R {
    LARGEST.set(bytes);
    let result = work();
    LARGEST.set(usize::MAX);
    result
}

/// More than any thing here takes that does not grow.
const ENOUGH: usize = 50_000;
/// Values whose integers take more than that.
const MANY: usize = 10_000;

fn values() -> Vec<f64> {
    (0..MANY).map(|i| 100.0 + (i % 977) as f64 / 1024.0).collect()
}

fn default_columns(family: Family) -> Vec<Column> {
    let all = columns(family, family.default_windows()).into_iter();
    all.filter(|column| !matches!(column, Column::Time | Column::CreatedAt)).collect()
}

#[test]
fn a_run_that_finds_no_memory_is_an_error() {
    let values = values();
    for family in Family::ALL {
        let columns = default_columns(family);
        let few = within(ENOUGH, || FrameRows::new(&values[..1000], &columns).is_ok());
        assert!(few, "{family:?}: a short run needs less");
        let many = within(ENOUGH, || FrameRows::new(&values, &columns).err());
        assert!(matches!(many, Some(RunError::OutOfMemory(_))), "{family:?}: {many:?}");
        let text = many.map(|error| error.to_string()).unwrap_or_default();
        assert!(text.contains("memory"), "{text}");
    }
}

/// Big integers are made as they are needed, not kept for all values.
#[test]
fn wide_arithmetic_keeps_nothing_that_grows_with_the_run() {
    let values = values();
    for family in Family::ALL {
        let columns = default_columns(family);
        let mut out = vec![0.0; 100 * columns.len()];
        within(ENOUGH, || {
            let mut rows = FrameRows::with_arithmetic(&values, &columns, Arithmetic::Wide).unwrap();
            rows.fill(MANY - 100..MANY, &mut out);
        });
        assert!(out.iter().all(|value| value.is_finite()), "{family:?}");
    }
}

#[test]
fn a_window_that_finds_no_memory_is_an_error() {
    assert!(within(ENOUGH, || SlidingExtrema::new(1000).is_ok()));
    assert!(within(ENOUGH, || SlidingExtrema::new(MANY).is_err()));
    let columns = [Column::parse(Family::Bqx, "w10000_bqx_max_index").unwrap()];
    let error = within(ENOUGH, || FrameRows::new(&[1.0, 2.0], &columns).err());
    assert!(matches!(error, Some(RunError::OutOfMemory(_))), "{error:?}");
}

/// How many values a frame takes before it says that there is no memory.
fn taken(mut push: impl FnMut(f64) -> bool) -> usize {
    let values = values();
    within(ENOUGH, || values.iter().take_while(|&&value| push(value)).count())
}

#[test]
fn a_frame_that_finds_no_memory_is_an_error() {
    let (mut window, mut sequence, mut scatter) =
        (WindowAggregate::moving(), QuadraticAggregate::moving(), ScatterAggregate::moving());
    for (name, taken) in [
        ("window", taken(|value| window.push(Some(value)).is_ok())),
        ("sequence", taken(|value| sequence.push(Some(value)).is_ok())),
        ("scatter", taken(|value| scatter.push(Some((value, value))).is_ok())),
    ] {
        assert!((1000..MANY).contains(&taken), "{name}: {taken}");
    }
    let mut growing = WindowAggregate::growing();
    assert_eq!(taken(|value| growing.push(Some(value)).is_ok()), MANY, "a growing one keeps no values");
}
