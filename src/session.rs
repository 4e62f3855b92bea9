//! What a session may do, who calls in it, and how it is told from others.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CStr;

use pgrx::prelude::*;

use crate::errors::Failure;

thread_local! {
    /// The numbers that `_caller` gave out in this session, by role.
    static CALLERS: RefCell<HashMap<pg_sys::Oid, i64>> = RefCell::default();
}

/// A number that stands for the effective role, and that no other role can know.
///
/// SECURITY DEFINER functions have it as the default of a parameter: inside of them `current_user` is their owner, but
/// arguments are evaluated before, as the caller. The session's role would not do, since a superuser may call someone's
/// SECURITY DEFINER function, which must not act as the superuser.
#[pg_extern(volatile)]
fn _caller() -> i64 {
    // Safety: a plain read of this backend's state.
    let role = unsafe { pg_sys::GetUserId() };
    CALLERS.with_borrow_mut(|callers| *callers.entry(role).or_insert_with(random_number))
}

/// The role that got this number from `_caller` in this session; 42501 for a number that none got. NULL is no number:
/// the function must not be STRICT, because a role that is NULL would pass for one that may do anything.
#[pg_extern(volatile)]
fn _role_of(caller: Option<i64>) -> String {
    let role = CALLERS
        .with_borrow(|callers| callers.iter().find(|(_, n)| Some(**n) == caller).map(|(role, _)| *role));
    // Safety: returns NULL for a role that is gone, else a palloc'ed string.
    let name =
        role.map(|role| unsafe { pg_sys::GetUserNameFromId(role, true) }).filter(|name| !name.is_null());
    let Some(name) = name else {
        Failure::new(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "the caller of an internal function can't be told",
        )
        .detail("Its last argument is to be left out.")
        .raise()
    };
    // Safety: see above.
    unsafe { CStr::from_ptr(name) }.to_str().expect("names are in the server's encoding").to_owned()
}

fn random_number() -> i64 {
    let mut bytes = [0; 8];
    // Safety: the buffer is as long as said.
    if !unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), bytes.len()) } {
        Failure::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, "no random number could be had").raise();
    }
    i64::from_ne_bytes(bytes)
}

/// Raises 25006 where nothing can be written.
#[pg_extern]
fn _require_writable(procedure: &str) {
    // Safety: both only read the state of the server and of this backend's transaction.
    let (on_standby, read_only) = unsafe { (pg_sys::RecoveryInProgress(), pg_sys::XactReadOnly) };
    if on_standby || read_only {
        let place = if on_standby { "on a standby server" } else { "in a read-only transaction" };
        Failure::new(
            PgSqlErrorCode::ERRCODE_READ_ONLY_SQL_TRANSACTION,
            format!("bqx.{procedure} cannot run {place}"),
        )
        .hint(if on_standby {
            "Call it on the primary server."
        } else {
            "SET default_transaction_read_only = off;  then call it again, outside BEGIN … COMMIT."
        })
        .raise();
    }
}

/// Raises 25006 where nothing can be written, and 25001 where the calling procedure could not COMMIT: in a transaction
/// block, or called from a function.
#[pg_extern]
fn _require_top_level(procedure: &str) {
    _require_writable(procedure);
    // Safety: both functions only read the state of this backend's transaction and SPI stack.
    let may_commit = unsafe { !pg_sys::IsTransactionBlock() && is_nonatomic() };
    if !may_commit {
        Failure::new(
            PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
            format!("bqx.{procedure} cannot run inside a transaction block"),
        )
        .detail(
            "It commits as it goes. Several statements sent at once, as by psql -c 'a; b', count as a block.",
        )
        .hint(format!(
            "Call it alone: CALL bqx.{procedure}(…);  outside BEGIN … COMMIT, one per pg_cron job."
        ))
        .raise();
    }
}

/// Whether the SPI caller (the PL/pgSQL procedure that asks) may end transactions.
///
/// # Safety
/// Must be called in a backend's main thread, as all of PostgreSQL.
#[cfg(not(feature = "pg14"))]
unsafe fn is_nonatomic() -> bool {
    unsafe { pg_sys::SPI_inside_nonatomic_context() }
}

/// PostgreSQL 14 can't tell: there, a call from within a function fails at its first COMMIT (2D000).
#[cfg(feature = "pg14")]
unsafe fn is_nonatomic() -> bool {
    true
}

/// Names this session among all of the server's past and present ones: process id and start time.
#[pg_extern(stable, parallel_restricted)]
fn _session_id() -> String {
    // Safety: both are set once, before the backend takes its first query.
    let (pid, started) = unsafe { (pg_sys::MyProcPid, pg_sys::MyStartTimestamp) };
    format!("{pid}.{started}")
}

extension_sql!(
    r#"
-- The _session_id() of every session that is. For callers that may see all of pg_stat_activity.
CREATE FUNCTION bqx._live_sessions() RETURNS SETOF text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('%s.%s', a.pid, ((extract(epoch FROM a.backend_start)
                                    - extract(epoch FROM timestamptz '2000-01-01 00:00:00+00')) * 1000000)::bigint)
      FROM pg_stat_activity AS a WHERE a.backend_start IS NOT NULL
$$;
"#,
    name = "live_sessions",
    requires = [_session_id]
);
