//! Rows per second of [`FrameRows`], one core, by family, window and arithmetic.

use std::hint::black_box;

use bqx_core::columns::{Column, Family, columns};
use bqx_core::frame_rows::{Arithmetic, FrameRows};
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

criterion_group!(benches, kernels);
criterion_main!(benches);
