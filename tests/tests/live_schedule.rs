//! The property of live mode and refresh: whatever happens to bars, in whatever order, the derived tables are those of one
//! backfill in the end; and while a pair is live, after each transaction.

mod common;
mod schedule;

use anyhow::{Context, Result};
use common::followed::Followed;
use schedule::Trial;

/// Transactions and calls in one run.
const STEPS: u64 = 200;

#[test]
fn a_random_schedule_ends_with_the_rows_of_one_backfill() -> Result<()> {
    let seed = number("BQX_SEED")?.unwrap_or_else(|| rand::random_range(0..1_000_000));
    let steps = number("BQX_STEPS")?.unwrap_or(STEPS);
    println!("BQX_SEED={seed} BQX_STEPS={steps} repeats this");
    let server = Followed::start("live-schedule", &[("max_worker_processes", "20")]);
    let tally = Trial::new(&server, seed).run(steps)?;
    println!("{tally}");
    // A schedule that asked nothing would prove nothing.
    for (what, times) in tally.checks() {
        assert!(steps < STEPS || times > 0, "{what}: {times} times only\n{tally}");
    }
    Ok(())
}

/// A number from the environment.
fn number(name: &str) -> Result<Option<u64>> {
    let Ok(text) = std::env::var(name) else { return Ok(None) };
    text.parse().map(Some).with_context(|| format!("{name} is to be a number, not {text}"))
}
