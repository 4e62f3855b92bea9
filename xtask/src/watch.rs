//! The progress of a backfill, seen from a second connection.

use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use postgres::Client;

use crate::console;

const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

/// Where no bar can be shown, a line is printed this often.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// How far all families of a run are together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    jobs_done: u64,
    jobs_total: u64,
    pub rows_written: u64,
}

/// Shows how far the run after `last_run` is, until `is_finished`; returns how far it came.
pub fn watch(client: &mut Client, last_run: i64, is_finished: impl Fn() -> bool) -> Result<Progress> {
    let bar = console::BARS.add(ProgressBar::no_length());
    bar.set_style(ProgressStyle::with_template(
        "   {bar:30} {pos}/{len} jobs  {msg}  {elapsed}, {eta} to go",
    )?);
    let start = Instant::now();
    let mut last_line = start;
    loop {
        let was_finished = is_finished(); // asked first, so that the last look comes after the end
        let progress = look(client, last_run)?;
        let text = describe(progress, start.elapsed());
        bar.set_length(progress.jobs_total);
        bar.set_position(progress.jobs_done);
        bar.set_message(text.clone());
        if was_finished {
            bar.finish_and_clear();
            return Ok(progress);
        }
        if bar.is_hidden() && last_line.elapsed() > BETWEEN_LINES {
            println!("   {}/{} jobs  {text}", progress.jobs_done, progress.jobs_total);
            last_line = Instant::now();
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
}

fn look(client: &mut Client, last_run: i64) -> Result<Progress> {
    let row = client.query_one(
        "SELECT coalesce(sum(jobs_done + jobs_failed), 0)::bigint, coalesce(sum(jobs_total), 0)::bigint, \
                coalesce(sum(rows_written), 0)::bigint \
           FROM bqx.progress WHERE run_id > $1",
        &[&last_run],
    )?;
    let count = |column: usize| row.get::<_, i64>(column).max(0) as u64;
    Ok(Progress { jobs_done: count(0), jobs_total: count(1), rows_written: count(2) })
}

fn describe(progress: Progress, elapsed: Duration) -> String {
    let rate = progress.rows_written as f64 / elapsed.as_secs_f64().max(0.001);
    format!("{} rows, {} rows/s", HumanCount(progress.rows_written), HumanCount(rate as u64))
}
