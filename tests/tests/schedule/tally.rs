//! What a schedule did, in figures.

use std::fmt;

#[derive(Debug, Default)]
pub struct Tally {
    pub steps: usize,
    /// Transactions and calls that the server refused, as it should: a bar that was there, a month without partition.
    pub refused: usize,
    pub live: usize,
    pub refreshes: usize,
    pub refreshes_of_nothing: usize,
    pub backfills: usize,
    pub bars: u64,
}

impl Tally {
    /// How often it was looked at each of the things that must hold.
    pub fn checks(&self) -> [(&'static str, usize); 4] {
        [
            ("rows of a live pair were compared after a change", self.live),
            ("rows were compared after a refresh", self.refreshes),
            ("a second refresh was looked at", self.refreshes_of_nothing),
            ("rows were compared after a backfill", self.backfills),
        ]
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:>8} steps, {} of them refused; {} bars in the end",
            self.steps, self.refused, self.bars
        )?;
        self.checks().iter().try_for_each(|(what, times)| writeln!(f, "{times:>8} times {what}"))
    }
}
