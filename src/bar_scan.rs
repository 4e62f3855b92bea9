//! Bars read straight from the index on their time.
//!
//! A query for the 630 bars before an instant takes PostgreSQL longer to plan than to run, the longer the more partitions there are. So
//! where a table is made as bqx makes it, its bars are read as PostgreSQL's own catalogs are: by scans of an index. The caller's
//! right to read the table is for the caller of this module to check.

use std::collections::TryReserveError;
use std::ffi::{CStr, c_int};

use pgrx::prelude::*;

use crate::series::Bar;
use crate::time_partitions::TimePartitions;

/// An M1 table whose bars can be read so.
pub struct IndexedBars {
    parts: TimePartitions,
    locks: Locks,
}

/// What becomes of the locks of tables that were read.
#[derive(Clone, Copy)]
pub enum Locks {
    /// They are held until the transaction ends, as after a query: what was read can't be taken away meanwhile.
    Kept,
    /// They are given back: those of many pairs and years would be more than the server has room for.
    GivenBack,
}

impl Locks {
    /// With which lock a relation is closed.
    fn at_close(self) -> pg_sys::LOCKMODE {
        match self {
            Locks::Kept => pg_sys::NoLock as pg_sys::LOCKMODE,
            Locks::GivenBack => pg_sys::AccessShareLock as pg_sys::LOCKMODE,
        }
    }
}

impl IndexedBars {
    /// `None` if a query has to read the table. It must be partitioned, if at all, by its time.
    pub fn of(m1: pg_sys::Oid, locks: Locks) -> Option<IndexedBars> {
        // Safety: table_open raises an error unless the table is there; it is closed after it was looked at.
        unsafe {
            let relation = pg_sys::table_open(m1, pg_sys::AccessShareLock as i32);
            let parts = TimePartitions::of(relation);
            pg_sys::table_close(relation, locks.at_close());
            parts.map(|parts| IndexedBars { parts, locks })
        }
    }

    /// Up to `bars` bars before an instant, newest first; `None` if a query has to find them.
    pub fn newest_first(&self, before: i64, bars: usize) -> Option<Result<Vec<Bar>, TryReserveError>> {
        self.collect(self.parts.tables_before(before), Direction::Before(before), bars)
    }

    /// Up to `bars` bars from an instant on, oldest first; `None` if a query has to find them.
    pub fn oldest_first(&self, from: i64, bars: usize) -> Option<Result<Vec<Bar>, TryReserveError>> {
        self.collect(self.parts.tables_from(from), Direction::From(from), bars)
    }

    fn collect(
        &self,
        tables: impl Iterator<Item = pg_sys::Oid>,
        direction: Direction,
        bars: usize,
    ) -> Option<Result<Vec<Bar>, TryReserveError>> {
        let mut found = Vec::new();
        if let Err(error) = found.try_reserve_exact(bars) {
            return Some(Err(error));
        }
        for table in tables {
            if found.len() == bars {
                break;
            }
            IndexedTable::open(table, self.locks)?.read(direction, bars, &mut found);
        }
        Some(Ok(found))
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Before(i64),
    From(i64),
}

/// A table with an index on its time, open for as long as this lives.
struct IndexedTable {
    heap: pg_sys::Relation,
    index: pg_sys::Relation,
    /// `timestamptz` or `timestamp`.
    time_type: pg_sys::Oid,
    /// Numbers of the columns.
    time: c_int,
    rate_index: c_int,
    close: c_int,
    locks: Locks,
}

impl IndexedTable {
    /// `None` if the table has columns of other types, or no such index.
    fn open(table: pg_sys::Oid, locks: Locks) -> Option<IndexedTable> {
        // Safety: table_open raises an error unless the table is there.
        unsafe {
            let heap = pg_sys::table_open(table, pg_sys::AccessShareLock as i32);
            let found = Self::with_index(heap, locks);
            if found.is_none() {
                pg_sys::table_close(heap, locks.at_close());
            }
            found
        }
    }

    /// # Safety
    /// The relation must be open.
    unsafe fn with_index(heap: pg_sys::Relation, locks: Locks) -> Option<IndexedTable> {
        // Safety: the relation is open; the list of its indexes is one of OIDs.
        unsafe {
            let class = &*(*heap).rd_rel;
            let (time, time_type) = column(heap, c"time")?;
            let (rate_index, index_type) = column(heap, c"rate_index")?;
            let (close, close_type) = column(heap, c"close")?;
            let is_readable = class.relkind as u8 == pg_sys::RELKIND_RELATION
                && [pg_sys::TIMESTAMPTZOID, pg_sys::TIMESTAMPOID].contains(&time_type)
                && index_type == pg_sys::FLOAT8OID
                && close_type == pg_sys::FLOAT8OID;
            if !is_readable {
                return None;
            }
            let indexes = pg_sys::RelationGetIndexList(heap);
            let count = pg_sys::list_length(indexes);
            let index = (0..count).find_map(|i| open_index_on(pg_sys::list_nth_oid(indexes, i), time))?;
            Some(IndexedTable { heap, index, time_type, time, rate_index, close, locks })
        }
    }

    /// Adds bars until there are `enough`.
    fn read(&self, direction: Direction, enough: usize, found: &mut Vec<Bar>) {
        let (bound, strategy, scan_direction) = match direction {
            Direction::Before(time) => {
                (time, pg_sys::BTLessStrategyNumber, pg_sys::ScanDirection::BackwardScanDirection)
            }
            Direction::From(time) => {
                (time, pg_sys::BTGreaterEqualStrategyNumber, pg_sys::ScanDirection::ForwardScanDirection)
            }
        };
        let comparison = match (self.time_type == pg_sys::TIMESTAMPTZOID, direction) {
            (true, Direction::Before(_)) => pg_sys::F_TIMESTAMPTZ_LT,
            (true, Direction::From(_)) => pg_sys::F_TIMESTAMPTZ_GE,
            (false, Direction::Before(_)) => pg_sys::F_TIMESTAMP_LT,
            (false, Direction::From(_)) => pg_sys::F_TIMESTAMP_GE,
        };
        // Safety: both relations are open, and the key is on the index's first column, with a comparison of its type. The slot is
        // one for the table's rows, and holds one, with all attributes up to the last one asked for, while it is looked at.
        unsafe {
            let mut key = pg_sys::ScanKeyData::default();
            pg_sys::ScanKeyInit(
                &raw mut key,
                1,
                strategy as _,
                comparison.into(),
                pg_sys::Datum::from(bound),
            );
            let slot = pg_sys::table_slot_create(self.heap, std::ptr::null_mut());
            let scan = begin_scan(self.heap, self.index);
            pg_sys::index_rescan(scan, &raw mut key, 1, std::ptr::null_mut(), 0);
            let columns = self.time.max(self.rate_index).max(self.close);
            while found.len() < enough && pg_sys::index_getnext_slot(scan, scan_direction, slot) {
                pg_sys::slot_getsomeattrs_int(slot, columns);
                let value = |column: c_int| {
                    let i = column as usize - 1;
                    (!*(*slot).tts_isnull.add(i)).then(|| (*(*slot).tts_values.add(i)).value() as u64)
                };
                found.push(Bar {
                    time: value(self.time).expect("a time that was compared is not NULL") as i64,
                    rate_index: value(self.rate_index).map(f64::from_bits),
                    close: value(self.close).map(f64::from_bits),
                });
            }
            pg_sys::index_endscan(scan);
            pg_sys::ExecDropSingleTupleTableSlot(slot);
        }
        pg_sys::check_for_interrupts!();
    }
}

impl Drop for IndexedTable {
    fn drop(&mut self) {
        // After an error, PostgreSQL closes them.
        if !std::thread::panicking() {
            // Safety: both were opened by `open`, and are closed once.
            unsafe {
                pg_sys::index_close(self.index, self.locks.at_close());
                pg_sys::table_close(self.heap, self.locks.at_close());
            }
        }
    }
}

/// Whether a column is generated when it is read: rows as they are stored do not hold its value.
///
/// # Safety
/// The descriptor must be that of an open relation.
pub unsafe fn is_virtual(desc: pg_sys::TupleDesc, name: &CStr) -> bool {
    #[cfg(not(feature = "pg18"))]
    {
        let _ = (desc, name);
        false // there are none
    }
    #[cfg(feature = "pg18")]
    // Safety: see above; a number above 0 is that of a column.
    unsafe {
        if (*desc).constr.is_null() || !(*(*desc).constr).has_generated_virtual {
            return false;
        }
        let number = pg_sys::SPI_fnumber(desc, name.as_ptr());
        let columns = pgrx::PgTupleDesc::from_pg_copy(desc);
        number > 0 && columns.get(number as usize - 1).is_some_and(|column| column.attgenerated as u8 == b'v')
    }
}

/// Number and type of a column that is stored.
///
/// # Safety
/// The relation must be open.
unsafe fn column(relation: pg_sys::Relation, name: &CStr) -> Option<(c_int, pg_sys::Oid)> {
    // Safety: see above; a number above 0 is that of a column.
    unsafe {
        let desc = (*relation).rd_att;
        let number = pg_sys::SPI_fnumber(desc, name.as_ptr());
        (number > 0 && !is_virtual(desc, name)).then(|| (number, pg_sys::SPI_gettypeid(desc, number)))
    }
}

/// Opens an index, if it is one of all rows with this column first, in ascending order, that any scan may use.
///
/// # Safety
/// The index must be one of an open table.
unsafe fn open_index_on(oid: pg_sys::Oid, column: c_int) -> Option<pg_sys::Relation> {
    // Safety: the index is open while it is looked at, and stays so if it is returned; it has at least one column. Columns of a
    // type in its own order have that type's operator class, or another with the same type: its family says which.
    unsafe {
        let index = pg_sys::index_open(oid, pg_sys::AccessShareLock as i32);
        let form = &*(*index).rd_index;
        let is_usable = (*(*index).rd_rel).relam == pg_sys::BTREE_AM_OID
            && form.indisvalid
            && !form.indcheckxmin
            && c_int::from(*form.indkey.values.as_ptr()) == column
            && *(*index).rd_indoption == 0
            && *(*index).rd_opfamily == DATETIME_BTREE_FAMILY
            && pg_sys::RelationGetIndexPredicate(index).is_null();
        if is_usable {
            return Some(index);
        }
        pg_sys::index_close(index, pg_sys::AccessShareLock as i32);
        None
    }
}

/// `datetime_ops` of B-trees in `pg_opfamily`, a number that the bindings leave out.
const DATETIME_BTREE_FAMILY: pg_sys::Oid = pg_sys::Oid::from_u32(434);

/// # Safety
/// Both relations must be open, and a snapshot active.
unsafe fn begin_scan(heap: pg_sys::Relation, index: pg_sys::Relation) -> pg_sys::IndexScanDesc {
    // Safety: see above.
    unsafe {
        let snapshot = pg_sys::GetActiveSnapshot();
        #[cfg(feature = "pg18")]
        return pg_sys::index_beginscan(heap, index, snapshot, std::ptr::null_mut(), 1, 0);
        #[cfg(not(feature = "pg18"))]
        return pg_sys::index_beginscan(heap, index, snapshot, 1, 0);
    }
}
