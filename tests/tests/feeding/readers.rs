//! Readers of the pairs that are always live: whenever they look, the rows are those of the bars.

use std::time::Duration;

use anyhow::Result;
use postgres::{Client, Error};
use rand::RngExt;
use rand::prelude::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::counts::Counts;
use super::differences::{Columns, Stretch};
use super::market::{PAIRS, Pair};
use crate::common::try_rows;
use crate::soak::bystanders::{Curfew, in_sessions};
use crate::soak::site::Site;

pub const READER: &str = "reader";

/// Looks, in a REPEATABLE READ transaction, at all bars and rows of a pair, whether there are those that there should be,
/// and at what is in some of them; over and over.
pub fn run(
    site: &Site,
    columns: &Columns,
    counts: &Counts,
    number: u64,
    curfew: &Curfew,
    mut rng: ChaCha8Rng,
) -> Result<()> {
    let pairs: Vec<&Pair> = PAIRS.iter().filter(|pair| pair.is_always_live()).collect();
    in_sessions(site, &format!("{READER} {number}"), curfew, |session| {
        let pair = pairs.choose(&mut rng).expect("a pair");
        session.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
        let mut wrong = bars_without_rows(session, pair)?;
        for _ in 0..2 {
            curfew.pause(Duration::from_millis(rng.random_range(0..50)));
            let (from, to) = some_bars(session, pair, &mut rng)?;
            let (rows, differences) = columns.compare(session, pair, &Stretch(&from, &to))?;
            counts.add("rows compared meanwhile", rows);
            wrong.extend(differences);
        }
        session.batch_execute("COMMIT")?;
        counts.add("looks at a pair that is live", 1);
        curfew.pause(Duration::from_millis(rng.random_range(0..100)));
        Ok(if wrong.is_empty() { Ok(()) } else { Err(format!("saw\n{}", wrong.join("\n"))) })
    })
}

/// Bars without their rows in both tables, and rows without bars.
pub fn bars_without_rows(session: &mut Client, pair: &Pair) -> Result<Vec<String>, Error> {
    let name = pair.name;
    try_rows(
        session,
        &format!(
            "SELECT concat_ws(' ', '{name}', coalesce(b.time, d.ts_utc, r.ts_utc), 'bar:', b.time IS NOT NULL, \
                              'bqx row:', d.ts_utc IS NOT NULL, 'reg row:', r.ts_utc IS NOT NULL) \
               FROM bqx.m1_{name} AS b FULL JOIN bqx.bqx_{name} AS d ON d.ts_utc = b.time \
                                       FULL JOIN bqx.reg_{name} AS r ON r.ts_utc = coalesce(b.time, d.ts_utc) \
              WHERE b.time IS NULL OR d.ts_utc IS NULL OR r.ts_utc IS NULL ORDER BY 1 LIMIT 10"
        ),
    )
}

/// A stretch of some dozens of bars: of the newest, which most feeds change, or any.
fn some_bars(session: &mut Client, pair: &Pair, rng: &mut ChaCha8Rng) -> Result<(String, String), Error> {
    let name = pair.name;
    let count = rng.random_range(1..60);
    let bars = match rng.random_ratio(1, 2) {
        true => format!("SELECT time FROM bqx.m1_{name} ORDER BY time DESC LIMIT {count}"),
        false => format!(
            "SELECT time FROM bqx.m1_{name} ORDER BY time \
             OFFSET (SELECT count(*) * {} FROM bqx.m1_{name}) LIMIT {count}",
            rng.random::<f64>()
        ),
    };
    let ends = "SELECT quote_literal(min(time)), quote_literal(max(time) + interval '1 min')";
    let found = try_rows(session, &format!("{ends} FROM ({bars}) AS b"))?;
    let (from, to) = found[0].split_once('|').expect("two columns");
    Ok((from.to_owned(), to.to_owned()))
}
