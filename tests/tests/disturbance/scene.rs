//! Where the trial takes place: the server and database that suffer, and the twin that does not.

use std::thread::{self, sleep};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bqx_tests::Db;
use pgcluster::Cluster;
use postgres::Client;

use super::calls::CALLER;
use super::changes::PREPARED;
use super::months::Checksums;
use super::{BETWEEN_LOOKS, PATIENCE};
use crate::common::{run_each, try_rows};

pub struct Scene<'a> {
    pub server: &'a Cluster,
    pub db: Db<'a>,
    /// Another database, on another server, with the same bars. Nobody disturbs it.
    pub twin: Db<'static>,
    pub checksums: Checksums,
}

impl<'a> Scene<'a> {
    pub fn new(server: &'a Cluster, name: &str) -> Self {
        let db = Db::on(server, name);
        let twin = Db::new(&format!("{name}_twin"));
        thread::scope(|scope| {
            scope.spawn(|| run_each(&mut twin.connect(), PREPARED));
            run_each(&mut db.connect(), PREPARED);
        });
        let checksums = Checksums::new(&db);
        Self { server, db, twin, checksums }
    }

    /// A session in the database, as soon as the server lets us in: it may be recovering.
    pub fn connect(&self) -> Result<Client> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            match self.server.connect(self.db.name()) {
                Ok(session) => return Ok(session),
                Err(error) if Instant::now() > give_up => {
                    return Err(error.context("the server does not recover"));
                }
                Err(_) => sleep(BETWEEN_LOOKS),
            }
        }
    }

    /// Waits until no worker and no caller is left.
    pub fn settle(&self, control: &mut Client) -> Result<()> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let left = try_rows(
                control,
                &format!(
                    "SELECT pid, application_name, state, wait_event, query FROM pg_stat_activity \
                     WHERE datname = current_database() \
                       AND (backend_type = 'bqx worker' OR application_name LIKE '{CALLER} %')"
                ),
            )?;
            if left.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < give_up, "these never end:\n{}", left.join("\n"));
            sleep(BETWEEN_LOOKS);
        }
    }

    /// How often the server has recovered from its write-ahead log.
    pub fn recoveries(&self) -> Result<usize> {
        Ok(self.log()?.matches("not properly shut down; automatic recovery in progress").count())
    }

    /// Errors in the server's log that no disturbance of ours explains. The log has to be verbose, for the SQLSTATEs.
    pub fn unexplained_errors(&self) -> Result<Vec<String>> {
        let log = self.log()?;
        Ok(log.lines().filter(|line| is_unexplained(line)).map(str::to_owned).collect())
    }

    fn log(&self) -> Result<String> {
        let bytes = std::fs::read(self.server.log_file()).context("the server's log")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The processes of the database's workers.
pub fn workers(control: &mut Client) -> Result<Vec<i32>> {
    let pids = try_rows(
        control,
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'bqx worker' AND datname = current_database() \
         ORDER BY backend_start, pid",
    )?;
    pids.iter().map(|pid| Ok(pid.parse()?)).collect()
}

/// SQLSTATEs of errors that disturbances lead to.
const EXPLAINED: [&str; 6] = [
    "57014", // cancelled, or an autovacuum made way
    "57P01", // terminated
    "57P03", // not accepting connections, or not yet
    "08006", // the client is gone
    "55000", // the worker ended early, as the call says
    "F0001", // the killed server's processes have not all ended yet
];

/// Whether a line of a verbose log is about an error that is none of [`EXPLAINED`].
fn is_unexplained(line: &str) -> bool {
    let code = |severity: &str| line.split_once(severity).map(|(_, rest)| rest.trim_start());
    let crash = ["TRAP:", "by signal 6", "by signal 11"].iter().any(|sign| line.contains(sign));
    let error = ["ERROR:  ", "FATAL:  ", "PANIC:  "].iter().find_map(|severity| code(severity));
    crash || error.is_some_and(|rest| !EXPLAINED.iter().any(|code| rest.starts_with(code)))
}

#[test]
fn errors_that_nobody_caused_are_told_from_the_others() {
    for (line, unexplained) in [
        (
            "2024-07-01 12:00:00.000 UTC [42] LOG:  00000: database system is ready to accept connections",
            false,
        ),
        ("2024-07-01 12:00:00.000 UTC [42] ERROR:  57014: canceling statement due to user request", false),
        ("2024-07-01 12:00:00.000 UTC [42] ERROR:  40P01: deadlock detected", true),
        ("2024-07-01 12:00:00.000 UTC [42] PANIC:  XX000: could not open file", true),
        (
            "2024-07-01 12:00:00.000 UTC [1] LOG:  00000: server process (PID 42) was terminated by signal 9: Killed",
            false,
        ),
        (
            "2024-07-01 12:00:00.000 UTC [1] LOG:  00000: server process (PID 42) was terminated by signal 11",
            true,
        ),
    ] {
        assert_eq!(is_unexplained(line), unexplained, "{line}");
    }
}
