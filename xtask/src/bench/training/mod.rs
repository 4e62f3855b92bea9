//! `cargo xtask bench training`: what a model is fed, and how long that takes.

mod cold;
mod correlations;
mod indicators;
mod related;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use pgcluster::Cluster;
use serde::Serialize;
use xshell::Shell;

use self::cold::ColdReads;
use self::correlations::Correlations;
use self::indicators::Rate;
use self::related::FirstRows;
use super::market::{FIRST_MONTH, first_pairs, simulate_months};
use super::report::{self, Circumstances, Table, ratio};
use super::server::{self, BULK_SETTINGS, observer};
use super::spread::Spread;
use crate::console;

/// The pair that is looked at: with all 28, it has 12 related ones.
const PAIR: &str = "eurusd";

#[derive(clap::Args)]
pub struct TrainingArgs {
    /// Fewer pairs, months and rounds
    #[arg(long)]
    quick: bool,
}

/// How much of what is measured, and how often.
#[derive(Clone, Copy, Serialize)]
struct Extent {
    pairs: usize,
    /// Months of [`PAIR`]; the others have one.
    months: u32,
    rounds: usize,
}

pub fn command(shell: &Shell, pg_config: Option<&Path>, args: &TrainingArgs) -> Result<ExitCode> {
    let extent = if args.quick {
        Extent { pairs: 12, months: 3, rounds: 3 }
    } else {
        Extent { pairs: 28, months: 12, rounds: 7 }
    };
    let cluster = server::start(shell, pg_config, &BULK_SETTINGS)?;
    let circumstances = Circumstances::now(shell, &mut observer(&cluster)?)?;
    console::timed("bars and their metrics", || fill(&cluster, extent)).0?;

    let results = Results {
        circumstances,
        extent,
        goals: GOALS,
        correlations: console::timed("correlations", || correlations::measure(&cluster)).0?,
        cold: console::timed("features from cold", || cold::measure(&cluster, extent.rounds)).0?,
        related: console::timed("the wide relation", || related::measure(&cluster, extent.rounds)).0?,
        indicators: console::timed("indicators", || indicators::measure(&cluster, extent.rounds)).0?,
    };
    results.print();
    println!("\nWritten to {}", report::write_json("training", &results)?.display());
    Ok(ExitCode::SUCCESS)
}

/// Simulates bars, fills derived tables, and makes the views of [`PAIR`].
fn fill(cluster: &Cluster, extent: Extent) -> Result<()> {
    let mut client = observer(cluster)?;
    client.batch_execute("CREATE EXTENSION bqx")?;
    let mut pairs = first_pairs(&mut client, extent.pairs)?;
    pairs.push(PAIR.into());
    simulate_months(&mut client, &pairs, 0..1)?;
    simulate_months(&mut client, &[PAIR.into()], 1..extent.months)?;
    client.batch_execute(&format!("CALL bqx.set_baselines('{FIRST_MONTH} 00:00+00')"))?;
    for stage in ["index_m1()", "create_tables()", "backfill(workers => 2)"] {
        client.batch_execute(&format!("CALL bqx.{stage}"))?;
    }
    for view in ["create_features(ARRAY[$])", "create_targets(ARRAY[$])", "create_related($)"] {
        client.batch_execute(&format!("CALL bqx.{}", view.replace('$', &format!("'{PAIR}'"))))?;
    }
    client.batch_execute("VACUUM ANALYZE")?;
    Ok(())
}

/// Everything that is written to the file.
#[derive(Serialize)]
struct Results {
    #[serde(flatten)]
    circumstances: Circumstances,
    extent: Extent,
    goals: Goals,
    correlations: Correlations,
    cold: Vec<ColdReads>,
    related: Vec<FirstRows>,
    indicators: Vec<Rate>,
}

/// What is to be reached. Nothing fails if it is not: figures depend on the machine and on what else it does.
#[derive(Serialize)]
struct Goals {
    correlations_times_one_query_each: f64,
    features_times_join: f64,
    related_first_row_seconds_below: f64,
}

const GOALS: Goals = Goals {
    correlations_times_one_query_each: 20.0,
    features_times_join: 1.0,
    related_first_row_seconds_below: 0.25,
};

const LEGEND: &str = "\
correlations    compute_correlations (Pearson and Spearman), beside a query with corr() for each feature: over the two tables
                that feature and target are in, and over the views of features and targets; of the latter, a few are measured
from cold       a month, by a server just started whose files the system holds nothing of; each beside the other, in turn
first row       of a month of the wide relation, in a new session, planning included
over the bars   in one session that has read them before; × PostgreSQL's own avg or corr over that frame";

impl Results {
    fn print(&self) {
        println!("\n{}\n", self.circumstances);
        let mut table = Table::new(["", "s", "fastest", "slowest", "×"], 1);
        let c = &self.correlations;
        let once = |name: String, seconds: f64, times: Option<f64>| {
            [name, format!("{seconds:.3}"), String::new(), String::new(), times.map_or(String::new(), ratio)]
        };
        let rows = c.rows;
        table.add(once(format!("correlations of {} features, {rows} rows", c.features), c.seconds, None));
        table.add(once(
            "  corr() of each, over tables".into(),
            c.over_tables,
            Some(c.over_tables / c.seconds),
        ));
        table.add(once("  corr() of each, over views".into(), c.over_views, Some(c.over_views / c.seconds)));
        for reads in &self.cold {
            table.add(spread(format!("from cold: {}, join by hand", reads.what), reads.join, None));
            let times = reads.join.median / reads.features.median;
            table.add(spread("  bqx_ml.features".into(), reads.features, Some(times)));
        }
        for first in &self.related {
            table.add(spread(
                format!("first row of {}, {} columns", first.what, first.columns),
                first.seconds,
                None,
            ));
        }
        println!("{table}");
        let mut table = Table::new(["over the bars of a month", "bars/s", "fastest", "slowest", "×"], 1);
        for rate in &self.indicators {
            let per_second = |rate: f64| format!("{:.0}", rate.round());
            table.add([
                rate.call.clone(),
                per_second(rate.bars_per_second.median),
                per_second(rate.bars_per_second.max),
                per_second(rate.bars_per_second.min),
                rate.times_postgres.map_or(String::new(), ratio),
            ]);
        }
        println!("{table}");
        println!("{LEGEND}");
        println!(
            "goals           correlations × {} of corr() of each; features × {} of the join; first row below {} s",
            GOALS.correlations_times_one_query_each,
            GOALS.features_times_join,
            GOALS.related_first_row_seconds_below
        );
    }
}

fn spread(name: String, seconds: Spread, times: Option<f64>) -> [String; 5] {
    let text = |seconds: f64| format!("{seconds:.3}");
    [name, text(seconds.median), text(seconds.min), text(seconds.max), times.map_or(String::new(), ratio)]
}
