//! What must hold after a disturbance, as soon as no worker and no caller is left. Each function returns what does not.

use anyhow::Result;
use postgres::Client;

use super::calls::Report;
use super::months::{Contents, Month};
use crate::common::try_rows;
use crate::soak::soundness::{leftovers, unfinished_business};

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

/// No disturbance of ours is a reason for a job to fail.
pub fn failed_jobs(control: &mut Client, round: &Round<'_>) -> Result<Vec<String>> {
    let failed = format!(
        "SELECT concat_ws(' ', 'failed:', family, pair, month, error) FROM bqx.jobs \
          WHERE state = 'failed' AND run_id > {}",
        round.last_run
    );
    Ok(try_rows(control, &failed)?)
}
