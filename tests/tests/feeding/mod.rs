//! Sessions that change bars of the same pairs and of others, in all ways in which bars change, while others refresh,
//! backfill, enable and disable live mode, empty and drop partitions, vacuum and read; and while [accidents] end sessions
//! and servers.
//!
//! [Readers](readers) see at any time that the pairs that are always live have just the rows of their bars, bit for bit.
//! In the end, one refresh has to leave nothing to do and nothing behind: [`last_checks`].
//!
//! What each session does follows from a seed; how they meet does not.

mod accidents;
mod changes;
mod checks_see;
mod counts;
mod differences;
mod feed;
mod last_checks;
mod market;
mod readers;
mod upkeep;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

pub use counts::Counts;

use self::differences::Columns;
use crate::common::run_each;
use crate::soak::Limits;
use crate::soak::bystanders::{Curfew, caretaker};
use crate::soak::site::Site;

/// How long, where no time is given.
const USUAL: Duration = Duration::from_secs(35);

const FEEDS: u64 = 5;
const READERS: u64 = 2;
const REFRESHERS: u64 = 2;

/// Lets all of them loose until the time is over; an error says what did not hold.
pub fn soak_feeds(site: &Site, limits: &Limits) -> Result<Counts> {
    run_each(&mut site.db.connect(), &market::prepared());
    let columns = Columns::new(&site.db);
    let counts = together(site, &columns, limits)
        .and_then(|counts| last_checks::check(site, &columns, counts))
        .with_context(|| format!("BQX_SEED={} repeats what each session does", limits.seed))?;
    ensure!(counts.idle().is_empty(), "too little happened: {:?}\n{counts}", counts.idle());
    Ok(counts)
}

/// All sessions at once. The first that finds something wrong ends all.
fn together(site: &Site, columns: &Columns, limits: &Limits) -> Result<Counts> {
    let curfew = Curfew::default();
    let tables = market::tables();
    thread::scope(|scope| {
        let end = curfew.at_the_end_of();
        let mut sessions = Vec::new();
        let mut stream = 0;
        let mut random = || {
            stream += 1;
            limits.random(stream)
        };
        for number in 0..FEEDS {
            let (rng, curfew) = (random(), &curfew);
            sessions.push(scope.spawn(move || feed::run(site, number, curfew, rng)));
        }
        for number in 0..READERS {
            let (rng, curfew) = (random(), &curfew);
            sessions.push(scope.spawn(move || readers::run(site, columns, number, curfew, rng)));
        }
        for number in 0..REFRESHERS {
            let (rng, curfew) = (random(), &curfew);
            sessions.push(scope.spawn(move || upkeep::refresh(site, number, curfew, rng)));
        }
        let (rng, curfew) = (random(), &curfew);
        sessions.push(scope.spawn(move || upkeep::backfill(site, curfew, rng)));
        let rng = random();
        sessions.push(scope.spawn(move || upkeep::operate(site, curfew, rng)));
        let rng = random();
        sessions.push(scope.spawn(move || accidents::run(site, curfew, rng)));
        let (rng, tables) = (random(), &tables);
        sessions.push(scope.spawn(move || {
            caretaker(site, tables, curfew, rng).map(|times| Counts::one("VACUUMs and checkpoints", times))
        }));
        let began = Instant::now();
        while began.elapsed() < limits.time.unwrap_or(USUAL) && !sessions.iter().any(|s| s.is_finished()) {
            thread::sleep(Duration::from_millis(50));
        }
        drop(end);
        let mut counts = Counts::default();
        let ended: Vec<_> = sessions.into_iter().map(|session| session.join().expect("no panic")).collect();
        for session in ended {
            counts.add_all(session?);
        }
        Ok(counts)
    })
}
