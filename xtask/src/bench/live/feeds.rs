//! Two feeds at once.

use std::sync::Barrier;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use indicatif::ProgressBar;
use pgcluster::Cluster;
use serde::Serialize;

use super::bars::{Bar, Feed};
use super::contenders::{Contender, Kind, Mode, Session};
use super::latency::whole;
use crate::bench::report::{self, Table};
use crate::bench::rounds;
use crate::bench::spread::Spread;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Feeds {
    One,
    OnDifferentPairs,
    /// In turn: each has every second minute.
    OnOnePair,
}

impl Feeds {
    const ALL: [Feeds; 3] = [Feeds::One, Feeds::OnDifferentPairs, Feeds::OnOnePair];

    fn title(self) -> &'static str {
        match self {
            Feeds::One => "one feed",
            Feeds::OnDifferentPairs => "two, different pairs",
            Feeds::OnOnePair => "two, the same pair",
        }
    }
}

#[derive(Serialize)]
pub struct Figure {
    feeds: Feeds,
    #[serde(flatten)]
    kind: Kind,
    bars_per_second_of_each: Spread,
    bars_per_second_of_all: Spread,
    /// All of them beside one feed alone, in the same round.
    times_one: Spread,
}

/// What a feed sends: bars of pairs.
type Load = Vec<(usize, Bar)>;

/// Feeds so many bars each, one transaction for a bar, not waiting for the disk, into those with and without triggers and the
/// last live one.
pub fn measure(
    contenders: &mut [Contender],
    feed: &mut Feed,
    bars: usize,
    rounds: usize,
    progress: &ProgressBar,
) -> Result<Vec<Figure>> {
    let last = contenders.len() - 1;
    let are_fed: Vec<usize> = (0..=last)
        .filter(|&i| i == last || matches!(contenders[i].kind.mode, Mode::Plain | Mode::Noted))
        .collect();
    // By contender, round and kind of feeds: the bars per second of each feed.
    let mut measured = vec![Vec::new(); are_fed.len()];
    for round in 0..rounds {
        progress.set_message(format!("round {} of {rounds}", round + 1));
        let of_all = rounds::to_and_fro(round, &are_fed, |&i| {
            let contender = &mut contenders[i];
            rounds::to_and_fro(round, &Feeds::ALL, |&feeds| {
                let loads = loads(contender, feed, feeds, bars)?;
                run(contender.cluster, contender.kind, &contender.pairs, &loads)
            })
            .with_context(|| contender.kind.title())
        })?;
        measured.iter_mut().zip(of_all).for_each(|(rounds, round)| rounds.push(round));
    }
    let kinds = are_fed.iter().map(|&i| contenders[i].kind);
    Ok(kinds.zip(&measured).flat_map(|(kind, rounds)| summarise(kind, rounds)).collect())
}

fn loads(contender: &mut Contender, feed: &mut Feed, feeds: Feeds, bars: usize) -> Result<Vec<Load>> {
    let mut of_pair = |pair: usize, count: usize| -> Result<Load> {
        Ok(contender.next_bars(feed, pair, count)?.into_iter().map(|bar| (pair, bar)).collect())
    };
    Ok(match feeds {
        Feeds::One => vec![of_pair(0, bars)?],
        Feeds::OnDifferentPairs => vec![of_pair(0, bars)?, of_pair(1, bars)?],
        Feeds::OnOnePair => {
            let mut loads = vec![Vec::new(), Vec::new()];
            for (number, bar) in of_pair(0, 2 * bars)?.into_iter().enumerate() {
                loads[number % 2].push(bar);
            }
            loads
        }
    })
}

/// Sends all loads at once, each in a session of its own; returns each one's bars per second.
fn run(cluster: &Cluster, kind: Kind, pairs: &[String], loads: &[Load]) -> Result<Vec<f64>> {
    let start = Barrier::new(loads.len());
    let send = |load: &Load| -> Result<f64> {
        let connected = connect(cluster, kind, pairs, &load[0]);
        start.wait();
        let mut session = connected?;
        let began = Instant::now();
        load[1..].iter().try_for_each(|(pair, bar)| session.insert(pairs, *pair, bar))?;
        Ok((load.len() - 1) as f64 / began.elapsed().as_secs_f64())
    };
    std::thread::scope(|scope| {
        let feeds: Vec<_> = loads.iter().map(|load| scope.spawn(|| send(load))).collect();
        feeds.into_iter().map(|feed| feed.join().map_err(|_| anyhow!("a feed has panicked"))?).collect()
    })
}

/// A session that has sent its first bar, and so knows what it has to.
fn connect(cluster: &Cluster, kind: Kind, pairs: &[String], (pair, bar): &(usize, Bar)) -> Result<Session> {
    let mut session = Session::open(cluster, kind, pairs.len())?;
    session.client.batch_execute("SET synchronous_commit = off")?;
    session.insert(pairs, *pair, bar)?;
    Ok(session)
}

/// The figures of a contender, by round and kind of feeds.
fn summarise(kind: Kind, rounds: &[Vec<Vec<f64>>]) -> Vec<Figure> {
    let all = |rates: &[f64]| rates.iter().sum::<f64>();
    let figure = |(i, feeds): (usize, Feeds)| Figure {
        feeds,
        kind,
        bars_per_second_of_each: Spread::of(rounds.iter().flat_map(|round| round[i].clone()).collect()),
        bars_per_second_of_all: Spread::of(rounds.iter().map(|round| all(&round[i])).collect()),
        times_one: Spread::of(rounds.iter().map(|round| all(&round[i]) / all(&round[0])).collect()),
    };
    Feeds::ALL.into_iter().enumerate().map(figure).collect()
}

pub fn table(figures: &[Figure]) -> Table<7> {
    let header = ["feeds, bars/s", "M1", "of each", "slowest", "fastest", "together", "× one"];
    let mut table = Table::new(header, 2);
    for Figure { feeds, kind, bars_per_second_of_each: each, bars_per_second_of_all: all, times_one } in
        figures
    {
        table.add([
            feeds.title().to_owned(),
            kind.title().to_owned(),
            whole(each.median),
            whole(each.min),
            whole(each.max),
            whole(all.median),
            report::ratio(times_one.median),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_feeds_are_compared_with_one_round_by_round() {
        let kind = Kind { mode: Mode::Live, months: 1, partitions: 1 };
        // The machine was slow in the second round.
        let round = |speed: f64| {
            [vec![10.0], vec![8.0, 6.0], vec![5.0, 5.0]]
                .map(|rates| rates.iter().map(|r| r * speed).collect())
        };
        let rounds = [round(1.0), round(0.1), round(1.0)].map(Vec::from);
        let figures = summarise(kind, &rounds);
        assert_eq!(
            figures[1].bars_per_second_of_each,
            Spread { median: 6.0, min: 0.6000000000000001, max: 8.0 }
        );
        assert_eq!(figures[1].bars_per_second_of_all.median, 14.0);
        assert_eq!(figures[2].times_one, Spread { median: 1.0, min: 1.0, max: 1.0 });
    }
}
