//! What happened, in figures.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::accidents::Accident;
use super::changes::Kind;

/// Counts of all sessions.
#[derive(Debug, Default)]
pub struct Counts(Mutex<BTreeMap<String, Count>>);

#[derive(Debug, Default)]
struct Count {
    times: u64,
    longest: Option<Duration>,
}

impl Counts {
    pub fn add(&self, what: &str, times: u64) {
        self.lock().entry(what.to_owned()).or_default().times += times;
    }

    /// One more, which began then.
    pub fn add_timed(&self, what: &str, began: Instant) {
        let mut counts = self.lock();
        let count = counts.entry(what.to_owned()).or_default();
        count.times += 1;
        count.longest = count.longest.max(Some(began.elapsed()));
    }

    pub fn of(&self, what: &str) -> u64 {
        self.lock().get(what).map_or(0, |count| count.times)
    }

    /// What has to happen for the soak to mean something, and has not yet.
    pub fn idle(&self) -> Vec<String> {
        let kinds = Kind::ALL.iter().map(|kind| kind.to_string());
        let accidents = Accident::ALL.iter().map(|accident| accident.to_string());
        let others = ["refreshes", "backfills", "looks at a pair that is live", "rows compared meanwhile"];
        let expected = kinds.chain(accidents).chain(others.map(str::to_owned));
        expected.filter(|what| self.of(what) == 0).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, Count { times, longest }) in self.lock().iter() {
            write!(f, "{times:>12} {what}")?;
            match longest {
                Some(time) => writeln!(f, " (the longest: {:.1} s)", time.as_secs_f64())?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}
