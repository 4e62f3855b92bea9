//! `cargo xtask bench workers`: what background workers give to a backfill, how soon they are gone when it is to
//! end, and what they take.

mod endings;
pub mod footprint;
mod speed;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use xshell::Shell;

use super::market::Market;
use super::report::{self, Circumstances};
use super::rounds::Effort;
use super::server;
use crate::console;

/// What a small server is given. Durability is as PostgreSQL has it; autovacuum would come at any time.
const SERVER_OPTIONS: [(&str, &str); 3] =
    [("shared_buffers", "1GB"), ("autovacuum", "off"), ("timezone", "UTC")];

/// All that the extension comes with.
const ALL_PAIRS: u32 = 28;

/// Fewer would be done before they can be interrupted.
const FEWEST_PAIRS: i64 = 4;

#[derive(clap::Args)]
pub struct WorkersArgs {
    /// Measure fewer times, with fewer pairs
    #[arg(long)]
    quick: bool,
    /// Pairs to backfill [default: 28, with --quick 8]
    #[arg(long, value_parser = clap::value_parser!(u32).range(FEWEST_PAIRS..=ALL_PAIRS.into()))]
    pairs: Option<u32>,
}

pub fn command(shell: &Shell, pg_config: Option<&Path>, args: &WorkersArgs) -> Result<ExitCode> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let worker_processes = (8 + cores).to_string();
    let options = [&SERVER_OPTIONS[..], &[("max_worker_processes", &worker_processes)]].concat();
    let cluster = server::start(shell, pg_config, &options)?;

    let pairs = args.pairs.unwrap_or(if args.quick { 8 } else { ALL_PAIRS }) as usize;
    let (effort, attempts) = if args.quick {
        (Effort { rounds: 3, patience: Duration::from_secs(10) }, 3)
    } else {
        (Effort { rounds: 5, patience: Duration::from_secs(70) }, 10)
    };
    let mut market = console::timed("simulated market", || Market::simulate(&cluster, pairs, 1)).0?;
    let circumstances = Circumstances::now(shell, &mut market.client)?;
    let results = Results {
        circumstances,
        goals: GOALS,
        rounds: effort.rounds,
        speed: console::timed("speed", || speed::measure(&mut market, &worker_counts(cores), effort)).0?,
        endings: console::timed("endings", || endings::measure(&mut market, attempts)).0?,
        footprint: console::timed("footprint", || footprint::measure(&mut market)).0?,
    };
    results.print();
    println!("\nWritten to {}", report::write_json("workers", &results)?.display());
    Ok(ExitCode::SUCCESS)
}

/// None, one, two, and as many as there are cores.
fn worker_counts(cores: usize) -> Vec<usize> {
    let mut counts = vec![0, 1, 2];
    counts.extend((cores > 2).then_some(cores));
    counts
}

/// Everything that is written to the file.
#[derive(Serialize)]
struct Results {
    #[serde(flatten)]
    circumstances: Circumstances,
    goals: Goals,
    rounds: usize,
    speed: Vec<speed::Figure>,
    endings: Vec<endings::Figure>,
    footprint: Vec<footprint::Figure>,
}

/// What is to be reached. Nothing fails if it is not: figures depend on the machine and on what else it does.
#[derive(Serialize)]
struct Goals {
    speedup_of_two_workers_on_unlogged_tables_at_least: f64,
    speedup_of_two_workers_at_least: f64,
    ending_milliseconds_below: f64,
    worker_megabytes_below: f64,
}

const GOALS: Goals = Goals {
    speedup_of_two_workers_on_unlogged_tables_at_least: 1.6,
    speedup_of_two_workers_at_least: 1.0,
    ending_milliseconds_below: 2000.0,
    worker_megabytes_below: 100.0,
};

const LEGEND: &str = "\
new, rewritten  empty partitions filled straight; months computed again whose rows turn out the same.
                Both families, one month; rewritten ones of a quarter of the pairs
unlogged        UNLOGGED tables, fsync off: the disk does not limit. The others with fsync on
s               from CALL to its return, median; numbers of workers take turns. 0 works in the session
                Of all rounds, those count in which others used the processors least
× 1 worker      by which factor it is faster than one worker in the same round; median
CPU s           of all of the server's processes together
others          processors that were busy with something else: near 0, or the rest says little
ms              from the ending until pg_stat_activity shows no worker; median and longest
MB              the most that a worker had at any time beside shared memory; months with lookback";

impl Results {
    fn print(&self) {
        let Goals {
            speedup_of_two_workers_on_unlogged_tables_at_least: unlogged,
            speedup_of_two_workers_at_least: logged,
            ending_milliseconds_below: milliseconds,
            worker_megabytes_below: megabytes,
        } = self.goals;
        println!("\n{}\n", self.circumstances);
        println!("{}", speed::table(&self.speed));
        println!("{}", endings::table(&self.endings));
        println!("{}", footprint::table(&self.footprint));
        println!("{LEGEND}");
        println!("goals           two workers × {unlogged} on unlogged tables, nowhere below × {logged};");
        println!("                < {milliseconds} ms; sessions: workers and caller; < {megabytes} MB");
    }
}
