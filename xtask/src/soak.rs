//! `cargo xtask soak`: the crash test of the integration tests, for as long as wanted.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use crate::build::{self, Profile};
use crate::console;
use crate::setup::{self, Purpose};

#[derive(clap::Args)]
pub struct SoakArgs {
    /// How long; setting up and the comparison in the end come on top
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    minutes: u32,
    /// Repeats what a seed led to: changes, calls and disturbances, though not the instants at which they meet
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
}

pub fn command(shell: &Shell, pg_config: Option<&Path>, args: &SoakArgs) -> Result<ExitCode> {
    let pg_config = setup::prepare(shell, pg_config, Purpose::Build)?;
    let install = || build::install(shell, &pg_config, Profile::Debug);
    console::timed("install", install).0.context("installing the extension failed")?;
    shell.set_var("BQX_SOAK_MINUTES", args.minutes.to_string());
    if let Some(seed) = args.seed {
        shell.set_var("BQX_SEED", seed.to_string());
    }
    let soak = || cmd!(shell, "cargo test --package bqx-tests --test crashes -- --nocapture").run();
    let (outcome, _) = console::timed("soak", soak);
    Ok(if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
