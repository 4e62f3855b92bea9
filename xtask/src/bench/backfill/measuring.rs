//! Each contender's turn, and what the rounds say.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use serde::Serialize;

use super::contenders::{Contender, FLOOR, Share, WalLevel, Way, YARDSTICK};
use super::finished::{self, Place};
use super::months::PairMonth;
use super::python::{self, PythonSession};
use super::sessions::{Session, Source, SqlSession, fill_all};
use crate::bench::cpu;
use crate::bench::market::{Market, Months};
use crate::bench::rounds::{self, Effort};
use crate::bench::server::observer;
use crate::bench::spread::Spread;
use crate::console;

/// What fills `bqx`, and what fills `reg`.
const TUNED_SQL: [&str; 2] = [include_str!("sql/tuned_bqx.sql"), include_str!("sql/tuned_reg.sql")];
const NAMED_WINDOWS: [&str; 2] = [include_str!("sql/windows_bqx.sql"), include_str!("sql/windows_reg.sql")];

/// One contender's turn.
#[derive(Clone, Copy)]
pub struct Run {
    pub seconds: f64,
    pub rows: u64,
    /// Of the server and of the contender's own processes.
    pub cpu_seconds: f64,
    /// Processors that were busy with something else, on average.
    pub busy_with_others: f64,
}

impl Run {
    fn seconds_per_row(self) -> f64 {
        self.seconds / self.rows as f64
    }
}

/// What was measured of a contender.
#[derive(Serialize)]
pub struct Figure {
    pub way: Way,
    pub wal_level: WalLevel,
    pub sessions: usize,
    /// Of both families together.
    pub rows: u64,
    pub seconds: Spread,
    pub rows_per_second: Spread,
    /// Time per row in multiples of [`YARDSTICK`]'s, in the same round.
    pub times_of_backfill: Spread,
    /// Of the server and of the contender's own processes.
    pub cpu_seconds: Spread,
    pub processors_busy_with_others: Spread,
    /// The most that a value differs from that of bqx, in units of the column's mean magnitude.
    pub largest_difference: f64,
}

/// How much longer a backfill takes than copying finished rows, in the same round.
#[derive(Serialize)]
pub struct OverFloor {
    pub wal_level: WalLevel,
    pub backfill_over_floor: Spread,
}

/// Who could not take part, and why.
#[derive(Serialize)]
pub struct NotMeasured {
    pub ways: Vec<Way>,
    pub why: String,
}

/// All that was measured at one `wal_level`.
pub struct Measured {
    pub figures: Vec<Figure>,
    pub over_floor: OverFloor,
}

pub struct Bench<'a> {
    pub market: Market<'a>,
    months: Vec<PairMonth>,
    copies: PathBuf,
    /// With the packages that the scripts need; or what is missing.
    python: Result<PathBuf>,
    /// Of each process.
    threads: usize,
}

impl<'a> Bench<'a> {
    pub fn prepare(mut market: Market<'a>) -> Result<Self> {
        let pairs = market.pairs.clone();
        let months = PairMonth::all(&mut market, &pairs)?;
        let copies = finished::prepare(&mut market, &months)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (cores / YARDSTICK.sessions).max(1);
        Ok(Self { market, months, copies, python: python::with_packages(), threads })
    }

    /// None if all take part.
    pub fn not_measured(&self) -> Option<NotMeasured> {
        let error = self.python.as_ref().err()?;
        let ways = WalLevel::Replica.contenders().into_iter().map(|contender| contender.way);
        Some(NotMeasured {
            ways: ways.filter(|way| way.python_script().is_some()).collect(),
            why: format!("{error:#}"),
        })
    }

    /// Rounds in which each contender has its turn. Its rows are compared in the first one.
    pub fn measure(&mut self, wal_level: WalLevel, effort: Effort) -> Result<Measured> {
        self.set_wal_level(wal_level)?;
        let progress = console::BARS.add(ProgressBar::new_spinner());
        progress.enable_steady_tick(Duration::from_millis(100));
        let mut contenders = wal_level.contenders();
        contenders.retain(|contender| self.python.is_ok() || contender.way.python_script().is_none());
        let mut differences = vec![0.0; contenders.len()];
        let numbers: Vec<usize> = (0..contenders.len()).collect();
        let rounds = rounds::quietest(
            effort,
            |round: &Vec<Run>| disturbance(round),
            |round| {
                rounds::to_and_fro(round, &numbers, |&number| {
                    let contender = contenders[number];
                    let Contender { way, sessions } = contender;
                    let name =
                        format!("wal_level {}: {}, sessions {sessions}", wal_level.name(), way.title());
                    progress.set_message(format!("round {}, {name}", round + 1));
                    let run = self.run(contender).with_context(|| name.clone())?;
                    if round == 0 {
                        differences[number] = self.compare(contender).with_context(|| name.clone())?;
                    }
                    Ok(run)
                })
            },
        )?;
        progress.finish_and_clear();
        Ok(summarise(wal_level, &contenders, &rounds, &differences))
    }

    fn set_wal_level(&mut self, wal_level: WalLevel) -> Result<()> {
        // The lowest level sends nothing.
        let senders = if wal_level == WalLevel::Minimal { 0 } else { 10 };
        self.market.client.batch_execute(&format!("ALTER SYSTEM SET wal_level = {}", wal_level.name()))?;
        self.market.client.batch_execute(&format!("ALTER SYSTEM SET max_wal_senders = {senders}"))?;
        self.market.cluster.restart()?;
        self.market.client = observer(self.market.cluster)?;
        finished::warm(&mut self.market.client, &self.months)
    }

    fn run(&mut self, contender: Contender) -> Result<Run> {
        self.market.empty()?;
        self.drop_fresh_tables()?;
        let months = self.months_of(contender);
        let rows = self.rows_of(contender, &months)?;
        let mut sessions = self.open_sessions(contender)?;
        self.market.client.batch_execute("CHECKPOINT")?;
        let clients: Vec<i32> = sessions.iter().filter_map(|session| session.process()).collect();
        let cpu::Run { seconds, cpu_seconds, busy_with_others } =
            cpu::Run::with_clients(self.market.cluster, &clients, || {
                if contender.way == Way::Backfill {
                    let pairs = self.market.pairs.clone();
                    self.market.backfill(&pairs, contender.sessions, Months::New, rows / 2)
                } else {
                    fill_all(&mut sessions, &months)
                }
            })?;
        Ok(Run { seconds, rows, cpu_seconds, busy_with_others })
    }

    /// One by one: one statement could hold only so many locks.
    fn drop_fresh_tables(&mut self) -> Result<()> {
        let tables = self.market.client.query(
            "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'fresh'::regnamespace AND relkind = 'r'",
            &[],
        )?;
        for table in tables {
            self.market.client.batch_execute(&format!("DROP TABLE {}", table.get::<_, &str>(0)))?;
        }
        Ok(())
    }

    fn months_of(&self, contender: Contender) -> Vec<PairMonth> {
        let pairs = match contender.way.share() {
            Share::AllPairs => return self.months.clone(),
            Share::FewPairs => self.market.few_pairs().len().next_multiple_of(contender.sessions),
            Share::Sample(_) => contender.sessions,
        };
        let pairs = &self.market.pairs[..pairs.min(self.market.pairs.len())];
        self.months.iter().filter(|month| pairs.contains(&month.pair)).cloned().collect()
    }

    /// Of both families together.
    fn rows_of(&mut self, contender: Contender, months: &[PairMonth]) -> Result<u64> {
        if let Some(rows) = contender.way.sample() {
            return Ok(2 * u64::from(rows) * months.len() as u64);
        }
        let mut pairs: Vec<String> = months.iter().map(|month| month.pair.clone()).collect();
        pairs.dedup();
        Ok(2 * self.market.bars(&pairs)?)
    }

    fn open_sessions(&self, contender: Contender) -> Result<Vec<Box<dyn Session>>> {
        if contender.way == Way::Backfill {
            return Ok(Vec::new()); // it opens them itself, in its own time
        }
        (0..contender.sessions).map(|_| self.open_session(contender.way)).collect()
    }

    fn open_session(&self, way: Way) -> Result<Box<dyn Session>> {
        let cluster = self.market.cluster;
        if let (Some(script), Ok(python)) = (way.python_script(), &self.python) {
            let session = PythonSession::open(cluster, python, script, self.threads, way.sample())?;
            return Ok(Box::new(session));
        }
        let source = match way {
            Way::CopyingRows => Source::Tables,
            Way::CopyingFiles => Source::Files(self.copies.clone()),
            Way::TunedSql => Source::Queries(TUNED_SQL),
            Way::NamedWindows => Source::Queries(NAMED_WINDOWS),
            _ => bail!("{} has no sessions of the server alone", way.title()),
        };
        Ok(Box::new(SqlSession::open(cluster, source)?))
    }

    fn compare(&mut self, contender: Contender) -> Result<f64> {
        let months = self.months_of(contender);
        let place = if contender.way == Way::Backfill { Place::Partitions } else { Place::FreshTables };
        finished::compare(&mut self.market.client, &months, place, contender.way.sample())
    }
}

/// How much others did in a round, at its worst.
fn disturbance(round: &[Run]) -> f64 {
    round.iter().map(|run| run.busy_with_others).fold(0.0, f64::max)
}

/// The figures of each contender; a round has a run of each.
fn summarise(
    wal_level: WalLevel,
    contenders: &[Contender],
    rounds: &[Vec<Run>],
    differences: &[f64],
) -> Measured {
    let place = |wanted: Contender| {
        contenders.iter().position(|&contender| contender == wanted).expect("it always takes part")
    };
    let (yardstick, floor) = (place(YARDSTICK), place(FLOOR));
    let times_of = |number: usize, of: usize| {
        let ratio = |round: &Vec<Run>| round[number].seconds_per_row() / round[of].seconds_per_row();
        Spread::of(rounds.iter().map(ratio).collect())
    };
    let figure = |(number, contender): (usize, &Contender)| {
        let all =
            |value: fn(&Run) -> f64| Spread::of(rounds.iter().map(|round| value(&round[number])).collect());
        let rows = rounds[0][number].rows;
        let seconds = all(|run| run.seconds);
        Figure {
            way: contender.way,
            wal_level,
            sessions: contender.sessions,
            rows,
            seconds,
            rows_per_second: seconds.rate_of(rows as f64),
            times_of_backfill: times_of(number, yardstick),
            cpu_seconds: all(|run| run.cpu_seconds),
            processors_busy_with_others: all(|run| run.busy_with_others),
            largest_difference: differences[number],
        }
    };
    Measured {
        figures: contenders.iter().enumerate().map(figure).collect(),
        over_floor: OverFloor { wal_level, backfill_over_floor: times_of(yardstick, floor) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Contender = Contender { way: Way::NamedWindows, sessions: 2 };

    fn run(seconds: f64, rows: u64) -> Run {
        Run { seconds, rows, cpu_seconds: 1.0, busy_with_others: 0.5 }
    }

    #[test]
    fn contenders_are_compared_by_the_row_and_round_by_round() {
        // The machine was slow in the second round; the slow contender has a tenth of the rows.
        let rounds: Vec<Vec<Run>> = [(4.0, 2.0, 4.0), (40.0, 40.0, 40.0), (4.0, 8.0, 6.0)]
            .map(|(backfill, floor, slow)| vec![run(backfill, 1000), run(floor, 1000), run(slow, 100)])
            .to_vec();
        let measured = summarise(WalLevel::Replica, &[YARDSTICK, FLOOR, SLOW], &rounds, &[0.0, 0.0, 1e-9]);
        let of = |number: usize| &measured.figures[number];
        assert_eq!(of(0).times_of_backfill, Spread { median: 1.0, min: 1.0, max: 1.0 });
        assert_eq!(of(1).times_of_backfill, Spread { median: 1.0, min: 0.5, max: 2.0 });
        assert_eq!(of(2).times_of_backfill, Spread { median: 10.0, min: 10.0, max: 15.0 });
        assert_eq!(measured.over_floor.backfill_over_floor, Spread { median: 1.0, min: 0.5, max: 2.0 });
        assert_eq!(of(2).seconds.median, 6.0);
        assert_eq!(of(2).rows_per_second.max, 25.0);
        assert_eq!(of(2).largest_difference, 1e-9);
    }

    #[test]
    fn a_round_is_as_disturbed_as_its_worst_run() {
        let run = |busy_with_others| Run { seconds: 1.0, rows: 1, cpu_seconds: 1.0, busy_with_others };
        assert_eq!(disturbance(&[run(0.0), run(0.7), run(0.1)]), 0.7);
    }
}
