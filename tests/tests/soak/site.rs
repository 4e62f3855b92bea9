//! The server and database that suffer.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bqx_tests::Db;
use pgcluster::{Cluster, StopMode};
use postgres::{Client, NoTls};

use super::{BETWEEN_LOOKS, PATIENCE};
use crate::common::try_rows;

pub struct Site<'a> {
    pub server: &'a Cluster,
    pub db: Db<'a>,
}

impl<'a> Site<'a> {
    pub fn new(server: &'a Cluster, name: &str) -> Self {
        Self { server, db: Db::on(server, name) }
    }

    /// A session in the database, as soon as the server lets us in: it may be recovering.
    pub fn connect(&self) -> Result<Client> {
        self.connect_as("soak")
    }

    /// The same, with an `application_name`.
    pub fn connect_as(&self, name: &str) -> Result<Client> {
        let mut config = self.server.connection_config(self.db.name());
        config.application_name(name);
        let give_up = Instant::now() + PATIENCE;
        loop {
            match config.connect(NoTls) {
                Ok(session) => return Ok(session),
                Err(error) if Instant::now() > give_up => {
                    return Err(error).context("the server does not recover");
                }
                Err(_) => sleep(BETWEEN_LOOKS),
            }
        }
    }

    /// Waits until no worker is left, and no session whose `application_name` begins with one of these.
    pub fn settle(&self, control: &mut Client, names: &[&str]) -> Result<()> {
        let sessions: String =
            names.iter().map(|name| format!(" OR application_name LIKE '{name} %'")).collect();
        let query = format!(
            "SELECT pid, application_name, state, wait_event, query FROM pg_stat_activity \
             WHERE datname = current_database() AND (backend_type = 'bqx worker'{sessions})"
        );
        let give_up = Instant::now() + PATIENCE;
        loop {
            let left = try_rows(control, &query)?;
            if left.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < give_up, "these never end:\n{}", left.join("\n"));
            sleep(BETWEEN_LOOKS);
        }
    }

    /// Kills a process of the server, and waits until the server has noticed and ended all sessions: before that, a new
    /// session might still get in and be ended, too. False if the process had ended by itself in that instant.
    pub fn kill(&self, control: &mut Client, pid: i32) -> Result<bool> {
        const TO_NOTICE: Duration = Duration::from_secs(20);
        if self.server.kill_backend(pid).is_err() {
            return Ok(false);
        }
        let give_up = Instant::now() + TO_NOTICE;
        while control.batch_execute("SELECT").is_ok() {
            if Instant::now() > give_up {
                return Ok(false);
            }
            sleep(BETWEEN_LOOKS);
        }
        Ok(true)
    }

    /// The machine fails, as far as the server can tell, and comes up again.
    pub fn kill_postmaster(&self) -> Result<()> {
        self.server.kill_postmaster()?;
        self.server.start_again()
    }

    pub fn stop_immediately(&self) -> Result<()> {
        self.server.stop(StopMode::Immediate)?;
        self.server.start_again()
    }

    /// How often the server has recovered from its write-ahead log.
    pub fn recoveries(&self) -> Result<usize> {
        Ok(self.log()?.matches("not properly shut down; automatic recovery in progress").count())
    }

    /// Errors in the server's log that neither a disturbance explains nor one of these other SQLSTATEs. The log has to be
    /// verbose, for the SQLSTATEs.
    pub fn unexplained_errors(&self, others: &[&str]) -> Result<Vec<String>> {
        let log = self.log()?;
        Ok(log.lines().filter(|line| is_unexplained(line, others)).map(str::to_owned).collect())
    }

    pub fn log(&self) -> Result<String> {
        let bytes = std::fs::read(self.server.log_file()).context("the server's log")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Sends a signal through SQL; false if its receiver is gone.
pub fn signal(control: &mut Client, function: &str, pid: i32) -> Result<bool> {
    Ok(try_rows(control, &format!("SELECT {function}({pid})"))? == ["t"])
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

/// What PostgreSQL says of a process that crashed, or that did not tidy up after itself.
const NEVER_EXPLAINED: [&str; 7] = [
    "TRAP:",
    "by signal 6",
    "by signal 11",
    "still active",
    "leak:",
    "non-empty SPI stack",
    "you don't own a lock of type",
];

/// Whether a line of a verbose log is about an error that is none of [`EXPLAINED`], nor one of others.
fn is_unexplained(line: &str, others: &[&str]) -> bool {
    let code = |severity: &str| line.split_once(severity).map(|(_, rest)| rest.trim_start());
    let error = ["ERROR:  ", "FATAL:  ", "PANIC:  "].iter().find_map(|severity| code(severity));
    NEVER_EXPLAINED.iter().any(|sign| line.contains(sign))
        || error.is_some_and(|rest| !EXPLAINED.iter().chain(others).any(|code| rest.starts_with(code)))
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
        ("2024-07-01 12:00:00.000 UTC [42] ERROR:  40001: could not serialize access", false),
        ("2024-07-01 12:00:00.000 UTC [42] PANIC:  XX000: could not open file", true),
        ("2024-07-01 12:00:00.000 UTC [42] WARNING:  01000: snapshot 0x5581 still active", true),
        (
            "2024-07-01 12:00:00.000 UTC [1] LOG:  00000: server process (PID 42) was terminated by signal 9: Killed",
            false,
        ),
        (
            "2024-07-01 12:00:00.000 UTC [1] LOG:  00000: server process (PID 42) was terminated by signal 11",
            true,
        ),
    ] {
        assert_eq!(is_unexplained(line, &["40001"]), unexplained, "{line}");
    }
}
