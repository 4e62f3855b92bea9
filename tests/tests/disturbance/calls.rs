//! Backfills as a client calls them: psql as a process of its own, which can be interrupted and killed.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bqx_tests::Db;
use postgres::Client;
use rand::RngExt;
use rand::prelude::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use rustix::process::{Pid, Signal, kill_process};

use super::months::{FAMILIES, Month, PAIRS};
use crate::common::try_rows;
use crate::soak::{BETWEEN_LOOKS, PATIENCE};

/// What the calling sessions' `application_name` begins with.
pub const CALLER: &str = "caller";

/// A call of `bqx.backfill`; shown as its SQL.
#[derive(Clone, Debug)]
pub struct Call {
    pub families: Vec<&'static str>,
    pub pairs: Vec<&'static str>,
    pub workers: usize,
    pub force: bool,
    pub wait: bool,
}

impl Call {
    /// Most calls are for everything, some for one family or pair.
    pub fn random(rng: &mut ChaCha8Rng) -> Self {
        let one_of = |all: &[&'static str], rng: &mut ChaCha8Rng| match rng.random_ratio(1, 4) {
            true => vec![*all.choose(rng).expect("some")],
            false => all.to_vec(),
        };
        Self {
            families: one_of(&FAMILIES, rng),
            pairs: one_of(&PAIRS, rng),
            workers: rng.random_range(0..=3),
            force: rng.random_ratio(1, 4),
            wait: rng.random_ratio(3, 4),
        }
    }

    pub fn covers(&self, month: Month) -> bool {
        self.families.contains(&month.family) && self.pairs.contains(&month.pair)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { families, pairs, workers, force, wait } = self;
        let (families, pairs) = (families.join(","), pairs.join(","));
        write!(
            f,
            "CALL bqx.backfill('{{{families}}}', '{{{pairs}}}', workers => {workers}, force => {force}, wait => {wait})"
        )
    }
}

/// A client while it calls. It ends with this value, if not before.
pub struct Caller {
    pub call: Call,
    name: String,
    psql: Child,
    said: File,
}

/// How a call ended, as its client saw it.
pub struct Report {
    pub call: Call,
    pub succeeded: bool,
    pub said: String,
}

impl Caller {
    pub fn start(db: &Db, number: usize, call: Call) -> Result<Self> {
        let name = format!("{CALLER} {number}");
        let said = tempfile::tempfile()?;
        let mut psql = db.psql_command();
        psql.args(["-v", "ON_ERROR_STOP=1", "-c", &call.to_string()]).env("PGAPPNAME", &name);
        psql.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said.try_clone()?);
        let psql = psql.spawn().context("cannot start psql")?;
        Ok(Self { call, name, psql, said })
    }

    /// The process of its session in the server, while that is busy with the call.
    pub fn backend(&self, control: &mut Client) -> Result<Option<i32>> {
        let query = format!(
            "SELECT pid FROM pg_stat_activity WHERE application_name = '{}' AND state = 'active' AND query ~ '^CALL'",
            self.name
        );
        Ok(try_rows(control, &query)?.first().map(|pid| pid.parse()).transpose()?)
    }

    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.psql.try_wait()?.is_some())
    }

    /// What Ctrl-C does.
    pub fn interrupt(&self) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.psql), Signal::INT)?)
    }

    /// The client is gone without a word; its socket closes.
    pub fn kill(&mut self) -> Result<()> {
        Ok(self.psql.kill()?)
    }

    /// Waits for the client's end.
    pub fn finish(mut self) -> Result<Report> {
        let give_up = Instant::now() + PATIENCE;
        while !self.has_ended()? {
            ensure!(Instant::now() < give_up, "{} never returns", self.call);
            sleep(BETWEEN_LOOKS);
        }
        let mut said = String::new();
        self.said.rewind()?;
        self.said.read_to_string(&mut said)?;
        Ok(Report { call: self.call.clone(), succeeded: self.psql.wait()?.success(), said })
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = self.psql.kill(); // has ended long ago, if all went well
        let _ = self.psql.wait();
    }
}
