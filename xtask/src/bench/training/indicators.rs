//! Indicators over a pair's bars, in bars per second.

use anyhow::Result;
use pgcluster::Cluster;
use serde::Serialize;

use super::PAIR;
use crate::bench::rounds::to_and_fro;
use crate::bench::server::observer;
use crate::bench::spread::Spread;

/// A call over a frame of the bars in the order of time, and PostgreSQL's own for the same, if it has one.
const CALLS: [(&str, &str, Option<&str>); 11] = [
    ("bqx.sma(close, 20)", "", Some("avg(close) ROWS 19 PRECEDING")),
    ("bqx.sma(close, 200)", "", Some("avg(close) ROWS 199 PRECEDING")),
    ("bqx.ema(close, 20)", "", None),
    ("bqx.rsi(close, 14)", "", None),
    ("bqx.macd(close, 12, 26, 9)", "", None),
    ("bqx.bollinger(close, 20, 2)", "", None),
    ("bqx.atr(high, low, close, 14)", "", None),
    ("bqx.cci(high, low, close, 20)", "", None),
    ("bqx.candlesticks(open, high, low, close)", "", None),
    ("bqx.rolling_corr(close, low)", "ROWS 59 PRECEDING", Some("corr(close, low) ROWS 59 PRECEDING")),
    ("bqx.rolling_corr(close, low)", "ROWS 389 PRECEDING", Some("corr(close, low) ROWS 389 PRECEDING")),
];

#[derive(Serialize)]
pub struct Rate {
    pub call: String,
    pub bars_per_second: Spread,
    /// The other call's seconds in terms of this one's, both in the same round; the median.
    pub times_postgres: Option<f64>,
}

/// Over a month, whose bars have been read before.
pub fn measure(cluster: &Cluster, rounds: usize) -> Result<Vec<Rate>> {
    let mut client = observer(cluster)?;
    client.batch_execute("SET max_parallel_workers_per_gather = 0")?;
    let bars = format!("bqx.m1_{PAIR} WHERE time < '2024-08-01 00:00+00'");
    let count: i64 = client.query_one(&format!("SELECT count(*) FROM {bars}"), &[])?.get(0);
    let mut rates = Vec::new();
    for (call, frame, own) in CALLS {
        let mut queries = vec![over(call, frame, &bars)];
        queries.extend(own.map(|own| {
            let (call, frame) = own.split_at(own.find(" ROWS").expect("a frame"));
            over(call, frame, &bars)
        }));
        let (mut seconds, mut ratios) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let taken = to_and_fro(round, &queries, |query| {
                Ok(Spread::of_seconds(1, || Ok(client.batch_execute(query)?))?.median)
            })?;
            seconds.push(taken[0]);
            ratios.extend(taken.get(1).map(|own| own / taken[0]));
        }
        rates.push(Rate {
            call: format!("{call} {frame}").trim_end().to_owned(),
            bars_per_second: Spread::of(seconds).rate_of(count as f64),
            times_postgres: own.map(|_| Spread::of(ratios).median),
        });
    }
    Ok(rates)
}

fn over(call: &str, frame: &str, bars: &str) -> String {
    format!("SELECT count(r) FROM (SELECT {call} OVER (ORDER BY time {frame}) AS r FROM {bars}) AS readings")
}
