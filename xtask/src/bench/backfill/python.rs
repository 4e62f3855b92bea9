//! Sessions of contenders that work in Python: a process each, which is told one month after the other.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use bqx_tests::python::environment;
use pgcluster::{Cluster, workspace_root};
use serde_json::json;

use super::months::PairMonth;
use super::sessions::Session;
use crate::bench::server::DATABASE;

/// What the scripts import; the same versions for everybody.
const PACKAGES: [&str; 5] =
    ["numpy==2.4.6", "polars==2.1.0", "duckdb==2.0.0", "psycopg[binary]==3.3.9", "psycopg2-binary==2.9.13"];

/// The Python that has them, in an environment of the benchmark's own.
pub fn with_packages() -> Result<PathBuf> {
    environment("bench", &PACKAGES)
}

/// A process that has imported all it needs and is connected.
pub struct PythonSession {
    process: Child,
    /// None once the process is to end.
    requests: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
    /// Rows to make of each month, if not all.
    sample: Option<u32>,
}

impl PythonSession {
    /// Starts a script, which may use so many threads.
    pub fn open(
        cluster: &Cluster,
        python: &Path,
        script: &str,
        threads: usize,
        sample: Option<u32>,
    ) -> Result<Self> {
        let mut command = Command::new(python);
        cluster.lead_to(DATABASE, &mut command);
        command.arg(workspace_root().join("xtask/src/bench/backfill/python").join(script));
        for variable in ["THREADS", "POLARS_MAX_THREADS", "OPENBLAS_NUM_THREADS"] {
            command.env(variable, threads.to_string());
        }
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        // What it says of errors goes where ours do: in a pipe that nobody reads it could get stuck.
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().with_context(|| format!("cannot run {}", python.display()))?;
        let requests = process.stdin.take();
        let replies = BufReader::new(process.stdout.take().context("the process has an output")?);
        let mut session = Self { process, requests, replies, sample };
        session.expect("ready")?;
        Ok(session)
    }

    fn expect(&mut self, expected: &str) -> Result<()> {
        let mut reply = String::new();
        self.replies.read_line(&mut reply)?;
        ensure!(reply.trim_end() == expected, "the script said {reply:?} instead of {expected}");
        Ok(())
    }
}

impl Session for PythonSession {
    fn fill(&mut self, month: &PairMonth) -> Result<()> {
        let request = json!({
            "bars": month.bars(),
            "from": month.from,
            "until": month.until,
            "bqx": month.fresh("bqx"),
            "reg": month.fresh("reg"),
            "make_tables": month.make_tables(),
            "add_keys": month.add_keys(),
            "sample": self.sample,
        });
        writeln!(self.requests.as_mut().context("the process has ended")?, "{request}")?;
        self.expect("done")
    }

    fn process(&self) -> Option<i32> {
        self.process.id().try_into().ok()
    }
}

impl Drop for PythonSession {
    /// The script ends with its input.
    fn drop(&mut self) {
        self.requests = None;
        let _ = self.process.wait();
    }
}
