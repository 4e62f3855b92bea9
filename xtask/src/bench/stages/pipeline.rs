//! The stages from files to verified tables.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use pgcluster::Cluster;
use postgres::Client;

use super::clock::{Amount, Clock, Stage};
use crate::bench::market::{FIRST_MONTH, first_pairs, simulate_months};
use crate::bench::server::{in_new_database, observer};

/// Files of simulated bars on the server, one for each pair.
pub struct BarFiles {
    files: Vec<(String, PathBuf)>,
    bars: u64,
    months: u64,
}

impl BarFiles {
    pub fn export(cluster: &Cluster, pairs: usize, months: u32) -> Result<Self> {
        let mut client = observer(cluster)?;
        client.batch_execute("CREATE EXTENSION bqx")?;
        let pairs = first_pairs(&mut client, pairs)?;
        simulate_months(&mut client, &pairs, 0..months)?;
        let (mut files, mut bars) = (Vec::new(), 0);
        for pair in pairs {
            let path = cluster.data_dir().join(format!("{pair}.csv"));
            let query =
                format!("SELECT time, open, high, low, close, volume FROM bqx.m1_{pair} ORDER BY time");
            bars += client
                .execute(&format!("COPY ({query}) TO {} WITH (FORMAT csv, HEADER)", literal(&path)), &[])?;
            files.push((pair, path));
        }
        Ok(BarFiles { files, bars, months: months.into() })
    }

    /// One command for each file.
    fn commands(&self, command: impl Fn(&str, &str) -> String) -> Vec<String> {
        self.files.iter().map(|(pair, path)| command(pair, &literal(path))).collect()
    }

    /// Reads each file into a table of its name with this prefix.
    fn copies(&self, prefix: &str) -> Vec<String> {
        self.commands(|pair, path| {
            let columns = "time, open, high, low, close, volume";
            format!("COPY {prefix}{pair} ({columns}) FROM {path} WITH (FORMAT csv, HEADER)")
        })
    }
}

fn literal(path: &std::path::Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "''"))
}

/// All stages, in a new database.
pub fn measure_round(cluster: &Cluster, clock: &mut Clock, files: &BarFiles) -> Result<()> {
    in_new_database(cluster, |client| {
        load(client, clock, files)?;
        index(client, clock, files)?;
        derive(client, clock, files)
    })
}

fn load(client: &mut Client, clock: &mut Clock, files: &BarFiles) -> Result<()> {
    let bars = Amount::Bars(files.bars);
    // M1 as it is, but for its partitions, and without a trigger.
    let plain_tables = files.commands(|pair, _| {
        format!(
            "CREATE TABLE plain_{pair} (time timestamptz PRIMARY KEY, open float8, high float8, low float8, \
             close float8, volume float8, rate_index float8)"
        )
    });
    execute(client, &plain_tables)?;
    clock.measure_sql(client, Stage::Copy, bars, &files.copies("plain_"))?;
    let loads = files.commands(|pair, path| format!("CALL bqx.load_m1('{pair}', {path})"));
    clock.measure_sql(client, Stage::LoadM1, bars, &loads)?;
    for (pair, _) in &files.files {
        let differing = client.query_one(
            &format!("SELECT count(*) FROM (TABLE bqx.m1_{pair} EXCEPT TABLE plain_{pair}) AS d"),
            &[],
        )?;
        ensure!(differing.get::<_, i64>(0) == 0, "load_m1 and COPY of {pair} differ");
    }
    Ok(())
}

/// Before there are triggers, and with them.
fn index(client: &mut Client, clock: &mut Clock, files: &BarFiles) -> Result<()> {
    let bars = Amount::Bars(files.bars);
    let emptying = files.commands(|pair, _| format!("TRUNCATE bqx.m1_{pair}"));
    execute(client, &emptying)?;
    clock.measure_sql(client, Stage::CopyWithoutTrigger, bars, &files.copies("bqx.m1_"))?;
    client.batch_execute(&format!("CALL bqx.set_baselines('{FIRST_MONTH} 00:00+00')"))?;
    for stage in [Stage::IndexM1, Stage::IndexM1Again] {
        clock.measure_sql(client, stage, bars, &["CALL bqx.index_m1()".to_owned()])?;
    }
    execute(client, &emptying)?;
    clock.measure_sql(client, Stage::CopyWithTrigger, bars, &files.copies("bqx.m1_"))
}

fn derive(client: &mut Client, clock: &mut Clock, files: &BarFiles) -> Result<()> {
    let rows = Amount::Rows(2 * files.bars);
    let partitions = Amount::Partitions(2 * files.files.len() as u64 * files.months);
    clock.measure_sql(client, Stage::CreateTables, partitions, &["CALL bqx.create_tables()".to_owned()])?;
    clock.measure_sql(client, Stage::Backfill, rows, &["CALL bqx.backfill(workers => 2)".to_owned()])?;
    let written: i64 = client.query_one("SELECT sum(rows_written)::bigint FROM bqx.jobs", &[])?.get(0);
    ensure!(written as u64 == 2 * files.bars, "{written} rows were written of {} bars", files.bars);
    clock.measure(client, Stage::Verify, rows, |client| {
        let findings =
            client.query_one("SELECT count(*), count(*) FILTER (WHERE NOT ok) FROM bqx.verify()", &[])?;
        let (all, bad): (i64, i64) = (findings.get(0), findings.get(1));
        ensure!(all > 0 && bad == 0, "{bad} of {all} checks failed");
        Ok(())
    })?;
    clock.measure_sql(client, Stage::DropTables, partitions, &["CALL bqx.drop_tables(NULL)".to_owned()])
}

fn execute(client: &mut Client, commands: &[String]) -> Result<()> {
    Ok(commands.iter().try_for_each(|command| client.batch_execute(command))?)
}
