//! Stages, and how long each took in every round.

use anyhow::{Context, Result};
use indicatif::HumanCount;
use pgcluster::Cluster;
use postgres::Client;
use serde::Serialize;

use crate::bench::cpu::Run;
use crate::bench::report::{self, Table};
use crate::bench::spread::Spread;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    Copy,
    LoadM1,
    CopyWithoutTrigger,
    CopyWithTrigger,
    IndexM1,
    IndexM1Again,
    CreateTables,
    Backfill,
    Verify,
    DropTables,
    CreateManyM1,
    IndexManyM1,
    CreateManyTables,
    DropManyBqxTables,
    DropManyRegTables,
    DropExtension,
}

impl Stage {
    fn title(self) -> &'static str {
        match self {
            Stage::Copy => "COPY of a file",
            Stage::LoadM1 => "load_m1 of the file",
            Stage::CopyWithoutTrigger => "COPY into M1",
            Stage::CopyWithTrigger => "COPY into M1, trigger",
            Stage::IndexM1 => "index_m1",
            Stage::IndexM1Again => "index_m1 again",
            Stage::CreateTables => "create_tables",
            Stage::Backfill => "backfill, 2 workers",
            Stage::Verify => "verify",
            Stage::DropTables => "drop_tables",
            Stage::CreateManyM1 => "create_m1, many",
            Stage::IndexManyM1 => "index_m1, many",
            Stage::CreateManyTables => "create_tables, many",
            Stage::DropManyBqxTables => "drop_tables bqx, many",
            Stage::DropManyRegTables => "drop_tables reg, many",
            Stage::DropExtension => "DROP EXTENSION, many",
        }
    }

    /// The stage that does comparable work on the same amount.
    fn beside(self) -> Option<Stage> {
        match self {
            Stage::LoadM1 => Some(Stage::Copy),
            Stage::CopyWithTrigger => Some(Stage::CopyWithoutTrigger),
            Stage::Verify => Some(Stage::Backfill),
            _ => None,
        }
    }
}

/// How much a stage works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "unit", content = "amount", rename_all = "snake_case")]
pub enum Amount {
    Bars(u64),
    /// Of both families.
    Rows(u64),
    Partitions(u64),
}

impl Amount {
    fn number(self) -> u64 {
        match self {
            Amount::Bars(number) | Amount::Rows(number) | Amount::Partitions(number) => number,
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Amount::Bars(_) => "bars",
            Amount::Rows(_) => "rows",
            Amount::Partitions(_) => "partitions",
        }
    }
}

/// Measures stages, round after round.
pub struct Clock<'a> {
    cluster: &'a Cluster,
    measured: Vec<Measured>,
}

/// A stage's runs, one in each round.
struct Measured {
    stage: Stage,
    amount: Amount,
    runs: Vec<Run>,
}

#[derive(Serialize)]
pub struct Figure {
    stage: Stage,
    #[serde(flatten)]
    amount: Amount,
    seconds: Spread,
    per_second: Spread,
    processors_busy_with_others: Spread,
    beside: Option<Stage>,
    /// By which factor it is as fast as the stage beside it, in the same round.
    speed: Option<Spread>,
}

impl<'a> Clock<'a> {
    pub fn new(cluster: &'a Cluster) -> Self {
        Clock { cluster, measured: Vec::new() }
    }

    /// Measures a stage's work, with nothing left to be written of what came before.
    pub fn measure(
        &mut self,
        client: &mut Client,
        stage: Stage,
        amount: Amount,
        work: impl FnOnce(&mut Client) -> Result<()>,
    ) -> Result<()> {
        client.batch_execute("CHECKPOINT")?;
        let run = Run::of(self.cluster, || work(client)).context(stage.title())?;
        match self.measured.iter_mut().find(|measured| measured.stage == stage) {
            Some(measured) => measured.runs.push(run),
            None => self.measured.push(Measured { stage, amount, runs: vec![run] }),
        }
        Ok(())
    }

    /// Measures SQL commands that come one by one.
    pub fn measure_sql(
        &mut self,
        client: &mut Client,
        stage: Stage,
        amount: Amount,
        commands: &[String],
    ) -> Result<()> {
        self.measure(client, stage, amount, |client| {
            commands.iter().try_for_each(|command| client.batch_execute(command).context(command.clone()))
        })
    }

    /// In the order in which stages were measured first.
    pub fn figures(&self) -> Vec<Figure> {
        self.measured.iter().map(|measured| figure(measured, &self.measured)).collect()
    }
}

fn figure(of: &Measured, all: &[Measured]) -> Figure {
    let spread = |value: fn(&Run) -> f64| Spread::of(of.runs.iter().map(value).collect());
    let beside = of.stage.beside().and_then(|other| all.iter().find(|measured| measured.stage == other));
    let speed = beside.map(|other| {
        Spread::of(other.runs.iter().zip(&of.runs).map(|(other, own)| other.seconds / own.seconds).collect())
    });
    let seconds = spread(|run| run.seconds);
    Figure {
        stage: of.stage,
        amount: of.amount,
        seconds,
        per_second: seconds.rate_of(of.amount.number() as f64),
        processors_busy_with_others: spread(|run| run.busy_with_others),
        beside: beside.map(|other| other.stage),
        speed,
    }
}

pub fn table(figures: &[Figure]) -> Table<8> {
    let header = ["stage", "of", "s", "fastest", "slowest", "per s", "× beside", "others"];
    let mut table = Table::new(header, 1);
    for figure in figures {
        let Figure { amount, seconds, speed, .. } = figure;
        table.add([
            figure.stage.title().to_owned(),
            format!("{} {}", HumanCount(amount.number()), amount.unit()),
            format!("{:.2}", seconds.median),
            format!("{:.2}", seconds.min),
            format!("{:.2}", seconds.max),
            HumanCount(figure.per_second.median as u64).to_string(),
            speed.map_or(String::new(), |speed| report::ratio(speed.median)),
            format!("{:.2}", figure.processors_busy_with_others.median),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(stage: Stage, seconds: &[f64]) -> Measured {
        let run = |&seconds| Run { seconds, cpu_seconds: seconds, busy_with_others: 0.0 };
        Measured { stage, amount: Amount::Rows(1200), runs: seconds.iter().map(run).collect() }
    }

    #[test]
    fn a_stage_is_compared_with_its_neighbour_round_by_round() {
        // The machine was slow in the second round.
        let all = [measured(Stage::Backfill, &[2.0, 20.0, 2.0]), measured(Stage::Verify, &[4.0, 40.0, 1.0])];
        let [backfill, verify] = all.each_ref().map(|one| figure(one, &all));
        assert_eq!((backfill.beside, backfill.speed), (None, None));
        assert_eq!(verify.beside, Some(Stage::Backfill));
        assert_eq!(verify.speed, Some(Spread { median: 0.5, min: 0.5, max: 2.0 }));
        assert_eq!(verify.per_second.median, 300.0);
    }

    #[test]
    fn a_figures_amount_is_told_with_its_unit() {
        let json = serde_json::to_value(Amount::Partitions(2352)).unwrap();
        assert_eq!(json, serde_json::json!({ "unit": "partitions", "amount": 2352 }));
    }
}
