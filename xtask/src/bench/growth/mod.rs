//! `cargo xtask bench growth`: whether a backfill's cost grows with what it fills alone.

pub mod layout;
mod rounds;
mod whole;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use xshell::Shell;

use self::layout::Layout;
use super::market::Market;
use super::report::{self, Circumstances};
use super::server::{self, BULK_SETTINGS, observer};
use crate::console;

/// Months of bars, from the simulated market's first.
const MONTHS: u32 = 12;

const WORKERS: usize = 2;

#[derive(clap::Args)]
pub struct GrowthArgs {
    /// Fewer pairs, where there are many, too
    #[arg(long)]
    quick: bool,
    /// Pairs to backfill [default: 6, with --quick 2]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=28))]
    pairs: Option<u32>,
    /// Afterwards backfill and verify all 28 pairs in one run; takes some minutes and 30 GB
    #[arg(long)]
    whole: bool,
}

pub fn command(shell: &Shell, pg_config: Option<&Path>, args: &GrowthArgs) -> Result<ExitCode> {
    let pairs = args.pairs.unwrap_or(if args.quick { 2 } else { 6 }) as usize;
    let all_pairs = if args.quick { pairs.max(4) } else { 28 };
    let rounds = if args.quick { 3 } else { 5 };
    let cluster = server::start(shell, pg_config, &BULK_SETTINGS)?;
    let circumstances = Circumstances::now(shell, &mut observer(&cluster)?)?;

    let market = console::timed("simulated market", || Market::simulate(&cluster, pairs, MONTHS)).0?;
    let mut few = Layout::with_partitions_of_the_data(market);
    let (many, making_many) = console::timed("many partitions", || few.with_many_partitions(all_pairs));
    let mut layouts = [few, many?];
    let speed = console::timed("backfills", || rounds::measure_speed(&mut layouts, rounds)).0?;
    let memory = console::timed("memory", || rounds::measure_memory(&mut layouts)).0?;
    drop(layouts);
    let whole =
        args.whole.then(|| console::timed("the whole job", || whole::measure(&cluster)).0).transpose()?;

    let results = Results {
        circumstances,
        goals: GOALS,
        rounds,
        pairs_with_many_partitions: all_pairs,
        making_many_partitions_seconds: making_many.as_secs_f64(),
        speed,
        memory,
        whole,
    };
    results.print();
    println!("\nWritten to {}", report::write_json("growth", &results)?.display());
    Ok(ExitCode::SUCCESS)
}

/// Everything that is written to the file.
#[derive(Serialize)]
struct Results {
    #[serde(flatten)]
    circumstances: Circumstances,
    goals: Goals,
    rounds: usize,
    pairs_with_many_partitions: usize,
    /// Of M1 and of both families.
    making_many_partitions_seconds: f64,
    speed: Vec<rounds::Speed>,
    memory: Vec<rounds::Memory>,
    whole: Option<whole::Figures>,
}

/// What is to be reached. Nothing fails if it is not: figures depend on the machine and on what else it does.
#[derive(Serialize)]
struct Goals {
    relative_speed_from: f64,
    relative_speed_to: f64,
    create_tables_seconds_below: f64,
    verify_times_backfill_at_least: f64,
}

const GOALS: Goals = Goals {
    relative_speed_from: 0.9,
    relative_speed_to: 1.1,
    create_tables_seconds_below: 60.0,
    verify_times_backfill_at_least: 1.0,
};

const LEGEND: &str = "\
months          of the same pairs, both families, in one backfill by two workers; new months of logged tables
partitions      of each table, M1 among them; 84: 2020-01 … 2026-12 of all pairs, of which 12 months have bars
s               from CALL to its return, median; the backfills take turns
× 12 months     rows/s beside those of 12 months in 12 partitions in the same round; median
CPU µs/row      of all of the server's processes together; others hardly change it
others          processors that were busy with something else: near 0, or the rest says little
MB              the most that a worker had at any time beside shared memory";

impl Results {
    fn print(&self) {
        println!("\n{}\n", self.circumstances);
        println!("{}", rounds::speed_table(&self.speed));
        println!("{}", rounds::memory_table(&self.memory));
        if let Some(whole) = &self.whole {
            println!("{}", whole::table(whole));
        }
        println!("{LEGEND}");
        let Goals { relative_speed_from: from, relative_speed_to: to, .. } = self.goals;
        println!("goals           × {from} to × {to} throughout; memory that does not grow;");
        println!(
            "                create_tables of 28 pairs and 84 months: < {} s; verify as fast as the backfill",
            self.goals.create_tables_seconds_below
        );
    }
}
