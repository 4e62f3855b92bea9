//! How long a backfill takes, by the number of its workers.

use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{HumanCount, ProgressBar};
use serde::Serialize;

use crate::bench::cpu::Run;
use crate::bench::market::{Market, Months};
use crate::bench::report::{self, Table};
use crate::bench::rounds::{self, Effort};
use crate::bench::spread::Spread;
use crate::console;

/// What is backfilled, where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// New months where the disk does not limit.
    NewUnlogged,
    New,
    Rewritten,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::NewUnlogged, Kind::New, Kind::Rewritten];

    fn title(self) -> &'static str {
        match self {
            Kind::NewUnlogged => "new months, unlogged",
            Kind::New => "new months",
            Kind::Rewritten => "rewritten months",
        }
    }

    fn months(self) -> Months {
        match self {
            Kind::NewUnlogged | Kind::New => Months::New,
            Kind::Rewritten => Months::Rewritten,
        }
    }

    fn is_durable(self) -> bool {
        self != Kind::NewUnlogged
    }
}

/// What was measured with so many workers.
#[derive(Serialize)]
pub struct Figure {
    pub kind: Kind,
    /// 0: the calling session did the work.
    pub workers: usize,
    pub pairs: usize,
    /// Rows of both families that were stored, or found as they are.
    pub rows: u64,
    pub seconds: Spread,
    pub rows_per_second: Spread,
    /// The server's, in all processes together.
    pub cpu_seconds: Spread,
    pub processors_busy_with_others: Spread,
    /// By which factor one worker took longer, in the same round.
    pub speedup: Spread,
}

/// Backfills with each number of workers in turn, round after round; patience is that for each kind.
pub fn measure(market: &mut Market, worker_counts: &[usize], effort: Effort) -> Result<Vec<Figure>> {
    let progress = console::BARS.add(ProgressBar::new_spinner());
    progress.enable_steady_tick(Duration::from_millis(100));
    let mut figures = Vec::new();
    for kind in Kind::ALL {
        market.empty()?;
        market.set_durable(kind.is_durable())?;
        let pairs = match kind.months() {
            Months::New => market.pairs.clone(),
            Months::Rewritten => market.few_pairs(),
        };
        let bars = market.bars(&pairs)?;
        if kind.months() == Months::Rewritten {
            market.backfill(&pairs, 0, Months::New, bars)?;
        }
        let rounds = rounds::quietest(
            effort,
            |round: &Vec<Run>| disturbance(round),
            |number| {
                progress.set_message(format!("{}, round {}", kind.title(), number + 1));
                rounds::to_and_fro(number, worker_counts, |&workers| run(market, kind, &pairs, workers, bars))
                    .with_context(|| kind.title())
            },
        )?;
        figures.extend(summarise(kind, pairs.len(), 2 * bars, worker_counts, &rounds));
    }
    progress.finish_and_clear();
    Ok(figures)
}

/// How much others did in a round, at its worst.
fn disturbance(round: &[Run]) -> f64 {
    round.iter().map(|run| run.busy_with_others).fold(0.0, f64::max)
}

fn run(market: &mut Market, kind: Kind, pairs: &[String], workers: usize, bars: u64) -> Result<Run> {
    if kind.months() == Months::New {
        market.empty()?;
    }
    market.client.batch_execute("CHECKPOINT")?;
    let cluster = market.cluster;
    Run::of(cluster, || market.backfill(pairs, workers, kind.months(), bars))
}

/// The figures of each number of workers; a round has a run of each.
fn summarise(
    kind: Kind,
    pairs: usize,
    rows: u64,
    worker_counts: &[usize],
    rounds: &[Vec<Run>],
) -> Vec<Figure> {
    let of_one = worker_counts.iter().position(|&workers| workers == 1).expect("one worker is measured");
    let figure = |(index, &workers): (usize, &usize)| {
        let all =
            |value: fn(&Run) -> f64| Spread::of(rounds.iter().map(|round| value(&round[index])).collect());
        let seconds = all(|run| run.seconds);
        let speedups = rounds.iter().map(|round| round[of_one].seconds / round[index].seconds);
        Figure {
            kind,
            workers,
            pairs,
            rows,
            seconds,
            rows_per_second: seconds.rate_of(rows as f64),
            cpu_seconds: all(|run| run.cpu_seconds),
            processors_busy_with_others: all(|run| run.busy_with_others),
            speedup: Spread::of(speedups.collect()),
        }
    };
    worker_counts.iter().enumerate().map(figure).collect()
}

pub fn table(figures: &[Figure]) -> Table<10> {
    let header = [
        "backfill",
        "pairs",
        "workers",
        "rows/s",
        "s",
        "fastest",
        "slowest",
        "× 1 worker",
        "CPU s",
        "others",
    ];
    let mut table = Table::new(header, 1);
    for figure in figures {
        let Figure { seconds, cpu_seconds, processors_busy_with_others: others, speedup, .. } = figure;
        table.add([
            figure.kind.title().to_owned(),
            figure.pairs.to_string(),
            figure.workers.to_string(),
            HumanCount(figure.rows_per_second.median as u64).to_string(),
            format!("{:.2}", seconds.median),
            format!("{:.2}", seconds.min),
            format!("{:.2}", seconds.max),
            report::ratio(speedup.median),
            format!("{:.2}", cpu_seconds.median),
            format!("{:.2}", others.median),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_compared_round_by_round() {
        let run = |seconds| Run { seconds, cpu_seconds: 1.0, busy_with_others: 0.5 };
        // The machine was slow in the second round.
        let rounds = [(4.0, 2.0), (40.0, 20.0), (4.0, 4.0)].map(|(one, two)| vec![run(one), run(two)]);
        let figures = summarise(Kind::New, 28, 1000, &[1, 2], &rounds);
        assert_eq!(figures[0].speedup, Spread { median: 1.0, min: 1.0, max: 1.0 });
        assert_eq!(figures[1].speedup, Spread { median: 2.0, min: 1.0, max: 2.0 });
        assert_eq!(figures[1].seconds.median, 4.0);
        assert_eq!(figures[1].rows_per_second.median, 250.0);
    }

    #[test]
    fn a_round_is_as_disturbed_as_its_worst_run() {
        let run = |busy_with_others| Run { seconds: 1.0, cpu_seconds: 1.0, busy_with_others };
        assert_eq!(disturbance(&[run(0.0), run(0.7), run(0.1)]), 0.7);
    }
}
