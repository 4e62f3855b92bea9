//! Which partition holds an instant, from PostgreSQL's own description of a table: without a query, whatever the number of
//! partitions.

use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;

/// The partitions that hold some of `[from_ts, to_ts)`, in order of time, or the table itself; NULL if that can't be told. The
/// table must be partitioned, if at all, by one column of timestamps.
#[pg_extern(sql = "
CREATE FUNCTION bqx._parts_between(rel regclass, from_ts timestamp with time zone, to_ts timestamp with time zone)
RETURNS oid[] LANGUAGE c STABLE STRICT SET search_path = pg_catalog, pg_temp AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
")]
fn _parts_between(
    rel: pg_sys::Oid,
    from_ts: TimestampWithTimeZone,
    to_ts: TimestampWithTimeZone,
) -> Option<Vec<pg_sys::Oid>> {
    // Safety: table_open raises an error unless the table is there; it is closed after it was looked at.
    let partitions = unsafe {
        let relation = pg_sys::table_open(rel, pg_sys::AccessShareLock as i32);
        let partitions = TimePartitions::of(relation);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
        partitions
    };
    partitions.map(|partitions| partitions.tables_between(from_ts.into(), to_ts.into()).collect())
}

/// The stretches of time that a table's partitions hold, in order of time, or the table itself for all time.
pub struct TimePartitions {
    slots: Vec<Slot>,
}

/// From the end of the slot before until `until`.
struct Slot {
    /// In microseconds since 2000-01-01 UTC, not included; `i64::MAX` for the last one.
    until: i64,
    /// The table that holds its rows, `None` where none does.
    table: Option<pg_sys::Oid>,
}

impl TimePartitions {
    /// Of an open table whose key, if it is partitioned, is one column of timestamps (`bqx._is_partitioned_by`). `None` if it
    /// is partitioned in another way than by range, has a DEFAULT partition or partitions of partitions, or if other tables inherit
    /// from it.
    ///
    /// # Safety
    /// The relation must be open.
    pub unsafe fn of(relation: pg_sys::Relation) -> Option<TimePartitions> {
        // Safety: the relation is open, so its description stays. That of ranges has as many bounds as it says: arrays with a
        // value per column of the key, in order. Index i is that of the partition below bound i, the last one that above all.
        unsafe {
            let class = &*(*relation).rd_rel;
            if class.relkind as u8 != pg_sys::RELKIND_PARTITIONED_TABLE {
                if class.relhassubclass {
                    return None; // other tables inherit from it: a query reads those, too
                }
                return Some(TimePartitions {
                    slots: vec![Slot { until: i64::MAX, table: Some((*relation).rd_id) }],
                });
            }
            let description = &*pg_sys::RelationGetPartitionDesc(relation, true);
            let Some(bounds) = description.boundinfo.as_ref() else {
                return Some(TimePartitions { slots: vec![Slot { until: i64::MAX, table: None }] });
            };
            if bounds.strategy as u8 != b'r' || bounds.default_index >= 0 {
                return None;
            }
            let ends = (0..bounds.ndatums as usize).map(|i| match *(*bounds.kind.add(i)) {
                pg_sys::PartitionRangeDatumKind::PARTITION_RANGE_DATUM_MINVALUE => i64::MIN,
                pg_sys::PartitionRangeDatumKind::PARTITION_RANGE_DATUM_MAXVALUE => i64::MAX,
                _ => (*(*bounds.datums.add(i))).value() as i64,
            });
            let table = |i: usize| match *bounds.indexes.add(i) {
                -1 => Some(None),
                index => (*description.is_leaf.add(index as usize))
                    .then(|| Some(*description.oids.add(index as usize))),
            };
            let slots = ends
                .chain([i64::MAX])
                .enumerate()
                .map(|(i, until)| Some(Slot { until, table: table(i)? }))
                .collect::<Option<Vec<_>>>()?;
            Some(TimePartitions { slots })
        }
    }

    /// The slot that holds an instant, as a position.
    fn position(&self, instant: i64) -> usize {
        self.slots.partition_point(|slot| slot.until <= instant).min(self.slots.len() - 1)
    }

    /// The table that holds an instant.
    pub fn table_at(&self, instant: i64) -> Option<pg_sys::Oid> {
        self.slots[self.position(instant)].table
    }

    /// The tables that hold a stretch of time, in order.
    fn tables_between(&self, from: i64, until: i64) -> impl Iterator<Item = pg_sys::Oid> {
        self.slots[self.position(from)..=self.position(until.saturating_sub(1))]
            .iter()
            .filter_map(|slot| slot.table)
    }

    /// The tables that hold an instant and what is after it, in order.
    pub fn tables_from(&self, instant: i64) -> impl Iterator<Item = pg_sys::Oid> {
        self.slots[self.position(instant)..].iter().filter_map(|slot| slot.table)
    }

    /// The tables that hold what is before an instant, the newest first.
    pub fn tables_before(&self, instant: i64) -> impl Iterator<Item = pg_sys::Oid> {
        self.slots[..=self.position(instant)].iter().rev().filter_map(|slot| slot.table)
    }
}
