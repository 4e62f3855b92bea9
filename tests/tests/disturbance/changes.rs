//! What happens to bars and derived rows between backfills, so that the next one has something to do.

use std::fmt;

use rand::RngExt;
use rand::prelude::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::months::{FAMILIES, MONTHS, Month, PAIRS};

/// The bars of the trial: every twentieth minute of a simulated market, indexed; and empty derived tables. The baselines'
/// bars, which are the first, are never changed.
pub const PREPARED: &[&str] = &[
    "CALL bqx.simulate_m1(ARRAY['eurusd', 'gbpusd', 'usdjpy'], '2024-07-01', '2024-09-01')",
    "DELETE FROM bqx.m1_eurusd WHERE extract(minute FROM time)::int % 20 <> 0",
    "DELETE FROM bqx.m1_gbpusd WHERE extract(minute FROM time)::int % 20 <> 0",
    "DELETE FROM bqx.m1_usdjpy WHERE extract(minute FROM time)::int % 20 <> 0",
    "VACUUM FULL bqx.m1_eurusd, bqx.m1_gbpusd, bqx.m1_usdjpy",
    "CALL bqx.set_baselines()",
    "CALL bqx.index_m1()",
    "CALL bqx.create_tables()",
];

/// A change, as SQL that can be run in a transaction.
pub struct Change {
    pub sql: String,
    pub of: Subject,
}

/// Whose rows a change is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    Bars { pair: &'static str },
    Derived { family: &'static str, pair: &'static str },
}

impl Change {
    pub fn random(rng: &mut ChaCha8Rng) -> Self {
        match rng.random_range(0..8) {
            0..=2 => Self::of_bars(rng),
            3..=5 => Self::of_a_month(rng),
            _ => Self::of_a_table(rng),
        }
    }

    /// Bars are corrected, deleted or inserted, of an hour or of some days.
    fn of_bars(rng: &mut ChaCha8Rng) -> Self {
        let pair = *PAIRS.choose(rng).expect("pairs");
        let month = MONTHS.choose(rng).expect("months");
        let (day, hour, hours) =
            (rng.random_range(3..=30), rng.random_range(0..24), rng.random_range(1..=72));
        let from = format!("'{month}-{day:02} {hour:02}:00+00'::timestamptz");
        let range = format!("time >= {from} AND time < {from} + interval '{hours} h'");
        let sql = match rng.random_range(0..3) {
            0 => {
                let factor = ["0.999", "1.001"].choose(rng).expect("factors");
                format!("UPDATE bqx.m1_{pair} SET close = close * {factor} WHERE {range}")
            }
            1 => format!("DELETE FROM bqx.m1_{pair} WHERE {range}"),
            // Within the months: there are no partitions for others.
            _ => format!(
                "INSERT INTO bqx.m1_{pair} (time, open, high, low, close) SELECT b.time, p, p, p, p \
                   FROM (SELECT close AS p FROM bqx.m1_{pair} ORDER BY time LIMIT 1) AS first_bar, \
                        generate_series({from} + interval '3 min', {from} + interval '{hours} h', '20 min') AS b (time) \
                  WHERE b.time < '2024-10-01 00:00+00' ON CONFLICT DO NOTHING"
            ),
        };
        Self { sql, of: Subject::Bars { pair } }
    }

    /// A month's rows go: with their storage or partition, so that it can be written the fast way, or by a DELETE.
    fn of_a_month(rng: &mut ChaCha8Rng) -> Self {
        let family = *FAMILIES.choose(rng).expect("families");
        let pair = *PAIRS.choose(rng).expect("pairs");
        let month = Month { family, pair, month: MONTHS.choose(rng).expect("months") };
        let partition = month.partition();
        let rows = format!(
            "bqx.{family}_{pair} WHERE to_char(ts_utc AT TIME ZONE 'UTC', 'YYYY-MM') = '{}'",
            month.month
        );
        let sql = match rng.random_range(0..4) {
            0 => format!("DROP TABLE IF EXISTS bqx.{partition}"),
            1 => format!(
                "DO $$ BEGIN IF to_regclass('bqx.{partition}') IS NOT NULL THEN TRUNCATE bqx.{partition}; END IF; END $$"
            ),
            2 => format!("DELETE FROM {rows}"),
            _ => format!(
                "DELETE FROM {rows} AND extract(hour FROM ts_utc AT TIME ZONE 'UTC') = {}",
                rng.random_range(0..24)
            ),
        };
        Self { sql, of: Subject::Derived { family, pair } }
    }

    /// All months of a table go: a long piece of work to be disturbed at.
    fn of_a_table(rng: &mut ChaCha8Rng) -> Self {
        let family = *FAMILIES.choose(rng).expect("families");
        let pair = *PAIRS.choose(rng).expect("pairs");
        let how = ["TRUNCATE", "DELETE FROM"].choose(rng).expect("ways");
        Self { sql: format!("{how} bqx.{family}_{pair}"), of: Subject::Derived { family, pair } }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sql)
    }
}
