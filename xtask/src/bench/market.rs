//! What is backfilled: simulated months of many pairs.

use std::ops::Range;

use anyhow::{Result, ensure};
use pgcluster::Cluster;
use postgres::Client;
use serde::Serialize;

use super::server::observer;

/// The first month; the baseline is its first bar.
pub const FIRST_MONTH: &str = "2024-07-01";

/// What a backfill finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Months {
    /// Empty partitions: the fast way.
    New,
    /// Computed again over rows that turn out the same: the plain way.
    Rewritten,
}

impl Months {
    pub fn title(self) -> &'static str {
        match self {
            Months::New => "new months",
            Months::Rewritten => "rewritten months",
        }
    }
}

pub struct Market<'a> {
    pub cluster: &'a Cluster,
    pub client: Client,
    pub pairs: Vec<String>,
    /// Months of bars, from [`FIRST_MONTH`] on.
    pub months: u32,
}

impl<'a> Market<'a> {
    /// Simulates so many months for the first so many pairs, with everything up to empty derived tables.
    pub fn simulate(cluster: &'a Cluster, pairs: usize, months: u32) -> Result<Self> {
        let mut client = observer(cluster)?;
        client.batch_execute("CREATE EXTENSION bqx")?;
        let pairs = first_pairs(&mut client, pairs)?;
        simulate_months(&mut client, &pairs, 0..months)?;
        client.batch_execute(&format!("CALL bqx.set_baselines('{FIRST_MONTH} 00:00+00')"))?;
        client.batch_execute("CALL bqx.index_m1()")?;
        client.batch_execute("CALL bqx.create_tables()")?;
        client.batch_execute("VACUUM ANALYZE")?;
        Ok(Self { cluster, client, pairs, months })
    }

    /// A quarter of the pairs, for what takes longer.
    pub fn few_pairs(&self) -> Vec<String> {
        self.pairs[..self.pairs.len().div_ceil(4)].to_vec()
    }

    /// The pairs' bars, and so the rows that each family is to have.
    pub fn bars(&mut self, pairs: &[String]) -> Result<u64> {
        let mut bars = 0;
        for pair in pairs {
            bars +=
                self.client.query_one(&format!("SELECT count(*) FROM bqx.m1_{pair}"), &[])?.get::<_, i64>(0);
        }
        Ok(bars as u64)
    }

    /// Adds the month after the last one, which it looks back at, to these pairs.
    pub fn simulate_next_month(&mut self, pairs: &[String]) -> Result<()> {
        simulate_months(&mut self.client, pairs, self.months..self.months + 1)
    }

    /// Empties the derived tables, so that their months are new.
    pub fn empty(&mut self) -> Result<()> {
        let tables: Vec<String> =
            self.pairs.iter().map(|pair| format!("bqx.bqx_{pair}, bqx.reg_{pair}")).collect();
        self.client.batch_execute(&format!("TRUNCATE {}", tables.join(", ")))?;
        self.client.batch_execute("DELETE FROM bqx.month_ledger")?;
        Ok(())
    }

    /// Makes the derived tables' partitions safe, or all so that nothing waits for the disk: UNLOGGED partitions of a
    /// server that does not sync.
    pub fn set_durable(&mut self, durable: bool) -> Result<()> {
        let (persistence, fsync) = if durable { ("LOGGED", "on") } else { ("UNLOGGED", "off") };
        self.client.batch_execute(&format!("ALTER SYSTEM SET fsync = {fsync}"))?;
        self.client.batch_execute("SELECT pg_reload_conf()")?;
        for pair in &self.pairs {
            for family in ["bqx", "reg"] {
                let query = format!(
                    "SELECT inhrelid::regclass::text FROM pg_inherits \
                      WHERE inhparent = 'bqx.{family}_{pair}'::regclass"
                );
                for row in self.client.query(&query, &[])? {
                    let partition: String = row.get(0);
                    self.client.batch_execute(&format!("ALTER TABLE {partition} SET {persistence}"))?;
                }
            }
        }
        Ok(())
    }

    /// Fills the pairs' tables, and checks that just so many rows were written as had to be.
    pub fn backfill(&mut self, pairs: &[String], workers: usize, months: Months, bars: u64) -> Result<()> {
        let call = format!("CALL {}", backfill_call(pairs, workers, months));
        // A session of its own, as each worker is: nothing is in its caches.
        let mut client = observer(self.cluster)?;
        let run_id: i64 = client.query_one(&call, &[])?.get(0);
        let outcome = self.client.query_one(
            "SELECT count(*), sum(rows_written)::bigint FROM bqx.jobs WHERE run_id = $1 AND state = 'done'",
            &[&run_id],
        )?;
        let done = (outcome.get::<_, i64>(0) as u64, outcome.get::<_, i64>(1) as u64);
        let jobs = 2 * pairs.len() as u64 * u64::from(self.months);
        let expected = match months {
            Months::New => (jobs, 2 * bars),
            Months::Rewritten => (jobs, 0),
        };
        ensure!(done == expected, "{call}: jobs and rows written are {done:?}, expected were {expected:?}");
        Ok(())
    }
}

/// So many of the pairs that the extension comes with.
pub fn first_pairs(client: &mut Client, count: usize) -> Result<Vec<String>> {
    let known = client.query("SELECT pair FROM bqx.pairs ORDER BY pair LIMIT $1", &[&(count as i64)])?;
    Ok(known.iter().map(|row| row.get(0)).collect())
}

/// A month as an expression of SQL, counted from [`FIRST_MONTH`].
pub fn month(number: u32) -> String {
    format!("('{FIRST_MONTH}'::date + interval '{number} months')::date")
}

/// Simulates months, counted from [`FIRST_MONTH`].
pub fn simulate_months(client: &mut Client, pairs: &[String], months: Range<u32>) -> Result<()> {
    let (from, to) = (month(months.start), month(months.end - 1));
    client.execute(&format!("CALL bqx.simulate_m1($1, {from}, {to})"), &[&pairs])?;
    Ok(())
}

/// The call that fills all months of these pairs, without the word CALL.
pub fn backfill_call(pairs: &[String], workers: usize, months: Months) -> String {
    let pairs = pairs.join(",");
    let force = months == Months::Rewritten;
    format!("bqx.backfill(pairs => '{{{pairs}}}', workers => {workers}, force => {force})")
}
