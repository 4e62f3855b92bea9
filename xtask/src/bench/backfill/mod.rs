//! `cargo xtask bench`: a backfill beside the floor, and beside whatever else there is to choose from.

mod contenders;
mod finished;
mod measuring;
mod months;
mod python;
mod sessions;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use indicatif::HumanCount;
use serde::Serialize;
use xshell::Shell;

use self::contenders::WalLevel;
use self::measuring::{Bench, Figure, NotMeasured, OverFloor};
use super::market::Market;
use super::report::{self, Circumstances, Table};
use super::rounds::Effort;
use super::server;
use super::spread::Spread;
use crate::console;

/// Beside [`server::BULK_SETTINGS`], and the same for all. A session is one process, so that two are for two processors;
/// compiling queries takes longer than it saves.
const FAIR_SETTINGS: [(&str, &str); 5] = [
    ("work_mem", "256MB"),
    ("maintenance_work_mem", "256MB"),
    ("max_parallel_workers_per_gather", "0"),
    ("max_parallel_maintenance_workers", "0"),
    ("jit", "off"),
];

/// All that the extension comes with.
const ALL_PAIRS: u32 = 28;

/// One for each session.
const FEWEST_PAIRS: i64 = 2;

const ROUNDS: usize = 3;

#[derive(clap::Args)]
pub struct BackfillArgs {
    /// Measure fewer pairs, and don't wait for a quiet machine
    #[arg(long)]
    pub quick: bool,
    /// Pairs to compute; slow contenders get fewer [default: 28, with --quick 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(FEWEST_PAIRS..=ALL_PAIRS.into()))]
    pairs: Option<u32>,
    /// Months of each pair
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    months: u32,
}

pub fn command(shell: &Shell, pg_config: Option<&Path>, args: &BackfillArgs) -> Result<ExitCode> {
    let settings = [&server::BULK_SETTINGS[..], &FAIR_SETTINGS].concat();
    let cluster = server::start(shell, pg_config, &settings)?;
    let pairs = args.pairs.unwrap_or(if args.quick { 4 } else { ALL_PAIRS }) as usize;
    let minutes = |minutes: u64| Duration::from_secs(if args.quick { 0 } else { 60 * minutes });
    let prepare = || Bench::prepare(Market::simulate(&cluster, pairs, args.months)?);
    let mut bench = console::timed("simulated market and its finished rows", prepare).0?;
    let circumstances = Circumstances::now(shell, &mut bench.market.client)?;

    let (mut figures, mut over_floor) = (Vec::new(), Vec::new());
    for (wal_level, patience) in [(WalLevel::Replica, minutes(9)), (WalLevel::Minimal, minutes(4))] {
        let headline = format!("wal_level {}", wal_level.name());
        let effort = Effort { rounds: ROUNDS, patience };
        let measured = console::timed(&headline, || bench.measure(wal_level, effort)).0?;
        figures.extend(measured.figures);
        over_floor.push(measured.over_floor);
    }
    let results = Results {
        circumstances,
        settings,
        pairs,
        months: args.months,
        rounds: ROUNDS,
        goals: GOALS,
        figures,
        over_floor,
        not_measured: bench.not_measured(),
    };
    results.print();
    println!("\nWritten to {}", report::write_json("backfill", &results)?.display());
    Ok(ExitCode::SUCCESS)
}

/// Everything that is written to the file.
#[derive(Serialize)]
struct Results {
    #[serde(flatten)]
    circumstances: Circumstances,
    settings: Vec<(&'static str, &'static str)>,
    pairs: usize,
    months: u32,
    rounds: usize,
    goals: Goals,
    figures: Vec<Figure>,
    over_floor: Vec<OverFloor>,
    not_measured: Option<NotMeasured>,
}

/// What is to be reached. Nothing fails if it is not: figures depend on the machine and on what else it does.
#[derive(Serialize)]
struct Goals {
    backfill_over_floor_at_most: f64,
    /// Of everybody else who computes the rows.
    times_of_backfill_above: f64,
}

const GOALS: Goals = Goals { backfill_over_floor_at_most: 1.15, times_of_backfill_above: 1.0 };

impl Results {
    fn print(&self) {
        println!("\n{}\n", self.circumstances);
        println!("{}", table(&self.figures, self.not_measured.as_ref()));
        println!("{LEGEND}");
        for (number, settings) in self.settings.chunks(3).enumerate() {
            let settings: Vec<String> =
                settings.iter().map(|(name, value)| format!("{name} {value}")).collect();
            println!("{:16}{}", if number == 0 { "settings" } else { "" }, settings.join(", "));
        }
        println!();
        for verdict in self.verdicts() {
            println!("{verdict}");
        }
    }

    /// How the goals stand.
    fn verdicts(&self) -> Vec<String> {
        let at_most = self.goals.backfill_over_floor_at_most;
        let mut verdicts: Vec<String> = self
            .over_floor
            .iter()
            .map(|OverFloor { wal_level, backfill_over_floor: Spread { median, min, max } }| {
                format!(
                    "wal_level {}: bqx with 2 workers takes {median:.2} × the floor's time with 2 sessions \
                     ({min:.2} … {max:.2}); the goal is at most {at_most}",
                    wal_level.name()
                )
            })
            .collect();
        verdicts.push(peers_verdict(&self.figures, self.goals.times_of_backfill_above));
        if let Some(NotMeasured { ways, why }) = &self.not_measured {
            let names: Vec<&str> = ways.iter().map(|way| way.title()).collect();
            verdicts.push(format!("not measured: {}: {why}", names.join(", ")));
        }
        verdicts
    }
}

/// Whether everybody who computes the rows without bqx takes longer.
fn peers_verdict(figures: &[Figure], above: f64) -> String {
    let not_slower =
        figures.iter().filter(|figure| figure.way.is_peer() && figure.times_of_backfill.median <= above);
    let names: Vec<&str> = not_slower.map(|figure| figure.way.title()).collect();
    match &names[..] {
        [] => "every other way to compute the rows takes longer than bqx, as is the goal".to_owned(),
        _ => format!("not slower than bqx, against the goal: {}", names.join(", ")),
    }
}

const LEGEND: &str = "\
Each fills month tables of both families, all columns, durable (logged, fsync and synchronous_commit on), with a
primary key. All but bqx: fresh tables, the key built after, one transaction for a pair's month. They take turns.
floor           writing alone: rows that bqx computed, from tables in memory, by plain scans
COPY            the same rows from files, which the server reads, with FREEZE
plain SQL       tuned: sums from blocks and running totals; named windows: as most would write it
numpy … DuckDB  vectorised; in and out through PostgreSQL's binary formats
row by row      numpy for each row, psycopg2's executemany; the last 1000 rows of a month of 2 pairs only
sessions        workers of bqx, connections, processes; imports, connecting and process start are left out for all
                but bqx
s               from the first month's beginning to the last commit; median, fastest, slowest
× bqx           time per row, in multiples of that of bqx with 2 workers, same round and wal_level; median
CPU s           of all of the server's processes together, and of a contender's own
others          processors that were busy with something else: near 0, or the rest says little
difference      the most that a value differs from that of bqx, relative to the column's mean magnitude";

fn table(figures: &[Figure], not_measured: Option<&NotMeasured>) -> Table<12> {
    let header = [
        "",
        "wal_level",
        "sessions",
        "rows",
        "s",
        "fastest",
        "slowest",
        "rows/s",
        "× bqx",
        "CPU s",
        "others",
        "difference",
    ];
    let mut table = Table::new(header, 2);
    for figure in figures {
        let Figure { seconds, .. } = figure;
        table.add([
            figure.way.title().to_owned(),
            figure.wal_level.name().to_owned(),
            figure.sessions.to_string(),
            HumanCount(figure.rows).to_string(),
            format!("{:.2}", seconds.median),
            format!("{:.2}", seconds.min),
            format!("{:.2}", seconds.max),
            HumanCount(figure.rows_per_second.median as u64).to_string(),
            report::ratio(figure.times_of_backfill.median),
            format!("{:.2}", figure.cpu_seconds.median),
            format!("{:.2}", figure.processors_busy_with_others.median),
            match figure.largest_difference {
                0.0 => "0".to_owned(),
                difference => format!("{difference:.0e}"),
            },
        ]);
    }
    for way in not_measured.iter().flat_map(|not_measured| &not_measured.ways) {
        let mut line: [String; 12] = Default::default();
        line[0] = way.title().to_owned();
        line[3] = "not measured".to_owned();
        table.add(line);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::backfill::contenders::Way;

    fn figure(way: Way, times_of_backfill: f64) -> Figure {
        let one = |value| Spread::of(vec![value]);
        Figure {
            way,
            wal_level: WalLevel::Replica,
            sessions: 2,
            rows: 1_000_000,
            seconds: one(4.0),
            rows_per_second: one(250_000.0),
            times_of_backfill: one(times_of_backfill),
            cpu_seconds: one(6.0),
            processors_busy_with_others: one(0.0),
            largest_difference: 0.0,
        }
    }

    #[test]
    fn who_is_not_measured_has_a_line_of_its_own() {
        let not_measured = NotMeasured { ways: vec![Way::Polars], why: "no PyPI".to_owned() };
        let lines = table(&[figure(Way::Backfill, 1.0)], Some(&not_measured)).to_string();
        let lines: Vec<Vec<&str>> = lines.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[2][..5], ["bqx.backfill", "replica", "2", "1,000,000", "4.00"]);
        assert_eq!(lines[3], ["polars", "not", "measured"]);
    }

    #[test]
    fn only_a_peer_as_fast_as_bqx_misses_the_goal() {
        let slower = vec![figure(Way::Backfill, 1.0), figure(Way::CopyingRows, 0.9), figure(Way::Numpy, 1.7)];
        assert_eq!(
            peers_verdict(&slower, 1.0),
            "every other way to compute the rows takes longer than bqx, as is the goal"
        );
        let mut figures = slower;
        figures.push(figure(Way::Polars, 0.99));
        assert_eq!(peers_verdict(&figures, 1.0), "not slower than bqx, against the goal: polars");
    }
}
