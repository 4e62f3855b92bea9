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

    /// Lines of the server's log that no disturbance of ours explains.
    pub fn alarming_log_lines(&self) -> Result<Vec<String>> {
        const ALARMING: [&str; 6] =
            ["PANIC:", "TRAP:", "by signal 6", "by signal 11", "deadlock detected", "XX0"];
        let log = self.log()?;
        let lines = log.lines().filter(|line| ALARMING.iter().any(|alarm| line.contains(alarm)));
        Ok(lines.map(str::to_owned).collect())
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
