//! What happened, in figures.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::accidents::Accident;
use super::changes::Kind;

#[derive(Debug, Default)]
pub struct Counts {
    times: BTreeMap<String, u64>,
    /// The longest that each took.
    longest: BTreeMap<String, Duration>,
}

impl Counts {
    pub fn one(what: &str, times: u64) -> Self {
        let mut counts = Self::default();
        counts.add(what, times);
        counts
    }

    pub fn add(&mut self, what: &str, times: u64) {
        *self.times.entry(what.to_owned()).or_default() += times;
    }

    pub fn took(&mut self, what: &str, time: Duration) {
        let longest = self.longest.entry(what.to_owned()).or_default();
        *longest = time.max(*longest);
    }

    pub fn add_all(&mut self, others: Counts) {
        others.times.iter().for_each(|(what, times)| self.add(what, *times));
        others.longest.iter().for_each(|(what, time)| self.took(what, *time));
    }

    pub fn of(&self, what: &str) -> u64 {
        self.times.get(what).copied().unwrap_or(0)
    }

    /// What has to happen for the soak to mean something, and did not.
    pub fn idle(&self) -> Vec<String> {
        let kinds = Kind::ALL.iter().map(|kind| kind.to_string());
        let accidents = Accident::ALL.iter().map(|accident| accident.to_string());
        let others = ["refreshes", "backfills", "looks at a pair that is live", "rows compared meanwhile"];
        let expected = kinds.chain(accidents).chain(others.map(str::to_owned));
        expected.filter(|what| self.of(what) == 0).collect()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, times) in &self.times {
            write!(f, "{times:>12} {what}")?;
            match self.longest.get(what) {
                Some(time) => writeln!(f, " (the longest: {:.1} s)", time.as_secs_f64())?,
                None => writeln!(f)?,
            }
        }
        write!(f, "result: derived rows are those of the bars, and verify() holds")
    }
}
