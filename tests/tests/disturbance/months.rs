//! What the months of the derived tables hold, and what they ought to hold, as checksums.

use std::collections::BTreeMap;
use std::fmt;

use bqx_tests::Db;
use postgres::{Client, Error};

use crate::common::{row, try_rows};

pub const FAMILIES: [&str; 2] = ["bqx", "reg"];
pub const PAIRS: [&str; 3] = ["eurusd", "gbpusd", "usdjpy"];
pub const MONTHS: [&str; 3] = ["2024-07", "2024-08", "2024-09"];

/// A month of a derived table, shown as `bqx eurusd 2024-07`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Month {
    pub family: &'static str,
    pub pair: &'static str,
    pub month: &'static str,
}

impl Month {
    pub fn all() -> impl Iterator<Item = Month> + Clone {
        let tables = FAMILIES.into_iter().flat_map(|family| PAIRS.map(|pair| (family, pair)));
        tables.flat_map(|(family, pair)| MONTHS.map(|month| Month { family, pair, month }))
    }

    /// The derived table that it is a month of.
    pub fn table(self) -> String {
        format!("bqx.{}_{}", self.family, self.pair)
    }

    /// The name that `create_tables` and `backfill` give its partition.
    pub fn partition(self) -> String {
        format!("{}_{}_{}", self.family, self.pair, self.month.replace('-', "_"))
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.pair, self.month)
    }
}

/// All rows of a month, all columns but `created_at`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    rows: u64,
    checksum: String,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rows {
            0 => f.write_str("no rows"),
            rows => write!(f, "{rows} rows with checksum {}", self.checksum),
        }
    }
}

/// What some months hold; those that are not in it hold no rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents(BTreeMap<Month, Content>);

impl Contents {
    pub fn of(&self, month: Month) -> Content {
        self.0.get(&month).cloned().unwrap_or_default()
    }

    pub fn rows(&self) -> u64 {
        self.0.values().map(|content| content.rows).sum()
    }

    /// Takes over what others hold of a pair.
    pub fn replace_pair(&mut self, pair: &str, others: Contents) {
        self.0.retain(|month, _| month.pair != pair);
        self.0.extend(others.0);
    }

    fn extend(&mut self, others: Contents) {
        self.0.extend(others.0);
    }
}

/// Reads contents; knows the columns of the tables.
pub struct Checksums {
    columns: [String; FAMILIES.len()],
}

impl Checksums {
    /// For the derived tables as they are in this database.
    pub fn new(db: &Db) -> Self {
        let mut session = db.connect();
        let columns = FAMILIES.map(|family| {
            row(
                &mut session,
                &format!(
                    "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute \
                     WHERE attrelid = 'bqx.{family}_{}'::regclass AND attnum > 0 AND attname <> 'created_at'",
                    PAIRS[0]
                ),
            )
        });
        Self { columns }
    }

    /// What a derived table holds.
    pub fn stored(
        &self,
        session: &mut Client,
        family: &'static str,
        pair: &'static str,
    ) -> Result<Contents, Error> {
        self.read(session, family, pair, &format!("bqx.{family}_{pair}"))
    }

    /// What all derived tables hold.
    pub fn all_stored(&self, session: &mut Client) -> Result<Contents, Error> {
        let mut all = Contents::default();
        for family in FAMILIES {
            for pair in PAIRS {
                all.extend(self.stored(session, family, pair)?);
            }
        }
        Ok(all)
    }

    /// What a complete backfill of a pair's bars has to give. It comes from the set-returning functions, which know
    /// neither the tables nor the ledger.
    pub fn computed(&self, session: &mut Client, pair: &'static str) -> Result<Contents, Error> {
        let mut both = Contents::default();
        for family in FAMILIES {
            let rows = format!("bqx.{family}_metrics('{pair}', NULL, NULL)");
            both.extend(self.read(session, family, pair, &rows)?);
        }
        Ok(both)
    }

    fn read(
        &self,
        session: &mut Client,
        family: &'static str,
        pair: &'static str,
        source: &str,
    ) -> Result<Contents, Error> {
        let columns = &self.columns[FAMILIES.iter().position(|&f| f == family).expect("a family")];
        let found = try_rows(
            session,
            &format!(
                "SELECT to_char(ts_utc AT TIME ZONE 'UTC', 'YYYY-MM'), count(*), \
                        sum(hash_record_extended(ROW({columns}), 0)) FROM {source} GROUP BY 1"
            ),
        )?;
        let months = found.iter().map(|line| {
            let [name, rows, checksum] = line.split('|').collect::<Vec<_>>()[..] else {
                panic!("three columns: {line}")
            };
            let month = MONTHS.into_iter().find(|&month| month == name);
            let month = month.unwrap_or_else(|| panic!("{source} has rows in {name}"));
            let content = Content { rows: rows.parse().expect("a count"), checksum: checksum.to_owned() };
            (Month { family, pair, month }, content)
        });
        Ok(Contents(months.collect()))
    }
}
