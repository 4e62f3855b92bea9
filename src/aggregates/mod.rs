//! The window aggregates. The states and their mathematics are `bqx_core`'s; here is what PostgreSQL wants of them.
//!
//! Each aggregate has two kinds of state: a growing one, for plain aggregates and for frames that start where the
//! partition starts, and a moving one, whose inverse transition takes the oldest row out. (PostgreSQL calls them
//! "plain" and "moving-aggregate mode".) An inverse transition that cannot do its work returns NULL, which makes
//! PostgreSQL compute the frame anew.

use std::collections::TryReserveError;

use pgrx::callconv::{BoxRet, FcInfo};
use pgrx::datum::Datum;
use pgrx::memcxt::PgMemoryContexts;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::prelude::*;
use pgrx::{Internal, pg_sys};

use crate::errors::Failure;
use crate::memory;

pub mod candlesticks;
pub mod indicators;
pub mod last_known;
pub mod quadratic_reg;
pub mod quadratic_reg_xy;
pub mod rolling_corr;
pub mod window_metrics;

/// The state behind `state`, made by `make` and owned by the aggregate's memory context if there is none yet: when
/// PostgreSQL resets that context, for the next group, partition or frame, the state is dropped.
///
/// # Safety
/// `fcinfo` must be that of the transition function being called, and `state` its first argument, made by this
/// function with the same `S` or NULL. (Nobody but a superuser can make an aggregate with an `internal` state, or call
/// a function that takes one.)
unsafe fn state_or<S>(
    state: &mut Internal,
    fcinfo: pg_sys::FunctionCallInfo,
    make: impl FnOnce() -> S,
) -> &mut S {
    if !state.initialized() {
        memory::secure().unwrap_or_else(out_of_memory);
        let mut context: pg_sys::MemoryContext = std::ptr::null_mut();
        // Safety: `fcinfo` is that of a call in progress.
        if unsafe { pg_sys::AggCheckCallContext(fcinfo, &mut context) } == 0 {
            error!("an aggregate's transition function was called by something else");
        }
        // Safety: the context that PostgreSQL names is alive.
        unsafe { PgMemoryContexts::For(context).switch_to(|_| *state = Internal::new(make())) };
    }
    // Safety: see above; PostgreSQL passes a state to one call at a time.
    unsafe { state.get_mut().expect("it is initialized") }
}

/// Raises the error of a frame whose values, or a state that, finds no memory.
fn out_of_memory(_: TryReserveError) {
    Failure::out_of_memory(
        "A window aggregate's frame has too many rows, or there are too many groups at a time.",
    )
    .raise()
}

/// A value of the composite type that the function being called returns.
pub struct Composite(pg_sys::Datum);

/// A column of it: `None` is NULL.
type Cell = Option<pg_sys::Datum>;

/// NaN and infinities are NULL; -0 becomes +0.
fn cell(number: f64) -> Cell {
    number.is_finite().then(|| pg_sys::Datum::from((number + 0.0).to_bits()))
}

impl Composite {
    /// `(n bigint, metrics double precision …)`: NaN and infinite metrics, or all for `None`, are NULL.
    ///
    /// # Safety
    /// `fcinfo` must be that of the function being called, which returns such a type.
    pub unsafe fn of_metrics<const M: usize>(
        fcinfo: pg_sys::FunctionCallInfo,
        n: usize,
        metrics: Option<[f64; M]>,
    ) -> Composite {
        let n = (pg_sys::INT8OID, Some(pg_sys::Datum::from(n as i64)));
        let metrics = metrics.unwrap_or([f64::NAN; M]).map(|metric| (pg_sys::FLOAT8OID, cell(metric)));
        // Safety: the caller's.
        unsafe { Composite::of_cells(fcinfo, std::iter::once(n).chain(metrics)) }
    }

    /// Columns by their types, in order.
    ///
    /// # Safety
    /// `fcinfo` must be that of the function being called, and the values of the types beside them, which are passed by
    /// value.
    unsafe fn of_cells(
        fcinfo: pg_sys::FunctionCallInfo,
        cells: impl Iterator<Item = (pg_sys::Oid, Cell)>,
    ) -> Composite {
        const ROOM: usize = 16;
        let (mut types, mut values) = ([pg_sys::InvalidOid; ROOM], [pg_sys::Datum::null(); ROOM]);
        let (mut nulls, mut len) = ([true; ROOM], 0);
        for (oid, cell) in cells {
            (types[len], nulls[len]) = (oid, cell.is_none());
            values[len] = cell.unwrap_or(pg_sys::Datum::null());
            len += 1;
        }
        // Safety: the descriptor has these columns, which `result_desc` checks. The header of a formed tuple is a
        // composite datum if, as here, no value is stored out of line.
        unsafe {
            let desc = result_desc(fcinfo, &types[..len]);
            let tuple = pg_sys::heap_form_tuple(desc, values.as_mut_ptr(), nulls.as_mut_ptr());
            Composite(pg_sys::Datum::from((*tuple).t_data))
        }
    }
}

/// Descriptor of the composite type that the function being called returns, whose columns must have these types. Looked up
/// once per query and kept with the function's call information.
///
/// # Safety
/// `fcinfo` must be that of a call in progress, and nothing else may use its `fn_extra`.
unsafe fn result_desc(fcinfo: pg_sys::FunctionCallInfo, types: &[pg_sys::Oid]) -> pg_sys::TupleDesc {
    // Safety: flinfo belongs to the call; what fn_extra points to lives in fn_mcxt, as long as flinfo does.
    unsafe {
        let flinfo = (*fcinfo).flinfo;
        if (*flinfo).fn_extra.is_null() {
            let mut desc: pg_sys::TupleDesc = std::ptr::null_mut();
            let class = pg_sys::get_call_result_type(fcinfo, std::ptr::null_mut(), &mut desc);
            if class != pg_sys::TypeFuncClass::TYPEFUNC_COMPOSITE {
                error!("the function's result is not a composite type");
            }
            let looked_up = pgrx::PgTupleDesc::from_pg_copy(desc);
            if !looked_up.iter().map(|attribute| attribute.atttypid).eq(types.iter().copied()) {
                error!("the columns of the function's result type are not those that it fills");
            }
            let previous = pg_sys::MemoryContextSwitchTo((*flinfo).fn_mcxt);
            (*flinfo).fn_extra = pg_sys::CreateTupleDescCopy(desc).cast();
            pg_sys::MemoryContextSwitchTo(previous);
        }
        (*flinfo).fn_extra.cast()
    }
}

// Safety: the datum is of the function's own result type (see `Composite::of_metrics`).
unsafe impl BoxRet for Composite {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> Datum<'fcx> {
        // Safety: it is returned from the function that made it.
        unsafe { fcinfo.return_raw_datum(self.0) }
    }
}

// Safety: functions that return it have their SQL written out.
unsafe impl SqlTranslatable for Composite {
    const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!(Composite);
    const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
    const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> =
        Err(ArgumentError::NotValidAsArgument("Composite"));
    const RETURN_SQL: Result<ReturnsRef, ReturnsError> =
        Ok(ReturnsRef::One(SqlMappingRef::literal("record")));
}
