//! The kinds of disturbance, and how each strikes a backfill that runs.

use std::fmt;
use std::thread::sleep;

use anyhow::Result;
use postgres::Client;

use super::calls::Caller;
use crate::common::try_rows;
use crate::soak::BETWEEN_LOOKS;
use crate::soak::site::{Site, signal, workers};

/// A new kind is a variant, its place in [`Kind::ALL`], what it needs and spares, its strike, and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    KillWorker,
    KillCallingBackend,
    KillPostmaster,
    StopImmediately,
    RestartFast,
    TerminateCaller,
    TerminateWorker,
    CancelCaller,
    InterruptClient,
    KillClient,
    CancelRun,
}

impl Kind {
    pub const ALL: [Kind; 11] = [
        Kind::KillWorker,
        Kind::KillCallingBackend,
        Kind::KillPostmaster,
        Kind::StopImmediately,
        Kind::RestartFast,
        Kind::TerminateCaller,
        Kind::TerminateWorker,
        Kind::CancelCaller,
        Kind::InterruptClient,
        Kind::KillClient,
        Kind::CancelRun,
    ];

    /// Whether there has to be a worker to strike.
    pub fn needs_worker(self) -> bool {
        matches!(self, Self::KillWorker | Self::TerminateWorker)
    }

    /// Whether there has to be a call that has not returned.
    pub fn needs_caller(self) -> bool {
        matches!(
            self,
            Self::KillCallingBackend
                | Self::TerminateCaller
                | Self::CancelCaller
                | Self::InterruptClient
                | Self::KillClient
        )
    }

    /// Whether the server recovers from its write-ahead log afterwards.
    pub fn crashes_the_server(self) -> bool {
        matches!(
            self,
            Self::KillWorker | Self::KillCallingBackend | Self::KillPostmaster | Self::StopImmediately
        )
    }

    /// Whether other runs have nothing to do with it.
    pub fn spares_other_runs(self) -> bool {
        self.needs_caller() && !self.crashes_the_server()
    }

    /// Strikes; false if there was nothing to strike any more. `lot` chooses among several workers.
    pub fn strike(self, site: &Site, control: &mut Client, caller: &mut Caller, lot: usize) -> Result<bool> {
        if self == Self::CancelRun {
            return cancel_run(control, caller);
        }
        let victim = if self.needs_worker() {
            a_worker(control, caller, lot)?
        } else if self.needs_caller() {
            caller.backend(control)?
        } else {
            a_worker(control, caller, lot)?.or(caller.backend(control)?)
        };
        let Some(pid) = victim else { return Ok(false) };
        match self {
            Self::KillWorker | Self::KillCallingBackend => return site.kill(control, pid),
            Self::KillPostmaster => site.kill_postmaster()?,
            Self::StopImmediately => site.stop_immediately()?,
            Self::RestartFast => site.server.restart()?,
            Self::TerminateCaller | Self::TerminateWorker => {
                return signal(control, "pg_terminate_backend", pid);
            }
            Self::CancelCaller => return signal(control, "pg_cancel_backend", pid),
            Self::InterruptClient => caller.interrupt()?,
            Self::KillClient => caller.kill()?,
            Self::CancelRun => unreachable!("it strikes no process"),
        }
        Ok(true)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KillWorker => "kill -9 of a worker",
            Self::KillCallingBackend => "kill -9 of the calling backend",
            Self::KillPostmaster => "kill -9 of the postmaster",
            Self::StopImmediately => "pg_ctl stop -m immediate",
            Self::RestartFast => "pg_ctl restart -m fast",
            Self::TerminateCaller => "pg_terminate_backend of the caller",
            Self::TerminateWorker => "pg_terminate_backend of a worker",
            Self::CancelCaller => "pg_cancel_backend of the caller",
            Self::InterruptClient => "Ctrl-C at the client",
            Self::KillClient => "kill -9 of the client",
            Self::CancelRun => "bqx.cancel",
        })
    }
}

/// A worker's process. Where the call has just begun and is to have workers, waits until there is one.
fn a_worker(control: &mut Client, caller: &mut Caller, lot: usize) -> Result<Option<i32>> {
    loop {
        let over = caller.call.workers == 0 || caller.has_ended()?;
        let pids = workers(control)?;
        if over || !pids.is_empty() {
            return Ok(pids.get(lot % pids.len().max(1)).copied());
        }
        sleep(BETWEEN_LOOKS);
    }
}

/// Cancels the run that has gone on for longest. Where the call has not opened one yet, waits for it; false if all is over.
fn cancel_run(control: &mut Client, caller: &mut Caller) -> Result<bool> {
    let oldest = "SELECT min(run_id) FROM bqx.runs WHERE state = 'running'";
    let cancel = format!("SELECT bqx.cancel(run_id) FROM ({oldest}) AS r (run_id) WHERE run_id IS NOT NULL");
    loop {
        let over = caller.has_ended()?;
        let cancelled = try_rows(control, &cancel)?;
        if over || !cancelled.is_empty() {
            return Ok(cancelled == ["t"]);
        }
        sleep(BETWEEN_LOOKS);
    }
}
