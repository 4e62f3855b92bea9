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
use crate::soak::bystanders::{Curfew, caretaker};
use crate::soak::site::Site;
use crate::soak::{Limits, PATIENCE};

/// How long at least, where no time is given.
const USUAL: Duration = Duration::from_secs(35);

/// How long feeds go on after everybody else.
const LEFT_TO_THE_LAST_REFRESH: Duration = Duration::from_secs(2);

const FEEDS: u64 = 5;
const READERS: u64 = 2;
const REFRESHERS: u64 = 2;

/// Lets all of them loose until the time is over; an error says what did not hold.
pub fn soak_feeds(site: &Site, limits: &Limits) -> Result<Counts> {
    run_each(&mut site.db.connect(), &market::prepared());
    let (columns, counts) = (Columns::new(&site.db), Counts::default());
    together(site, &columns, &counts, limits)
        .and_then(|()| last_checks::check(site, &columns, &counts))
        .with_context(|| format!("{counts}\nBQX_SEED={} repeats what each session does", limits.seed))?;
    ensure!(counts.idle().is_empty(), "too little happened, no {}\n{counts}", counts.idle().join(", no "));
    Ok(counts)
}

/// All sessions at once. The first that finds something wrong ends all. Feeds end last, so that something is left to do.
fn together(site: &Site, columns: &Columns, counts: &Counts, limits: &Limits) -> Result<()> {
    let (upkeep_ends, feeds_end) = (&Curfew::default(), &Curfew::default());
    let tables = &market::tables();
    let mut streams = (1..).map(|stream| limits.random(stream));
    let mut random = || streams.next().expect("no end of them");
    thread::scope(|scope| {
        let end_of_feeds = feeds_end.at_the_end_of();
        let end_of_upkeep = upkeep_ends.at_the_end_of();
        let mut upkeep = Vec::new();
        for number in 0..REFRESHERS {
            let rng = random();
            upkeep.push(scope.spawn(move || upkeep::refresh(site, counts, number, upkeep_ends, rng)));
        }
        let rngs = [random(), random(), random(), random()];
        let [for_backfill, for_operator, for_accidents, for_caretaker] = rngs;
        upkeep.push(scope.spawn(|| upkeep::backfill(site, counts, upkeep_ends, for_backfill)));
        upkeep.push(scope.spawn(|| upkeep::operate(site, counts, upkeep_ends, for_operator)));
        upkeep.push(scope.spawn(|| accidents::run(site, counts, upkeep_ends, for_accidents)));
        upkeep.push(scope.spawn(|| {
            let times = caretaker(site, tables, upkeep_ends, for_caretaker)?;
            counts.add("VACUUMs and checkpoints", times);
            Ok(())
        }));
        let mut feeds = Vec::new();
        for number in 0..FEEDS {
            let rng = random();
            feeds.push(scope.spawn(move || feed::run(site, counts, number, feeds_end, rng)));
        }
        for number in 0..READERS {
            let rng = random();
            feeds.push(scope.spawn(move || readers::run(site, columns, counts, number, feeds_end, rng)));
        }
        let began = Instant::now();
        let all_go_on = || !upkeep.iter().chain(&feeds).any(|session| session.is_finished());
        let is_enough = || match limits.time {
            Some(time) => began.elapsed() >= time,
            None => began.elapsed() >= USUAL && (counts.idle().is_empty() || began.elapsed() >= PATIENCE),
        };
        while !is_enough() && all_go_on() {
            thread::sleep(Duration::from_millis(50));
        }
        drop(end_of_upkeep);
        let mut ended: Vec<_> = upkeep.into_iter().map(|session| session.join().expect("no panic")).collect();
        thread::sleep(LEFT_TO_THE_LAST_REFRESH);
        drop(end_of_feeds);
        ended.extend(feeds.into_iter().map(|session| session.join().expect("no panic")));
        ended.into_iter().collect()
    })
}
