//! What a trial did, in figures.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::kinds::Kind;

#[derive(Debug, Default)]
pub struct Tally {
    pub rounds: usize,
    pub strikes: BTreeMap<Kind, usize>,
    pub recoveries: usize,
    pub months_written: u64,
    pub rows_compared: u64,
    pub rows_read_meanwhile: u64,
    pub vacuums: u64,
    pub amcheck: bool,
    pub took: Duration,
}

impl Tally {
    pub fn struck(&self) -> usize {
        self.strikes.values().sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let missed = self.rounds - self.struck();
        writeln!(f, "{:>12} rounds in {:.0} s", self.rounds, self.took.as_secs_f64())?;
        writeln!(f, "{:>12} disturbances ({missed} more came too late)", self.struck())?;
        for (kind, times) in &self.strikes {
            writeln!(f, "{times:>16} {kind}")?;
        }
        writeln!(f, "{:>12} recoveries of the server", self.recoveries)?;
        writeln!(f, "{:>12} months written", self.months_written)?;
        writeln!(f, "{:>12} rows compared with what they ought to be", self.rows_compared)?;
        writeln!(f, "{:>12} rows read meanwhile, in REPEATABLE READ", self.rows_read_meanwhile)?;
        writeln!(f, "{:>12} VACUUMs and checkpoints meanwhile", self.vacuums)?;
        if !self.amcheck {
            writeln!(f, "amcheck is not installed: heaps and indexes were not checked by it")?;
        }
        write!(f, "result: all months whole, and complete in the end")
    }
}
