//! `cargo xtask bench`: benchmarks in PostgreSQL.

mod aggregate_cases;
mod aggregates;
mod backfill;
mod cpu;
mod growth;
mod live;
mod market;
mod report;
mod rounds;
mod server;
mod spread;
mod stages;
mod training;
mod workers;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use xshell::Shell;

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    benchmark: Option<Benchmark>,
    #[command(flatten)]
    backfill: backfill::BackfillArgs,
}

#[derive(clap::Subcommand)]
enum Benchmark {
    /// The window aggregates beside PostgreSQL's own, in rows per second
    ///
    /// Builds the extension optimised, installs it, and measures each aggregate in a private throw-away
    /// cluster: over frames of 63, 630 and 6300 preceding rows, over values of mixed magnitudes, over frames
    /// of time, and with GROUP BY. Prints one table; the same figures go to target/bench/aggregates.json.
    Aggregates(aggregates::AggregatesArgs),
    /// Background workers of a backfill: speed, how soon they end, and what they take
    ///
    /// Builds the extension optimised, installs it, and backfills a simulated month of 28 pairs over and over in a
    /// private throw-away cluster, with 0, 1, 2 and as many workers as there are cores: new months of unlogged tables,
    /// new months, and rewritten months. Then ends backfills with bqx.cancel, Ctrl-C, by killing the client and by
    /// terminating its session, and measures how long workers outlive that; at last, their memory. Prints tables; the
    /// same figures go to target/bench/workers.json. It wants a machine that does nothing else: rounds in which
    /// others used the processors are made again, for about a minute each, and the table tells how quiet it was.
    Workers(workers::WorkersArgs),
    /// Every stage, from a file of bars to dropped tables, in seconds
    ///
    /// Builds the extension optimised, installs it, and runs all stages over and over in a private throw-away cluster:
    /// on simulated bars, load_m1 beside a plain COPY and verify beside the backfill, and where 28 pairs have the
    /// partitions of seven years. Prints a table; the same figures go to target/bench/stages.json.
    Stages(stages::StagesArgs),
    /// Whether a backfill costs as much per row, however much there is
    ///
    /// Builds the extension optimised, installs it, and backfills 1, 6 and 12 simulated months of the same pairs in
    /// turn, in a private throw-away cluster, where tables have 12 partitions and where those of 28 pairs have 84.
    /// Then workers' memory, and with --whole a year of 28 pairs at once, and its verification. Prints tables; the same
    /// figures go to target/bench/growth.json.
    Growth(growth::GrowthArgs),
    /// What a bar costs that comes, or is corrected, where derived rows follow at once
    ///
    /// Builds the extension optimised, installs it, and feeds bars in a private throw-away cluster, over a connection as a
    /// feed has one: into M1 without triggers of ours, with those of index_m1, and live, beside a month of history and
    /// beside a year in tables of seven years. One bar at a time, corrections, COPY, refresh, and two feeds at once. Prints
    /// tables; the same figures go to target/bench/live.json.
    Live(live::LiveArgs),
    /// What a model is fed: correlations, features from cold, the wide relation, and indicators
    ///
    /// Builds the extension optimised, installs it, and simulates a year of one pair beside a month of all, in a private
    /// throw-away cluster. Correlations are beside one query with corr() for each feature, features beside the join that
    /// one would write by hand. Prints a table; the same figures go to target/bench/training.json.
    Training(training::TrainingArgs),
}

pub fn command(shell: &Shell, pg_config: Option<&Path>, args: &BenchArgs) -> Result<ExitCode> {
    match &args.benchmark {
        None => {
            backfill::command(shell, pg_config, &args.backfill)?;
            let stages = stages::StagesArgs { quick: args.backfill.quick, pairs: None };
            stages::command(shell, pg_config, &stages)
        }
        Some(Benchmark::Aggregates(args)) => aggregates::command(shell, pg_config, args),
        Some(Benchmark::Workers(args)) => workers::command(shell, pg_config, args),
        Some(Benchmark::Stages(args)) => stages::command(shell, pg_config, args),
        Some(Benchmark::Growth(args)) => growth::command(shell, pg_config, args),
        Some(Benchmark::Live(args)) => live::command(shell, pg_config, args),
        Some(Benchmark::Training(args)) => training::command(shell, pg_config, args),
    }
}
