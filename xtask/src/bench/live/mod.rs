//! `cargo xtask bench live`: what live mode costs those who feed bars.

mod bars;
mod bulk;
mod contenders;
mod corrections;
mod feeds;
mod latency;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use pgcluster::Cluster;
use serde::Serialize;
use xshell::Shell;

use self::bars::Feed;
use self::contenders::{Contender, Kind, MONTHS_AHEAD};
use super::report::{self, Circumstances};
use super::rounds::Effort;
use super::server::{self, BULK_SETTINGS, observer};
use super::spread::Quantiles;
use crate::console;

#[derive(clap::Args)]
pub struct LiveArgs {
    /// Fewer pairs, months and rounds, which does not wait for a quiet machine
    #[arg(long)]
    quick: bool,
    /// Pairs that are fed [default: 28, with --quick 3]
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=28))]
    pairs: Option<u32>,
    /// Months of bars before those that are fed, where there are many [default: 12, with --quick 2]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=18))]
    months: Option<u32>,
}

/// How much of what is measured, and how often.
#[derive(Clone, Copy, Serialize)]
struct Extent {
    pairs: usize,
    /// Of history, where there are many.
    months: u32,
    rounds: usize,
    /// Bars of each pair, in a round.
    minutes: usize,
    /// Of each COPY, and of refresh.
    bulk_rounds: usize,
    /// Bars that one of two feeds sends in a round.
    bars_of_a_feed: usize,
    #[serde(skip)]
    patience: Duration,
}

impl Extent {
    fn of(args: &LiveArgs) -> Extent {
        let usual = if args.quick {
            let patience = Duration::ZERO;
            Extent {
                pairs: 3,
                months: 2,
                rounds: 2,
                minutes: 20,
                bulk_rounds: 2,
                bars_of_a_feed: 200,
                patience,
            }
        } else {
            let patience = Duration::from_secs(240);
            Extent {
                pairs: 28,
                months: 12,
                rounds: 5,
                minutes: 60,
                bulk_rounds: 3,
                bars_of_a_feed: 1000,
                patience,
            }
        };
        Extent {
            pairs: args.pairs.map_or(usual.pairs, |pairs| pairs as usize),
            months: args.months.unwrap_or(usual.months),
            ..usual
        }
    }
}

pub fn command(shell: &Shell, pg_config: Option<&Path>, args: &LiveArgs) -> Result<ExitCode> {
    let extent = Extent::of(args);
    let settings = [&BULK_SETTINGS[..], &[("max_wal_size", "6GB")]].concat(); // the disk has a year of rows to hold
    let cluster = server::start(shell, pg_config, &settings)?;
    let circumstances = Circumstances::now(shell, &mut observer(&cluster)?)?;
    let progress = console::BARS.add(ProgressBar::new_spinner());
    progress.enable_steady_tick(Duration::from_millis(100));
    let results = measure(&cluster, extent, circumstances, &progress)?;
    progress.finish_and_clear();
    results.print();
    println!("\nWritten to {}", report::write_json("live", &results)?.display());
    Ok(ExitCode::SUCCESS)
}

fn measure(
    cluster: &Cluster,
    extent: Extent,
    circumstances: Circumstances,
    progress: &ProgressBar,
) -> Result<Results> {
    let Extent { pairs, months, rounds, minutes, bulk_rounds, bars_of_a_feed, patience } = extent;
    let feed = console::timed("bars to feed", || Feed::simulate(cluster, pairs, months, MONTHS_AHEAD));
    let mut feed = feed.0?;
    let mut fill = |kind: Kind| {
        progress.set_message(format!(
            "{} beside {} months, {} partitions",
            kind.title(),
            kind.months,
            kind.partitions
        ));
        Contender::fill(cluster, kind, &feed.pairs, months).with_context(|| kind.title())
    };
    let contenders: Result<Vec<Contender>> =
        console::timed("history", || Kind::all(months).into_iter().map(&mut fill).collect()).0;
    let mut contenders = contenders?;
    let round_trip_microseconds = round_trip(&mut contenders[0])?;
    let effort = Effort { rounds, patience };
    let (new_bars, first_bars) = console::timed("new bars", || {
        latency::measure(&mut contenders, &mut feed, minutes, effort, progress)
    })
    .0?;
    let changed_bars =
        console::timed("changed bars", || corrections::measure(&mut contenders, rounds, progress)).0?;
    let copies = console::timed("many bars at once", || {
        bulk::measure_copies(&mut contenders, &mut feed, bulk_rounds, progress)
    })
    .0?;
    let refreshes = console::timed("refreshes", || {
        bulk::measure_refreshes(&mut contenders, &mut feed, bulk_rounds, progress)
    })
    .0?;
    let feeds = console::timed("feeds at once", || {
        feeds::measure(&mut contenders, &mut feed, bars_of_a_feed, bulk_rounds, progress)
    })
    .0?;
    console::timed("what was computed", || {
        contenders.iter_mut().try_for_each(|contender| contender.check(months))
    })
    .0?;
    Ok(Results {
        circumstances,
        extent,
        goals: GOALS,
        round_trip_microseconds,
        new_bars,
        first_bars,
        changed_bars,
        copies,
        refreshes,
        feeds,
    })
}

/// How long a feed waits for a statement that does nothing.
fn round_trip(contender: &mut Contender) -> Result<Quantiles> {
    let client = contender.client();
    let statement = client.prepare("SELECT")?;
    let measured: Result<Vec<f64>> = (0..2000)
        .map(|_| latency::microseconds(|| Ok(client.execute(&statement, &[]).map(|_| ())?)))
        .collect();
    Ok(Quantiles::of(measured?))
}

/// Everything that is written to the file.
#[derive(Serialize)]
struct Results {
    #[serde(flatten)]
    circumstances: Circumstances,
    extent: Extent,
    goals: Goals,
    /// Of a statement that does nothing.
    round_trip_microseconds: Quantiles,
    new_bars: Vec<latency::Figure>,
    first_bars: Vec<latency::First>,
    changed_bars: Vec<corrections::Figure>,
    copies: Vec<bulk::Copy>,
    refreshes: Vec<bulk::Refresh>,
    feeds: Vec<feeds::Figure>,
}

/// What is to be reached. Nothing fails if it is not: figures depend on the machine and on what else it does.
#[derive(Serialize)]
struct Goals {
    new_bar_microseconds_median_below: f64,
    copy_of_a_day_bars_per_second_at_least: f64,
}

const GOALS: Goals =
    Goals { new_bar_microseconds_median_below: 1000.0, copy_of_a_day_bars_per_second_at_least: 30_000.0 };

const LEGEND: &str = "\
M1              no triggers: the floor; rate_index: the trigger that sets it; noted: as index_m1 leaves it, changes
                are noted for refresh; live: the rows of both families are there when the INSERT returns
months          of bars and rows before those that are fed; partitions: of each table
bar by bar      an INSERT, prepared, and its commit for each; all pairs at once: a minute of all in one
                transaction, of which each takes its share. safe, async: synchronous_commit on, off
+ floor         median above that without triggers, in the same round; median
× 1 month       median beside that of live with a month of history in few partitions, in the same round; median
CPU µs          of the server and the feed together, for one bar
others          processors that were busy with something else: near 0, or the rest says little
first bar       of each pair in a new session, with all that it has to look up; async
changed bar     async; UPDATE of a close, DELETE and INSERT where 630 bars come after it
COPY            of bars of one pair; switched off: live, with SET bqx.live = off. × floor: the time beside that without
                triggers, in the same round. refresh: of the pair, afterwards
refresh         of all pairs, where bars are but noted; at last of one pair, with 1,440 bars noted one by one
feeds           an INSERT and its commit for each bar, async; on the same pair, each has every second minute";

impl Results {
    fn print(&self) {
        println!("\n{}\n", self.circumstances);
        println!("{}", latency::table(&self.new_bars));
        println!("{}", latency::first_table(&self.first_bars));
        println!("{}", corrections::table(&self.changed_bars));
        println!("{}", bulk::copies_table(&self.copies));
        println!("{}", bulk::refreshes_table(&self.refreshes));
        println!("{}", feeds::table(&self.feeds));
        println!("{LEGEND}");
        println!(
            "a round trip    of a statement that does nothing: {} µs, median",
            latency::whole(self.round_trip_microseconds.median)
        );
        println!(
            "goals           a new bar, live: median < {} µs, × 1.0 with a year; COPY of a day, live: {} bars/s",
            latency::whole(self.goals.new_bar_microseconds_median_below),
            latency::whole(self.goals.copy_of_a_day_bars_per_second_at_least)
        );
    }
}
