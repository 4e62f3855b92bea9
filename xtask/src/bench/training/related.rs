//! How soon the wide relation begins.

use std::time::Instant;

use anyhow::Result;
use pgcluster::Cluster;
use serde::Serialize;

use super::PAIR;
use crate::bench::server::observer;
use crate::bench::spread::Spread;

#[derive(Serialize)]
pub struct FirstRows {
    pub what: &'static str,
    pub columns: usize,
    pub seconds: Spread,
}

/// The first month, which all pairs have.
pub fn measure(cluster: &Cluster, rounds: usize) -> Result<Vec<FirstRows>> {
    let ways = [
        (
            "the view",
            format!(
                "bqx_ml.related_{PAIR} WHERE ts_utc >= '2024-07-01 00:00+00' AND ts_utc < '2024-08-01 00:00+00'"
            ),
        ),
        ("the function", format!("bqx_ml.related('{PAIR}', '2024-07-01 00:00+00', '2024-08-01 00:00+00')")),
    ];
    let mut found = Vec::new();
    for (what, relation) in ways {
        let mut seconds = Vec::new();
        let mut columns = 0;
        for _ in 0..rounds {
            let mut client = observer(cluster)?;
            let start = Instant::now();
            client.batch_execute(&format!("BEGIN; DECLARE c CURSOR FOR SELECT * FROM {relation}"))?;
            let row = client.query_one("FETCH 1 FROM c", &[])?;
            seconds.push(start.elapsed().as_secs_f64());
            columns = row.len();
        }
        found.push(FirstRows { what, columns, seconds: Spread::of(seconds) });
    }
    Ok(found)
}
