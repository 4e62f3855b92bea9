//! Many bars at once, and catching up with them.

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use serde::Serialize;

use super::bars::Feed;
use super::contenders::{Contender, Kind, Mode};
use super::latency::{microseconds, whole};
use crate::bench::cpu::Run;
use crate::bench::report::{self, Table};
use crate::bench::rounds;
use crate::bench::spread::Spread;

/// Bars of a pair that come in one COPY: of a day, and of about a month.
const LOTS: [usize; 2] = [DAY, 30_000];
const DAY: usize = 1_440;

/// Who gets them. Where M1 is live, once more with `bqx.live` off: the bars are noted.
#[derive(Clone, Copy)]
struct Case {
    contender: usize,
    switched_off: bool,
}

#[derive(Serialize)]
pub struct Copy {
    #[serde(flatten)]
    kind: Kind,
    /// `bqx.live` was off.
    switched_off: bool,
    bars: usize,
    seconds: Spread,
    bars_per_second: Spread,
    /// By which factor it takes longer than without triggers, in the same round.
    times_floor: Spread,
    /// Of `bqx.refresh` of the pair afterwards, where it has something to do.
    refresh_seconds: Option<Spread>,
    processors_busy_with_others: Spread,
}

/// How long `bqx.refresh` takes.
#[derive(Serialize)]
pub struct Refresh {
    #[serde(flatten)]
    kind: Kind,
    pairs: usize,
    /// Of all pairs.
    seconds_with_nothing_to_do: Spread,
    seconds_with_a_new_bar_of_each: Spread,
    /// Of one pair, whose bars came one by one.
    seconds_after_a_day_of_one_pair: Spread,
}

/// Copying a lot, and refreshing afterwards.
struct Turn {
    copy: Run,
    /// Seconds.
    refresh: Option<f64>,
}

pub fn measure_copies(
    contenders: &mut [Contender],
    feed: &mut Feed,
    rounds: usize,
    progress: &ProgressBar,
) -> Result<Vec<Copy>> {
    let cases = cases(contenders);
    let mut figures = Vec::new();
    for bars in LOTS {
        let mut measured = Vec::new();
        for round in 0..rounds {
            progress.set_message(format!("COPY of {bars} bars, round {} of {rounds}", round + 1));
            measured.push(rounds::to_and_fro(round, &cases, |case| {
                let contender = &mut contenders[case.contender];
                // Another pair each time, where there are enough.
                let pair = (2 * round + usize::from(case.switched_off)) % contender.pairs.len();
                turn(contender, feed, pair, bars, case.switched_off).with_context(|| contender.kind.title())
            })?);
        }
        let kinds: Vec<(Kind, bool)> =
            cases.iter().map(|case| (contenders[case.contender].kind, case.switched_off)).collect();
        figures.extend(summarise(&kinds, bars, &measured));
    }
    Ok(figures)
}

fn cases(contenders: &[Contender]) -> Vec<Case> {
    let of = |contender: usize| {
        let case = move |switched_off| Case { contender, switched_off };
        [case(false), case(true)].into_iter().take(if is_live(&contenders[contender]) { 2 } else { 1 })
    };
    (0..contenders.len()).flat_map(of).collect()
}

fn is_live(contender: &Contender) -> bool {
    contender.kind.mode == Mode::Live
}

fn turn(
    contender: &mut Contender,
    feed: &mut Feed,
    pair: usize,
    bars: usize,
    switched_off: bool,
) -> Result<Turn> {
    let lines = contender.next_lines(feed, pair, bars)?;
    contender.execute("RESET synchronous_commit; CHECKPOINT")?;
    if switched_off {
        contender.execute("SET bqx.live = off")?;
    }
    let copy = measured(contender, |contender| contender.copy(pair, &lines))?;
    if !switched_off {
        return Ok(Turn { copy, refresh: None });
    }
    contender.execute("RESET bqx.live")?;
    Ok(Turn { copy, refresh: Some(refresh(contender, &[pair])?) })
}

fn measured(contender: &mut Contender, work: impl FnOnce(&mut Contender) -> Result<()>) -> Result<Run> {
    let cluster = contender.cluster;
    Run::with_clients(cluster, &[std::process::id() as i32], || work(contender))
}

fn summarise(kinds: &[(Kind, bool)], bars: usize, rounds: &[Vec<Turn>]) -> Vec<Copy> {
    let floor = kinds.iter().position(|(kind, _)| kind.mode == Mode::Plain).expect("it is one of them");
    let figure = |(i, &(kind, switched_off)): (usize, &(Kind, bool))| {
        let all =
            |value: &dyn Fn(&[Turn]) -> f64| Spread::of(rounds.iter().map(|round| value(round)).collect());
        let seconds = all(&|round| round[i].copy.seconds);
        let refreshes: Vec<f64> = rounds.iter().filter_map(|round| round[i].refresh).collect();
        Copy {
            kind,
            switched_off,
            bars,
            seconds,
            bars_per_second: seconds.rate_of(bars as f64),
            times_floor: all(&|round| round[i].copy.seconds / round[floor].copy.seconds),
            refresh_seconds: (!refreshes.is_empty()).then(|| Spread::of(refreshes)),
            processors_busy_with_others: all(&|round| round[i].copy.busy_with_others),
        }
    };
    kinds.iter().enumerate().map(figure).collect()
}

/// Refreshes as a scheduler would, where bars are but noted.
pub fn measure_refreshes(
    contenders: &mut [Contender],
    feed: &mut Feed,
    rounds: usize,
    progress: &ProgressBar,
) -> Result<Vec<Refresh>> {
    let mut figures = Vec::new();
    for contender in contenders.iter_mut().filter(|contender| is_live(contender)) {
        let mut seconds = [Vec::new(), Vec::new(), Vec::new()];
        let all_pairs: Vec<usize> = (0..contender.pairs.len()).collect();
        refresh(contender, &all_pairs)?; // the session's first
        for round in 0..rounds {
            progress.set_message(format!("refresh, round {} of {rounds}", round + 1));
            seconds[0].push(refresh(contender, &all_pairs)?);
            note_bars(contender, feed, &all_pairs, 1)?;
            seconds[1].push(refresh(contender, &all_pairs)?);
            let pair = [round % all_pairs.len()];
            note_bars(contender, feed, &pair, DAY)?;
            seconds[2].push(refresh(contender, &pair)?);
        }
        let [nothing_to_do, new_bars, day] = seconds.map(Spread::of);
        figures.push(Refresh {
            kind: contender.kind,
            pairs: all_pairs.len(),
            seconds_with_nothing_to_do: nothing_to_do,
            seconds_with_a_new_bar_of_each: new_bars,
            seconds_after_a_day_of_one_pair: day,
        });
    }
    Ok(figures)
}

/// Inserts bars one by one that are but noted.
fn note_bars(contender: &mut Contender, feed: &mut Feed, pairs: &[usize], bars: usize) -> Result<()> {
    contender.execute("SET bqx.live = off; SET synchronous_commit = off")?;
    for &pair in pairs {
        let bars = contender.next_bars(feed, pair, bars)?;
        bars.iter().try_for_each(|bar| contender.insert(pair, bar))?;
    }
    contender.execute("RESET bqx.live; RESET synchronous_commit")
}

/// Refreshes pairs; returns the seconds it took.
fn refresh(contender: &mut Contender, pairs: &[usize]) -> Result<f64> {
    let names: Vec<&str> = pairs.iter().map(|&pair| contender.pairs[pair].as_str()).collect();
    let call = format!("CALL bqx.refresh('{{{}}}')", names.join(","));
    Ok(microseconds(|| contender.execute(&call))? / 1e6)
}

pub fn copies_table(figures: &[Copy]) -> Table<10> {
    let header = [
        "COPY",
        "bars",
        "months",
        "partitions",
        "bars/s",
        "slowest",
        "fastest",
        "× floor",
        "refresh s",
        "others",
    ];
    let mut table = Table::new(header, 1);
    for figure in figures {
        let Copy { kind, bars_per_second: rate, .. } = figure;
        table.add([
            format!("{}{}", kind.title(), if figure.switched_off { ", switched off" } else { "" }),
            whole(figure.bars as f64),
            kind.months.to_string(),
            kind.partitions.to_string(),
            whole(rate.median),
            whole(rate.min),
            whole(rate.max),
            report::ratio(figure.times_floor.median),
            figure.refresh_seconds.map_or(String::new(), |seconds| format!("{:.3}", seconds.median)),
            format!("{:.2}", figure.processors_busy_with_others.median),
        ]);
    }
    table
}

pub fn refreshes_table(figures: &[Refresh]) -> Table<6> {
    let header = [
        "refresh of pairs, s",
        "months",
        "partitions",
        "nothing to do",
        "a new bar each",
        "a day of one, bar by bar",
    ];
    let mut table = Table::new(header, 0);
    for figure in figures {
        let seconds = |spread: Spread| format!("{:.3}", spread.median);
        table.add([
            figure.pairs.to_string(),
            figure.kind.months.to_string(),
            figure.kind.partitions.to_string(),
            seconds(figure.seconds_with_nothing_to_do),
            seconds(figure.seconds_with_a_new_bar_of_each),
            seconds(figure.seconds_after_a_day_of_one_pair),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_compared_with_the_floor_round_by_round() {
        let run = |seconds| Run { seconds, cpu_seconds: 1.0, busy_with_others: 0.0 };
        let plain = Kind { mode: Mode::Plain, months: 1, partitions: 1 };
        let live = Kind { mode: Mode::Live, ..plain };
        // The machine was slow in the second round.
        let rounds = [(1.0, 4.0), (10.0, 50.0), (1.0, 5.0)].map(|(floor, noted)| {
            vec![
                Turn { copy: run(floor), refresh: None },
                Turn { copy: run(noted), refresh: Some(noted / 2.0) },
            ]
        });
        let figures = summarise(&[(plain, false), (live, true)], 1_000, &rounds);
        assert_eq!(figures[1].times_floor, Spread { median: 5.0, min: 4.0, max: 5.0 });
        assert_eq!(figures[1].bars_per_second.median, 200.0);
        assert_eq!(figures[1].refresh_seconds.map(|seconds| seconds.median), Some(2.5));
        assert_eq!(figures[0].refresh_seconds, None);
    }
}
