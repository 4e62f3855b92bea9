//! How far a session's jobs are, for everyone to see before they are committed: as text in `pg_stat_activity`, as
//! autovacuum tells what it does. It needs no shared memory of ours, is gone with the session, and is seen by whom
//! PostgreSQL lets see a session's query. `bqx._live_jobs` (sql/monitoring.sql) reads it back.

use std::cell::RefCell;
use std::ffi::CString;
use std::fmt::Write as _;

use bqx_core::columns::Family;
use pgrx::prelude::*;

use crate::{metric_columns, workers};

thread_local! {
    /// What this session works on; None for a session that doesn't work for a run.
    static CLAIM: RefCell<Option<Claim>> = const { RefCell::new(None) };
}

/// The jobs of one pair and month that are done together.
struct Claim {
    /// `bqx run 12 worker 2: eurusd 2024-07`
    title: String,
    jobs: Vec<Job>,
}

struct Job {
    job_id: i64,
    family: String,
    /// None before it is known how many bars there are.
    progress: Option<Progress>,
}

/// How many of a month's bars have got their row.
struct Progress {
    bars_done: usize,
    bars: usize,
    /// Whether the rows are in the table, or only compared with those that are.
    written: bool,
}

/// Says what this session works on from now on. A worker has it as its `application_name`, too.
#[pg_extern]
fn _show_claim(run_id: i64, worker: i32, pair: &str, month: &str, families: Vec<String>, job_ids: Vec<i64>) {
    let title = format!("bqx run {run_id} worker {worker}: {pair} {month}");
    if workers::is_worker() {
        let name = CString::new(format!("{title} {}", families.join("+"))).expect("names hold no NUL");
        workers::set_session(c"application_name", &name);
    }
    let jobs = job_ids.iter().zip(families);
    let jobs = jobs.map(|(&job_id, family)| Job { job_id, family, progress: None }).collect();
    CLAIM.set(Some(Claim { title, jobs }));
    report();
}

/// Says that this session works for no run any more.
#[pg_extern]
fn _show_no_claim() {
    if forget_claim() {
        // Safety: a C string, or NULL; PostgreSQL copies it.
        unsafe {
            pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, pg_sys::debug_query_string)
        };
    }
}

/// Whether there was one. Also after an error, where PostgreSQL tells the session's activity itself.
pub fn forget_claim() -> bool {
    CLAIM.take().is_some()
}

/// Says that a family's rows of so many bars come next: whether they are written, or first compared with those that are
/// there. Nothing, where this session works for no run.
#[pg_extern]
fn _show_job(family: &str, bars: i64, written: bool) {
    let bars = bars.max(0) as usize;
    change(metric_columns::family(family), |progress| {
        *progress = Some(Progress { bars_done: 0, bars, written });
    });
}

/// Says how many bars have got their row of the family.
pub fn advance(family: Family, bars_done: usize) {
    change(family, |progress| {
        if let Some(progress) = progress {
            progress.bars_done = bars_done;
        }
    });
}

fn change(family: Family, change: impl FnOnce(&mut Option<Progress>)) {
    let is_known = CLAIM.with_borrow_mut(|claim| {
        let mut jobs = claim.iter_mut().flat_map(|claim| &mut claim.jobs);
        jobs.find(|job| job.family == family.name()).map(|job| change(&mut job.progress)).is_some()
    });
    if is_known {
        report();
    }
}

fn report() {
    let Some(text) = CLAIM.with_borrow(|claim| claim.as_ref().map(Claim::text)) else { return };
    let text = CString::new(text).expect("names hold no NUL");
    // Safety: PostgreSQL copies the text.
    unsafe { pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, text.as_ptr()) };
}

impl Claim {
    fn text(&self) -> String {
        let mut text = self.title.clone();
        for Job { job_id, family, progress } in &self.jobs {
            let _ = write!(text, ", job {job_id} {family}");
            if let Some(Progress { bars_done, bars, written }) = progress {
                let what = if *written { "written" } else { "compared" };
                let _ = write!(text, ": {bars_done} of {bars} rows {what}");
            }
        }
        text
    }
}
