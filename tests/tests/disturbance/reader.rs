//! Who reads while backfills are disturbed.

use std::collections::VecDeque;
use std::sync::RwLock;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use rand::RngExt;
use rand::prelude::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::months::{Contents, FAMILIES, Month, PAIRS};
use super::scene::Scene;
use crate::soak::bystanders::{Curfew, in_sessions};

/// What a month may hold, in the eyes of whoever looks at any time: before or after each round.
#[derive(Default)]
pub struct History(RwLock<Rounds>);

#[derive(Default)]
struct Rounds {
    forgotten: usize,
    recent: VecDeque<[Contents; 2]>,
}

impl History {
    /// More than there are during a look.
    const REMEMBERED: usize = 100;

    /// To be called before anybody can see what the round begins with.
    pub fn add_round(&self, before: Contents, computed: Contents) {
        let mut rounds = self.0.write().expect("nobody panics with it");
        rounds.recent.push_back([before, computed]);
        if rounds.recent.len() > Self::REMEMBERED {
            rounds.recent.pop_front();
            rounds.forgotten += 1;
        }
    }

    /// A point in time, for [`History::torn`]. The last round's beginning may not be visible yet.
    pub fn now(&self) -> usize {
        let rounds = self.0.read().expect("nobody panics with it");
        rounds.forgotten + rounds.recent.len().saturating_sub(2)
    }

    /// The first of some months that held this at no time from `since` on.
    pub fn torn(
        &self,
        since: usize,
        seen: &Contents,
        mut months: impl Iterator<Item = Month>,
    ) -> Option<Month> {
        let rounds = self.0.read().expect("nobody panics with it");
        let since = since.checked_sub(rounds.forgotten).expect("a look is shorter than that");
        months.find(|&month| {
            !rounds.recent.range(since..).flatten().any(|contents| contents.of(month) == seen.of(month))
        })
    }
}

/// Looks twice at all months of a table, in one REPEATABLE READ transaction, over and over: it sees the same both
/// times, and each month whole. Returns how many rows it read.
pub fn reader(scene: &Scene, history: &History, curfew: &Curfew, mut rng: ChaCha8Rng) -> Result<u64> {
    let mut rows = 0;
    in_sessions(&scene.site, "reader", curfew, |session| {
        let family = *FAMILIES.choose(&mut rng).expect("families");
        let pair = *PAIRS.choose(&mut rng).expect("pairs");
        let since = history.now();
        session.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
        let first = scene.checksums.stored(session, family, pair)?;
        sleep(Duration::from_millis(rng.random_range(0..200)));
        let second = scene.checksums.stored(session, family, pair)?;
        session.batch_execute("COMMIT")?;
        sleep(Duration::from_millis(rng.random_range(0..200)));
        rows += first.rows() + second.rows();
        let of_table = Month::all().filter(|month| month.family == family && month.pair == pair);
        if let Some(month) = of_table.clone().find(|&month| first.of(month) != second.of(month)) {
            let (first, second) = (first.of(month), second.of(month));
            return Ok(Err(format!("within one snapshot, {month} had {first}, then {second}")));
        }
        Ok(match history.torn(since, &first, of_table) {
            Some(month) => Err(format!("a reader saw {month} torn: {}", first.of(month))),
            None => Ok(()),
        })
    })?;
    Ok(rows)
}
