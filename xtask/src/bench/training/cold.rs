//! Features and the join that one would write by hand, from disk.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use pgcluster::{Cluster, StopMode};
use rustix::fs::{Advice, fadvise};
use serde::Serialize;

use super::PAIR;
use crate::bench::rounds::to_and_fro;
use crate::bench::server::observer;
use crate::bench::spread::Spread;

/// The month after the first: it is looked back from.
const MONTH: [&str; 2] = ["2024-08-01 00:00+00", "2024-09-01 00:00+00"];

/// Seconds for the same rows.
#[derive(Serialize)]
pub struct ColdReads {
    pub what: &'static str,
    pub join: Spread,
    pub features: Spread,
}

pub fn measure(cluster: &Cluster, rounds: usize) -> Result<Vec<ColdReads>> {
    let ways = [
        by_hand(cluster)?,
        format!("SELECT * FROM bqx_ml.features(ARRAY['{PAIR}'], '{}', '{}')", MONTH[0], MONTH[1]),
    ];
    let mut reads = Vec::new();
    for (what, wrapped) in [
        ("two columns added up", "SELECT count(*), sum(w60_bqx_return + w630_reg_r2) FROM (@) AS f"),
        ("all columns, to nowhere", "COPY (@) TO '/dev/null' WITH (FORMAT binary)"),
    ] {
        let queries = ways.each_ref().map(|way| wrapped.replace('@', way));
        let mut seconds = [Vec::new(), Vec::new()];
        for round in 0..rounds {
            let both = to_and_fro(round, &queries, |query| from_cold(cluster, query))?;
            seconds.iter_mut().zip(both).for_each(|(all, one)| all.push(one));
        }
        let [join, features] = seconds.map(Spread::of);
        reads.push(ColdReads { what, join, features });
    }
    Ok(reads)
}

/// The columns of features, each table bounded.
fn by_hand(cluster: &Cluster) -> Result<String> {
    let metrics: String = observer(cluster)?
        .query_one("SELECT array_to_string(bqx._metric_names('bqx') || bqx._metric_names('reg'), ', ')", &[])?
        .get(0);
    let bounded = |time: &str| format!("{time} >= '{}' AND {time} < '{}'", MONTH[0], MONTH[1]);
    Ok(format!(
        "SELECT m.*, {metrics} FROM bqx.m1_{PAIR} AS m LEFT JOIN bqx.bqx_{PAIR} AS b ON b.ts_utc = m.time AND {} \
         LEFT JOIN bqx.reg_{PAIR} AS r ON r.ts_utc = m.time AND {} WHERE {} ORDER BY m.time",
        bounded("b.ts_utc"),
        bounded("r.ts_utc"),
        bounded("m.time")
    ))
}

/// Seconds that a query takes a server that has just been started, and nothing of whose files is in memory. The session has
/// looked at the extension before, whose library and tables are small.
fn from_cold(cluster: &Cluster, query: &str) -> Result<f64> {
    cluster.stop(StopMode::Fast)?;
    forget(&cluster.data_dir())?;
    cluster.start_again()?;
    let mut client = observer(cluster)?;
    client.batch_execute("SELECT bqx.rate_index(1, 1)")?;
    let start = Instant::now();
    client.batch_execute(query)?;
    Ok(start.elapsed().as_secs_f64())
}

/// Has the system forget what it holds in memory of a folder's files.
fn forget(folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            forget(&path)?;
        } else if let Ok(file) = File::open(&path) {
            // What is not on disk yet cannot be forgotten.
            file.sync_data().or_else(|error| if is_special(&error) { Ok(()) } else { Err(error) })?;
            fadvise(&file, 0, None, Advice::DontNeed)
                .or_else(|error| if is_special(&error.into()) { Ok(()) } else { Err(error) })?;
        }
    }
    Ok(())
}

fn is_special(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
}
