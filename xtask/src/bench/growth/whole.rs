//! The job that bqx was made for: a year of 28 pairs, in tables of seven years.

use std::time::Instant;

use anyhow::{Result, ensure};
use indicatif::{HumanBytes, HumanCount};
use pgcluster::Cluster;
use serde::Serialize;

use super::layout::make_many_partitions;
use super::{MONTHS, WORKERS};
use crate::bench::market::{FIRST_MONTH, first_pairs, simulate_months};
use crate::bench::report::{self, Table};
use crate::bench::server::in_new_database;

const PAIRS: usize = 28;

#[derive(Serialize)]
pub struct Figures {
    /// Of each family.
    rows: u64,
    simulate_seconds: f64,
    index_seconds: f64,
    /// Makes M1's partitions, too.
    create_seconds: f64,
    backfill_seconds: f64,
    backfill_rows_per_second: f64,
    verify_seconds: f64,
    verify_rows_per_second: f64,
    verify_times_backfill: f64,
    m1_bytes: u64,
    bqx_bytes: u64,
    reg_bytes: u64,
}

pub fn measure(cluster: &Cluster) -> Result<Figures> {
    in_new_database(cluster, |client| {
        let seconds = |work: &mut dyn FnMut() -> Result<()>| {
            let start = Instant::now();
            work().map(|()| start.elapsed().as_secs_f64())
        };
        let pairs = first_pairs(client, PAIRS)?;
        ensure!(pairs.len() == PAIRS, "there are {} pairs", pairs.len());
        let create_seconds = seconds(&mut || make_many_partitions(client, PAIRS))?;
        let simulate_seconds = seconds(&mut || simulate_months(client, &pairs, 0..MONTHS))?;
        client.batch_execute(&format!("CALL bqx.set_baselines('{FIRST_MONTH} 00:00+00')"))?;
        let index_seconds = seconds(&mut || Ok(client.batch_execute("CALL bqx.index_m1()")?))?;
        client.batch_execute("VACUUM ANALYZE")?;
        client.batch_execute("CHECKPOINT")?;

        let call = format!("CALL bqx.backfill(workers => {WORKERS})");
        let backfill_seconds = seconds(&mut || Ok(client.batch_execute(&call)?))?;
        let verify_seconds = seconds(&mut || {
            let bad =
                client.query_one("SELECT count(*) FROM bqx.verify() WHERE NOT ok", &[])?.get::<_, i64>(0);
            ensure!(bad == 0, "{bad} checks failed");
            Ok(())
        })?;

        let mut number =
            |query: &str| Ok::<_, anyhow::Error>(client.query_one(query, &[])?.get::<_, i64>(0) as u64);
        let rows = number("SELECT sum(rows)::bigint FROM bqx.storage WHERE family = 'bqx'")?;
        let m1_bytes = number(
            "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class WHERE relkind = 'r' AND relname ~ '^m1_.*_20'",
        )?;
        let mut of_family =
            |family| number(&format!("SELECT sum(bytes)::bigint FROM bqx.storage WHERE family = '{family}'"));
        let both = 2.0 * rows as f64;
        Ok(Figures {
            rows,
            simulate_seconds,
            index_seconds,
            create_seconds,
            backfill_seconds,
            backfill_rows_per_second: both / backfill_seconds,
            verify_seconds,
            verify_rows_per_second: both / verify_seconds,
            verify_times_backfill: backfill_seconds / verify_seconds,
            m1_bytes,
            bqx_bytes: of_family("bqx")?,
            reg_bytes: of_family("reg")?,
        })
    })
}

pub fn table(figures: &Figures) -> Table<4> {
    let Figures { rows, backfill_rows_per_second, verify_rows_per_second, .. } = figures;
    let mut table = Table::new(["28 pairs, 12 months", "s", "rows/s", "× backfill"], 1);
    let mut add = |title: &str, seconds: f64, rate: f64, relative: String| {
        let rate = HumanCount(rate as u64).to_string();
        table.add([title.to_owned(), format!("{seconds:.1}"), rate, relative]);
    };
    let bars = *rows as f64;
    add("simulate_m1", figures.simulate_seconds, bars / figures.simulate_seconds, String::new());
    add("index_m1", figures.index_seconds, bars / figures.index_seconds, String::new());
    add("backfill, 2 workers", figures.backfill_seconds, *backfill_rows_per_second, report::ratio(1.0));
    add(
        "verify",
        figures.verify_seconds,
        *verify_rows_per_second,
        report::ratio(figures.verify_times_backfill),
    );
    let mut tell =
        |title: &str, value: String| table.add([title.to_owned(), value, String::new(), String::new()]);
    tell("create_m1, create_tables", format!("{:.1}", figures.create_seconds));
    tell("rows of each family", HumanCount(*rows).to_string());
    for (table_name, bytes) in
        [("M1", figures.m1_bytes), ("bqx", figures.bqx_bytes), ("reg", figures.reg_bytes)]
    {
        tell(&format!("size of {table_name}"), HumanBytes(bytes).to_string());
    }
    table
}
