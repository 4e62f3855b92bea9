//! `cargo xtask bench aggregates`: the window aggregates beside PostgreSQL's own.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use postgres::Client;
use postgres::error::SqlState;
use serde::Serialize;
use xshell::Shell;

use super::aggregate_cases::{self, Case, Data, GROUP, LONGEST, MIDDLE, SHORTEST, YARDSTICK};
use super::report::{self, Circumstances, Table};
use super::server::{self, observer};
use super::spread::Spread;
use crate::console;

/// One process does all the work, in memory.
const SERVER_OPTIONS: [(&str, &str); 9] = [
    ("shared_buffers", "512MB"),
    ("work_mem", "1GB"),
    ("max_wal_size", "8GB"),
    ("fsync", "off"),
    ("autovacuum", "off"),
    ("jit", "off"),
    ("max_parallel_workers_per_gather", "0"),
    ("search_path", "bqx, public"),
    ("timezone", "UTC"),
];

/// Enough to fill the longest frame three times.
const FEWEST_ROWS: i64 = 3 * LONGEST as i64;

/// No month of the simulated market has fewer bars.
const BARS_IN_A_MONTH: usize = 20_000;

#[derive(clap::Args)]
pub struct AggregatesArgs {
    /// Measure once, on fewer rows
    #[arg(long)]
    quick: bool,
    /// Rows of the table [default: 1000000, with --quick 200000]
    #[arg(long, value_parser = clap::value_parser!(u32).range(FEWEST_ROWS..))]
    rows: Option<u32>,
}

pub fn command(shell: &Shell, pg_config: Option<&Path>, args: &AggregatesArgs) -> Result<ExitCode> {
    let cluster = server::start(shell, pg_config, &SERVER_OPTIONS)?;
    let mut bench = Bench {
        client: observer(&cluster)?,
        table_rows: args.rows.unwrap_or(if args.quick { 200_000 } else { 1_000_000 }) as usize,
        repetitions: if args.quick { 1 } else { 3 },
    };
    console::timed("simulated index", || bench.make_samples()).0?;
    let figures = console::timed("aggregates", || bench.measure_all()).0?;
    let results = Results {
        circumstances: Circumstances::now(shell, &mut bench.client)?,
        table_rows: bench.table_rows,
        repetitions: bench.repetitions,
        goals: GOALS,
        figures,
    };
    results.print();
    println!("\nWritten to {}", report::write_json("aggregates", &results)?.display());
    Ok(ExitCode::SUCCESS)
}

// ---------------------------------------------------------------------------------------------------------
// Measuring
// ---------------------------------------------------------------------------------------------------------

struct Bench {
    client: Client,
    table_rows: usize,
    repetitions: usize,
}

impl Bench {
    /// Makes the table `samples` that a [`Case`] asks for.
    fn make_samples(&mut self) -> Result<()> {
        let table_rows = self.table_rows;
        let months = table_rows.div_ceil(BARS_IN_A_MONTH) as i32;
        self.client.batch_execute("CREATE EXTENSION bqx")?;
        self.client.execute(
            "CALL bqx.simulate_m1(ARRAY['eurusd'], '2000-01-01', \
                                  (date '2000-01-01' + make_interval(months => $1 - 1))::date)",
            &[&months],
        )?;
        self.client.batch_execute(&format!(
            "CREATE TABLE samples AS
             SELECT i, i::double precision AS x, (i - 1) / {GROUP} AS g, time, v,
                    v * 10.0::double precision ^ (abs(hashint8(i)::bigint) % 15 - 7) AS mixed,
                    ln(v / coalesce(lag(v) OVER by_number, v)) AS log_return
               FROM (SELECT row_number() OVER by_time AS i, time,
                            rate_index(close, first_value(close) OVER by_time) AS v
                       FROM m1_eurusd WINDOW by_time AS (ORDER BY time)) AS bars
              WHERE i <= {table_rows}
             WINDOW by_number AS (ORDER BY i);
             ALTER TABLE samples ADD PRIMARY KEY (i);
             CREATE UNIQUE INDEX ON samples (time);"
        ))?;
        self.client.batch_execute("VACUUM ANALYZE samples")?;
        let made: i64 = self.client.query_one("SELECT count(v) FROM samples", &[])?.get(0);
        ensure!(made as usize == table_rows, "{months} simulated months have only {made} bars");
        Ok(())
    }

    fn measure_all(&mut self) -> Result<Vec<Figure>> {
        let cases = aggregate_cases::all();
        let bar = console::BARS.add(ProgressBar::new(cases.len() as u64));
        bar.set_style(ProgressStyle::with_template("   {bar:30} {pos}/{len}  {elapsed}  {msg}")?);
        let mut figures = Vec::new();
        for case in cases {
            let what = format!("{} over {}", case.aggregate.call, case.frames());
            bar.set_message(what.clone());
            figures.push(self.measure(case).context(what)?);
            bar.inc(1);
        }
        bar.finish_and_clear();
        Figure::compare(&mut figures);
        Ok(figures)
    }

    fn measure(&mut self, case: Case) -> Result<Figure> {
        let rows = case.rows(self.table_rows);
        let seconds = self.time(&case.query(rows))?;
        let Case { aggregate, data, width } = case;
        Ok(Figure {
            aggregate: aggregate.call,
            data,
            width,
            frames: case.frames(),
            rows,
            seconds,
            rows_per_second: seconds.map(|seconds| seconds.rate_of(case.full_rows(rows))),
            ratio_to_stddev_samp: None,
            growth: None,
        })
    }

    /// The seconds that a query takes; None if it calls a function that is not there.
    fn time(&mut self, query: &str) -> Result<Option<Spread>> {
        let statement = match self.client.prepare(query) {
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_FUNCTION) => return Ok(None),
            prepared => prepared?,
        };
        let seconds = Spread::of_seconds(self.repetitions, || {
            let results: i64 = self.client.query_one(&statement, &[])?.get(0);
            ensure!(results > 0, "the query has no results");
            Ok(())
        });
        seconds.map(Some)
    }
}

// ---------------------------------------------------------------------------------------------------------
// Reporting
// ---------------------------------------------------------------------------------------------------------

/// Everything that is written to the file.
#[derive(Serialize)]
struct Results {
    #[serde(flatten)]
    circumstances: Circumstances,
    table_rows: usize,
    repetitions: usize,
    goals: Goals,
    figures: Vec<Figure>,
}

/// What the extension's own aggregates are to reach over ROWS frames. Nothing fails if they don't: figures
/// depend on the machine and on what else it does.
#[derive(Serialize)]
struct Goals {
    rows_per_second_above: u64,
    ratio_to_stddev_samp_at_630_at_least: u64,
    growth_below: f64,
}

const GOALS: Goals =
    Goals { rows_per_second_above: 500_000, ratio_to_stddev_samp_at_630_at_least: 50, growth_below: 1.3 };

/// What was measured of a [`Case`].
#[derive(Serialize)]
struct Figure {
    aggregate: &'static str,
    data: Data,
    width: usize,
    frames: String,
    rows: usize,
    /// None: the extension has no such aggregate.
    seconds: Option<Spread>,
    rows_per_second: Option<Spread>,
    /// By rows per second, over the same frames.
    ratio_to_stddev_samp: Option<f64>,
    /// Time per row over the longest frames by that over the shortest.
    growth: Option<f64>,
}

impl Figure {
    /// Fills in what compares figures with each other.
    fn compare(figures: &mut [Figure]) {
        for index in 0..figures.len() {
            let rate = |aggregate: &str, data: Data, width: usize| {
                let is_wanted = |figure: &&Figure| {
                    (figure.aggregate, figure.data, figure.width) == (aggregate, data, width)
                };
                figures.iter().find(is_wanted)?.rows_per_second.map(|rate| rate.median)
            };
            let Figure { aggregate, data, width, .. } = figures[index];
            let ratio = |own: Option<f64>, other: Option<f64>| Some(own? / other?);
            let to_stddev_samp = ratio(rate(aggregate, data, width), rate(YARDSTICK, data, width));
            let growth = ratio(rate(aggregate, data, SHORTEST), rate(aggregate, data, LONGEST));
            let figure = &mut figures[index];
            figure.ratio_to_stddev_samp = to_stddev_samp;
            figure.growth = growth.filter(|_| width == LONGEST);
        }
    }

    fn cells(&self) -> [String; COLUMNS] {
        let count = |rate: f64| HumanCount(rate as u64).to_string();
        let [median, slowest, fastest] = match self.rows_per_second {
            Some(rate) => [rate.median, rate.min, rate.max].map(count),
            None => ["not available", "", ""].map(str::to_owned),
        };
        let ratio = |ratio: Option<f64>| ratio.map(report::ratio).unwrap_or_default();
        [
            self.aggregate.to_owned(),
            self.frames.clone(),
            HumanCount(self.rows as u64).to_string(),
            median,
            slowest,
            fastest,
            ratio(self.ratio_to_stddev_samp),
            ratio(self.growth),
        ]
    }
}

const COLUMNS: usize = 8;

const LEGEND: &str = "\
rows/s         the median of three runs, with --quick of one. count costs next to nothing itself: its rows/s
               are what PostgreSQL's windows or groups allow
over           rows or minutes that precede the current row; one less for quadratic_reg. stddev_samp, max
               and regr_slope add up the whole frame for each row: they are measured on fewer rows, and a
               row whose frame is still filling counts for as much as is filled
× stddev_samp  by rows/s, over the same frames
growth         time per row at 6300 preceding rows by that at 63
goals          for bqx's own aggregates over ROWS";

impl Results {
    fn print(&self) {
        let header = ["aggregate", "over", "rows", "rows/s", "slowest", "fastest", "× stddev_samp", "growth"];
        let mut table = Table::new(header, 2);
        for figure in &self.figures {
            table.add(figure.cells());
        }
        let rate = format!("> {}", HumanCount(self.goals.rows_per_second_above));
        let ratio = format!("≥ {} at {MIDDLE}", self.goals.ratio_to_stddev_samp_at_630_at_least);
        let growth = format!("< {}", self.goals.growth_below);
        table.add(["goals", "", "", &rate, "", "", &ratio, &growth].map(str::to_owned));
        println!("\n{}\n\n{table}\n{LEGEND}", self.circumstances);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(aggregate: &'static str, width: usize, rate: Option<f64>) -> Figure {
        Figure {
            aggregate,
            data: Data::Rows,
            width,
            frames: String::new(),
            rows: 0,
            seconds: None,
            rows_per_second: rate.map(|rate| Spread { median: rate, min: rate, max: rate }),
            ratio_to_stddev_samp: None,
            growth: None,
        }
    }

    #[test]
    fn figures_are_compared_over_the_same_frames() {
        let mut figures = [
            figure("bqx_window_metrics(v)", SHORTEST, Some(1000.0)),
            figure("bqx_window_metrics(v)", LONGEST, Some(800.0)),
            figure("quadratic_reg(v, x)", LONGEST, None),
            figure(YARDSTICK, LONGEST, Some(2.0)),
        ];
        Figure::compare(&mut figures);
        let compared = figures.map(|figure| (figure.ratio_to_stddev_samp, figure.growth));
        assert_eq!(compared, [(None, None), (Some(400.0), Some(1.25)), (None, None), (Some(1.0), None)]);
    }
}
