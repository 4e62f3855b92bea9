//! Who else is in the database until the soak is over: they begin anew when a disturbance ends their session.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use postgres::{Client, Error};
use rand::RngExt;
use rand::prelude::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::BETWEEN_LOOKS;
use super::site::Site;

/// Tells the bystanders to stop, also when the soak ends in a panic.
#[derive(Default)]
pub struct Curfew(AtomicBool);

impl Curfew {
    pub fn has_come(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// It comes when the returned value is dropped.
    pub fn at_the_end_of(&self) -> impl Drop {
        struct End<'a>(&'a Curfew);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.0.store(true, Ordering::Relaxed);
            }
        }
        End(self)
    }

    /// Sleeps for so long, or until it comes.
    pub fn pause(&self, length: Duration) {
        let end = Instant::now() + length;
        while !self.has_come() && Instant::now() < end {
            sleep(BETWEEN_LOOKS.min(length));
        }
    }
}

/// VACUUMs some tables, and makes checkpoints; returns how many.
pub fn caretaker(site: &Site, tables: &[String], curfew: &Curfew, mut rng: ChaCha8Rng) -> Result<u64> {
    let mut times = 0;
    in_sessions(site, "caretaker", curfew, |session| {
        let table = tables.choose(&mut rng).expect("tables");
        session.batch_execute(&match rng.random_range(0..4) {
            0 => format!("VACUUM {table}"),
            1 => format!("VACUUM (ANALYZE) {table}"),
            2 => format!("VACUUM (FREEZE) {table}"),
            _ => "CHECKPOINT".to_owned(),
        })?;
        times += 1;
        curfew.pause(Duration::from_millis(rng.random_range(0..200)));
        Ok(Ok(()))
    })?;
    Ok(times)
}

/// Does something over and over, in a new session whenever a disturbance ended the old one. `name` is the session's
/// `application_name`, and in the error.
pub fn in_sessions(
    site: &Site,
    name: &str,
    curfew: &Curfew,
    mut once: impl FnMut(&mut Client) -> Result<Result<(), String>, Error>,
) -> Result<()> {
    let mut session = None;
    while !curfew.has_come() {
        let mut current = match session.take() {
            Some(session) => session,
            None => site.connect_as(name)?,
        };
        match once(&mut current) {
            Ok(Ok(())) => session = Some(current),
            Ok(Err(finding)) => bail!("{name}: {finding}"),
            Err(error) if is_outage(&error) => {}
            Err(error) => bail!("{name}: {error:?}"),
        }
    }
    Ok(())
}

/// Whether an error only says that the server ended the session, or that it is gone.
pub fn is_outage(error: &Error) -> bool {
    error.code().is_none_or(|code| ["57P01", "57P02", "57P03"].contains(&code.code()))
}
