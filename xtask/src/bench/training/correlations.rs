//! How features go with a target, all at once and one by one.

use std::time::Instant;

use anyhow::{Result, ensure};
use pgcluster::Cluster;
use postgres::Client;
use serde::Serialize;

use super::PAIR;
use crate::bench::server::observer;

/// Features that are asked of the views: as long as each other, and each takes seconds.
const OF_VIEWS: usize = 3;

#[derive(Serialize)]
pub struct Correlations {
    pub features: usize,
    pub rows: i64,
    pub seconds: f64,
    /// Of one query for each feature.
    pub over_tables: f64,
    pub over_views: f64,
}

pub fn measure(cluster: &Cluster) -> Result<Correlations> {
    let mut client = observer(cluster)?;
    let seconds = compute(&mut client)?;
    let rows =
        client.query_one("SELECT sum(n)::bigint FROM bqx_ml.correlations WHERE feature = 'close'", &[])?;
    let features: Vec<(String, String)> = client
        .query(
            "SELECT n, CASE WHEN n ~ '_bqx_' THEN 'bqx' WHEN n ~ '_reg_' THEN 'reg' ELSE 'm1' END \
             FROM unnest(bqx._feature_names()) AS n",
            &[],
        )?
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    check(&mut client)?;

    let start = Instant::now();
    for (feature, family) in &features {
        client.query_one(&over_tables(feature, family), &[])?;
    }
    let over_tables = start.elapsed().as_secs_f64();

    let start = Instant::now();
    for (feature, _) in features.iter().rev().take(OF_VIEWS) {
        client.query_one(
            &format!(
                "SELECT corr(f.{feature}, t.w60_bqx_return_h60) \
                 FROM bqx_ml.features_{PAIR} AS f JOIN bqx_ml.targets_{PAIR} AS t USING (ts_utc)"
            ),
            &[],
        )?;
    }
    let over_views = start.elapsed().as_secs_f64() / OF_VIEWS as f64 * features.len() as f64;
    Ok(Correlations { features: features.len(), rows: rows.get(0), seconds, over_tables, over_views })
}

/// Twice, so that what is measured finds what it reads in memory, as the queries after it do.
fn compute(client: &mut Client) -> Result<f64> {
    let mut seconds = 0.0;
    for _ in 0..2 {
        let start = Instant::now();
        client.batch_execute(&format!("CALL bqx.compute_correlations(ARRAY['{PAIR}'])"))?;
        seconds = start.elapsed().as_secs_f64();
    }
    Ok(seconds)
}

/// SQL for the correlation of a feature with the target over the whole history.
fn over_tables(feature: &str, family: &str) -> String {
    let time = if family == "m1" { "time" } else { "ts_utc" };
    format!(
        "SELECT corr(x.{feature}, y.w60_bqx_return) FROM bqx.{family}_{PAIR} AS x \
         JOIN bqx.bqx_{PAIR} AS y ON y.ts_utc = x.{time} + interval '60 minutes'"
    )
}

/// That a month's correlation is what corr() says.
fn check(client: &mut Client) -> Result<()> {
    let apart: f64 = client
        .query_one(
            &format!(
                "SELECT max(abs(c.pearson - q.r)) FROM bqx_ml.correlations AS c JOIN ( \
                 SELECT date_trunc('month', x.ts_utc)::date AS month, corr(x.w60_reg_r2, y.w60_bqx_return) AS r \
                 FROM bqx.reg_{PAIR} AS x JOIN bqx.bqx_{PAIR} AS y ON y.ts_utc = x.ts_utc + interval '60 minutes' GROUP BY 1) AS q \
                 USING (month) WHERE c.feature = 'w60_reg_r2'"
            ),
            &[],
        )?
        .get(0);
    ensure!(apart < 1e-9, "correlations are {apart} away from those of corr()");
    Ok(())
}
