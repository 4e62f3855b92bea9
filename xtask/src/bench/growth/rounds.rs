//! Backfills of more or less, in turn.

use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{HumanCount, ProgressBar};
use serde::Serialize;

use super::MONTHS;
use super::layout::Layout;
use crate::bench::cpu::Run;
use crate::bench::report::{self, Table};
use crate::bench::spread::Spread;
use crate::bench::workers::footprint::{self, Peak};
use crate::console;

/// Index of a layout, and so many months. The last but one is what the others are compared with.
const CASES: [(usize, u32); 4] = [(0, 1), (0, 6), YARDSTICK, (1, MONTHS)];
const YARDSTICK: (usize, u32) = (0, MONTHS);

#[derive(Serialize)]
pub struct Speed {
    months: u32,
    partitions: u32,
    pairs: usize,
    rows: u64,
    seconds: Spread,
    rows_per_second: Spread,
    /// Beside all months in as many partitions, in the same round.
    relative_speed: Spread,
    /// The server's, in all processes together.
    cpu_microseconds_per_row: Spread,
    processors_busy_with_others: Spread,
}

#[derive(Serialize)]
pub struct Memory {
    months: u32,
    partitions: u32,
    #[serde(flatten)]
    peak: Peak,
}

pub fn measure_speed(layouts: &mut [Layout; 2], rounds: usize) -> Result<Vec<Speed>> {
    let progress = console::BARS.add(ProgressBar::new_spinner());
    progress.enable_steady_tick(Duration::from_millis(100));
    let mut rows = Vec::new();
    for (layout, months) in CASES {
        rows.push(layouts[layout].rows(months)?);
    }
    let mut measured: Vec<Vec<Run>> = CASES.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        // To and fro: what changes with time, such as the machine's load, changes for all alike.
        let mut order: Vec<usize> = (0..CASES.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for case in order {
            let (layout, months) = (&mut layouts[CASES[case].0], CASES[case].1);
            progress.set_message(format!("round {}, {months} months, {}", round + 1, layout.database));
            layout.empty()?;
            layout.client.batch_execute("CHECKPOINT")?;
            let run = Run::of(layout.cluster, || layout.backfill(months, rows[case]));
            measured[case].push(run.with_context(|| layout.backfill_call(months))?);
        }
    }
    progress.finish_and_clear();
    Ok(CASES
        .iter()
        .zip(summarise(&rows, &measured))
        .map(|(&(layout, months), figure)| Speed {
            months,
            partitions: layouts[layout].partitions,
            pairs: layouts[layout].pairs.len(),
            ..figure
        })
        .collect())
}

/// The figures of each case, out of its rows and runs; where they were taken is still to be told.
fn summarise(rows: &[u64], measured: &[Vec<Run>]) -> Vec<Speed> {
    let yardstick = CASES.iter().position(|&case| case == YARDSTICK).expect("it is one of them");
    let rates = |case: usize| measured[case].iter().map(move |run| rows[case] as f64 / run.seconds);
    let figure = |case: usize| {
        let all = |value: fn(&Run) -> f64| Spread::of(measured[case].iter().map(value).collect());
        let cpu = measured[case].iter().map(|run| run.cpu_seconds * 1e6 / rows[case] as f64);
        Speed {
            months: 0,
            partitions: 0,
            pairs: 0,
            rows: rows[case],
            seconds: all(|run| run.seconds),
            rows_per_second: Spread::of(rates(case).collect()),
            relative_speed: Spread::of(
                rates(case).zip(rates(yardstick)).map(|(own, other)| own / other).collect(),
            ),
            cpu_microseconds_per_row: Spread::of(cpu.collect()),
            processors_busy_with_others: all(|run| run.busy_with_others),
        }
    };
    (0..rows.len()).map(figure).collect()
}

/// Looks on at the shortest and the longest backfills.
pub fn measure_memory(layouts: &mut [Layout; 2]) -> Result<Vec<Memory>> {
    let mut figures = Vec::new();
    for (layout, months) in [(0, 1), (0, MONTHS), (1, MONTHS)] {
        let layout = &mut layouts[layout];
        layout.empty()?;
        let peak = footprint::look_on(layout.cluster, layout.database, &layout.backfill_call(months))?;
        figures.push(Memory { months, partitions: layout.partitions, peak });
        layout.empty()?;
    }
    Ok(figures)
}

pub fn speed_table(figures: &[Speed]) -> Table<11> {
    let header = [
        "months",
        "partitions",
        "pairs",
        "rows",
        "rows/s",
        "s",
        "fastest",
        "slowest",
        "× 12 months",
        "CPU µs/row",
        "others",
    ];
    let mut table = Table::new(header, 0);
    for figure in figures {
        let Speed { seconds, .. } = figure;
        table.add([
            figure.months.to_string(),
            figure.partitions.to_string(),
            figure.pairs.to_string(),
            HumanCount(figure.rows).to_string(),
            HumanCount(figure.rows_per_second.median as u64).to_string(),
            format!("{:.2}", seconds.median),
            format!("{:.2}", seconds.min),
            format!("{:.2}", seconds.max),
            report::ratio(figure.relative_speed.median),
            format!("{:.2}", figure.cpu_microseconds_per_row.median),
            format!("{:.2}", figure.processors_busy_with_others.median),
        ]);
    }
    table
}

pub fn memory_table(figures: &[Memory]) -> Table<3> {
    let mut table = Table::new(["months", "partitions", "MB of a worker"], 0);
    for figure in figures {
        table.add([
            figure.months.to_string(),
            figure.partitions.to_string(),
            format!("{:.1}", figure.peak.worker_megabytes),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_compared_round_by_round() {
        let run = |seconds: f64| Run { seconds, cpu_seconds: 2.0 * seconds, busy_with_others: 0.0 };
        // The machine was slow in the second round, in which many partitions cost nothing.
        let measured: Vec<Vec<Run>> =
            [[1.0, 10.0, 1.0], [6.0, 60.0, 6.0], [12.0, 120.0, 12.0], [15.0, 120.0, 15.0]]
                .map(|seconds| seconds.map(run).into())
                .into();
        let figures = summarise(&[1_000, 6_000, 12_000, 12_000], &measured);
        let relative = figures.iter().map(|figure| figure.relative_speed.median);
        assert_eq!(relative.collect::<Vec<_>>(), [1.0, 1.0, 1.0, 0.8]);
        assert_eq!(figures[3].relative_speed.max, 1.0);
        assert_eq!(figures[0].cpu_microseconds_per_row.min, 2000.0);
    }
}
