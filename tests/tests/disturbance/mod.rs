//! Backfills that are disturbed at random instants, and what must hold however they end.
//!
//! A round changes bars or derived rows, calls one or two backfills with random arguments, lets something happen to
//! them after a random time, waits until all is quiet, and checks [invariants](invariants::violations). Meanwhile
//! [bystanders] read and vacuum. Now and then, and in the end, a call is left in peace and has to complete everything;
//! in the end, all rows are compared with those of a database that nobody disturbed.
//!
//! What happens follows from a seed; when it happens, to the instant, does not.

mod bystanders;
mod calls;
mod changes;
mod checks_see;
mod invariants;
mod kinds;
mod months;
pub mod scene;
mod tally;
mod trial;

use std::time::Duration;

use anyhow::{Context, Result};
use rand::RngExt;

pub use tally::Tally;
pub use trial::run;

/// How long anything may take that is not to go on for ever: workers that end, a server that recovers.
const PATIENCE: Duration = Duration::from_secs(120);

const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// How much there is to be of a trial.
#[derive(Debug)]
pub struct Limits {
    pub seed: u64,
    /// As long as this; without it, up to a number of disturbances.
    time: Option<Duration>,
}

impl Limits {
    /// Each kind of disturbance three times.
    const DISTURBANCES: usize = 30;

    /// From the environment variables `BQX_SEED` (any, if there is none) and `BQX_SOAK_MINUTES`.
    pub fn from_environment() -> Result<Self> {
        let number = |name: &str| -> Result<Option<u64>> {
            let Ok(text) = std::env::var(name) else { return Ok(None) };
            text.parse().map(Some).with_context(|| format!("{name} is to be a number, not {text}"))
        };
        let seed = number("BQX_SEED")?.unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
        let time = number("BQX_SOAK_MINUTES")?.map(|minutes| Duration::from_secs(60 * minutes));
        Ok(Self { seed, time })
    }

    fn allow_more(&self, tally: &Tally, elapsed: Duration) -> bool {
        match self.time {
            Some(time) => elapsed < time,
            // Disturbances that come too late are no reason to go on for ever.
            None => tally.struck() < Self::DISTURBANCES && tally.rounds < 3 * Self::DISTURBANCES,
        }
    }

    /// Whether a trial that is over did what it was to do.
    pub fn are_reached(&self, tally: &Tally) -> bool {
        self.time.is_some() || tally.struck() == Self::DISTURBANCES
    }
}
