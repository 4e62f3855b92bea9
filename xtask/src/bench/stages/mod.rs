//! `cargo xtask bench stages`: how long each stage takes.

mod clock;
mod many;
mod pipeline;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use indicatif::ProgressBar;
use serde::Serialize;
use xshell::Shell;

use self::clock::{Clock, Figure};
use super::report::{self, Circumstances};
use super::server::{self, BULK_SETTINGS, observer};
use crate::console;

#[derive(clap::Args)]
pub struct StagesArgs {
    /// Measure three times rather than five, with fewer bars, and fewer pairs where there are many
    #[arg(long)]
    pub quick: bool,
    /// Pairs with bars [default: 4, with --quick 2]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=28))]
    pub pairs: Option<u32>,
}

/// How much of what is measured, and how often.
#[derive(Clone, Copy, Serialize)]
struct Extent {
    pairs: usize,
    /// Months of bars.
    months: u32,
    rounds: usize,
    /// Where each table has the partitions of [`many::MONTHS`].
    many_pairs: usize,
    many_rounds: usize,
}

pub fn command(shell: &Shell, pg_config: Option<&Path>, args: &StagesArgs) -> Result<ExitCode> {
    let extent = if args.quick {
        Extent { pairs: 2, months: 2, rounds: 3, many_pairs: 4, many_rounds: 3 }
    } else {
        Extent { pairs: 4, months: 3, rounds: 5, many_pairs: 28, many_rounds: 3 }
    };
    let extent = Extent { pairs: args.pairs.map_or(extent.pairs, |pairs| pairs as usize), ..extent };
    let cluster = server::start(shell, pg_config, &BULK_SETTINGS)?;
    let circumstances = Circumstances::now(shell, &mut observer(&cluster)?)?;
    let mut clock = Clock::new(&cluster);

    let files =
        console::timed("files of bars", || pipeline::BarFiles::export(&cluster, extent.pairs, extent.months));
    let files = files.0?;
    console::timed("the pipeline", || {
        rounds(extent.rounds, || pipeline::measure_round(&cluster, &mut clock, &files))
    })
    .0?;
    console::timed("many partitions", || {
        rounds(extent.many_rounds, || many::measure_round(&cluster, &mut clock, extent.many_pairs))
    })
    .0?;

    let results = Results { circumstances, extent, goals: GOALS, figures: clock.figures() };
    results.print();
    println!("\nWritten to {}", report::write_json("stages", &results)?.display());
    Ok(ExitCode::SUCCESS)
}

/// Shows how far they are.
fn rounds(count: usize, mut round: impl FnMut() -> Result<()>) -> Result<()> {
    let progress = console::BARS.add(ProgressBar::new_spinner());
    progress.enable_steady_tick(std::time::Duration::from_millis(100));
    for number in 1..=count {
        progress.set_message(format!("round {number} of {count}"));
        round()?;
    }
    progress.finish_and_clear();
    Ok(())
}

/// Everything that is written to the file.
#[derive(Serialize)]
struct Results {
    #[serde(flatten)]
    circumstances: Circumstances,
    extent: Extent,
    goals: Goals,
    figures: Vec<Figure>,
}

/// What is to be reached. Nothing fails if it is not: figures depend on the machine and on what else it does.
#[derive(Serialize)]
struct Goals {
    create_many_tables_seconds_below: f64,
    verify_times_backfill_at_least: f64,
}

const GOALS: Goals = Goals { create_many_tables_seconds_below: 60.0, verify_times_backfill_at_least: 1.0 };

const LEGEND: &str = "\
s               median of the rounds, their fastest and slowest; each stage begins after a CHECKPOINT
× beside        by which factor it is as fast as the other, in the same round; median: load_m1 as COPY of the file
                into a table with the columns and the key of M1, COPY into M1 with the trigger of index_m1
                as without, verify as the backfill of the same rows
index_m1        of bars that have no rate_index yet; again: of those that have it
many            28 pairs (--quick: 4) with the partitions of 2020-01 … 2026-12, and one bar each; create_tables of
                both families. DROP EXTENSION … CASCADE takes the triggers of all M1 partitions along
others          processors that were busy with something else: near 0, or the rest says little";

impl Results {
    fn print(&self) {
        println!("\n{}\n", self.circumstances);
        println!("{}", clock::table(&self.figures));
        println!("{LEGEND}");
        println!(
            "goals           create_tables, many: < {} s; verify at least × {}",
            self.goals.create_many_tables_seconds_below, self.goals.verify_times_backfill_at_least
        );
    }
}
