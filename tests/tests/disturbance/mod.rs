//! Backfills that are disturbed at random instants, and what must hold however they end.
//!
//! A round changes bars or derived rows, calls one or two backfills with random arguments, lets something happen to
//! them after a random time, waits until all is quiet, and checks [invariants](invariants::violations). Meanwhile
//! bystanders read and vacuum. Now and then, and in the end, a call is left in peace and has to complete everything;
//! in the end, all rows are compared with those of a database that nobody disturbed.
//!
//! What happens follows from a seed; when it happens, to the instant, does not.

mod calls;
mod changes;
mod checks_see;
mod invariants;
mod kinds;
mod months;
mod reader;
pub mod scene;
mod tally;
mod trial;

use std::time::Duration;

pub use tally::Tally;
pub use trial::run;

use crate::soak::Limits;

/// Each kind of disturbance three times, where no time is given.
const DISTURBANCES: usize = 30;

fn allow_more(limits: &Limits, tally: &Tally, elapsed: Duration) -> bool {
    match limits.time {
        Some(time) => elapsed < time,
        // Disturbances that come too late are no reason to go on for ever.
        None => tally.struck() < DISTURBANCES && tally.rounds < 3 * DISTURBANCES,
    }
}

/// Whether a trial that is over did what it was to do.
pub fn are_reached(limits: &Limits, tally: &Tally) -> bool {
    limits.time.is_some() || tally.struck() == DISTURBANCES
}
