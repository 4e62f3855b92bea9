//! What a backfill with workers takes of the server: memory and sessions.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use pgcluster::Cluster;
use serde::Serialize;

use super::endings::Caller;
use crate::bench::market::{Market, Months, backfill_call};
use crate::bench::report::Table;
use crate::bench::server::{DATABASE, OBSERVER, session};

const WORKERS: usize = 2;

/// Between two looks. What a worker needs for a month it keeps for a hundred times as long.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

#[derive(Serialize)]
pub struct Figure {
    months: Months,
    workers: usize,
    #[serde(flatten)]
    peak: Peak,
}

/// The most that a backfill took at any time.
#[derive(Serialize)]
pub struct Peak {
    /// Memory that a worker had for itself: RssAnon, shared_buffers left out.
    pub worker_megabytes: f64,
    /// The caller's and the workers' among them.
    sessions: usize,
    looks: usize,
}

/// Looks on while a psql backfills months that look back at the month before.
pub fn measure(market: &mut Market) -> Result<Vec<Figure>> {
    let pairs = market.few_pairs();
    market.empty()?;
    market.simulate_next_month(&pairs)?;
    let look_on = |months: Months| {
        let peak = look_on(market.cluster, DATABASE, &backfill_call(&pairs, WORKERS, months))?;
        Ok(Figure { months, workers: WORKERS, peak })
    };
    [Months::New, Months::Rewritten].into_iter().map(look_on).collect()
}

/// Looks on while a psql calls `call`, which starts workers.
pub fn look_on(cluster: &Cluster, database: &str, call: &str) -> Result<Peak> {
    let mut observer = session(cluster, database)?;
    let sessions_now = observer.prepare(&format!(
        "SELECT pid, backend_type = 'bqx worker' FROM pg_stat_activity \
          WHERE datname = current_database() AND backend_type NOT LIKE 'autovacuum%' \
            AND application_name <> '{OBSERVER}'"
    ))?;
    let mut caller = Caller::start(cluster, database, call)?;
    let (mut kilobytes, mut sessions, mut looks) = (0, 0, 0);
    let status = loop {
        let found = observer.query(&sessions_now, &[])?;
        sessions = sessions.max(found.len());
        for row in found.iter().filter(|row| row.get(1)) {
            let status = fs::read_to_string(format!("/proc/{}/status", row.get::<_, i32>(0)));
            if let Some(private) = status.ok().as_deref().and_then(private_kilobytes) {
                kilobytes = kilobytes.max(private);
                looks += 1;
            }
        }
        if let Some(status) = caller.process.try_wait()? {
            break status;
        }
        sleep(BETWEEN_LOOKS);
    };
    ensure!(status.success(), "{call} failed");
    ensure!(looks > 0, "no worker was seen");
    Ok(Peak { worker_megabytes: kilobytes as f64 * 1024.0 / 1e6, sessions, looks })
}

/// A process's own memory out of its `/proc/<pid>/status`.
fn private_kilobytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

pub fn table(figures: &[Figure]) -> Table<4> {
    let mut table = Table::new(["while backfilling", "workers", "sessions", "MB of a worker"], 1);
    for figure in figures {
        table.add([
            figure.months.title().to_owned(),
            figure.workers.to_string(),
            figure.peak.sessions.to_string(),
            format!("{:.1}", figure.peak.worker_megabytes),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_is_not_a_processs_own() {
        let status = "Name:\tpostgres\nVmHWM:\t 99999 kB\nRssAnon:\t    4212 kB\nRssShmem:\t 88888 kB\n";
        assert_eq!(private_kilobytes(status), Some(4212));
        assert_eq!(private_kilobytes("Name:\tkthreadd\n"), None);
    }
}
