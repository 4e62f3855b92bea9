//! Which bars the current transaction changed: triggers on M1 note it, by row.
//!
//! A pair that is followed live (`crate::live`) has its rows computed at the end of each statement. Of other pairs, what
//! changed is written to `bqx.bar_changes` before the transaction commits, for `bqx.refresh`.
//!
//! Rows are noted by a trigger AFTER each ROW, because PostgreSQL itself makes a copy of such a trigger for every partition,
//! later ones included, and fires it however a row comes: through the parent, into a partition, by logical replication.
//! Triggers of statements are neither copied, nor fired on the parent for a partition, nor by replication, so they
//! only say when to compute.

use std::cell::RefCell;
use std::ffi::{CStr, c_int};

use bqx_core::changed_ranges::{ChangedRange, ChangedRanges};
use pgrx::datum::Internal;
use pgrx::prelude::*;

use crate::bar_scan;
use crate::errors::Failure;
use crate::live;
use crate::m1_tables;
use crate::series::{INFINITY, MINUS_INFINITY};

thread_local! {
    /// What the current transaction changed. After a savepoint was rolled back, it may tell of changes that did not last: what is
    /// computed anew for nothing comes out as it was.
    static NOTED: RefCell<Vec<Noted>> = const { RefCell::new(Vec::new()) };
}

/// A role's changes of a pair's bars.
pub struct Noted {
    pub pair: String,
    pub role: pg_sys::Oid,
    /// Those that nobody has dealt with yet.
    pub ranges: ChangedRanges,
    /// Those whose rows were computed, with the savepoint (a subtransaction; later ones have greater numbers) in which they were: when
    /// it is rolled back, the rows go, and perhaps not the bars.
    computed: Vec<(pg_sys::SubTransactionId, ChangedRanges)>,
    /// The pair's M1 table, or its partition, that was seen last.
    relation: pg_sys::Oid,
}

impl Noted {
    fn is_of(&self, pair: &str, role: pg_sys::Oid) -> bool {
        self.role == role && self.pair == pair
    }
}

/// Who changes bars at this moment.
fn current_role() -> pg_sys::Oid {
    // Safety: a plain read of this backend's state.
    unsafe { pg_sys::GetUserId() }
}

/// The caller's changes of a pair that nobody has dealt with, to be computed now.
fn take(pair: &str) -> ChangedRanges {
    NOTED.with_borrow_mut(|noted| {
        let Some(changes) = noted.iter_mut().find(|changes| changes.is_of(pair, current_role())) else {
            return ChangedRanges::default();
        };
        let ranges = std::mem::take(&mut changes.ranges);
        // Safety: a plain read of this backend's state.
        let savepoint = unsafe { pg_sys::GetCurrentSubTransactionId() };
        if changes.computed.last().is_none_or(|(last, _)| *last != savepoint) {
            changes.computed.push((savepoint, ChangedRanges::default()));
        }
        if let Some((_, computed)) = changes.computed.last_mut() {
            ranges.as_slice().iter().for_each(|&range| computed.note_range(range));
        }
        ranges
    })
}

/// AFTER ROW: notes a bar that came, went or changed.
#[pg_extern(sql = "
CREATE FUNCTION bqx._note_bar_change() RETURNS trigger LANGUAGE c AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
")]
fn _note_bar_change(fcinfo: pg_sys::FunctionCallInfo) -> Internal {
    // Safety: it is this function's own call.
    unsafe {
        let call = TriggerCall::of(fcinfo);
        match call.event & (pg_sys::TRIGGER_EVENT_ROW | pg_sys::TRIGGER_EVENT_OPMASK) {
            INSERTED_ROW => call.note(call.time_of(call.row), false),
            DELETED_ROW => call.note(call.time_of(call.row), true),
            UPDATED_ROW => {
                let (old, new) = (call.time_of(call.row), call.time_of(call.new_row));
                if old != new {
                    call.note(old, true);
                    call.note(new, false);
                } else if !call.has_same_prices() {
                    call.note(new, false);
                }
            }
            _ => error!("bqx._note_bar_change is for triggers on rows"),
        }
    }
    no_row()
}

/// BEFORE STATEMENT: nobody else computes rows of the pair until this transaction ends, so that each sees the bars of the
/// other. Before the first row is written, lest two sessions wait for a row of one another's and for the pair.
#[pg_extern(sql = "
CREATE FUNCTION bqx._begin_live() RETURNS trigger LANGUAGE c
SET search_path = pg_catalog, pg_temp AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
")]
fn _begin_live(fcinfo: pg_sys::FunctionCallInfo) -> Internal {
    // Safety: it is this function's own call.
    let call = unsafe { TriggerCall::of(fcinfo) };
    if live::is_on() && call.is_on_m1() {
        live::lock_pair(call.pair());
    }
    no_row()
}

/// AFTER STATEMENT: computes the rows that the noted changes affect.
#[pg_extern(sql = "
CREATE FUNCTION bqx._follow_live() RETURNS trigger LANGUAGE c
SET search_path = pg_catalog, pg_temp AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
")]
fn _follow_live(fcinfo: pg_sys::FunctionCallInfo) -> Internal {
    // Safety: it is this function's own call.
    let call = unsafe { TriggerCall::of(fcinfo) };
    if !call.is_on_m1() {
        return no_row(); // a partition that was detached
    }
    if call.event & pg_sys::TRIGGER_EVENT_OPMASK == pg_sys::TRIGGER_EVENT_TRUNCATE {
        call.note_range(call.bounds());
    }
    if live::is_on() {
        live::follow(call.pair(), take(call.pair()).as_slice());
    }
    no_row()
}

#[pg_guard]
unsafe extern "C-unwind" {
    /// Whether two values of a type are the same bits, however they are stored. Not in the bindings.
    fn datum_image_eq(one: pg_sys::Datum, other: pg_sys::Datum, by_value: bool, length: c_int) -> bool;
}

const INSERTED_ROW: u32 = pg_sys::TRIGGER_EVENT_ROW | pg_sys::TRIGGER_EVENT_INSERT;
const DELETED_ROW: u32 = pg_sys::TRIGGER_EVENT_ROW | pg_sys::TRIGGER_EVENT_DELETE;
const UPDATED_ROW: u32 = pg_sys::TRIGGER_EVENT_ROW | pg_sys::TRIGGER_EVENT_UPDATE;

/// What a trigger that changes nothing about its row returns: not NULL, which would be an error.
fn no_row() -> Internal {
    Internal::from(Some(pg_sys::Datum::from(0)))
}

/// A call of a trigger that has a pair as its argument.
struct TriggerCall {
    event: u32,
    relation: pg_sys::Relation,
    pair: *const std::ffi::c_char,
    row: pg_sys::HeapTuple,
    new_row: pg_sys::HeapTuple,
}

impl TriggerCall {
    /// # Safety
    /// `fcinfo` must be that of the function being called; what is returned must not outlive the call.
    unsafe fn of(fcinfo: pg_sys::FunctionCallInfo) -> TriggerCall {
        // Safety: PostgreSQL says in the context's tag whether it is a trigger's data, which hold the relation, which is open, and
        // its trigger.
        unsafe {
            let data = (*fcinfo).context as *const pg_sys::TriggerData;
            if data.is_null() || (*data).type_ != pg_sys::NodeTag::T_TriggerData {
                Failure::new(
                    PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                    "the function is for triggers",
                )
                .raise();
            }
            let trigger = &*(*data).tg_trigger;
            if trigger.tgnargs < 1 {
                error!("trigger of bqx without its argument, the pair");
            }
            TriggerCall {
                event: (*data).tg_event,
                relation: (*data).tg_relation,
                pair: *trigger.tgargs,
                row: (*data).tg_trigtuple,
                new_row: (*data).tg_newtuple,
            }
        }
    }

    fn pair(&self) -> &str {
        // Safety: an argument of a trigger is a C string that lives as long as the open relation.
        unsafe { CStr::from_ptr(self.pair) }.to_str().unwrap_or_else(|_| error!("no pair has such a name"))
    }

    fn relation_oid(&self) -> pg_sys::Oid {
        // Safety: the relation is open.
        unsafe { (*self.relation).rd_id }
    }

    /// Whether the table is the pair's, or one of its partitions.
    fn is_on_m1(&self) -> bool {
        m1_tables::is_part_of(self.relation_oid(), m1_tables::table_named(&format!("m1_{}", self.pair())))
    }

    /// A row's time; `None` if the column can't be read as an instant, or is NULL.
    ///
    /// # Safety
    /// The row must be one of the relation's.
    unsafe fn time_of(&self, row: pg_sys::HeapTuple) -> Option<i64> {
        // Safety: the row is of this descriptor; both types are the same 64-bit integer.
        unsafe {
            let (datum, type_id) = self.column(row, c"time")?;
            let base = pg_sys::getBaseType(type_id);
            (base == pg_sys::TIMESTAMPTZOID || base == pg_sys::TIMESTAMPOID).then(|| datum.value() as i64)
        }
    }

    /// Whether an updated row has the prices that it had before.
    ///
    /// # Safety
    /// The call must be that of an updated row.
    unsafe fn has_same_prices(&self) -> bool {
        [c"rate_index", c"close"].into_iter().all(|name| {
            // Safety: both rows are of this descriptor, and their values of the column's type.
            unsafe {
                if bar_scan::is_virtual((*self.relation).rd_att, name) {
                    return false; // what it is computed from may be any column
                }
                match (self.column(self.row, name), self.column(self.new_row, name)) {
                    (Some((old, type_id)), Some((new, _))) => {
                        let (mut length, mut by_value) = (0, false);
                        pg_sys::get_typlenbyval(type_id, &raw mut length, &raw mut by_value);
                        datum_image_eq(old, new, by_value, length.into())
                    }
                    (old, new) => old.is_none() && new.is_none(),
                }
            }
        })
    }

    /// A column's value and type; `None` where it is NULL, or the table has none of that name.
    ///
    /// # Safety
    /// The row must be one of the relation's.
    unsafe fn column(&self, row: pg_sys::HeapTuple, name: &CStr) -> Option<(pg_sys::Datum, pg_sys::Oid)> {
        // Safety: the relation is open, and the number is one of its columns'.
        unsafe {
            let desc = (*self.relation).rd_att;
            let number: c_int = pg_sys::SPI_fnumber(desc, name.as_ptr());
            if number <= 0 {
                return None;
            }
            let mut is_null = false;
            let datum = pg_sys::SPI_getbinval(row, desc, number, &raw mut is_null);
            (!is_null).then(|| (datum, pg_sys::SPI_gettypeid(desc, number)))
        }
    }

    fn note(&self, time: Option<i64>, removed: bool) {
        self.note_range(match time {
            Some(time) => ChangedRange { from: time, to: time, removed },
            None => ChangedRange { from: MINUS_INFINITY, to: INFINITY, removed: true },
        });
    }

    fn note_range(&self, range: ChangedRange) {
        settle_before_commit();
        let (pair, role, relation) = (self.pair(), current_role(), self.relation_oid());
        let is_known = NOTED.with_borrow(|noted| {
            noted.iter().any(|changes| changes.is_of(pair, role) && changes.relation == relation)
        });
        // Anybody may put a trigger on a table of theirs. Asked while nothing is borrowed, since it may fail.
        if !is_known && !self.is_on_m1() {
            return;
        }
        NOTED.with_borrow_mut(|noted| {
            let position = noted.iter().position(|changes| changes.is_of(pair, role)).unwrap_or_else(|| {
                let (ranges, computed) = Default::default();
                noted.push(Noted { pair: pair.to_owned(), role, ranges, computed, relation });
                noted.len() - 1
            });
            noted[position].relation = relation;
            noted[position].ranges.note_range(range);
        });
    }

    /// The stretch of time that the table holds: for a partition its bounds.
    fn bounds(&self) -> ChangedRange {
        let query = "SELECT p.from_ts, p.to_ts FROM pg_catalog.pg_inherits AS i, \
                     LATERAL bqx._partitions(i.inhparent::regclass, i.inhrelid::regclass) AS p WHERE i.inhrelid = $1";
        let everything = ChangedRange { from: MINUS_INFINITY, to: INFINITY, removed: true };
        let found = Spi::get_two_with_args::<TimestampWithTimeZone, TimestampWithTimeZone>(
            query,
            &[self.relation_oid().into()],
        );
        match found {
            Ok((Some(from), Some(to))) => ChangedRange { from: from.into(), to: to.into(), removed: true },
            _ => everything,
        }
    }
}

/// From now on, in this session: what is noted is dealt with before a transaction commits, or forgotten when it aborts.
fn settle_before_commit() {
    static REGISTERED: std::sync::Once = std::sync::Once::new();
    // Safety: the callbacks are functions of this library, which is never unloaded.
    REGISTERED.call_once(|| unsafe {
        pg_sys::RegisterXactCallback(Some(on_transaction_end), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(on_savepoint_end), std::ptr::null_mut());
    });
}

#[pg_guard]
unsafe extern "C-unwind" fn on_transaction_end(event: pg_sys::XactEvent::Type, _arg: *mut std::ffi::c_void) {
    match event {
        pg_sys::XactEvent::XACT_EVENT_PRE_COMMIT | pg_sys::XactEvent::XACT_EVENT_PRE_PREPARE => settle(),
        pg_sys::XactEvent::XACT_EVENT_COMMIT
        | pg_sys::XactEvent::XACT_EVENT_PREPARE
        | pg_sys::XactEvent::XACT_EVENT_ABORT => drop(NOTED.take()),
        _ => {}
    }
}

/// Rows that were computed in it are gone, with the savepoint; their bars may have come before it.
#[pg_guard]
unsafe extern "C-unwind" fn on_savepoint_end(
    event: pg_sys::SubXactEvent::Type,
    savepoint: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _arg: *mut std::ffi::c_void,
) {
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        NOTED.with_borrow_mut(|noted| {
            for changes in noted {
                while let Some((_, computed)) = changes.computed.pop_if(|(within, _)| *within >= savepoint) {
                    computed.as_slice().iter().for_each(|&range| changes.ranges.note_range(range));
                }
            }
        });
    }
}

/// Deals with what is left at the end of a transaction: changes of pairs that are not followed live, and those that no trigger of
/// a statement took, since none fired. Pairs in the order of their names, so that two sessions can't wait for each other.
fn settle() {
    loop {
        let mut left = NOTED.take();
        left.retain(|changes| !changes.ranges.is_empty());
        if left.is_empty() {
            return;
        }
        left.sort_by(|a, b| a.pair.cmp(&b.pair));
        left.iter().for_each(live::settle);
        // Safety: as PostgreSQL did before it came here; what was written may have queued deferred triggers.
        unsafe { pg_sys::AfterTriggerFireDeferred() };
    }
}
