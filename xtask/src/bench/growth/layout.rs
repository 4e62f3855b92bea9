//! Databases with the same bars, and more or less beside them.

use anyhow::{Result, ensure};
use pgcluster::Cluster;
use postgres::Client;

use crate::bench::market::{FIRST_MONTH, Market, first_pairs, month};
use crate::bench::server::{DATABASE, session};

/// First and last month where there are many partitions, and how many that are.
pub const MANY: (&str, &str, u32) = ("2020-01-01", "2026-12-01", 84);

pub struct Layout<'a> {
    pub cluster: &'a Cluster,
    pub database: &'static str,
    pub client: Client,
    /// Those with bars.
    pub pairs: Vec<String>,
    /// Of each table.
    pub partitions: u32,
}

impl<'a> Layout<'a> {
    pub fn with_partitions_of_the_data(market: Market<'a>) -> Self {
        let Market { cluster, client, pairs, months } = market;
        Layout { cluster, database: DATABASE, client, pairs, partitions: months }
    }

    /// A copy, with many partitions of the tables of many pairs.
    pub fn with_many_partitions(&mut self, all_pairs: usize) -> Result<Self> {
        let mut admin = self.cluster.connect("postgres")?;
        let database = "many";
        // A template must have no sessions.
        self.client = session(self.cluster, "postgres")?;
        admin.batch_execute(&format!("CREATE DATABASE {database} TEMPLATE {DATABASE}"))?;
        self.client = session(self.cluster, DATABASE)?;
        let mut client = session(self.cluster, database)?;
        make_many_partitions(&mut client, all_pairs)?;
        client.batch_execute("VACUUM ANALYZE")?;
        Ok(Layout { cluster: self.cluster, database, client, pairs: self.pairs.clone(), partitions: MANY.2 })
    }

    /// A call that fills these months of the pairs with bars, without the word CALL.
    pub fn backfill_call(&self, months: u32) -> String {
        let pairs = self.pairs.join(",");
        let to_month = month(months - 1);
        format!("bqx.backfill(pairs => '{{{pairs}}}', to_month => {to_month}, workers => {})", super::WORKERS)
    }

    /// Fills the first months, and checks that just so many rows were written as had to be.
    pub fn backfill(&self, months: u32, rows: u64) -> Result<()> {
        // A session of its own, as each worker is: nothing is in its caches.
        let mut client = session(self.cluster, self.database)?;
        let run_id: i64 = client.query_one(&format!("CALL {}", self.backfill_call(months)), &[])?.get(0);
        let written: i64 = client
            .query_one("SELECT sum(rows_written)::bigint FROM bqx.jobs WHERE run_id = $1", &[&run_id])?
            .get(0);
        ensure!(written as u64 == rows, "{written} rows were written, expected were {rows}");
        Ok(())
    }

    /// Rows of both families that the first months are to have.
    pub fn rows(&mut self, months: u32) -> Result<u64> {
        let mut bars = 0;
        for pair in &self.pairs {
            let query = format!(
                "SELECT count(*) FROM bqx.m1_{pair} \
                  WHERE time < ('{FIRST_MONTH}'::timestamp + interval '{months} months') AT TIME ZONE 'UTC'"
            );
            bars += self.client.query_one(&query, &[])?.get::<_, i64>(0);
        }
        Ok(2 * bars as u64)
    }

    /// Empties the derived tables, so that their months are new.
    pub fn empty(&mut self) -> Result<()> {
        let filled = self.client.query_one(
            "SELECT string_agg(c.oid::regclass::text, ', ') FROM pg_class AS c \
              WHERE c.relispartition AND c.relkind = 'r' AND c.relname ~ '^(bqx|reg)_' AND pg_relation_size(c.oid) > 0",
            &[],
        )?;
        if let Some(tables) = filled.get::<_, Option<String>>(0) {
            self.client.batch_execute(&format!("TRUNCATE {tables}"))?;
        }
        self.client.batch_execute("DELETE FROM bqx.month_ledger")?;
        Ok(())
    }
}

/// Makes the tables of so many pairs, or adds the partitions that they lack.
pub fn make_many_partitions(client: &mut Client, pairs: usize) -> Result<()> {
    let (from, to, _) = MANY;
    let pairs = first_pairs(client, pairs)?.join(",");
    for stage in ["create_m1", "create_tables"] {
        let call =
            format!("CALL bqx.{stage}(pairs => '{{{pairs}}}', from_month => '{from}', to_month => '{to}')");
        client.batch_execute(&call)?;
    }
    Ok(())
}
