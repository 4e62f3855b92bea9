//! What the planner makes of `bqx_ml.features` and `bqx_ml.related` where they are asked for one pair.
//!
//! These functions read tables that depend on their arguments, so all they return has to be kept until it is there. For a pair
//! that `create_features` or `create_related` was called for, there is a function in SQL over just its tables, of the same name with the
//! pair's after it, whose query the planner can put in the place of the call. It asks here whether there is one.

use pgrx::datum::Internal;
use pgrx::prelude::*;
use pgrx::{FromDatum, PgList};
use twox_hash::xxhash3_128::Hasher;

use crate::rows::one_value;

/// A planner support function: the call of the pair's own function, if the pair and the ends of time are known and there is one;
/// else nothing, and the call stays as it is.
#[pg_extern(sql = "
CREATE FUNCTION bqx._of_one_pair(internal) RETURNS internal LANGUAGE c IMMUTABLE STRICT
AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
")]
fn _of_one_pair(fcinfo: pg_sys::FunctionCallInfo) -> Internal {
    // Safety: PostgreSQL calls with one argument, a node of one of the kinds of requests. That of this kind has a call, whose
    // arguments are expressions.
    let simpler = unsafe {
        let request = pgrx::fcinfo::pg_getarg_datum_raw(fcinfo, 0).cast_mut_ptr::<pg_sys::Node>();
        match (*request).type_ {
            pg_sys::NodeTag::T_SupportRequestSimplify => {
                let request = request.cast::<pg_sys::SupportRequestSimplify>();
                call_of_one_pair(&*(*request).fcall, (*request).root).unwrap_or(std::ptr::null_mut())
            }
            _ => std::ptr::null_mut(),
        }
    };
    Internal::from(Some(pg_sys::Datum::from(simpler)))
}

/// # Safety
/// The call's arguments must be expressions, and the planner's state that of this query, or null.
unsafe fn call_of_one_pair(
    call: &pg_sys::FuncExpr,
    planner: *mut pg_sys::PlannerInfo,
) -> Option<*mut pg_sys::FuncExpr> {
    // Safety: the caller's; what is looked at as a constant is one.
    unsafe {
        let arguments = PgList::<pg_sys::Node>::from_pg(call.args);
        let [pair, from, to] = [0, 1, 2].map(|i| arguments.get_ptr(i).and_then(|node| constant(node)));
        let (pair, from, to) = (one_pair(pair?)?, from?, to?);
        let is_range = from.constisnull
            || to.constisnull
            || from.constvalue.value() as i64 <= to.constvalue.value() as i64;
        if !is_range {
            return None; // an error that the function itself raises
        }
        if planner.is_null() || !pg_sys::ActiveSnapshotSet() {
            return None; // nothing can be asked, or said of the plan
        }
        let question = "SELECT bqx._function_of_pair($1, $2)";
        let function = one_value::<pg_sys::Oid>(question, &[call.funcid.into(), pair.into()])?;
        // Whose function may be taken depends on who asks: a plan that is kept is not for another role.
        (*(*planner).glob).dependsOnRole = true;
        let ends = pg_sys::list_copy_tail(call.args, 1);
        let (none, form) = (pg_sys::Oid::INVALID, pg_sys::CoercionForm::COERCE_EXPLICIT_CALL);
        let simpler = pg_sys::makeFuncExpr(function, call.funcresulttype, ends, none, none, form);
        (*simpler).funcretset = true;
        Some(simpler)
    }
}

/// # Safety
/// The node must be an expression.
unsafe fn constant<'a>(node: *mut pg_sys::Node) -> Option<&'a pg_sys::Const> {
    // Safety: a node is what its tag says.
    unsafe { ((*node).type_ == pg_sys::NodeTag::T_Const).then(|| &*node.cast::<pg_sys::Const>()) }
}

/// A pair's name, or that of an array of one.
///
/// # Safety
/// The constant must be one of the query that is being planned.
unsafe fn one_pair(constant: &pg_sys::Const) -> Option<String> {
    // Safety: the value is of the type that the constant says, or NULL.
    let name = unsafe {
        match constant.consttype {
            pg_sys::TEXTOID => String::from_datum(constant.constvalue, constant.constisnull),
            pg_sys::TEXTARRAYOID => {
                let names = Vec::<Option<String>>::from_datum(constant.constvalue, constant.constisnull)?;
                <[Option<String>; 1]>::try_from(names).ok().and_then(|[name]| name)
            }
            _ => None,
        }
    };
    name.map(|name| name.to_lowercase())
}

/// What changes when a query over these tables would be made of other columns, or the query by another version of bqx: tables, and names and
/// types of their columns. The tables are locked against changes until the transaction ends, as reading them does. (To make the query again and to compare takes many times as long, above all in a new session.)
#[pg_extern(sql = "
CREATE FUNCTION bqx._shape_of(tables regclass[]) RETURNS text LANGUAGE c STABLE STRICT
AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
")]
fn _shape_of(tables: Vec<pg_sys::Oid>) -> String {
    let mut shape = String::from(env!("CARGO_PKG_VERSION"));
    for oid in tables {
        // Safety: table_open raises an error unless the table is there. The descriptor is looked at while it is open.
        unsafe {
            let relation = pg_sys::table_open(oid, pg_sys::AccessShareLock as i32);
            shape += &format!(" {}", oid.to_u32());
            for column in pgrx::PgTupleDesc::from_pg_copy((*relation).rd_att).iter() {
                shape += &format!(" {} {}", column.name(), column.atttypid.to_u32());
            }
            pg_sys::table_close(relation, pg_sys::NoLock as i32);
        }
    }
    format!("{:032x}", Hasher::oneshot(shape.as_bytes()))
}
