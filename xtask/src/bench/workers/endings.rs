//! How soon workers are gone when their backfill is to end early.

use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use pgcluster::Cluster;
use postgres::Client;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::bench::market::{Market, Months, backfill_call};
use crate::bench::report::Table;
use crate::bench::server::{DATABASE, observer};
use crate::bench::spread::Spread;
use crate::console;

const WORKERS: usize = 2;

/// How much later each attempt comes than the one before, so that workers are met at all kinds of things.
const LATER: Duration = Duration::from_millis(17);

/// Between two looks at what the workers do.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

const PATIENCE: Duration = Duration::from_secs(60);

/// The `application_name` of the call that waits.
const CALLER: &str = "bench caller";

/// How a backfill that a psql waits for is ended.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Ending {
    Cancel,
    Interrupt,
    KilledClient,
    TerminatedCaller,
}

impl Ending {
    const ALL: [Ending; 4] =
        [Ending::Cancel, Ending::Interrupt, Ending::KilledClient, Ending::TerminatedCaller];

    fn title(self) -> &'static str {
        match self {
            Ending::Cancel => "bqx.cancel",
            Ending::Interrupt => "Ctrl-C in the calling psql",
            Ending::KilledClient => "kill -9 of the calling psql",
            Ending::TerminatedCaller => "pg_terminate_backend of the call",
        }
    }
}

/// How long it took, from the ending to the last worker's.
#[derive(Serialize)]
pub struct Figure {
    ending: Ending,
    /// What the workers were at.
    months: Months,
    attempts: usize,
    pub milliseconds: Spread,
}

/// Ends backfills in every way, so many times each.
pub fn measure(market: &mut Market, attempts: usize) -> Result<Vec<Figure>> {
    let kinds = [Months::New, Months::Rewritten];
    let bar = console::BARS.add(ProgressBar::new((kinds.len() * Ending::ALL.len() * attempts) as u64));
    bar.set_style(ProgressStyle::with_template("   {bar:30} {pos}/{len}  {elapsed}  {msg}")?);
    let mut observer = observer(market.cluster)?;
    let mut figures = Vec::new();
    for months in kinds {
        if months == Months::Rewritten {
            let pairs = market.pairs.clone();
            let bars = market.bars(&pairs)?;
            market.empty()?;
            market.backfill(&pairs, WORKERS, Months::New, bars)?;
        }
        let mut milliseconds = Ending::ALL.map(|_| Vec::new());
        for attempt in 0..attempts {
            for (ending, measured) in Ending::ALL.into_iter().zip(&mut milliseconds) {
                bar.set_message(ending.title());
                let delay = LATER * attempt as u32;
                let elapsed = attempt_once(market, &mut observer, ending, months, delay);
                measured.push(elapsed.context(ending.title())?.as_secs_f64() * 1000.0);
                bar.inc(1);
            }
        }
        figures.extend(Ending::ALL.into_iter().zip(milliseconds).map(|(ending, milliseconds)| Figure {
            ending,
            months,
            attempts,
            milliseconds: Spread::of(milliseconds),
        }));
    }
    bar.finish_and_clear();
    Ok(figures)
}

fn attempt_once(
    market: &mut Market,
    observer: &mut Client,
    ending: Ending,
    months: Months,
    delay: Duration,
) -> Result<Duration> {
    if months == Months::New {
        market.empty()?;
    }
    let mut caller = Caller::start(market.cluster, DATABASE, &backfill_call(&market.pairs, WORKERS, months))?;
    let at_work = format!("{WORKER_COUNT} AND query ~ ' rows (written|compared)'");
    await_count(observer, &at_work, WORKERS)?;
    thread::sleep(delay);
    let call = caller.find(&mut market.client)?;
    let start = Instant::now();
    let elapsed = thread::scope(|scope| {
        let ended = scope.spawn(|| caller.end(&mut market.client, ending, &call));
        await_count(observer, WORKER_COUNT, 0)?;
        let elapsed = start.elapsed();
        ended.join().map_err(|_| anyhow!("the ending panicked"))??;
        anyhow::Ok(elapsed)
    })?;
    caller.process.wait()?;
    await_count(observer, &format!("{SESSION_COUNT} application_name = '{CALLER}'"), 0)?;
    let undone = "SELECT count(*) FROM bqx.job_ledger WHERE run_id = $1 AND state <> 'done'";
    let undone: i64 = market.client.query_one(undone, &[&call.run_id])?.get(0);
    ensure!(undone > 0, "the backfill came to its end by itself, before it was ended");
    Ok(elapsed)
}

const SESSION_COUNT: &str = "SELECT count(*) FROM pg_stat_activity WHERE";
const WORKER_COUNT: &str = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'bqx worker'";

/// Waits until a query counts so many.
fn await_count(client: &mut Client, query: &str, count: usize) -> Result<()> {
    let give_up = Instant::now() + PATIENCE;
    let query = client.prepare(query)?;
    while client.query_one(&query, &[])?.get::<_, i64>(0) != count as i64 {
        ensure!(Instant::now() < give_up, "waited in vain for {count} of: {query:?}");
        thread::sleep(BETWEEN_LOOKS);
    }
    Ok(())
}

/// A psql that calls. It ends with this value, if not before.
pub struct Caller {
    pub process: Child,
}

/// A call as the server knows it.
struct Call {
    backend: i32,
    run_id: i64,
}

impl Caller {
    pub fn start(cluster: &Cluster, database: &str, call: &str) -> Result<Self> {
        let mut psql = cluster.psql(database);
        psql.arg("-c").arg(format!("CALL {call}")).env("PGAPPNAME", CALLER);
        psql.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { process: psql.spawn().context("cannot start psql")? })
    }

    /// Its session, and the run that it waits for, which is the newest.
    fn find(&self, client: &mut Client) -> Result<Call> {
        let row = client.query_one(
            "SELECT pid, (SELECT max(run_id) FROM bqx.run_ledger) \
               FROM pg_stat_activity WHERE application_name = $1",
            &[&CALLER],
        )?;
        Ok(Call { backend: row.get(0), run_id: row.get(1) })
    }

    fn end(&mut self, client: &mut Client, ending: Ending, call: &Call) -> Result<()> {
        match ending {
            Ending::Cancel => drop(client.query_one("SELECT bqx.cancel($1)", &[&call.run_id])?),
            Ending::Interrupt => kill_process(Pid::from_child(&self.process), Signal::INT)?,
            Ending::KilledClient => self.process.kill()?,
            Ending::TerminatedCaller => {
                drop(client.query_one("SELECT pg_terminate_backend($1)", &[&call.backend])?);
            }
        }
        Ok(())
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = self.process.kill(); // it has ended long ago, if all went well
        let _ = self.process.wait();
    }
}

pub fn table(figures: &[Figure]) -> Table<5> {
    let mut table = Table::new(["ended by", "at", "attempts", "ms", "longest"], 2);
    for Figure { ending, months, attempts, milliseconds } in figures {
        table.add([
            ending.title().to_owned(),
            months.title().to_owned(),
            attempts.to_string(),
            format!("{:.0}", milliseconds.median),
            format!("{:.0}", milliseconds.max),
        ]);
    }
    table
}
