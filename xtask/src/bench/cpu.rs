//! Who uses the processors: the server that is measured, or others, whose share spoils what is measured.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use pgcluster::Cluster;
use rustix::param::clock_ticks_per_second;

/// Seconds of processor time, since whenever.
#[derive(Clone, Copy)]
pub struct CpuTime {
    /// Of all processes of the server.
    pub server: f64,
    /// Of everything on the machine, and of what other machines take away from it.
    pub machine: f64,
}

impl CpuTime {
    pub fn now(cluster: &Cluster) -> Result<CpuTime> {
        let postmaster = cluster.postmaster_pid()?.as_raw_nonzero().get();
        let processes = fs::read_dir("/proc")?.filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            Some((pid, ProcessTicks::of(pid)?))
        });
        let server: u64 = processes
            .map(|(pid, ticks)| match (pid, ticks.parent) {
                (pid, _) if pid == postmaster => ticks.own + ticks.of_ended_children,
                (_, parent) if parent == postmaster => ticks.own,
                _ => 0,
            })
            .sum();
        let machine = machine_ticks(&fs::read_to_string("/proc/stat")?).context("/proc/stat is odd")?;
        Ok(CpuTime { server: seconds(server), machine: seconds(machine) })
    }
}

/// Seconds of processor time that a process has used in all its threads; 0 where there is none.
fn used_by(pid: i32) -> f64 {
    ProcessTicks::of(pid).map_or(0.0, |ticks| seconds(ticks.own))
}

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / clock_ticks_per_second() as f64
}

/// A piece of work that was measured.
pub struct Run {
    pub seconds: f64,
    /// Of the server, and of the clients that were named.
    pub cpu_seconds: f64,
    /// Processors that were busy with something else, on average.
    pub busy_with_others: f64,
}

impl Run {
    /// Measures work that the server does.
    pub fn of(cluster: &Cluster, work: impl FnOnce() -> Result<()>) -> Result<Run> {
        Run::with_clients(cluster, &[], work)
    }

    /// Measures work that the server does together with these processes, whose processor time counts as the server's.
    pub fn with_clients(
        cluster: &Cluster,
        clients: &[i32],
        work: impl FnOnce() -> Result<()>,
    ) -> Result<Run> {
        let used_by_clients = || clients.iter().map(|&pid| used_by(pid)).sum::<f64>();
        let used_before = used_by_clients();
        let (cpu_before, start) = (CpuTime::now(cluster)?, Instant::now());
        work()?;
        let (seconds, cpu_after) = (start.elapsed().as_secs_f64(), CpuTime::now(cluster)?);
        let cpu_seconds = cpu_after.server - cpu_before.server + used_by_clients() - used_before;
        let others = cpu_after.machine - cpu_before.machine - cpu_seconds;
        Ok(Run { seconds, cpu_seconds, busy_with_others: (others / seconds).max(0.0) })
    }
}

/// What `/proc/<pid>/stat` tells of a process.
#[derive(Debug, PartialEq, Eq)]
struct ProcessTicks {
    parent: i32,
    own: u64,
    of_ended_children: u64,
}

impl ProcessTicks {
    /// None if the process is gone.
    fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        let (_, after_name) = stat.rsplit_once(')')?; // a name may hold spaces, and parentheses
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        let ticks = |field: usize| fields.get(field)?.parse::<u64>().ok();
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            own: ticks(11)? + ticks(12)?,
            of_ended_children: ticks(13)? + ticks(14)?,
        })
    }
}

/// All but idle time, and time that guests used, which is counted twice.
fn machine_ticks(stat: &str) -> Option<u64> {
    let ticks: Option<Vec<u64>> =
        stat.lines().next()?.split_whitespace().skip(1).map(|field| field.parse().ok()).collect();
    match ticks?[..] {
        [user, nice, system, _idle, _waiting, irq, softirq, stolen, ..] => {
            Some(user + nice + system + irq + softirq + stolen)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_behind_its_name() {
        let stat = "4711 (postgres: (odd) name) S 42 4711 4711 0 -1 4194560 9 8 7 6 100 20 3 4 20 0 1 0 555";
        let expected = ProcessTicks { parent: 42, own: 120, of_ended_children: 7 };
        assert_eq!(ProcessTicks::parse(stat), Some(expected));
        assert_eq!(ProcessTicks::parse("4711 (postgres) S 42"), None);
    }

    #[test]
    fn the_machine_is_busy_with_everything_but_waiting() {
        let stat = "cpu  1 20 300 4000 50000 600000 7000000 80000000 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(machine_ticks(stat), Some(87_600_321));
        assert_eq!(machine_ticks("cpu 1 2 3\n"), None);
    }
}
