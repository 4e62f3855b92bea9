//! The rows as bqx computes them: what the floor copies, and what everybody else's rows are compared with.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use postgres::Client;

use super::months::{FAMILIES, PairMonth};
use crate::bench::market::{Market, Months};

/// Pairs whose every value is compared; of the others, rows are counted.
const COMPARED_PAIRS: usize = 4;

/// How far a value may lie from that of bqx, in units of the column's mean magnitude. Who works with differences of sums
/// of doubles comes that near; a different formula, window or bar does not.
const TOLERANCE: f64 = 1e-5;

/// Has bqx compute all rows, and keeps them in unlogged tables and in files of `COPY`'s binary format, which the server can
/// read. Returns the files' folder.
pub fn prepare(market: &mut Market, months: &[PairMonth]) -> Result<PathBuf> {
    let folder = market.cluster.directory().join("copies");
    market.cluster.account().create_private_dir(&folder)?;
    let pairs = market.pairs.clone();
    let bars = market.bars(&pairs)?;
    market.backfill(&pairs, 2, Months::New, bars)?;
    market.client.batch_execute("CREATE SCHEMA finished; CREATE SCHEMA fresh")?;
    for month in months {
        for family in FAMILIES {
            let (table, partition) = (month.finished(family), month.partition(family));
            market.client.batch_execute(&format!(
                "CREATE UNLOGGED TABLE {table} AS SELECT * FROM {partition} ORDER BY ts_utc"
            ))?;
            market.client.batch_execute(&format!("VACUUM ANALYZE {table}"))?;
            ensure_plain(&mut market.client, &table)?;
            let file = month.file(&folder, family);
            market.client.batch_execute(&format!("COPY {table} TO '{}' (FORMAT binary)", file.display()))?;
        }
    }
    market.empty()?;
    Ok(folder)
}

/// Copying the table must be one plain scan, which finds the rows in the order of time.
fn ensure_plain(client: &mut Client, table: &str) -> Result<()> {
    let plan = client.query(&format!("EXPLAIN (COSTS off) SELECT * FROM {table}"), &[])?;
    let step: &str = plan[0].get(0);
    ensure!(plan.len() == 1 && step.starts_with("Seq Scan on "), "{table} is read by {step}");
    let ordered = client.query_one(
        &format!(
            "SELECT bool_and(before IS NULL OR before < ts_utc) \
               FROM (SELECT ts_utc, lag(ts_utc) OVER (ORDER BY ctid) AS before FROM {table}) AS rows"
        ),
        &[],
    )?;
    ensure!(ordered.get::<_, bool>(0), "the rows of {table} do not lie in the order of time");
    Ok(())
}

/// Reads everything once that contenders read, as far as memory goes.
pub fn warm(client: &mut Client, months: &[PairMonth]) -> Result<()> {
    for month in months {
        for family in FAMILIES {
            client.query_one(&format!("SELECT count(*) FROM {}", month.finished(family)), &[])?;
        }
        client.query_one(&format!("SELECT count(rate_index) FROM {}", month.bars()), &[])?;
    }
    Ok(())
}

/// Where a contender puts rows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Partitions,
    FreshTables,
}

/// Makes sure that a contender did the whole job for these months (`sample`: for just so many rows of each month and
/// family). Returns the largest difference of its values from those of bqx, in units of the column's mean magnitude.
pub fn compare(client: &mut Client, months: &[PairMonth], place: Place, sample: Option<u32>) -> Result<f64> {
    let mut compared_pairs: Vec<&str> = Vec::new();
    let mut largest: f64 = 0.0;
    for month in months {
        if !compared_pairs.contains(&month.pair.as_str()) && compared_pairs.len() < COMPARED_PAIRS {
            compared_pairs.push(&month.pair);
        }
        for family in FAMILIES {
            let theirs = match place {
                Place::Partitions => month.partition(family),
                Place::FreshTables => month.fresh(family),
            };
            let ours = month.finished(family);
            ensure_filled(client, &theirs, &ours, sample)?;
            if compared_pairs.contains(&month.pair.as_str()) {
                let difference = largest_difference(client, &theirs, &ours)
                    .with_context(|| format!("comparing {theirs} with {ours}"))?;
                ensure!(difference <= TOLERANCE, "{theirs} is {difference:e} away from what bqx computed");
                largest = largest.max(difference);
            }
        }
    }
    Ok(largest)
}

/// A durable table with a key, and with as many rows as there should be.
fn ensure_filled(client: &mut Client, theirs: &str, ours: &str, sample: Option<u32>) -> Result<()> {
    let row = client.query_one(
        &format!(
            "SELECT (SELECT relpersistence = 'p' FROM pg_class WHERE oid = '{theirs}'::regclass), \
                    EXISTS (SELECT FROM pg_index WHERE indrelid = '{theirs}'::regclass AND indisprimary), \
                    (SELECT count(*) FROM {theirs}), (SELECT count(*) FROM {ours})"
        ),
        &[],
    )?;
    let (durable, keyed, rows, all): (bool, bool, i64, i64) =
        (row.get(0), row.get(1), row.get(2), row.get(3));
    let wanted = sample.map_or(all, i64::from);
    ensure!(durable && keyed, "{theirs}: durable {durable}, with a primary key {keyed}");
    ensure!(rows == wanted, "{theirs} has {rows} rows instead of {wanted}");
    Ok(())
}

/// Rows that are only in one of the tables don't count, but theirs must all be in ours, with NULLs in the same places.
fn largest_difference(client: &mut Client, theirs: &str, ours: &str) -> Result<f64> {
    let columns = client.query(
        "SELECT quote_ident(attname) FROM pg_attribute \
          WHERE attrelid = $1::text::regclass AND atttypid = 'float8'::regtype AND attnum > 0 ORDER BY attnum",
        &[&ours],
    )?;
    let each = |expression: &dyn Fn(&str) -> String, separator: &str| {
        columns.iter().map(|row| expression(row.get(0))).collect::<Vec<_>>().join(separator)
    };
    let differences = each(
        &|column| {
            let difference = format!("max(abs(t.{column} - o.{column}))");
            format!("coalesce({difference} / nullif(avg(abs(o.{column})), 0), {difference}, 0)")
        },
        ", ",
    );
    let nulls_differ = each(&|column| format!("(t.{column} IS NULL) <> (o.{column} IS NULL)"), " OR ");
    let row = client.query_one(
        &format!(
            "SELECT count(*) FILTER (WHERE o.ts_utc IS NULL), \
                    count(*) FILTER (WHERE o.ts_utc IS NOT NULL AND ({nulls_differ})), greatest({differences}) \
               FROM {theirs} AS t LEFT JOIN {ours} AS o USING (ts_utc)"
        ),
        &[],
    )?;
    let (foreign, other_nulls): (i64, i64) = (row.get(0), row.get(1));
    ensure!(foreign == 0, "{foreign} rows have times without a bar");
    ensure!(other_nulls == 0, "{other_nulls} rows have NULLs in other columns");
    Ok(row.get(2))
}
