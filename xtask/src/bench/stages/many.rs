//! The stages that make, change and drop tables, with many partitions.

use anyhow::{Result, ensure};
use pgcluster::Cluster;
use postgres::Client;

use super::clock::{Amount, Clock, Stage};
use crate::bench::market::{FIRST_MONTH, first_pairs};
use crate::bench::server::in_new_database;

/// First and last month of each table, and how many that are.
const FROM_MONTH: &str = "2020-01-01";
const TO_MONTH: &str = "2026-12-01";
pub const MONTHS: u64 = 84;

/// The stages for so many pairs, in a new database.
pub fn measure_round(cluster: &Cluster, clock: &mut Clock, pairs: usize) -> Result<()> {
    in_new_database(cluster, |client| {
        let pairs = first_pairs(client, pairs)?;
        measure(client, clock, &pairs)
    })
}

fn measure(client: &mut Client, clock: &mut Clock, pairs: &[String]) -> Result<()> {
    let of_a_family = pairs.len() as u64 * MONTHS;
    let partitions = Amount::Partitions(of_a_family);
    let array = format!("'{{{}}}'", pairs.join(","));
    let span = format!("pairs => {array}, from_month => '{FROM_MONTH}', to_month => '{TO_MONTH}'");
    let mut call = |client: &mut Client, stage, amount, call: String| {
        clock.measure_sql(client, stage, amount, &[format!("CALL bqx.{call}")])
    };

    call(client, Stage::CreateManyM1, partitions, format!("create_m1({span})"))?;
    for pair in pairs {
        let bar = format!("INSERT INTO bqx.m1_{pair} VALUES ('{FIRST_MONTH} 00:00+00', 1, 1, 1, 1, 1)");
        client.batch_execute(&bar)?;
    }
    client.batch_execute("CALL bqx.set_baselines()")?;
    call(client, Stage::IndexManyM1, partitions, "index_m1()".to_owned())?;
    call(
        client,
        Stage::CreateManyTables,
        Amount::Partitions(2 * of_a_family),
        format!("create_tables({span})"),
    )?;
    let there: i64 = client
        .query_one("SELECT count(*) FROM pg_class WHERE relispartition AND relname ~ '^(bqx|reg)_' AND relkind = 'r'", &[])?
        .get(0);
    ensure!(there as u64 == 2 * of_a_family, "{there} partitions were made");
    call(client, Stage::DropManyBqxTables, partitions, format!("drop_tables('{{bqx}}', {array})"))?;
    call(client, Stage::DropManyRegTables, partitions, format!("drop_tables('{{reg}}', {array})"))?;
    clock.measure_sql(client, Stage::DropExtension, partitions, &["DROP EXTENSION bqx CASCADE".to_owned()])
}
