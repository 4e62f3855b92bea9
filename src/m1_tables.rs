//! What is to be known about M1 tables, from the catalogs and from their indexes.

use std::ffi::CString;

use pgrx::FromDatum;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;

use crate::bar_scan::{IndexedBars, Locks};
use crate::rows::one_value;
use crate::series;

/// The table of schema bqx that has this name; `Oid::INVALID` if none has.
pub fn table_named(name: &str) -> pg_sys::Oid {
    let Ok(name) = CString::new(name) else { return pg_sys::Oid::INVALID };
    // Safety: lookups in the catalogs, with C strings that outlive them.
    unsafe { pg_sys::get_relname_relid(name.as_ptr(), pg_sys::get_namespace_oid(c"bqx".as_ptr(), true)) }
}

/// Whether a table is this one, or a partition of it on any level.
pub fn is_part_of(relation: pg_sys::Oid, table: pg_sys::Oid) -> bool {
    if relation == table || table == pg_sys::Oid::INVALID {
        return relation == table && table != pg_sys::Oid::INVALID;
    }
    // Safety: a lookup in the catalogs; the list is one of OIDs.
    unsafe {
        pg_sys::get_rel_relispartition(relation)
            && pg_sys::list_member_oid(get_partition_ancestors(relation), table)
    }
}

#[pg_guard]
unsafe extern "C-unwind" {
    /// The tables that a partition is a part of, a list of OIDs. Not in the bindings.
    fn get_partition_ancestors(relation: pg_sys::Oid) -> *mut pg_sys::List;
}

pub fn owner_of(table: pg_sys::Oid) -> pg_sys::Oid {
    // Safety: table_open raises an error unless the table is there; it is closed again. Its owner is one of a catalog's columns.
    unsafe {
        let relation = pg_sys::table_open(table, pg_sys::AccessShareLock as i32);
        let owner = (*(*relation).rd_rel).relowner;
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
        owner
    }
}

/// Whether a pair is followed live: its table has the trigger of `enable_live`.
pub fn is_followed(m1: pg_sys::Oid) -> bool {
    if m1 == pg_sys::Oid::INVALID {
        return false;
    }
    // Safety: the relation stays open while its triggers are looked at, of which there are as many as it says.
    unsafe {
        let relation = pg_sys::table_open(m1, pg_sys::AccessShareLock as i32);
        let description = (*relation).trigdesc;
        let triggers = if description.is_null() {
            &[]
        } else {
            std::slice::from_raw_parts((*description).triggers, (*description).numtriggers as usize)
        };
        let found = triggers.iter().any(|trigger| std::ffi::CStr::from_ptr(trigger.tgname) == c"bqx_live");
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
        found
    }
}

/// 42501 where the caller may not read the bars, or not all of them.
pub fn check_may_read(m1: pg_sys::Oid) {
    if !may_read(m1) {
        Spi::run_with_args("SELECT bqx._refuse_to_follow($1::oid::pg_catalog.regclass)", &[m1.into()])
            .unwrap_or_else(|e| error!("{e}"));
    }
}

/// Whether the caller may read all rows of a table.
fn may_read(table: pg_sys::Oid) -> bool {
    // Safety: lookups in the catalogs.
    unsafe {
        let right =
            pg_sys::pg_class_aclcheck(table, pg_sys::GetUserId(), pg_sys::ACL_SELECT as pg_sys::AclMode);
        let hidden = pg_sys::check_enable_rls(table, pg_sys::Oid::INVALID, true);
        right == pg_sys::AclResult::ACLCHECK_OK && hidden != pg_sys::CheckEnableRlsResult::RLS_ENABLED as i32
    }
}

/// For each instant, the time of the first of so many bars before it; -infinity where there are fewer.
#[pg_extern(sql = "
CREATE FUNCTION bqx._lookback_starts(m1 regclass, instants timestamp with time zone[], lookback int)
RETURNS timestamp with time zone[] LANGUAGE c STABLE STRICT SET search_path = pg_catalog, pg_temp
AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
")]
fn _lookback_starts(
    m1: pg_sys::Oid,
    instants: Vec<TimestampWithTimeZone>,
    lookback: i32,
) -> Vec<TimestampWithTimeZone> {
    check_may_read(m1);
    let indexed = indexed_bars(m1);
    let instants = instants.into_iter().map(i64::from);
    let starts = series::lookback_starts(m1, indexed.as_ref(), instants, lookback.max(0) as usize);
    starts.into_iter().map(timestamp).collect()
}

/// The time of the newest bar of an M1 table, or of the oldest; NULL where it has none, or the caller may see none.
#[pg_extern(sql = "
CREATE FUNCTION bqx._end_bar(m1 regclass, newest boolean) RETURNS timestamp with time zone
LANGUAGE c STABLE STRICT SET search_path = pg_catalog, pg_temp AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
")]
fn _end_bar(m1: pg_sys::Oid, newest: bool) -> Option<TimestampWithTimeZone> {
    let indexed = if may_read(m1) { indexed_bars(m1) } else { None };
    let end = |indexed: &IndexedBars| {
        let bars = match newest {
            // one whose time is infinite, if there is one
            true => indexed.oldest_first(series::INFINITY, 1)?.ok().filter(|bars| !bars.is_empty()),
            false => None,
        };
        let bars = match bars {
            Some(bars) => bars,
            None if newest => indexed.newest_first(series::INFINITY, 1)?.ok()?,
            None => indexed.oldest_first(series::MINUS_INFINITY, 1)?.ok()?,
        };
        Some(bars.first().map(|bar| timestamp(bar.time)))
    };
    indexed.as_ref().and_then(end).unwrap_or_else(|| {
        let query = "SELECT bqx._end_bar_by_query($1::oid::pg_catalog.regclass, $2)";
        one_value(query, &[m1.into(), newest.into()])
    })
}

fn timestamp(pg_micros: i64) -> TimestampWithTimeZone {
    // Safety: a timestamptz datum is this integer.
    unsafe { TimestampWithTimeZone::from_datum(pg_sys::Datum::from(pg_micros), false) }
        .expect("it is not NULL")
}

/// An M1 table, to be asked something; `None` if a query has to.
fn indexed_bars(m1: pg_sys::Oid) -> Option<IndexedBars> {
    if is_kept_by_time(m1) { IndexedBars::of(m1, Locks::GivenBack) } else { None }
}

/// Whether an M1 table is partitioned by its time, if at all.
pub fn is_kept_by_time(m1: pg_sys::Oid) -> bool {
    one_value("SELECT bqx._is_kept_by_time($1)", &[m1.into()]).unwrap_or(false)
}
