//! What contenders read and write: a month of a pair, its bars and its rows.

use std::path::{Path, PathBuf};

use anyhow::Result;
use postgres::Row;

use crate::bench::market::{FIRST_MONTH, Market};

pub const FAMILIES: [&str; 2] = ["bqx", "reg"];

/// A month of a pair: what a session does in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairMonth {
    pub pair: String,
    /// Its first instant, as PostgreSQL and Python read it.
    pub from: String,
    /// The next month's.
    pub until: String,
    /// As in the names of partitions: `2024_07`.
    suffix: String,
}

impl PairMonth {
    /// The months of these pairs, pair after pair.
    pub fn all(market: &mut Market, pairs: &[String]) -> Result<Vec<PairMonth>> {
        let months = market.client.query(
            &format!(
                "SELECT to_char(month, 'YYYY-MM-DD HH24:MI+00:00'), \
                        to_char(month + interval '1 month', 'YYYY-MM-DD HH24:MI+00:00'), to_char(month, 'YYYY_MM') \
                   FROM generate_series(0, $1 - 1) AS number, \
                        LATERAL (SELECT timestamp '{FIRST_MONTH}' + make_interval(months => number)) AS m (month)"
            ),
            &[&(market.months as i32)],
        )?;
        let of_pair = |pair: &String| {
            let pair_month = |row: &Row| PairMonth {
                pair: pair.clone(),
                from: row.get(0),
                until: row.get(1),
                suffix: row.get(2),
            };
            months.iter().map(pair_month).collect::<Vec<_>>()
        };
        Ok(pairs.iter().flat_map(of_pair).collect())
    }

    pub fn bars(&self) -> String {
        format!("bqx.m1_{}", self.pair)
    }

    /// The partition that bqx fills.
    pub fn partition(&self, family: &str) -> String {
        format!("bqx.{}", self.table(family))
    }

    /// The rows that bqx computed, to be copied and to be compared with.
    pub fn finished(&self, family: &str) -> String {
        format!("finished.{}", self.table(family))
    }

    /// The table that a contender fills.
    pub fn fresh(&self, family: &str) -> String {
        format!("fresh.{}", self.table(family))
    }

    /// The finished rows as a file that the server can read.
    pub fn file(&self, folder: &Path, family: &str) -> PathBuf {
        folder.join(format!("{}.copy", self.table(family)))
    }

    fn table(&self, family: &str) -> String {
        format!("{family}_{}_{}", self.pair, self.suffix)
    }

    /// Makes the fresh tables: like those of bqx, still without key.
    pub fn make_tables(&self) -> String {
        let make = |family| {
            format!(
                "CREATE TABLE {} (LIKE bqx.{family}_{} INCLUDING DEFAULTS)",
                self.fresh(family),
                self.pair
            )
        };
        FAMILIES.map(make).join("; ")
    }

    /// Gives the filled tables their keys.
    pub fn add_keys(&self) -> String {
        FAMILIES
            .map(|family| format!("ALTER TABLE {} ADD PRIMARY KEY (ts_utc)", self.fresh(family)))
            .join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl PairMonth {
        pub fn example_of(pair: &str) -> Self {
            Self {
                pair: pair.to_owned(),
                from: "2024-07-01 00:00+00:00".to_owned(),
                until: "2024-08-01 00:00+00:00".to_owned(),
                suffix: "2024_07".to_owned(),
            }
        }
    }

    #[test]
    fn a_month_is_made_of_both_families() {
        let month = PairMonth::example_of("eurusd");
        assert_eq!(
            month.make_tables(),
            "CREATE TABLE fresh.bqx_eurusd_2024_07 (LIKE bqx.bqx_eurusd INCLUDING DEFAULTS); \
             CREATE TABLE fresh.reg_eurusd_2024_07 (LIKE bqx.reg_eurusd INCLUDING DEFAULTS)"
        );
        assert_eq!(
            month.add_keys(),
            "ALTER TABLE fresh.bqx_eurusd_2024_07 ADD PRIMARY KEY (ts_utc); \
             ALTER TABLE fresh.reg_eurusd_2024_07 ADD PRIMARY KEY (ts_utc)"
        );
        assert_eq!(month.file(Path::new("/copies"), "reg"), Path::new("/copies/reg_eurusd_2024_07.copy"));
    }
}
