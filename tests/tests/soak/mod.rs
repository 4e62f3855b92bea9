//! What soaks share: how long they go on, the server that they disturb, who else is there, and what must hold in the end.

#![allow(dead_code)] // each test program uses its part

pub mod bystanders;
pub mod site;
pub mod soundness;

use std::time::Duration;

use anyhow::{Context, Result};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How long anything may take that is not to go on for ever: workers that end, a server that recovers.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// What a soak is asked for.
#[derive(Debug)]
pub struct Limits {
    pub seed: u64,
    /// As long as this; without it, for as long as a test may take.
    pub time: Option<Duration>,
}

impl Limits {
    /// From the environment variables `BQX_SEED` (any, if there is none) and `BQX_SOAK_MINUTES`.
    pub fn from_environment() -> Result<Self> {
        let number = |name: &str| -> Result<Option<u64>> {
            let Ok(text) = std::env::var(name) else { return Ok(None) };
            text.parse().map(Some).with_context(|| format!("{name} is to be a number, not {text}"))
        };
        let seed = number("BQX_SEED")?.unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
        let time = number("BQX_SOAK_MINUTES")?.map(|minutes| Duration::from_secs(60 * minutes));
        println!("seed {seed} (BQX_SEED={seed} repeats it)");
        Ok(Self { seed, time })
    }

    /// One of the seed's streams of random numbers.
    pub fn random(&self, stream: u64) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(stream);
        rng
    }
}
