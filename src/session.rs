//! What a session may do, and how it is told from others.

use pgrx::prelude::*;

use crate::errors::Failure;

/// Raises 25001 where the calling procedure could not COMMIT: in a transaction block, or called from a function.
#[pg_extern]
fn _require_top_level(procedure: &str) {
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
    SELECT a.pid || '.' || ((extract(epoch FROM a.backend_start)
                             - extract(epoch FROM timestamptz '2000-01-01 00:00:00+00')) * 1000000)::bigint
      FROM pg_stat_activity AS a WHERE a.backend_start IS NOT NULL
$$;
"#,
    name = "live_sessions",
    requires = [_session_id]
);
