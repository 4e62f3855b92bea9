//! Rows in and out: query results read straight from SPI's tuples, sets returned through a tuplestore.
//! pgrx's own row types copy every row, and `TableIterator` ends at 32 columns.

use std::convert::Infallible;
use std::ffi::CString;

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::SpiClient;

use crate::errors::Failure;

/// Rows fetched at a time: bounds the memory of a query result.
const FETCH: u64 = 8192;

/// One row of a query result, valid while it is being looked at.
pub struct QueryRow {
    tuple: pg_sys::HeapTuple,
    desc: pg_sys::TupleDesc,
}

impl QueryRow {
    /// Column `ordinal` (from 1) as an owned Rust value; None for NULL. An error if the column is of another type.
    pub fn get<T: FromDatum + IntoDatum>(&self, ordinal: i32) -> Option<T> {
        let mut is_null = false;
        // Safety: tuple and descriptor belong together and outlive `self` (see `for_each_row`); the ordinal is
        // checked by SPI_getbinval, which returns NULL for one out of range, and the type is checked here.
        unsafe {
            let found = pg_sys::SPI_gettypeid(self.desc, ordinal);
            if !T::is_compatible_with(found) {
                error!(
                    "column {ordinal} of a query has type {}, not {}",
                    found.to_u32(),
                    T::type_oid().to_u32()
                );
            }
            let datum = pg_sys::SPI_getbinval(self.tuple, self.desc, ordinal, &mut is_null);
            T::from_datum(datum, is_null)
        }
    }
}

/// Runs a read-only query through a cursor and shows each row, in bounded memory.
///
/// The query sees the snapshot of the statement that calls, and so do all queries of one call. (pgrx's own cursors
/// take a new snapshot each, once the transaction has written.)
pub fn for_each_row(
    connected: &SpiClient<'_>,
    query: &str,
    args: &[DatumWithOid<'_>],
    mut look: impl FnMut(&QueryRow),
) {
    let Ok(()) = try_for_each_row(connected, query, args, |row| {
        look(row);
        Ok::<(), Infallible>(())
    });
}

/// [`for_each_row`] up to the first row at which `look` fails.
pub fn try_for_each_row<E>(
    _connected: &SpiClient<'_>,
    query: &str,
    args: &[DatumWithOid<'_>],
    mut look: impl FnMut(&QueryRow) -> Result<(), E>,
) -> Result<(), E> {
    let source = CString::new(query).expect("a query without NUL bytes");
    let mut types: Vec<pg_sys::Oid> = args.iter().map(DatumWithOid::oid).collect();
    let mut values: Vec<pg_sys::Datum> = args
        .iter()
        .map(|arg| arg.datum().map_or(pg_sys::Datum::null(), |datum| datum.sans_lifetime()))
        .collect();
    let nulls: Vec<std::ffi::c_char> =
        args.iter().map(|arg| if arg.datum().is_none() { b'n' } else { b' ' } as _).collect();
    // Safety: SPI is connected (`_connected`); the arrays have one entry per argument and outlive the call; the rows
    // that a fetch leaves in SPI_tuptable live until SPI_freetuptable.
    unsafe {
        let portal = pg_sys::SPI_cursor_open_with_args(
            std::ptr::null(),
            source.as_ptr(),
            args.len() as i32,
            types.as_mut_ptr(),
            values.as_mut_ptr(),
            nulls.as_ptr(),
            true,
            0,
        );
        loop {
            pg_sys::SPI_cursor_fetch(portal, true, FETCH as _);
            let (fetched, table) = (pg_sys::SPI_processed, pg_sys::SPI_tuptable);
            let looked = (0..fetched as usize)
                .try_for_each(|i| look(&QueryRow { tuple: *(*table).vals.add(i), desc: (*table).tupdesc }));
            pg_sys::SPI_freetuptable(table);
            if looked.is_err() || fetched < FETCH {
                pg_sys::SPI_cursor_close(portal);
                return looked;
            }
            pg_sys::check_for_interrupts!();
        }
    }
}

/// A set-returning function's result, materialised in a tuplestore that spills to disk past work_mem.
pub struct ResultSet {
    store: *mut pg_sys::Tuplestorestate,
    desc: pg_sys::TupleDesc,
    datums: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
}

impl ResultSet {
    /// Starts the result of the function that is being called. 42804 unless the query expects rows of just these
    /// types: a column definition list is written by whoever calls.
    ///
    /// # Safety
    /// `fcinfo` must be that of the set-returning function being called.
    pub unsafe fn start(fcinfo: pg_sys::FunctionCallInfo, types: &[pg_sys::Oid]) -> ResultSet {
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
            let expected = pgrx::PgTupleDesc::from_pg_copy((*info).expectedDesc);
            let found: Vec<_> = (0..expected.len()).filter_map(|i| Some(expected.get(i)?.atttypid)).collect();
            if found != types {
                Failure::new(
                    PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
                    "the column definition list does not have the types of the function's rows",
                )
                .raise();
            }
            let previous = pg_sys::MemoryContextSwitchTo((*(*info).econtext).ecxt_per_query_memory);
            let desc = pg_sys::CreateTupleDescCopy((*info).expectedDesc);
            let store = pg_sys::tuplestore_begin_heap(true, false, pg_sys::work_mem);
            pg_sys::MemoryContextSwitchTo(previous);
            (*info).returnMode = pg_sys::SetFunctionReturnMode::SFRM_Materialize;
            (*info).setResult = store;
            (*info).setDesc = desc;
            ResultSet {
                store,
                desc,
                datums: vec![pg_sys::Datum::null(); types.len()],
                nulls: vec![false; types.len()],
            }
        }
    }

    /// Adds a row; None is NULL. Datums must be of the columns' types.
    pub fn put(&mut self, values: &[Option<pg_sys::Datum>]) {
        assert_eq!(values.len(), self.nulls.len(), "a row has as many values as columns");
        for ((datum, is_null), value) in self.datums.iter_mut().zip(&mut self.nulls).zip(values) {
            (*datum, *is_null) = (value.unwrap_or(pg_sys::Datum::null()), value.is_none());
        }
        // Safety: store and descriptor are those made in `start`; both arrays have one entry per column.
        unsafe {
            let (datums, nulls) = (self.datums.as_mut_ptr(), self.nulls.as_mut_ptr());
            pg_sys::tuplestore_putvalues(self.store, self.desc, datums, nulls);
        }
    }
}
