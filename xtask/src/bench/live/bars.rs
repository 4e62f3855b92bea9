//! The bars that are fed: those of the simulated market after everybody's history.

use std::io::Read;
use std::time::SystemTime;

use anyhow::{Result, ensure};
use pgcluster::Cluster;
use postgres::{Client, Row};

use crate::bench::market::{first_pairs, simulate_months};
use crate::bench::server::session;

/// As a feed sends them; `rate_index` is for the trigger.
pub const COLUMNS: &str = "time, open, high, low, close, volume";

pub struct Bar {
    pub time: SystemTime,
    /// Open, high, low and close, and the volume.
    pub values: [f64; 5],
}

impl Bar {
    /// From a row of [`COLUMNS`].
    pub fn of(row: &Row) -> Bar {
        Bar { time: row.get(0), values: std::array::from_fn(|i| row.get(i + 1)) }
    }
}

/// Some months of bars, in a database of their own.
pub struct Feed {
    client: Client,
    pub pairs: Vec<String>,
}

impl Feed {
    /// So many pairs, with so many months from this one on.
    pub fn simulate(cluster: &Cluster, pairs: usize, month: u32, months: u32) -> Result<Feed> {
        cluster.create_database("feed")?;
        let mut client = session(cluster, "feed")?;
        client.batch_execute("CREATE EXTENSION bqx")?;
        let pairs = first_pairs(&mut client, pairs)?;
        simulate_months(&mut client, &pairs, month..month + months)?;
        Ok(Feed { client, pairs })
    }

    /// So many bars of a pair, after the first ones.
    pub fn bars(&mut self, pair: usize, after: usize, count: usize) -> Result<Vec<Bar>> {
        let query = self.query(pair, after, count);
        let bars: Vec<Bar> = self.client.query(&query, &[])?.iter().map(Bar::of).collect();
        ensure!(bars.len() == count, "the feed of {} has ended", self.pairs[pair]);
        Ok(bars)
    }

    /// The same as COPY has them.
    pub fn lines(&mut self, pair: usize, after: usize, count: usize) -> Result<Vec<u8>> {
        let copy = format!("COPY ({}) TO STDOUT", self.query(pair, after, count));
        let mut lines = Vec::new();
        self.client.copy_out(&copy)?.read_to_end(&mut lines)?;
        let line_count = lines.iter().filter(|&&byte| byte == b'\n').count();
        ensure!(line_count == count, "the feed of {} has ended", self.pairs[pair]);
        Ok(lines)
    }

    fn query(&self, pair: usize, after: usize, count: usize) -> String {
        let pair = &self.pairs[pair];
        format!("SELECT {COLUMNS} FROM bqx.m1_{pair} ORDER BY time OFFSET {after} LIMIT {count}")
    }
}
