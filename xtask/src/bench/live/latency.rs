//! How long a feed waits for one bar.

use std::time::Instant;

use anyhow::{Context, Result};
use indicatif::{HumanCount, ProgressBar};
use serde::Serialize;

use super::bars::{Bar, Feed};
use super::contenders::{Contender, Kind, Mode};
use crate::bench::cpu::Run;
use crate::bench::report::Table;
use crate::bench::rounds::{self, Effort};
use crate::bench::spread::{Quantiles, Spread};

/// When a feed commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Transaction {
    EachBar,
    /// A minute of all pairs; a bar takes its share of the transaction's time.
    EachMinute,
}

/// How bars come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Style {
    transaction: Transaction,
    synchronous_commit: bool,
}

const STYLES: [Style; 4] = [
    Style { transaction: Transaction::EachBar, synchronous_commit: true },
    Style { transaction: Transaction::EachBar, synchronous_commit: false },
    Style { transaction: Transaction::EachMinute, synchronous_commit: true },
    Style { transaction: Transaction::EachMinute, synchronous_commit: false },
];

impl Style {
    fn title(self) -> String {
        let transaction = match self.transaction {
            Transaction::EachBar => "bar by bar",
            Transaction::EachMinute => "all pairs at once",
        };
        format!("{transaction}, {}", if self.synchronous_commit { "safe" } else { "async" })
    }

    pub fn setting(self) -> String {
        format!("SET synchronous_commit = {}", if self.synchronous_commit { "on" } else { "off" })
    }
}

#[derive(Serialize)]
pub struct Figure {
    style: Style,
    #[serde(flatten)]
    kind: Kind,
    microseconds: Quantiles,
    /// Median of a round above that without triggers in the same round.
    microseconds_above_floor: Spread,
    /// By which factor the median is that of the first live contender in the same round, for those who have more
    /// beside the newest bars.
    times_least_live: Option<Spread>,
    /// Of the server and the feed together.
    cpu_microseconds: Spread,
    processors_busy_with_others: Spread,
}

/// The first bar of each pair in a session, with all that the session has to learn.
#[derive(Serialize)]
pub struct First {
    #[serde(flatten)]
    kind: Kind,
    microseconds: Quantiles,
}

/// Feeding one contender in one style.
struct Turn {
    /// For each bar, or each transaction a bar's share.
    microseconds: Vec<f64>,
    run: Run,
    bars: usize,
}

struct Round {
    /// By contender.
    first: Vec<Vec<f64>>,
    /// By style, and by contender.
    turns: Vec<Vec<Turn>>,
}

/// Rounds in which everybody is fed so many minutes of all pairs in each style.
pub fn measure(
    contenders: &mut [Contender],
    feed: &mut Feed,
    minutes: usize,
    effort: Effort,
    progress: &ProgressBar,
) -> Result<(Vec<Figure>, Vec<First>)> {
    let kinds: Vec<Kind> = contenders.iter().map(|contender| contender.kind).collect();
    let everybody: Vec<usize> = (0..contenders.len()).collect();
    let measured = rounds::quietest(effort, Round::disturbance, |number| {
        let mut round = Round { first: Vec::new(), turns: Vec::new() };
        round.first = rounds::to_and_fro(number, &everybody, |&i| {
            progress.set_message(format!("round {}, first bars", number + 1));
            first_bars(&mut contenders[i], feed)
        })?;
        for style in STYLES {
            progress.set_message(format!("round {}, {}", number + 1, style.title()));
            round.turns.push(rounds::to_and_fro(number, &everybody, |&i| {
                let turn = turn(&mut contenders[i], feed, style, minutes);
                turn.with_context(|| kinds[i].title())
            })?);
        }
        Ok(round)
    })?;
    Ok((summarise(&kinds, &measured), summarise_first(&kinds, &measured)))
}

impl Round {
    /// How much others did, at its worst.
    fn disturbance(&self) -> f64 {
        self.turns.iter().flatten().map(|turn| turn.run.busy_with_others).fold(0.0, f64::max)
    }
}

/// Begins a session, which goes on.
fn first_bars(contender: &mut Contender, feed: &mut Feed) -> Result<Vec<f64>> {
    let bars = minutes_of_bars(contender, feed, 1)?;
    contender.session_anew()?;
    contender.execute("SET synchronous_commit = off")?;
    bars[0].iter().enumerate().map(|(pair, bar)| microseconds(|| contender.insert(pair, bar))).collect()
}

fn turn(contender: &mut Contender, feed: &mut Feed, style: Style, minutes: usize) -> Result<Turn> {
    let bars = minutes_of_bars(contender, feed, minutes)?;
    contender.execute(&style.setting())?;
    let mut measured = Vec::new();
    let run = Run::with_clients(contender.cluster, &[std::process::id() as i32], || {
        for minute in &bars {
            match style.transaction {
                Transaction::EachBar => {
                    for (pair, bar) in minute.iter().enumerate() {
                        measured.push(microseconds(|| contender.insert(pair, bar))?);
                    }
                }
                Transaction::EachMinute => {
                    let of_all = microseconds(|| in_one_transaction(contender, minute))?;
                    measured.push(of_all / minute.len() as f64);
                }
            }
        }
        Ok(())
    })?;
    Ok(Turn { microseconds: measured, run, bars: minutes * bars[0].len() })
}

fn in_one_transaction(contender: &mut Contender, minute: &[Bar]) -> Result<()> {
    contender.execute("BEGIN")?;
    minute.iter().enumerate().try_for_each(|(pair, bar)| contender.insert(pair, bar))?;
    contender.execute("COMMIT")
}

/// Minute by minute, a bar of each pair.
fn minutes_of_bars(contender: &mut Contender, feed: &mut Feed, minutes: usize) -> Result<Vec<Vec<Bar>>> {
    let mut by_minute: Vec<Vec<Bar>> = (0..minutes).map(|_| Vec::new()).collect();
    for pair in 0..contender.pairs.len() {
        for (minute, bar) in by_minute.iter_mut().zip(contender.next_bars(feed, pair, minutes)?) {
            minute.push(bar);
        }
    }
    Ok(by_minute)
}

/// How long it takes.
pub fn microseconds(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64() * 1e6)
}

fn summarise(kinds: &[Kind], rounds: &[Round]) -> Vec<Figure> {
    let of = |mode| kinds.iter().position(|kind| kind.mode == mode).expect("it is one of them");
    let (floor, least_live) = (of(Mode::Plain), of(Mode::Live));
    let median = |round: &Round, style: usize, i: usize| {
        Quantiles::of(round.turns[style][i].microseconds.clone()).median
    };
    let figure = |style: usize, i: usize| {
        let turns = || rounds.iter().map(|round| &round.turns[style][i]);
        let above_floor =
            rounds.iter().map(|round| median(round, style, i) - median(round, style, floor)).collect();
        let times_least_live =
            rounds.iter().map(|round| median(round, style, i) / median(round, style, least_live)).collect();
        Figure {
            style: STYLES[style],
            kind: kinds[i],
            microseconds: Quantiles::of(turns().flat_map(|turn| turn.microseconds.clone()).collect()),
            microseconds_above_floor: Spread::of(above_floor),
            times_least_live: (i > least_live).then(|| Spread::of(times_least_live)),
            cpu_microseconds: Spread::of(
                turns().map(|turn| turn.run.cpu_seconds * 1e6 / turn.bars as f64).collect(),
            ),
            processors_busy_with_others: Spread::of(turns().map(|turn| turn.run.busy_with_others).collect()),
        }
    };
    let styles = 0..STYLES.len();
    styles.flat_map(|style| (0..kinds.len()).map(move |i| (style, i))).map(|(s, i)| figure(s, i)).collect()
}

fn summarise_first(kinds: &[Kind], rounds: &[Round]) -> Vec<First> {
    let of_contender = |(i, &kind): (usize, &Kind)| First {
        kind,
        microseconds: Quantiles::of(rounds.iter().flat_map(|round| round.first[i].clone()).collect()),
    };
    kinds.iter().enumerate().map(of_contender).collect()
}

/// A number as tables show it.
pub fn whole(number: f64) -> String {
    HumanCount(number.max(0.0).round() as u64).to_string()
}

pub fn table(figures: &[Figure]) -> Table<12> {
    let header = [
        "one new bar, µs",
        "M1",
        "months",
        "partitions",
        "median",
        "90 %",
        "99 %",
        "longest",
        "+ floor",
        "× 1 month",
        "CPU µs",
        "others",
    ];
    let mut table = Table::new(header, 2);
    for figure in figures {
        let Figure { kind, microseconds, .. } = figure;
        table.add([
            figure.style.title(),
            kind.title().to_owned(),
            kind.months.to_string(),
            kind.partitions.to_string(),
            whole(microseconds.median),
            whole(microseconds.p90),
            whole(microseconds.p99),
            whole(microseconds.max),
            whole(figure.microseconds_above_floor.median),
            figure.times_least_live.map_or(String::new(), |times| crate::bench::report::ratio(times.median)),
            whole(figure.cpu_microseconds.median),
            format!("{:.2}", figure.processors_busy_with_others.median),
        ]);
    }
    table
}

pub fn first_table(figures: &[First]) -> Table<6> {
    let mut table =
        Table::new(["first bar of a session, µs", "months", "partitions", "median", "90 %", "longest"], 1);
    for First { kind, microseconds } in figures {
        table.add([
            kind.title().to_owned(),
            kind.months.to_string(),
            kind.partitions.to_string(),
            whole(microseconds.median),
            whole(microseconds.p90),
            whole(microseconds.max),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_live_costs_is_told_round_by_round() {
        let kinds = Kind::all(12);
        let turn = |microseconds: f64| Turn {
            microseconds: vec![microseconds; 3],
            run: Run { seconds: 1.0, cpu_seconds: 0.003, busy_with_others: 0.0 },
            bars: 3,
        };
        // The machine was slow in the second round.
        let round = |slowness: f64| {
            let turns = [100.0, 110.0, 120.0, 500.0, 500.0, 1000.0].map(|floor| turn(floor * slowness));
            Round { first: kinds.iter().map(|_| vec![slowness]).collect(), turns: vec![Vec::from(turns)] }
        };
        let mut rounds = [round(1.0), round(10.0), round(1.0)];
        for round in &mut rounds {
            for _ in 1..STYLES.len() {
                let again = round.turns[0].iter().map(|one| turn(one.microseconds[0])).collect();
                round.turns.push(again);
            }
        }
        let figures = summarise(&kinds, &rounds);
        assert_eq!(figures.len(), STYLES.len() * kinds.len());
        let above: Vec<f64> =
            figures[..6].iter().map(|figure| figure.microseconds_above_floor.median).collect();
        assert_eq!(above, [0.0, 10.0, 20.0, 400.0, 400.0, 900.0]);
        let times: Vec<_> =
            figures[..6].iter().map(|figure| figure.times_least_live.map(|times| times.max)).collect();
        assert_eq!(times, [None, None, None, None, Some(1.0), Some(2.0)]);
        assert_eq!((figures[0].microseconds.median, figures[0].microseconds.max), (100.0, 1000.0));
        assert_eq!(figures[0].cpu_microseconds.median, 1000.0);
    }
}
