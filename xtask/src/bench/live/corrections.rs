//! How long a feed waits where a bar is there already, or has others after it.

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;
use serde::Serialize;

use super::bars::{Bar, COLUMNS};
use super::contenders::{Contender, Kind};
use super::latency::{microseconds, whole};
use crate::bench::report::Table;
use crate::bench::rounds;
use crate::bench::spread::Quantiles;

/// Bars after the one that is corrected: as many as the longest window takes in.
const BARS_AFTER: usize = 630;

/// How often the running minute's bar is sent again.
const REPETITIONS: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The newest bar comes again, with another close.
    RunningMinute,
    Corrected,
    Deleted,
    /// The one that was deleted comes back.
    Late,
}

impl Change {
    const ALL: [Change; 4] = [Change::RunningMinute, Change::Corrected, Change::Deleted, Change::Late];

    fn title(self) -> &'static str {
        match self {
            Change::RunningMinute => "newest bar again",
            Change::Corrected => "UPDATE, 630 bars after it",
            Change::Deleted => "DELETE, 630 bars after it",
            Change::Late => "INSERT, 630 bars after it",
        }
    }
}

#[derive(Serialize)]
pub struct Figure {
    change: Change,
    #[serde(flatten)]
    kind: Kind,
    microseconds: Quantiles,
}

/// Changes bars of each pair in each round. Nothing waits for the disk.
pub fn measure(contenders: &mut [Contender], rounds: usize, progress: &ProgressBar) -> Result<Vec<Figure>> {
    let everybody: Vec<usize> = (0..contenders.len()).collect();
    let mut measured: Vec<Vec<Vec<f64>>> = vec![vec![Vec::new(); contenders.len()]; Change::ALL.len()];
    for round in 0..rounds {
        progress.set_message(format!("round {} of {rounds}", round + 1));
        let turns = rounds::to_and_fro(round, &everybody, |&i| {
            let contender = &mut contenders[i];
            turn(contender).with_context(|| contender.kind.title())
        })?;
        for (contender, turn) in turns.into_iter().enumerate() {
            for (change, microseconds) in turn {
                let row = Change::ALL.iter().position(|&known| known == change).expect("it is one of all");
                measured[row][contender].push(microseconds);
            }
        }
    }
    let mut figures = Vec::new();
    for (change, of_contenders) in Change::ALL.into_iter().zip(measured) {
        for (contender, microseconds) in contenders.iter().zip(of_contenders) {
            figures.push(Figure { change, kind: contender.kind, microseconds: Quantiles::of(microseconds) });
        }
    }
    Ok(figures)
}

fn turn(contender: &mut Contender) -> Result<Vec<(Change, f64)>> {
    contender.execute("SET synchronous_commit = off")?;
    let mut measured = Vec::new();
    for pair in 0..contender.pairs.len() {
        let statements = Statements::prepare(contender, pair)?;
        let newest = nth_newest(contender, pair, 0)?;
        let early = nth_newest(contender, pair, BARS_AFTER)?;
        for _ in 0..REPETITIONS {
            let again = execute(contender, &statements.upsert, &newest)?;
            measured.push((Change::RunningMinute, again));
        }
        for (change, statement) in [
            (Change::Corrected, &statements.correct),
            (Change::Deleted, &statements.delete),
            (Change::Late, &statements.insert),
        ] {
            measured.push((change, execute(contender, statement, &early)?));
        }
    }
    Ok(measured)
}

struct Statements {
    upsert: postgres::Statement,
    correct: postgres::Statement,
    delete: postgres::Statement,
    insert: postgres::Statement,
}

impl Statements {
    fn prepare(contender: &mut Contender, pair: usize) -> Result<Statements> {
        let m1 = format!("bqx.m1_{}", contender.pairs[pair]);
        let insert = format!("INSERT INTO {m1} AS t ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6)");
        let client = contender.client();
        Ok(Statements {
            // Another close each time: what stays the same affects nothing.
            upsert: client.prepare(&format!(
                "{insert} ON CONFLICT (time) DO UPDATE SET close = t.close * 1.000001, volume = t.volume + 1"
            ))?,
            correct: client.prepare(&format!("UPDATE {m1} SET close = close * 1.0001 WHERE time = $1"))?,
            delete: client.prepare(&format!("DELETE FROM {m1} WHERE time = $1"))?,
            insert: client.prepare(&insert)?,
        })
    }
}

/// Runs a statement about a bar, which must be about it alone. It takes the bar's time, or all of the bar.
fn execute(contender: &mut Contender, statement: &postgres::Statement, bar: &Bar) -> Result<f64> {
    let [open, high, low, close, volume] = &bar.values;
    let all: [&(dyn postgres::types::ToSql + Sync); 6] = [&bar.time, open, high, low, close, volume];
    let mut rows = 0;
    let elapsed = microseconds(|| {
        rows = contender.client().execute(statement, &all[..statement.params().len()])?;
        Ok(())
    })?;
    ensure!(rows == 1, "{rows} bars were changed");
    Ok(elapsed)
}

/// A bar that has so many after it.
fn nth_newest(contender: &mut Contender, pair: usize, after: usize) -> Result<Bar> {
    let m1 = &contender.pairs[pair];
    let query = format!("SELECT {COLUMNS} FROM bqx.m1_{m1} ORDER BY time DESC OFFSET {after} LIMIT 1");
    Ok(Bar::of(&contender.client().query_one(&query, &[])?))
}

pub fn table(figures: &[Figure]) -> Table<8> {
    let header = ["one changed bar, µs", "M1", "months", "partitions", "median", "90 %", "99 %", "longest"];
    let mut table = Table::new(header, 2);
    for Figure { change, kind, microseconds } in figures {
        table.add([
            change.title().to_owned(),
            kind.title().to_owned(),
            kind.months.to_string(),
            kind.partitions.to_string(),
            whole(microseconds.median),
            whole(microseconds.p90),
            whole(microseconds.p99),
            whole(microseconds.max),
        ]);
    }
    table
}
