//! What must hold as soon as no worker and no call is left. Each function returns what does not.

use anyhow::Result;
use postgres::Client;

use crate::common::try_rows;

/// What `verify()` does not find right.
pub fn faults(control: &mut Client) -> Result<Vec<String>> {
    let faults = "SELECT check_name, family, pair, month, detail FROM bqx.verify() WHERE ok IS NOT TRUE";
    Ok(try_rows(control, faults)?)
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

/// A partition that was built aside is gone, or attached and without the constraint that it was built with.
pub fn leftovers(control: &mut Client) -> Result<Vec<String>> {
    let left = "SELECT concat_ws(' ', 'neither a partition nor of the extension:', c.oid::regclass) FROM pg_class AS c \
          WHERE c.relnamespace = 'bqx'::regnamespace AND c.relkind = 'r' AND NOT c.relispartition \
            AND c.relname !~ '^m1_[a-z]{6}$' AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid \
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
