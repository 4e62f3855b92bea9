//! Writing a month straight into a partition's storage: the only place that touches heap internals.
//!
//! The partition must have got its storage in the current transaction (made or truncated in it) and be locked
//! by it, so that no one can see it half filled: rows go in without index entries, which are built at the end.

use std::collections::TryReserveError;
use std::ffi::CStr;

use bqx_core::columns::{Column, Family};
use pgrx::PgMemoryContexts;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;

use crate::computed_rows::{BLOCK, for_each_computed_row, lookback, own_columns, value_columns};
use crate::errors::Failure;
use crate::live_progress;
use crate::metric_columns::family;
use crate::series::{self, Fingerprint, Series};

/// Fills one partition per family with the rows of `[from_ts, to_ts)`, reading the bars once. The partitions must
/// be empty, with storage made in this transaction, and nothing about them may be for the executor to look at
/// (`bqx._why_not_fillable`). `shapes` are those of the parents (`bqx._own_columns`), for the fingerprints.
#[pg_extern]
fn _fill_partitions(
    families: Vec<String>,
    m1: pg_sys::Oid,
    from_ts: TimestampWithTimeZone,
    to_ts: TimestampWithTimeZone,
    partitions: Vec<pg_sys::Oid>,
    shapes: Vec<String>,
) -> TableIterator<'static, (name!(family, String), name!(bars, i64), name!(input_fingerprint, String))> {
    if families.len() != partitions.len() || families.len() != shapes.len() {
        Failure::new(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "there must be as many partitions and shapes as families",
        )
        .raise();
    }
    let mut targets: Vec<Target> = families
        .iter()
        .zip(&partitions)
        .zip(&shapes)
        .map(|((name, &oid), shape)| Target::open(family(name), oid, shape, from_ts, to_ts))
        .collect();
    let longest = targets.iter().map(|target| lookback(&target.columns)).max().unwrap_or(0);
    series::for_each_piece(m1, from_ts.into(), to_ts.into(), longest, |piece| {
        targets.iter_mut().try_for_each(|target| target.append(piece))
    });
    let written = targets.into_iter().map(|target| {
        let name = target.family.name().to_string();
        let (bars, fingerprint) = (target.fingerprint.bars(), target.fingerprint.to_string());
        target.finish();
        (name, bars, fingerprint)
    });
    TableIterator::new(written.collect::<Vec<_>>())
}

/// A partition to be filled.
struct Target {
    family: Family,
    relation: pg_sys::Relation,
    /// The columns whose values are computed.
    columns: Vec<Column>,
    /// For each attribute of the table where its datum comes from.
    places: Vec<Place>,
    heap: HeapAppender,
    /// Rows that were appended.
    written: usize,
    /// Of what was appended.
    fingerprint: Fingerprint,
}

impl Target {
    /// Opens the partition and checks that rows of this range may be written into it past the executor: fresh
    /// storage, the caller's right, columns of ours only, and nothing that the executor would look at for each row.
    fn open(
        family: Family,
        oid: pg_sys::Oid,
        shape: &str,
        from_ts: TimestampWithTimeZone,
        to_ts: TimestampWithTimeZone,
    ) -> Target {
        // Safety: table_open raises an error unless the table is there; the relation stays valid while it is open,
        // and so do its descriptor and attributes.
        unsafe {
            pg_sys::PreventCommandIfReadOnly(c"bqx.backfill".as_ptr());
            let relation = pg_sys::table_open(oid, pg_sys::RowExclusiveLock as i32);
            if let Some(reason) = why_not_writable(relation, oid) {
                refuse(relation, reason);
            }
            let attributes = attribute_columns(relation, family);
            if let Some(reason) = why_not_fillable(family, oid, from_ts, to_ts) {
                refuse(relation, &reason);
            }
            let columns = value_columns(&attributes.iter().flatten().copied().collect::<Vec<_>>());
            Target {
                family,
                relation,
                places: places(&attributes, &columns),
                heap: HeapAppender::new(relation),
                written: 0,
                fingerprint: Fingerprint::new(lookback(&columns), shape),
                columns,
            }
        }
    }

    /// Writes the rows of the next piece, without index entries.
    fn append(&mut self, piece: &Series) -> Result<(), TryReserveError> {
        let Target { family, places, heap, written, .. } = self;
        // Safety: takes no argument; the start of this transaction.
        let created_at = unsafe { pg_sys::GetCurrentTransactionStartTimestamp() };
        self.fingerprint.add(piece);
        for_each_computed_row(piece, &self.columns, |time, values| {
            heap.append(|attribute| match places[attribute] {
                Place::Value(i) => values[i].map(|v| pg_sys::Datum::from(v.to_bits())),
                Place::Time => Some(pg_sys::Datum::from(time)),
                Place::CreatedAt => Some(pg_sys::Datum::from(created_at)),
                Place::Dropped => None,
            });
            *written += 1;
            if *written % BLOCK == 0 {
                live_progress::advance(*family, *written);
            }
        })
    }

    /// Closes the table and builds its indexes from the rows.
    fn finish(self) {
        self.heap.finish();
        live_progress::advance(self.family, self.written);
        // Safety: the relation is open, and not used after it is closed.
        let name = unsafe {
            let name = relation_name(self.relation);
            pg_sys::table_close(self.relation, pg_sys::NoLock as i32);
            name
        };
        // The lock is held until the transaction ends: the name still means this table.
        Spi::run(&format!("REINDEX TABLE {name}")).unwrap_or_else(|e| error!("{e}"));
    }
}

#[derive(Clone, Copy)]
enum Place {
    Time,
    CreatedAt,
    Value(usize),
    Dropped,
}

/// Where each attribute's datum comes from, given its column (None for dropped ones) and the value columns.
fn places(attributes: &[Option<Column>], columns: &[Column]) -> Vec<Place> {
    let place = |attribute: &Option<Column>| match attribute {
        None => Place::Dropped,
        Some(Column::Time) => Place::Time,
        Some(Column::CreatedAt) => Place::CreatedAt,
        Some(column) => Place::Value(columns.iter().position(|c| c == column).expect("a value column")),
    };
    attributes.iter().map(place).collect()
}

/// Schema-qualified, quoted name of an open relation.
///
/// # Safety
/// The relation must be open.
unsafe fn relation_name(relation: pg_sys::Relation) -> String {
    unsafe {
        let class = (*relation).rd_rel;
        let schema = pg_sys::get_namespace_name((*class).relnamespace);
        let name = CStr::from_ptr((*class).relname.data.as_ptr());
        pgrx::spi::quote_qualified_identifier(
            CStr::from_ptr(schema).to_str().expect("names are in the server's encoding"),
            name.to_str().expect("names are in the server's encoding"),
        )
    }
}

/// The columns that the attributes are, in table order; None for dropped ones. 42804 for one that has another type
/// than the datums that will be put into it, or is generated.
///
/// # Safety
/// The relation must be open.
unsafe fn attribute_columns(relation: pg_sys::Relation, family: Family) -> Vec<Option<Column>> {
    let desc = unsafe { pgrx::PgTupleDesc::from_pg_copy((*relation).rd_att) };
    let column_of = |attribute: &pg_sys::FormData_pg_attribute| {
        let column = own_columns(family, [attribute.name()])[0];
        let expected = match column {
            Column::Time | Column::CreatedAt => pg_sys::TIMESTAMPTZOID,
            _ => pg_sys::FLOAT8OID,
        };
        if attribute.atttypid != expected || attribute.attgenerated != 0 {
            Failure::new(
                PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
                format!("column {column} can't be written directly: it has another type, or is generated"),
            )
            .raise();
        }
        column
    };
    (0..desc.len())
        .filter_map(|i| desc.get(i))
        .map(|attribute| (!attribute.attisdropped).then(|| column_of(attribute)))
        .collect()
}

/// The reason why rows must not be put into the relation past the executor; None if they may.
///
/// # Safety
/// The relation must be open.
unsafe fn why_not_writable(relation: pg_sys::Relation, oid: pg_sys::Oid) -> Option<&'static str> {
    unsafe {
        let class = (*relation).rd_rel;
        if (*class).relkind as u8 != pg_sys::RELKIND_RELATION {
            Some("it is no ordinary table")
        } else if !has_fresh_storage(relation) {
            Some("its storage is not new in this transaction")
        } else if pg_sys::pg_class_aclcheck(oid, pg_sys::GetUserId(), pg_sys::ACL_INSERT as pg_sys::AclMode)
            != pg_sys::AclResult::ACLCHECK_OK
        {
            Some("the INSERT right is missing")
        } else if (*class).relrowsecurity {
            Some("it has row-level security")
        } else if !(*relation).trigdesc.is_null() {
            Some("it has triggers")
        } else {
            None
        }
    }
}

/// # Safety
/// The relation must be open.
unsafe fn refuse(relation: pg_sys::Relation, reason: &str) -> ! {
    Failure::new(
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        format!("table {} can't be written directly: {reason}", unsafe { relation_name(relation) }),
    )
    .raise()
}

/// The reason why rows of this range must not be put into it past the executor, as far as the catalogs tell it.
fn why_not_fillable(
    family: Family,
    oid: pg_sys::Oid,
    from_ts: TimestampWithTimeZone,
    to_ts: TimestampWithTimeZone,
) -> Option<String> {
    Spi::get_one_with_args(
        "SELECT bqx._why_not_fillable($1, $2::pg_catalog.regclass, $3, $4)",
        &[family.name().into(), oid.into(), from_ts.into(), to_ts.into()],
    )
    .unwrap_or_else(|e| error!("{e}"))
}

/// `InvalidSubTransactionId`, a macro that the bindings leave out.
const NO_SUBTRANSACTION: pg_sys::SubTransactionId = 0;

/// Whether the table was made, or its storage replaced, in the current transaction.
///
/// # Safety
/// The relation must be open.
unsafe fn has_fresh_storage(relation: pg_sys::Relation) -> bool {
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        let replaced_in = (*relation).rd_newRelfilenodeSubid;
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        let replaced_in = (*relation).rd_newRelfilelocatorSubid;
        (*relation).rd_createSubid != NO_SUBTRANSACTION || replaced_in != NO_SUBTRANSACTION
    }
}

/// Appends rows to a table in batches with `table_multi_insert`.
struct HeapAppender {
    relation: pg_sys::Relation,
    attributes: usize,
    slots: Vec<*mut pg_sys::TupleTableSlot>,
    filled: usize,
    bulk: pg_sys::BulkInsertState,
    command: pg_sys::CommandId,
    scratch: PgMemoryContexts,
}

/// New storage has no free space to look for.
const INSERT_OPTIONS: i32 = pg_sys::TABLE_INSERT_SKIP_FSM as i32;

impl HeapAppender {
    /// The relation must stay open and locked for writing until `finish`.
    fn new(relation: pg_sys::Relation) -> HeapAppender {
        // Safety: the relation is open (Target::open); the slots are made for it.
        unsafe {
            HeapAppender {
                relation,
                attributes: (*(*relation).rd_att).natts as usize,
                slots: (0..BLOCK)
                    .map(|_| pg_sys::table_slot_create(relation, std::ptr::null_mut()))
                    .collect(),
                filled: 0,
                bulk: pg_sys::GetBulkInsertState(),
                command: pg_sys::GetCurrentCommandId(true),
                scratch: PgMemoryContexts::new("bqx month writer"),
            }
        }
    }

    /// Adds a row: `datum` gives each attribute's value, None for NULL.
    fn append(&mut self, datum: impl Fn(usize) -> Option<pg_sys::Datum>) {
        let slot = self.slots[self.filled];
        // Safety: the slot has room for all attributes of the relation; all are of pass-by-value types.
        unsafe {
            pg_sys::ExecClearTuple(slot);
            for attribute in 0..self.attributes {
                let value = datum(attribute);
                *(*slot).tts_isnull.add(attribute) = value.is_none();
                *(*slot).tts_values.add(attribute) = value.unwrap_or(pg_sys::Datum::null());
            }
            pg_sys::ExecStoreVirtualTuple(slot);
        }
        self.filled += 1;
        if self.filled == self.slots.len() {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let (relation, slots, filled) = (self.relation, self.slots.as_mut_ptr(), self.filled);
        let (command, bulk) = (self.command, self.bulk);
        // Safety: the first `filled` slots hold rows; what the insertion allocates goes with `scratch`.
        unsafe {
            self.scratch.switch_to(|_| {
                pg_sys::table_multi_insert(relation, slots, filled as i32, command, INSERT_OPTIONS, bulk)
            });
            for &slot in &self.slots[..filled] {
                pg_sys::ExecClearTuple(slot);
            }
            self.scratch.reset();
        }
        self.filled = 0;
    }

    fn finish(mut self) {
        if self.filled > 0 {
            self.flush();
        }
        // Safety: everything was made in `new` and is not used after. On an error, PostgreSQL releases all of it
        // with the transaction.
        unsafe {
            pg_sys::FreeBulkInsertState(self.bulk);
            pg_sys::table_finish_bulk_insert(self.relation, INSERT_OPTIONS);
            for slot in self.slots {
                pg_sys::ExecDropSingleTupleTableSlot(slot);
            }
        }
    }
}
