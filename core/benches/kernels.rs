//! Rows per second, one core: [`FrameRows`] by family, window and arithmetic; the states of the aggregates by
//! length of a sliding frame.

use std::hint::black_box;

use bqx_core::columns::{Column, Family, columns};
use bqx_core::frame_rows::{Arithmetic, FrameRows};
use bqx_core::quadratic_aggregate::QuadraticAggregate;
use bqx_core::scatter_aggregate::ScatterAggregate;
use bqx_core::window_aggregate::WindowAggregate;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// A month and its lookback.
const BARS: usize = 35_000;

/// A random walk of prices rounded to a tenth of a pip, as an index: about `level`.
fn walk(bars: usize, level: f64) -> Vec<f64> {
    const BASELINE: f64 = 1.07316;
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut price = BASELINE * level / 100.0;
    (0..bars)
        .map(|_| {
            price += (random.next_u32() as f64 / u32::MAX as f64 - 0.5) * 3e-4;
            (price * 1e5).round() / 1e5 / BASELINE * 100.0
        })
        .collect()
}

/// The columns that [`FrameRows`] computes of a table with these windows.
fn computed(family: Family, windows: &[usize]) -> Vec<Column> {
    let all = columns(family, windows).into_iter();
    all.filter(|column| !matches!(column, Column::Time | Column::CreatedAt)).collect()
}

fn bench(c: &mut Criterion, name: &str, values: &[f64], columns: &[Column], arithmetic: Arithmetic) {
    const CHUNK: usize = 1024;
    let lookback = columns.iter().map(|column| column.window()).max().unwrap_or(0);
    let mut out = vec![0.0; CHUNK * columns.len()];
    let mut group = c.benchmark_group("rows");
    group.throughput(Throughput::Elements((values.len() - lookback) as u64)).sample_size(10);
    group.bench_function(name, |b| {
        b.iter(|| {
            let mut rows =
                FrameRows::with_arithmetic(black_box(values), columns, arithmetic).expect("finite");
            for start in (lookback..values.len()).step_by(CHUNK) {
                let stop = values.len().min(start + CHUNK);
                rows.fill(start..stop, &mut out[..(stop - start) * columns.len()]);
            }
            black_box(&out);
        })
    });
    group.finish();
}

fn kernels(c: &mut Criterion) {
    let (around_100, near_63) = (walk(BARS, 100.0), walk(BARS, 63.5));
    for family in Family::ALL {
        let name = family.name();
        let default = computed(family, family.default_windows());
        bench(c, &format!("{name}/default"), &around_100, &default, Arithmetic::Best);
        bench(c, &format!("{name}/near 63"), &near_63, &default, Arithmetic::Best);
        bench(c, &format!("{name}/portable"), &around_100, &default, Arithmetic::Portable);
        bench(c, &format!("{name}/wide"), &around_100[..3_000], &default, Arithmetic::Wide);
        let long = computed(family, &[10_000]);
        bench(c, &format!("{name}/W=10000"), &around_100, &long, Arithmetic::Best);
    }
}

/// A sliding frame of `len` rows: every row comes in, is looked at, and leaves. `row` does that, given the row's
/// position, its value and, once the frame is full, the value that leaves.
fn slide(
    c: &mut Criterion,
    name: &str,
    values: &[f64],
    len: usize,
    row: &mut dyn FnMut(usize, f64, Option<f64>),
) {
    let mut group = c.benchmark_group("aggregates");
    group.throughput(Throughput::Elements(values.len() as u64)).sample_size(10);
    let mut position = 0;
    group.bench_function(format!("{name}/{len}"), |b| {
        b.iter(|| {
            for _ in 0..values.len() {
                let at = |position: usize| values[position % values.len()];
                row(position, at(position), (position >= len).then(|| at(position - len)));
                position += 1;
            }
        })
    });
    group.finish();
}

fn aggregates(c: &mut Criterion) {
    let values = walk(BARS, 100.0);
    for len in [63, 630, 6300] {
        let mut window = WindowAggregate::moving();
        slide(c, "bqx_window_metrics", &values, len, &mut |_, value, leaving| {
            window.push(Some(value)).expect("memory");
            assert!(leaving.is_none_or(|value| window.drop_oldest(Some(value))));
            black_box(window.metrics());
        });
        let mut sequence = QuadraticAggregate::moving();
        slide(c, "quadratic_reg(y)", &values, len, &mut |_, value, leaving| {
            sequence.push(Some(value)).expect("memory");
            assert!(leaving.is_none_or(|value| sequence.drop_oldest(Some(value))));
            black_box(sequence.fit());
        });
        let mut scatter = ScatterAggregate::moving();
        slide(c, "quadratic_reg(y, x)", &values, len, &mut |position, value, leaving| {
            scatter.push(Some((position as f64, value))).expect("memory");
            assert!(leaving.is_none_or(|value| scatter.drop_oldest(Some(((position - len) as f64, value)))));
            black_box(scatter.fit());
        });
    }
}

criterion_group!(benches, kernels, aggregates);
criterion_main!(benches);
