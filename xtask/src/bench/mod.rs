//! `cargo xtask bench`: benchmarks in PostgreSQL.

mod aggregate_cases;
mod aggregates;
mod report;
mod spread;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use xshell::Shell;

#[derive(clap::Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(clap::Subcommand)]
enum Benchmark {
    /// The window aggregates beside PostgreSQL's own, in rows per second
    ///
    /// Builds the extension optimised, installs it, and measures each aggregate in a private throw-away
    /// cluster: over frames of 63, 630 and 6300 preceding rows, over values of mixed magnitudes, over frames
    /// of time, and with GROUP BY. Prints one table; the same figures go to target/bench/aggregates.json.
    Aggregates(aggregates::AggregatesArgs),
}

pub fn command(shell: &Shell, pg_config: Option<&Path>, args: &BenchArgs) -> Result<ExitCode> {
    match &args.benchmark {
        Benchmark::Aggregates(args) => aggregates::command(shell, pg_config, args),
    }
}
