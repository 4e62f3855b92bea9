//! Rows in and out: query results read straight from SPI's tuples, sets returned through a tuplestore.
//! pgrx's own row types copy every row, and `TableIterator` ends at 32 columns.

use pgrx::pg_sys;
use pgrx::prelude::*;

/// Rows fetched at a time: bounds the memory of a query result.
const FETCH: i64 = 8192;

/// One row of a query result, valid while it is being looked at.
pub struct QueryRow {
    tuple: pg_sys::HeapTuple,
    desc: pg_sys::TupleDesc,
}

impl QueryRow {
    /// Column `ordinal` (from 1) as a Rust value; None for NULL. The type must be the column's.
    pub fn get<T: FromDatum>(&self, ordinal: i32) -> Option<T> {
        let mut is_null = false;
        // Safety: tuple and descriptor belong together and outlive `self` (see `for_each_row`); the ordinal is
        // checked by SPI_getbinval, which returns NULL for one out of range.
        unsafe {
            let datum = pg_sys::SPI_getbinval(self.tuple, self.desc, ordinal, &mut is_null);
            T::from_datum(datum, is_null)
        }
    }
}

/// Runs a read-only query through a cursor and shows each row, in bounded memory.
///
/// The query sees the same snapshot as the statement that calls. Must be called inside `Spi::connect`.
pub fn for_each_row(
    client: &pgrx::spi::SpiClient<'_>,
    query: &str,
    args: &[pgrx::datum::DatumWithOid<'_>],
    mut look: impl FnMut(&QueryRow),
) {
    let mut cursor = client.open_cursor(query, args);
    loop {
        let fetched = match cursor.fetch(FETCH as _) {
            Ok(table) => table.len(),
            Err(e) => error!("{e}"),
        };
        // Safety: `fetch` has just set SPI_tuptable to the rows it fetched; they live until SPI_freetuptable.
        unsafe {
            let table = pg_sys::SPI_tuptable;
            for i in 0..fetched {
                look(&QueryRow { tuple: *(*table).vals.add(i), desc: (*table).tupdesc });
            }
            pg_sys::SPI_freetuptable(table);
        }
        if (fetched as i64) < FETCH {
            return;
        }
        pg_sys::check_for_interrupts!();
    }
}

/// A set-returning function's result, materialised in a tuplestore that spills to disk past work_mem.
pub struct ResultSet {
    store: *mut pg_sys::Tuplestorestate,
    desc: pg_sys::TupleDesc,
    nulls: Vec<bool>,
}

impl ResultSet {
    /// Starts the result of the function that is being called. Every row put must match the row type that the
    /// query expects; `columns` is its width, checked here.
    ///
    /// # Safety
    /// `fcinfo` must be that of the set-returning function being called.
    pub unsafe fn start(fcinfo: pg_sys::FunctionCallInfo, columns: usize) -> ResultSet {
        // Safety: resultinfo, if it is a ReturnSetInfo, lives as long as the call; store and descriptor are made
        // in the per-query context, where the executor wants them.
        unsafe {
            let info = (*fcinfo).resultinfo as *mut pg_sys::ReturnSetInfo;
            let usable = !info.is_null()
                && (*info).type_ == pg_sys::NodeTag::T_ReturnSetInfo
                && (*info).allowedModes & pg_sys::SetFunctionReturnMode::SFRM_Materialize as i32 != 0
                && !(*info).expectedDesc.is_null();
            if !usable {
                error!("set-valued function called where a set can't be taken");
            }
            if (*(*info).expectedDesc).natts as usize != columns {
                error!(
                    "the column definition list has {} columns, not {columns}",
                    (*(*info).expectedDesc).natts
                );
            }
            let previous = pg_sys::MemoryContextSwitchTo((*(*info).econtext).ecxt_per_query_memory);
            let desc = pg_sys::CreateTupleDescCopy((*info).expectedDesc);
            let store = pg_sys::tuplestore_begin_heap(true, false, pg_sys::work_mem);
            pg_sys::MemoryContextSwitchTo(previous);
            (*info).returnMode = pg_sys::SetFunctionReturnMode::SFRM_Materialize;
            (*info).setResult = store;
            (*info).setDesc = desc;
            ResultSet { store, desc, nulls: vec![false; columns] }
        }
    }

    /// Adds a row; None is NULL. Datums must be of the columns' types.
    pub fn put(&mut self, values: &[Option<pg_sys::Datum>]) {
        assert_eq!(values.len(), self.nulls.len(), "a row has as many values as columns");
        let mut datums: Vec<pg_sys::Datum> =
            values.iter().map(|v| v.unwrap_or(pg_sys::Datum::null())).collect();
        for (is_null, value) in self.nulls.iter_mut().zip(values) {
            *is_null = value.is_none();
        }
        // Safety: store and descriptor are those made in `start`; both arrays have one entry per column.
        unsafe {
            pg_sys::tuplestore_putvalues(self.store, self.desc, datums.as_mut_ptr(), self.nulls.as_mut_ptr());
        }
    }
}
