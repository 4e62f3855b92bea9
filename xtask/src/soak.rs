//! `cargo xtask soak`: those integration tests that let chance do its worst, for as long as wanted.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use crate::build::{self, Profile};
use crate::console;
use crate::setup::{self, Purpose};

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Soak {
    /// Backfills that are killed, cancelled and abandoned, and servers that crash under them
    Crashes,
    /// Feeds, refresh, backfill and readers at once, with live mode and without
    Feeds,
}

impl Soak {
    const ALL: [Soak; 2] = [Soak::Crashes, Soak::Feeds];

    /// The test program.
    fn test(self) -> &'static str {
        match self {
            Soak::Crashes => "crashes",
            Soak::Feeds => "feeds",
        }
    }
}

#[derive(clap::Args)]
pub struct SoakArgs {
    /// How long each; setting up and the comparison in the end come on top
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    minutes: u32,
    /// Just this one
    #[arg(long, value_enum, value_name = "SOAK")]
    only: Option<Soak>,
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
    let mut code = ExitCode::SUCCESS;
    for soak in args.only.map_or(Soak::ALL.to_vec(), |only| vec![only]) {
        let test = soak.test();
        let run = || cmd!(shell, "cargo test --package bqx-tests --test {test} -- --nocapture").run();
        if console::timed(&format!("soak: {test}"), run).0.is_err() {
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}
