//! Writing a month straight into a partition's storage.
//!
//! The partition must have got its storage in the current subtransaction (made or truncated in it) and be locked
//! by it, so that no one can see it half filled: rows go in without index entries, which are built at the end.

use std::collections::TryReserveError;
use std::ffi::CStr;

use bqx_core::columns::{Column, Family};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;

use crate::computed_rows::{BLOCK, for_each_computed_row, lookback, own_columns, value_columns};
use crate::errors::Failure;
use crate::heap_pages::{HeapPages, Readers, has_fresh_storage};
use crate::index_build;
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
    heap: HeapPages,
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
            let Some(key) = attributes.iter().position(|column| *column == Some(Column::Time)) else {
                refuse(relation, "it has no column ts_utc")
            };
            let columns = value_columns(&attributes.iter().flatten().copied().collect::<Vec<_>>());
            Target {
                family,
                relation,
                places: places(&attributes, &columns),
                heap: HeapPages::new(relation, key, readers()),
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
        heap.reserve_memory(piece.rows().len())?;
        self.fingerprint.add(piece);
        for_each_computed_row(piece, &self.columns, |row| {
            heap.append(|attribute| match places[attribute] {
                Place::Value(i) => row.value(i).map(f64::to_bits),
                Place::Time => Some(row.time as u64),
                Place::CreatedAt => Some(created_at as u64),
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
        let keys = self.heap.finish();
        live_progress::advance(self.family, self.written);
        // Safety: the relation is open and not used after it is closed; it was empty, and nobody else can write to it.
        unsafe {
            index_build::reindex(self.relation, &relation_name(self.relation), keys);
            pg_sys::table_close(self.relation, pg_sys::NoLock as i32);
        }
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
        } else if (*class).relam != pg_sys::HEAP_TABLE_AM_OID {
            Some("it is no heap")
        } else if pg_sys::smgrnblocks(pg_sys::RelationGetSmgr(relation), pg_sys::ForkNumber::MAIN_FORKNUM) > 0
        {
            Some("it has rows")
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

/// The rest of the transaction looks at no rows, unless somebody's trigger does: on its commands, or on the ledger.
fn readers() -> Readers {
    let query = "SELECT EXISTS (SELECT FROM pg_catalog.pg_event_trigger AS e WHERE e.evtenabled <> 'D') \
                     OR EXISTS (SELECT FROM pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid \
                                 WHERE NOT t.tgisinternal AND c.relnamespace = 'bqx'::pg_catalog.regnamespace \
                                   AND c.relname LIKE '%\\_ledger')";
    match Spi::get_one::<bool>(query) {
        Ok(Some(false)) => Readers::AfterCommit,
        _ => Readers::AtOnce,
    }
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
