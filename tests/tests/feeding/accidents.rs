//! What ends sessions and servers.

use std::fmt;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use postgres::Client;
use rand::RngExt;
use rand::prelude::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::counts::Counts;
use super::feed::FEED;
use super::upkeep::UPKEEP;
use crate::common::try_rows;
use crate::soak::BETWEEN_LOOKS;
use crate::soak::bystanders::Curfew;
use crate::soak::site::{Site, signal, workers};

/// How often the server had to recover.
pub const CRASHES: &str = "crashes of the server";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accident {
    KillFeed,
    KillUpkeep,
    TerminateFeed,
    CancelFeed,
    TerminateUpkeep,
    CancelUpkeep,
    TerminateWorker,
    KillPostmaster,
    StopImmediately,
    RestartFast,
}

impl Accident {
    pub const ALL: [Accident; 10] = [
        Accident::KillFeed,
        Accident::KillUpkeep,
        Accident::TerminateFeed,
        Accident::CancelFeed,
        Accident::TerminateUpkeep,
        Accident::CancelUpkeep,
        Accident::TerminateWorker,
        Accident::KillPostmaster,
        Accident::StopImmediately,
        Accident::RestartFast,
    ];

    fn crashes_the_server(self) -> bool {
        matches!(self, Self::KillFeed | Self::KillUpkeep | Self::KillPostmaster | Self::StopImmediately)
    }

    /// Whom it happens to, if not to all.
    fn victim(self, control: &mut Client) -> Result<Option<i32>> {
        Ok(match self {
            Self::KillFeed | Self::TerminateFeed | Self::CancelFeed => busy_session(control, FEED)?,
            Self::KillUpkeep | Self::TerminateUpkeep | Self::CancelUpkeep => busy_session(control, UPKEEP)?,
            Self::TerminateWorker => workers(control)?.first().copied(),
            Self::KillPostmaster | Self::StopImmediately | Self::RestartFast => None,
        })
    }

    /// False if whom it was to happen to is gone.
    fn happen(self, site: &Site, control: &mut Client, pid: i32) -> Result<bool> {
        match self {
            Self::KillFeed | Self::KillUpkeep => return site.kill(control, pid),
            Self::TerminateFeed | Self::TerminateUpkeep | Self::TerminateWorker => {
                return signal(control, "pg_terminate_backend", pid);
            }
            Self::CancelFeed | Self::CancelUpkeep => return signal(control, "pg_cancel_backend", pid),
            Self::KillPostmaster => site.kill_postmaster()?,
            Self::StopImmediately => site.stop_immediately()?,
            Self::RestartFast => site.server.restart()?,
        }
        Ok(true)
    }

    fn needs_victim(self) -> bool {
        !matches!(self, Self::KillPostmaster | Self::StopImmediately | Self::RestartFast)
    }
}

impl fmt::Display for Accident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KillFeed => "kill -9 of a feed's backend",
            Self::KillUpkeep => "kill -9 of the backend of a call",
            Self::TerminateFeed => "pg_terminate_backend of a feed",
            Self::CancelFeed => "pg_cancel_backend of a feed",
            Self::TerminateUpkeep => "pg_terminate_backend of a call",
            Self::CancelUpkeep => "pg_cancel_backend of a call",
            Self::TerminateWorker => "pg_terminate_backend of a worker",
            Self::KillPostmaster => "kill -9 of the postmaster",
            Self::StopImmediately => "pg_ctl stop -m immediate",
            Self::RestartFast => "pg_ctl restart -m fast",
        })
    }
}

/// All kinds, over and over, in an order of chance.
pub fn run(site: &Site, counts: &Counts, curfew: &Curfew, mut rng: ChaCha8Rng) -> Result<()> {
    loop {
        let mut kinds = Accident::ALL;
        kinds.shuffle(&mut rng);
        for accident in kinds {
            curfew.pause(Duration::from_millis(rng.random_range(500..3_000)));
            let happened = wait_and_happen(accident, site, curfew).with_context(|| accident.to_string())?;
            if curfew.has_come() && !happened {
                return Ok(());
            }
            counts.add(&accident.to_string(), u64::from(happened));
            counts.add(CRASHES, u64::from(happened && accident.crashes_the_server()));
        }
    }
}

/// Waits for a victim, where there has to be one. False where there is none until the end, or it got away.
fn wait_and_happen(accident: Accident, site: &Site, curfew: &Curfew) -> Result<bool> {
    let mut control = site.connect()?;
    while !curfew.has_come() {
        match accident.victim(&mut control)? {
            Some(pid) => return accident.happen(site, &mut control, pid),
            None if !accident.needs_victim() => return accident.happen(site, &mut control, 0),
            None => sleep(BETWEEN_LOOKS),
        }
    }
    Ok(false)
}

/// One of the sessions with names that begin so that is at work.
fn busy_session(control: &mut Client, name: &str) -> Result<Option<i32>> {
    let busy = format!(
        "SELECT pid FROM pg_stat_activity WHERE application_name LIKE '{name} %' AND state = 'active' \
            AND query !~ '^(BEGIN|SET)' ORDER BY random() LIMIT 1"
    );
    Ok(try_rows(control, &busy)?.first().map(|pid| pid.parse()).transpose()?)
}
