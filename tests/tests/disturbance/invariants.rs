//! What must hold after a disturbance, as soon as no worker and no caller is left. Each function returns what does not.

use anyhow::Result;
use postgres::Client;

use super::calls::Report;
use super::months::{Contents, Month};
use crate::common::try_rows;

/// What the derived tables held before a round, hold after it, and would hold if it had been completed.
pub struct Round<'a> {
    pub before: &'a Contents,
    pub after: &'a Contents,
    pub computed: &'a Contents,
    /// The last run before it.
    pub last_run: i64,
}

/// Given how all calls ended, and how those did that had nothing to do with the disturbance.
pub fn violations(
    control: &mut Client,
    round: &Round<'_>,
    reports: &[Report],
    innocent: &[Report],
) -> Result<Vec<String>> {
    let found = [
        torn_months(round),
        misrecorded_months(control, round)?,
        unkept_promises(round, reports),
        innocent_victims(innocent),
        unfinished_business(control)?,
        failed_jobs(control, round)?,
        leftovers(control)?,
    ];
    Ok(found.concat())
}

/// A month is as it was, or complete.
pub fn torn_months(round: &Round<'_>) -> Vec<String> {
    let torn = |month: Month| {
        let (before, after, computed) =
            (round.before.of(month), round.after.of(month), round.computed.of(month));
        (after != before && after != computed)
            .then(|| format!("{month}: {after}; before: {before}; complete: {computed}"))
    };
    Month::all().filter_map(torn).collect()
}

/// A month that the ledger says is current is complete, and one that was written, or whose job is done, is current.
pub fn misrecorded_months(control: &mut Client, round: &Round<'_>) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for month in Month::all() {
        let Month { family, pair, month: name } = month;
        let recorded = try_rows(
            control,
            &format!(
                "SELECT bqx._month_is_current('{family}', '{pair}', '{name}-01'), \
                        EXISTS (SELECT FROM bqx.jobs WHERE run_id > {} AND state = 'done' AND family = '{family}' \
                                   AND pair = '{pair}' AND month = '{name}-01')",
                round.last_run
            ),
        )?;
        let (is_current, is_done) = (recorded[0].starts_with('t'), recorded[0].ends_with('t'));
        let (before, after, computed) =
            (round.before.of(month), round.after.of(month), round.computed.of(month));
        if is_current && after != computed {
            wrong.push(format!("{month}: current to the ledger, but has {after}; complete: {computed}"));
        }
        if !is_current && (is_done || after != before) {
            let what = if is_done { "its job is done" } else { "it was written" };
            wrong.push(format!("{month}: {what}, but to the ledger it is not current"));
        }
    }
    Ok(wrong)
}

/// A call that waited and returned without an error has completed what it was called for.
fn unkept_promises(round: &Round<'_>, reports: &[Report]) -> Vec<String> {
    let mut broken = Vec::new();
    for report in reports.iter().filter(|report| report.succeeded && report.call.wait) {
        let incomplete = Month::all()
            .filter(|&month| report.call.covers(month) && round.after.of(month) != round.computed.of(month));
        broken.extend(incomplete.map(|month| format!("{month}: not complete, but {} returned", report.call)));
    }
    broken
}

/// The end of one run is no end of another.
fn innocent_victims(innocent: &[Report]) -> Vec<String> {
    let failed = innocent.iter().filter(|report| !report.succeeded);
    failed.map(|report| format!("another call failed: {}", report.call)).collect()
}

/// Nothing runs, to the ledger, and nothing is locked.
pub fn unfinished_business(control: &mut Client) -> Result<Vec<String>> {
    let running = "SELECT concat_ws(' ', 'shown as running: run', run_id) FROM bqx.runs WHERE state = 'running' UNION ALL \
         SELECT concat_ws(' ', 'shown as running: job', run_id, family, pair, month) FROM bqx.jobs WHERE state = 'running' \
         UNION ALL \
         SELECT DISTINCT concat_ws(' ', 'closed with open jobs: run', run_id) \
           FROM bqx.runs AS r JOIN bqx.jobs AS j USING (run_id) \
          WHERE r.finished_at IS NOT NULL AND j.state IN ('pending', 'running') UNION ALL \
         SELECT concat_ws(' ', 'advisory lock held:', classid, objid, mode, 'by process', pid) FROM pg_locks \
          WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    Ok(try_rows(control, running)?)
}

/// No disturbance of ours is a reason for a job to fail.
pub fn failed_jobs(control: &mut Client, round: &Round<'_>) -> Result<Vec<String>> {
    let failed = format!(
        "SELECT concat_ws(' ', 'failed:', family, pair, month, error) FROM bqx.jobs \
          WHERE state = 'failed' AND run_id > {}",
        round.last_run
    );
    Ok(try_rows(control, &failed)?)
}

/// A partition that was built aside is gone, or attached and without the constraint that it was built with.
pub fn leftovers(control: &mut Client) -> Result<Vec<String>> {
    let left = "SELECT concat_ws(' ', 'neither a partition nor of the extension:', c.oid::regclass) FROM pg_class AS c \
          WHERE c.relnamespace = 'bqx'::regnamespace AND c.relkind = 'r' AND NOT c.relispartition \
            AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid \
                               AND d.deptype = 'e') UNION ALL \
         SELECT concat_ws(' ', 'constraint left behind:', conrelid::regclass, conname) FROM pg_constraint \
          WHERE connamespace = 'bqx'::regnamespace AND contype = 'c' AND conname = 'bqx_month_bounds' UNION ALL \
         SELECT concat_ws(' ', 'index not valid:', indexrelid::regclass) FROM pg_index AS i \
           JOIN pg_class AS c ON c.oid = i.indexrelid \
          WHERE c.relnamespace = 'bqx'::regnamespace AND NOT (i.indisvalid AND i.indisready AND i.indislive)";
    Ok(try_rows(control, left)?)
}

/// What PostgreSQL's own checks find in the heaps and indexes of the derived tables, which the fast way writes past the
/// executor. None where they are not installed.
pub fn corruption(control: &mut Client) -> Result<Option<Vec<String>>> {
    let available = "SELECT FROM pg_available_extensions WHERE name = 'amcheck'";
    if try_rows(control, available)?.is_empty() {
        return Ok(None);
    }
    try_rows(control, "CREATE EXTENSION IF NOT EXISTS amcheck")?;
    let partitions = "FROM pg_class AS c WHERE c.relnamespace = 'bqx'::regnamespace AND c.relispartition \
         AND c.relname ~ '^(bqx|reg)_'";
    let heaps = format!(
        "SELECT concat_ws(' ', c.oid::regclass, v.blkno, v.offnum, v.msg) FROM ( \
             SELECT c.oid {partitions} AND c.relkind = 'r') AS c, verify_heapam(c.oid) AS v"
    );
    let found = try_rows(control, &heaps)?;
    // Raises an error where an index is broken, or lacks a row of its table.
    let indexes = format!("SELECT count(bt_index_check(c.oid, true)) {partitions} AND c.relkind = 'i'");
    try_rows(control, &indexes)?;
    Ok(Some(found))
}
