//! Rows in and out: query results read from the executor's own slots, sets returned through a tuplestore.
//! pgrx's own row types copy every row, and `TableIterator` ends at 32 columns.

use std::ffi::{CString, c_int};

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::SpiClient;

use crate::errors::Failure;

/// Rows fetched at a time.
pub const FETCH: usize = 8192;

/// One row of a query result, valid while it is being looked at.
pub struct QueryRow<'a> {
    values: &'a [pg_sys::Datum],
    nulls: &'a [bool],
    types: &'a [pg_sys::Oid],
}

impl QueryRow<'_> {
    /// Column `ordinal` (from 1) as an owned Rust value; None for NULL. An error if the column is of another type.
    #[inline]
    pub fn get<T: FromDatum + IntoDatum>(&self, ordinal: usize) -> Option<T> {
        let found = self.types[ordinal - 1];
        if !T::is_compatible_with(found) {
            error!("column {ordinal} of a query has type {}, not {}", found.to_u32(), T::type_oid().to_u32());
        }
        // Safety: the datum is of a type that T takes, and lives while the row does; the value is owned.
        unsafe { T::from_datum(self.values[ordinal - 1], self.nulls[ordinal - 1]) }
    }

    /// Column `ordinal` (from 1) and all after it, and which of them are NULL. What those hold may be anything.
    #[inline]
    pub fn from(&self, ordinal: usize) -> (&[pg_sys::Datum], &[bool]) {
        (&self.values[ordinal - 1..], &self.nulls[ordinal - 1..])
    }
}

/// A read-only query whose rows are looked at as they are found, a piece at a time.
///
/// All of it sees the snapshot of the statement that calls, and so do all queries of one call. (pgrx's own cursors
/// take a new snapshot each, once the transaction has written.) PostgreSQL runs it without helper processes.
pub struct Cursor {
    portal: pg_sys::Portal,
    /// The columns'.
    types: Vec<pg_sys::Oid>,
}

impl Cursor {
    pub fn open(_connected: &SpiClient<'_>, query: &str, args: &[DatumWithOid<'_>]) -> Cursor {
        let source = CString::new(query).expect("a query without NUL bytes");
        let mut types: Vec<pg_sys::Oid> = args.iter().map(DatumWithOid::oid).collect();
        let mut values: Vec<pg_sys::Datum> = args
            .iter()
            .map(|arg| arg.datum().map_or(pg_sys::Datum::null(), |datum| datum.sans_lifetime()))
            .collect();
        let nulls: Vec<std::ffi::c_char> =
            args.iter().map(|arg| if arg.datum().is_none() { b'n' } else { b' ' } as _).collect();
        // Safety: SPI is connected (`_connected`); the arrays have one entry per argument and outlive the call. The portal
        // of a query that returns rows has their descriptor.
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
            let desc = (*portal).tupDesc;
            let types = (1..=(*desc).natts).map(|i| pg_sys::SPI_gettypeid(desc, i)).collect();
            Cursor { portal, types }
        }
    }

    /// Types of the columns.
    pub fn types(&self) -> &[pg_sys::Oid] {
        &self.types
    }

    /// Shows up to `count` further rows, and says whether there may be more. They are looked at while the query runs,
    /// so `look` should be brief.
    pub fn fetch(&mut self, count: usize, mut look: impl FnMut(&QueryRow)) -> bool {
        let mut receiver = Receiver {
            head: pg_sys::DestReceiver {
                receiveSlot: Some(receive_slot),
                rStartup: Some(start_up),
                rShutdown: Some(nothing),
                rDestroy: Some(nothing),
                mydest: pg_sys::CommandDest::DestNone,
            },
            types: &self.types,
            look: &mut look,
        };
        // Safety: the portal is open (`close` takes it away), and the receiver outlives the call. A reference to all of
        // it is cast, so that the callbacks may use all of it.
        let fetched = unsafe {
            let head = (&raw mut receiver).cast();
            pg_sys::PortalRunFetch(self.portal, pg_sys::FetchDirection::FETCH_FORWARD, count as _, head)
        };
        pg_sys::check_for_interrupts!();
        fetched == count as u64
    }

    /// After an error, PostgreSQL closes it with the transaction.
    pub fn close(self) {
        // Safety: the portal is open, and gone with `self`.
        unsafe { pg_sys::SPI_cursor_close(self.portal) };
    }
}

/// Where the executor puts the rows of a [`Cursor`]: no copies are made of them, as SPI would.
#[repr(C)]
struct Receiver<'a> {
    /// First, because that is all that PostgreSQL knows of.
    head: pg_sys::DestReceiver,
    types: &'a [pg_sys::Oid],
    look: &'a mut dyn FnMut(&QueryRow),
}

#[pg_guard]
unsafe extern "C-unwind" fn start_up(
    _receiver: *mut pg_sys::DestReceiver,
    _operation: c_int,
    _desc: pg_sys::TupleDesc,
) {
}

#[pg_guard]
unsafe extern "C-unwind" fn receive_slot(
    slot: *mut pg_sys::TupleTableSlot,
    receiver: *mut pg_sys::DestReceiver,
) -> bool {
    // Safety: PostgreSQL calls with the receiver it was given, a Receiver, and a slot that holds a row with the portal's
    // columns. Once all of its attributes are valid, the slot's arrays have an entry for each.
    unsafe {
        let receiver = &mut *receiver.cast::<Receiver>();
        let columns = receiver.types.len();
        if ((*slot).tts_nvalid as usize) < columns {
            pg_sys::slot_getsomeattrs_int(slot, columns as c_int);
        }
        let row = QueryRow {
            values: slice((*slot).tts_values, columns),
            nulls: slice((*slot).tts_isnull, columns),
            types: receiver.types,
        };
        (receiver.look)(&row);
    }
    true
}

/// A slice of what PostgreSQL may have no array for where there is nothing in it.
///
/// # Safety
/// The array must have so many elements, unchanged for as long as the slice is used.
unsafe fn slice<'a, T>(array: *const T, elements: usize) -> &'a [T] {
    if elements == 0 { &[] } else { unsafe { std::slice::from_raw_parts(array, elements) } }
}

#[pg_guard]
unsafe extern "C-unwind" fn nothing(_receiver: *mut pg_sys::DestReceiver) {}

/// Runs a query as a [`Cursor`] does, and shows each row, in bounded memory.
pub fn for_each_row(
    connected: &SpiClient<'_>,
    query: &str,
    args: &[DatumWithOid<'_>],
    mut look: impl FnMut(&QueryRow),
) {
    let mut cursor = Cursor::open(connected, query, args);
    while cursor.fetch(FETCH, &mut look) {}
    cursor.close();
}

/// The one value of a query's first row, found as a [`Cursor`] finds it: nothing is written, not even on behalf of the
/// transaction (pgrx's `Spi::get_one` gives it a number, which a standby can't). None if it is NULL, or there is no row.
pub fn one_value<T: FromDatum + IntoDatum>(query: &str, args: &[DatumWithOid<'_>]) -> Option<T> {
    let mut value = None;
    Spi::connect(|client| for_each_row(client, query, args, |row| value = row.get(1)));
    value
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
