//! The trigger that keeps `rate_index` filled: it runs for every bar that comes or changes.

use std::ffi::{CStr, c_int};

use pgrx::datum::Internal;
use pgrx::direct_function_call;
use pgrx::prelude::*;

use crate::rate_index::_rate_index_or_null;

/// BEFORE ROW, with the baseline as its argument. A close that is no positive finite number leaves rate_index
/// NULL: the feed goes on, and the month's job and verify() name the bar.
///
/// Doubles are done here; other types, and calls that are none of a trigger on a row, in PL/pgSQL.
#[pg_extern(sql = "
CREATE FUNCTION bqx._set_rate_index() RETURNS trigger LANGUAGE c AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
")]
fn _set_rate_index(fcinfo: pg_sys::FunctionCallInfo) -> Internal {
    // Safety: it is this function's own call.
    let returned = unsafe {
        match Bar::of_call(fcinfo) {
            Some(bar) => pg_sys::Datum::from(bar.with_rate_index()),
            None => set_rate_index_of_any_type(fcinfo),
        }
    };
    Internal::from(Some(returned))
}

/// A row that is to be stored, with doubles in the columns that matter, and the baseline.
struct Bar {
    tuple: pg_sys::HeapTuple,
    desc: pg_sys::TupleDesc,
    close: c_int,
    rate_index: c_int,
    baseline: f64,
}

impl Bar {
    /// The new row of a trigger's call; None if it is none, or one of other types.
    ///
    /// # Safety
    /// `fcinfo` must be that of the function being called; what is returned must not outlive the call.
    unsafe fn of_call(fcinfo: pg_sys::FunctionCallInfo) -> Option<Bar> {
        // Safety: PostgreSQL says in the context's tag whether it is a trigger's data. Those hold the relation, which is
        // open, its trigger, and for an insertion or update of a row that row.
        unsafe {
            let data = (*fcinfo).context as *const pg_sys::TriggerData;
            if data.is_null() || (*data).type_ != pg_sys::NodeTag::T_TriggerData {
                return None;
            }
            let event = (*data).tg_event;
            let tuple = match event & (pg_sys::TRIGGER_EVENT_ROW | pg_sys::TRIGGER_EVENT_OPMASK) {
                INSERTED_ROW => (*data).tg_trigtuple,
                UPDATED_ROW => (*data).tg_newtuple,
                _ => return None,
            };
            let desc = (*(*data).tg_relation).rd_att;
            Some(Bar {
                tuple,
                desc,
                close: double_column(desc, c"close")?,
                rate_index: double_column(desc, c"rate_index")?,
                baseline: argument(&*(*data).tg_trigger)?,
            })
        }
    }

    /// The row with its rate_index: itself, if it has it.
    fn with_rate_index(&self) -> pg_sys::HeapTuple {
        let value = _rate_index_or_null(self.double(self.close), Some(self.baseline));
        if value.map(f64::to_bits) == self.double(self.rate_index).map(f64::to_bits) {
            return self.tuple;
        }
        let (mut column, mut is_null) = (self.rate_index, value.is_none());
        let mut datum = value.map_or(pg_sys::Datum::null(), |value| pg_sys::Datum::from(value.to_bits()));
        // Safety: the row is of this descriptor, the column one of doubles, and there is one of each.
        unsafe {
            pg_sys::heap_modify_tuple_by_cols(
                self.tuple,
                self.desc,
                1,
                &raw mut column,
                &raw mut datum,
                &raw mut is_null,
            )
        }
    }

    /// The value of a column of doubles.
    fn double(&self, column: c_int) -> Option<f64> {
        let mut is_null = false;
        // Safety: the row is of this descriptor, and the column one of doubles, which are passed by value.
        let datum = unsafe { pg_sys::SPI_getbinval(self.tuple, self.desc, column, &raw mut is_null) };
        (!is_null).then(|| f64::from_bits(datum.value() as u64))
    }
}

const INSERTED_ROW: u32 = pg_sys::TRIGGER_EVENT_ROW | pg_sys::TRIGGER_EVENT_INSERT;
const UPDATED_ROW: u32 = pg_sys::TRIGGER_EVENT_ROW | pg_sys::TRIGGER_EVENT_UPDATE;

/// The number of a column of type double precision. None for a generated one, too: before an update it has the old value.
///
/// # Safety
/// The descriptor must be a valid one.
unsafe fn double_column(desc: pg_sys::TupleDesc, name: &CStr) -> Option<c_int> {
    // Safety: SPI_fnumber needs no connection to SPI; an unknown name has a number below 1.
    unsafe {
        let column = pg_sys::SPI_fnumber(desc, name.as_ptr());
        let attributes = pgrx::PgTupleDesc::from_pg_unchecked(desc);
        let attribute = attributes.get(usize::try_from(column).ok()?.checked_sub(1)?)?;
        (attribute.atttypid == pg_sys::FLOAT8OID && attribute.attgenerated == 0).then_some(column)
    }
}

/// The trigger's only argument.
///
/// # Safety
/// The trigger must be one of an open relation.
unsafe fn argument(trigger: &pg_sys::Trigger) -> Option<f64> {
    if trigger.tgnargs != 1 {
        return None;
    }
    // Safety: there are as many strings as there are arguments.
    unsafe { CStr::from_ptr(*trigger.tgargs) }.to_str().ok()?.parse().ok()
}

/// Lets the function in PL/pgSQL take the call.
///
/// # Safety
/// `fcinfo` must be that of the function being called.
unsafe fn set_rate_index_of_any_type(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // Safety: the call is handed on as it came, except for who is called. The function's data live as long as the call;
    // an error, which passes by as a panic of Rust's, ends that, too.
    unsafe {
        let oid: pg_sys::Oid = direct_function_call(
            pg_sys::to_regprocedure,
            &["bqx._set_rate_index_of_any_type()".into_datum()],
        )
        .unwrap_or_else(|| error!("there is no function bqx._set_rate_index_of_any_type()"));
        let mut function = pg_sys::FmgrInfo::default();
        pg_sys::fmgr_info(oid, &raw mut function);
        let call = function.fn_addr.expect("fmgr_info finds the function's address");
        let _own_again = Restored { place: &raw mut (*fcinfo).flinfo, value: (*fcinfo).flinfo };
        (*fcinfo).flinfo = &raw mut function;
        pg_sys::ffi::pg_guard_ffi_boundary(|| call(fcinfo))
    }
}

/// Puts a value back, whatever ends this one's life.
struct Restored {
    place: *mut *mut pg_sys::FmgrInfo,
    value: *mut pg_sys::FmgrInfo,
}

impl Drop for Restored {
    fn drop(&mut self) {
        // Safety: the place is in the data of a call that is not over.
        unsafe { *self.place = self.value };
    }
}
