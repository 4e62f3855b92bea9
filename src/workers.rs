//! Background workers of a backfill. What they do is `bqx._work_once`, one transaction at a time.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;

use pgrx::bgworkers::{BackgroundWorker, BackgroundWorkerBuilder, DynamicBackgroundWorker};
use pgrx::prelude::*;
use pgrx::{IntoDatum, PgMemoryContexts, direct_function_call_as_datum};

use crate::live_progress;

thread_local! {
    /// Workers that this session has started and still waits for.
    static STARTED: RefCell<Vec<DynamicBackgroundWorker>> = const { RefCell::new(Vec::new()) };
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
    /// The lock of `_enter_run`.
    static RUN_LOCK: Cell<Option<i64>> = const { Cell::new(None) };
}

/// As many workers as there are cores.
#[pg_extern]
fn _useful_workers() -> i32 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as i32)
}

/// Starts up to `wanted` workers for a run, as the calling role, but no more than it has work for; returns how many
/// there was a slot for. A role that may not log in can't have a session of its own: 0.
#[pg_extern]
fn _start_workers(run_id: i64, wanted: i32) -> i32 {
    let units = Spi::get_one_with_args::<i64>(
        "SELECT pg_catalog.count(*) FROM bqx._open_units($1, $2)",
        &[run_id.into(), wanted.max(0).into()],
    );
    let useful = units.unwrap_or_else(|e| error!("{e}")).unwrap_or(0) as i32; // at most `wanted`
    // Safety: plain reads of this backend's state.
    let (database, role, pid) = unsafe { (pg_sys::MyDatabaseId, pg_sys::GetUserId(), pg_sys::MyProcPid) };
    let may_log_in = Spi::get_one_with_args::<bool>(
        "SELECT rolcanlogin FROM pg_catalog.pg_roles WHERE oid OPERATOR(pg_catalog.=) $1",
        &[role.into()],
    );
    if may_log_in != Ok(Some(true)) {
        notice!("a role that may not log in can't have background workers");
        return 0;
    }
    let mut started = Vec::new();
    for number in 1..=useful {
        let builder = BackgroundWorkerBuilder::new(&format!("bqx run {run_id} worker {number}"))
            .set_type("bqx worker")
            .set_library("bqx")
            .set_function("bqx_worker_main")
            .set_extra(&Assignment { database, role, run_id, number }.to_string())
            .set_notify_pid(pid)
            .set_restart_time(None)
            .enable_spi_access();
        // The handle is allocated where we are: it has to outlive this transaction.
        // Safety: nothing in here switches contexts itself.
        let worker = unsafe { PgMemoryContexts::TopMemoryContext.switch_to(|_| builder.load_dynamic()) };
        match worker {
            Ok(worker) => started.push(worker),
            Err(_) => break, // no slot is free
        }
    }
    let count = started.len() as i32;
    STARTED.with_borrow_mut(|workers| *workers = started);
    end_workers_on_abort();
    count
}

/// From now on the workers that this session has started go on by themselves.
#[pg_extern]
fn _forget_workers() {
    STARTED.take();
}

/// Takes the lock that says that a run goes on. It stays through this call's transactions until `_leave_run`, or until one of
/// them is aborted.
#[pg_extern]
fn _enter_run(run_id: i64) {
    end_workers_on_abort();
    leave_run();
    let key = Spi::get_one_with_args::<i64>(
        "SELECT bqx._lock_key('run'::pg_catalog.text, $1::pg_catalog.text)",
        &[run_id.into()],
    );
    let key = key.unwrap_or_else(|e| error!("{e}")).expect("a key");
    // Safety: PostgreSQL's own function, with its argument.
    unsafe { direct_function_call_as_datum(pg_sys::pg_advisory_lock_shared_int8, &[key.into_datum()]) };
    RUN_LOCK.set(Some(key));
}

#[pg_extern]
fn _leave_run() {
    leave_run();
}

fn leave_run() {
    if let Some(key) = RUN_LOCK.take() {
        // Safety: PostgreSQL's own function, with its argument. It does nothing but give back the lock, which it may
        // also do while a transaction is being aborted.
        unsafe { direct_function_call_as_datum(pg_sys::pg_advisory_unlock_shared_int8, &[key.into_datum()]) };
    }
}

/// From now on, in this session: when a transaction is aborted (cancelled, terminated, an error), so are the workers
/// that it waits for. Registered once, and for good: a callback of one transaction would leave gaps between the
/// transactions of a waiting call.
fn end_workers_on_abort() {
    static REGISTERED: std::sync::Once = std::sync::Once::new();
    // Safety: the callback is a function of this library, which is never unloaded.
    REGISTERED.call_once(|| unsafe {
        pg_sys::RegisterXactCallback(Some(on_transaction_end), std::ptr::null_mut())
    });
}

#[pg_guard]
unsafe extern "C-unwind" fn on_transaction_end(event: pg_sys::XactEvent::Type, _arg: *mut std::ffi::c_void) {
    if event == pg_sys::XactEvent::XACT_EVENT_ABORT {
        live_progress::forget_claim();
        leave_run();
        for worker in STARTED.take() {
            worker.terminate();
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" {
    /// Whether the client is still there, as far as its socket tells. Not in the bindings.
    fn pq_check_connection() -> bool;
}

unsafe extern "C-unwind" {
    /// Whether the server's first process is still there: raises no error. In the bindings it is an inline function, so missing.
    fn PostmasterIsAliveInternal() -> bool;
}

/// Without its postmaster a worker would be in the way of the server's next start.
fn postmaster_lives() -> bool {
    // Safety: may be asked at any time in a process of the server.
    unsafe { PostmasterIsAliveInternal() }
}

/// Ends the session if its client is gone: PostgreSQL would notice only when it next writes to it.
#[pg_extern]
fn _check_client() {
    // Safety: a session with a client has a port, and only such a session may ask. The flags are what PostgreSQL's own
    // check (client_connection_check_interval) sets.
    unsafe {
        if !pg_sys::MyProcPort.is_null() && !pq_check_connection() {
            pg_sys::ClientConnectionLost = 1;
            pg_sys::InterruptPending = 1;
        }
    }
    pg_sys::check_for_interrupts!();
}

/// Whether this process is a background worker of ours.
pub fn is_worker() -> bool {
    IS_WORKER.get()
}

/// Waits up to `milliseconds` for the workers that this session has started; false once all have ended.
#[pg_extern]
fn _await_workers(milliseconds: i32) -> bool {
    // The signal of a worker's end may have been taken by another wait of this session.
    if !any_alive() {
        return false;
    }
    // Safety: MyLatch is this backend's own; waiting and resetting it is what a backend does when idle.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32,
            milliseconds.into(),
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pg_sys::check_for_interrupts!();
    any_alive()
}

/// Whether a worker that this session has started is still there.
fn any_alive() -> bool {
    STARTED.with_borrow_mut(|workers| {
        workers.retain(is_alive);
        !workers.is_empty()
    })
}

fn is_alive(worker: &DynamicBackgroundWorker) -> bool {
    use pgrx::bgworkers::BackgroundWorkerStatus::NotYetStarted;
    matches!(worker.pid(), Ok(_) | Err(NotYetStarted))
}

/// What a worker is told at its start, as text of less than 128 bytes.
struct Assignment {
    database: pg_sys::Oid,
    role: pg_sys::Oid,
    run_id: i64,
    number: i32,
}

impl std::fmt::Display for Assignment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {} {}", self.database.to_u32(), self.role.to_u32(), self.run_id, self.number)
    }
}

impl Assignment {
    fn parse(text: &str) -> Option<Assignment> {
        let mut words = text.split(' ');
        let mut oid = || Some(pg_sys::Oid::from(words.next()?.parse::<u32>().ok()?));
        let (database, role) = (oid()?, oid()?);
        Some(Assignment {
            database,
            role,
            run_id: words.next()?.parse().ok()?,
            number: words.next()?.parse().ok()?,
        })
    }
}

unsafe extern "C-unwind" {
    /// PostgreSQL's own SIGTERM handler. Declared here as it is, because the bindings' wrapper sets up an error
    /// boundary, which is not for signal handlers.
    fn die(signal: std::ffi::c_int);
}

/// Entry point of a background worker.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn bqx_worker_main(_arg: pg_sys::Datum) {
    // `die` ends the worker at its next interrupt check, also in the middle of a month; pgrx's own handler would
    // only raise a flag.
    // Safety: a worker sets its handlers before it unblocks signals.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        pg_sys::pqsignal(pg_sys::SIGTERM as i32, Some(die));
        #[cfg(feature = "pg18")]
        pg_sys::pqsignal_be(pg_sys::SIGTERM as i32, Some(die));
        pg_sys::BackgroundWorkerUnblockSignals();
    }
    let assignment = Assignment::parse(BackgroundWorker::get_extra()).expect("started by _start_workers");
    BackgroundWorker::connect_worker_to_spi_by_oid(Some(assignment.database), Some(assignment.role));
    let Assignment { run_id, number, .. } = assignment;
    IS_WORKER.set(true);
    // Advisory locks order the workers' statements, so each must see what the former holder committed. The caller's
    // session may write (_require_top_level), whatever the role's default is. The workers themselves are the
    // parallelism that was asked for: helper processes would only get into their way.
    for (name, value) in [
        (c"default_transaction_isolation", c"read committed"),
        (c"default_transaction_read_only", c"off"),
        (c"max_parallel_workers_per_gather", c"0"),
    ] {
        set_session(name, value);
    }

    // Both are held until the worker's process ends.
    for kind in ["run", "work"] {
        in_transaction(move || {
            Spi::run_with_args(
                "SELECT pg_catalog.pg_advisory_lock_shared(bqx._lock_key($1, $2::pg_catalog.text))",
                &[kind.into(), run_id.into()],
            )
        });
    }
    while postmaster_lives()
        && in_transaction(move || {
            Spi::get_one_with_args::<bool>("SELECT bqx._work_once($1, $2)", &[run_id.into(), number.into()])
        }) == Some(true)
    {}
    in_transaction(move || Spi::run_with_args("SELECT bqx._close_run($1)", &[run_id.into()]));
}

/// Sets one of the server's settings for this session.
pub fn set_session(name: &CStr, value: &CStr) {
    // Safety: PostgreSQL copies the value, and raises an error for a wrong one.
    unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
        );
    }
}

fn in_transaction<R>(
    work: impl FnOnce() -> Result<R, pgrx::spi::Error> + std::panic::UnwindSafe + std::panic::RefUnwindSafe,
) -> R {
    BackgroundWorker::transaction(|| work().unwrap_or_else(|e| error!("{e}")))
}
