//! The project's commands: `cargo xtask --help`.

mod bench;
mod build;
mod cargo_pgrx;
mod console;
mod data;
mod demo;
mod schema;
mod setup;
mod soak;
mod test;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xshell::Shell;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's commands", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The pg_config of the PostgreSQL to build for and run; the newest one with server headers if not given
    #[arg(long, global = true, value_name = "PATH", env = "PG_CONFIG")]
    pg_config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Build the extension and install it into PostgreSQL
    Install(build::InstallArgs),
    /// The whole pipeline in a private cluster, from bars to verified tables
    Demo(demo::DemoArgs),
    /// Everything that CI checks
    Test(test::TestArgs),
    /// Regenerate the extension's install script, sql/bqx--VERSION.sql
    Schema(schema::SchemaArgs),
    /// Benchmarks in PostgreSQL
    ///
    /// Without a command: backfills beside the floor, which is copying finished rows, and beside other ways to compute
    /// them: plain SQL, numpy, polars, DuckDB, and Python row by row. Builds the extension optimised, installs it, and
    /// simulates a month of 28 pairs in a private throw-away cluster, where all take turns, three times each. Prints one
    /// table; the same figures go to target/bench/backfill.json. Then every stage, as `bench stages` does. Wants a
    /// machine that does nothing else, about ten minutes of it, and PyPI for the packages of those in Python, which
    /// are left out without it.
    Bench(bench::BenchArgs),
    /// Backfills that are killed, cancelled and crashed at random, for as long as wanted
    ///
    /// Builds the extension and installs it as `test` does, then goes on with the crash test of tests/tests/crashes.rs:
    /// in a private throw-away cluster, while others read and vacuum, backfills and the server under them are
    /// disturbed over and over, and everything stored is compared with what it ought to be. Prints the seed, each
    /// round, and the figures of all. A plain `test` does the same for about a minute.
    Soak(soak::SoakArgs),
}

fn main() -> ExitCode {
    run(Cli::parse()).unwrap_or_else(|error| {
        console::error(&error);
        ExitCode::FAILURE
    })
}

fn run(cli: Cli) -> Result<ExitCode> {
    let shell = Shell::new()?;
    shell.change_dir(pgcluster::workspace_root());
    let pg_config = cli.pg_config.as_deref();
    match cli.command {
        Command::Install(args) => build::command(&shell, pg_config, &args),
        Command::Demo(args) => demo::command(&shell, pg_config, &args),
        Command::Test(args) => test::command(&shell, pg_config, &args),
        Command::Schema(args) => schema::command(&shell, pg_config, &args),
        Command::Bench(args) => bench::command(&shell, pg_config, &args),
        Command::Soak(args) => soak::command(&shell, pg_config, &args),
    }
}
