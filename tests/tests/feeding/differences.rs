//! Derived rows beside what the set-returning functions compute from the bars, bit for bit, in one snapshot.

use bqx_tests::Db;
use postgres::{Client, Error};

use super::market::{FAMILIES, PAIRS, Pair};
use crate::common::{row, try_rows};

/// The columns of the families' tables.
pub struct Columns([String; FAMILIES.len()]);

/// A stretch of time, as SQL: from, and to (exclusive).
pub struct Stretch<'a>(pub &'a str, pub &'a str);

impl Stretch<'static> {
    pub const EVER: Self = Stretch("'-infinity'", "'infinity'");
}

impl Columns {
    /// For the derived tables as they are in this database.
    pub fn new(db: &Db) -> Self {
        let mut session = db.connect();
        Self(FAMILIES.map(|family| {
            let table = format!("bqx.{family}_{}", PAIRS[0].name);
            let columns = "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute \
                           WHERE attrelid = '{table}'::regclass AND attnum > 0 AND attname <> 'created_at'";
            row(&mut session, &columns.replace("{table}", &table))
        }))
    }

    /// Compares the rows of both families; returns how many bars there are, and the first of the rows that differ.
    pub fn compare(
        &self,
        session: &mut Client,
        pair: &Pair,
        stretch: &Stretch,
    ) -> Result<(u64, Vec<String>), Error> {
        let mut bars = 0;
        let mut differences = Vec::new();
        for (family, columns) in FAMILIES.iter().zip(&self.0) {
            let Stretch(from, to) = stretch;
            let found = try_rows(
                session,
                &format!(
                    "SELECT count(c.ts_utc), count(*) FILTER (WHERE differs), min(ts_utc) FILTER (WHERE differs), \
                            bool_and(s.ts_utc IS NULL) FILTER (WHERE differs), bool_and(c.ts_utc IS NULL) FILTER (WHERE differs) \
                       FROM (SELECT ts_utc, ROW({columns}) AS r FROM bqx.{family}_metrics('{name}', {from}, {to})) AS c \
                       FULL JOIN (SELECT ts_utc, ROW({columns}) AS r FROM bqx.{family}_{name} \
                                   WHERE ts_utc >= {from} AND ts_utc < {to}) AS s USING (ts_utc) \
                      CROSS JOIN LATERAL (SELECT c.ts_utc IS NULL OR s.ts_utc IS NULL OR c.r *<> s.r) AS d (differs)",
                    name = pair.name
                ),
            )?;
            let [computed, differing, first, missing, surplus] = found[0].split('|').collect::<Vec<_>>()[..]
            else {
                panic!("five columns: {found:?}")
            };
            bars = computed.parse().expect("a count");
            if differing != "0" {
                let how = match (missing, surplus) {
                    ("t", _) => "are missing",
                    (_, "t") => "have no bar",
                    _ => "are others",
                };
                differences.push(format!(
                    "{family} {}: {differing} rows {how} than computed from its {computed} bars, first at {first}",
                    pair.name
                ));
            }
        }
        Ok((bars, differences))
    }
}
