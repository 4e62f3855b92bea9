//! The derived tables whose rows follow changes of bars: what of them is kept for the session, and how rows get there.

use std::cell::{Cell, RefCell};
use std::iter;
use std::rc::Rc;

use bqx_core::calendar::Month;
use bqx_core::columns::{Column, Family};
use pgrx::datum::{Date, DatumWithOid};
use pgrx::prelude::*;
use pgrx::spi::{OwnedPreparedStatement, SpiClient};

use crate::bar_scan::{IndexedBars, Locks};
use crate::computed_rows::{
    ComputedRow, ComputedSet, for_each_computed_row, lookback, own_columns, value_columns,
};
use crate::errors::Failure;
use crate::m1_tables::{is_kept_by_time, table_named};
use crate::metric_columns::family;
use crate::rows::for_each_row;
use crate::series::{self, Series};
use crate::time_partitions::TimePartitions;

/// What of a pair must be known to store rows. Kept for the session.
pub struct PairTables {
    pair: String,
    /// The bars'.
    pub m1: pg_sys::Oid,
    /// Whether M1 is partitioned by its time, if at all.
    is_kept_by_time: bool,
    /// Of both families, where there are both.
    pub derived: Vec<DerivedTable>,
    /// The longest of their columns' windows.
    pub lookback: usize,
}

/// A derived table of a pair, as far as it must be known to store rows. Kept for the session.
pub struct DerivedTable {
    pub family: Family,
    pub oid: pg_sys::Oid,
    /// The columns whose values are computed.
    columns: Rc<[Column]>,
    /// Stores one row, of so many values, unless it is there; for what a feed does most, it is the faster way.
    insert_one: OwnedPreparedStatement,
    /// Stores the rows that `_rows_to_store` returns, where they differ from those that are there.
    upsert: OwnedPreparedStatement,
}

thread_local! {
    /// The derived tables of the pairs that this session followed, with their M1.
    static TABLES: RefCell<Vec<Rc<PairTables>>> = const { RefCell::new(Vec::new()) };
    /// What `_rows_to_store` returns.
    static TO_STORE: RefCell<Option<RowsToStore>> = const { RefCell::new(None) };
    /// Whether something about a table changed since the cache was looked at.
    static TABLES_CHANGED: Cell<bool> = const { Cell::new(false) };
}

impl PairTables {
    /// `None` if the pair has no bars, or no derived tables.
    pub fn of(pair: &str) -> Option<Rc<PairTables>> {
        forget_tables_that_change();
        if TABLES_CHANGED.take() {
            TABLES.take();
        }
        let m1 = table_named(&format!("m1_{pair}"));
        let derived = Family::ALL.map(|family| table_named(&format!("{}_{pair}", family.name())));
        let derived = || derived.into_iter().filter(|&oid| oid != pg_sys::Oid::INVALID);
        if m1 == pg_sys::Oid::INVALID || derived().next().is_none() {
            return None;
        }
        let is_that = |known: &&Rc<PairTables>| {
            known.pair == pair && known.m1 == m1 && known.derived.iter().map(|table| table.oid).eq(derived())
        };
        if let Some(known) = TABLES.with_borrow(|pairs| pairs.iter().find(is_that).cloned()) {
            return Some(known);
        }
        let tables = Rc::new(Self::load(pair, m1));
        TABLES.with_borrow_mut(|pairs| {
            pairs.retain(|known| known.pair != pair);
            pairs.push(tables.clone());
        });
        Some(tables)
    }

    fn load(pair: &str, m1: pg_sys::Oid) -> PairTables {
        let derived = Spi::connect(|client| DerivedTable::load_all(client, pair));
        PairTables {
            pair: pair.to_owned(),
            m1,
            is_kept_by_time: is_kept_by_time(m1),
            lookback: derived.iter().map(|table| lookback(&table.columns)).max().unwrap_or(0),
            derived,
        }
    }

    pub fn indexed_bars(&self) -> Option<IndexedBars> {
        if self.is_kept_by_time { IndexedBars::of(self.m1, Locks::Kept) } else { None }
    }
}

impl DerivedTable {
    fn load_all(client: &SpiClient<'_>, pair: &str) -> Vec<DerivedTable> {
        let mut found = Vec::new();
        let query = "SELECT t.family, t.derived::oid, t.column_names, t.insert_one, t.upsert \
                     FROM bqx._tables_to_follow($1) AS t";
        for_each_row(client, query, &[pair.into()], |row| {
            let text = |i| row.get::<String>(i).unwrap_or_default();
            let names = row.get::<Vec<String>>(3).unwrap_or_default();
            found.push((text(1), row.get::<pg_sys::Oid>(2).unwrap_or_default(), names, text(4), text(5)));
        });
        let load =
            |(name, oid, names, insert_one, upsert): (String, pg_sys::Oid, Vec<String>, String, String)| {
                let family = family(&name);
                let columns: Rc<[Column]> =
                    value_columns(&own_columns(family, names.iter().map(String::as_str))).into();
                let mut types = vec![pgrx::PgOid::from(pg_sys::FLOAT8OID); columns.len() + 1];
                types[0] = pgrx::PgOid::from(pg_sys::TIMESTAMPTZOID);
                let prepare = |statement: &str, types: &[pgrx::PgOid]| {
                    client.prepare(statement, types).unwrap_or_else(|e| error!("{e}")).keep()
                };
                let (insert_one, upsert) = (prepare(&insert_one, &types), prepare(&upsert, &[]));
                DerivedTable { family, oid, columns, insert_one, upsert }
            };
        found.into_iter().map(load).collect()
    }

    /// Stores the rows of a piece where they differ from those that are there. (Where the newest bar is corrected, somebody's own trigger
    /// BEFORE INSERT on the table fires twice: the row is offered as a new one first.)
    pub fn store(&self, pair: &str, piece: &Rc<Series>) {
        self.ensure_partitions(pair, &piece.times[piece.rows()]);
        if piece.rows().len() == 1 && self.insert(piece) {
            return;
        }
        let _offer = RowsToStore { piece: piece.clone(), columns: self.columns.clone() }.offer();
        Spi::connect_mut(|client| {
            client.update(&self.upsert, None, &[]).map(|_| ()).unwrap_or_else(|e| error!("{e}"));
        });
    }

    /// Stores the one row of a piece, unless it is there.
    fn insert(&self, piece: &Series) -> bool {
        let mut stored = false;
        compute(piece, &self.columns, |row| {
            let values = (0..self.columns.len()).map(|i| row.value(i).into());
            let arguments: Vec<DatumWithOid> = iter::once(series::instant(row.time)).chain(values).collect();
            let inserted = Spi::connect_mut(|client| {
                client.update(&self.insert_one, None, &arguments).map(|inserted| inserted.len())
            });
            stored = inserted.unwrap_or_else(|e| error!("{e}")) == 1;
        });
        stored
    }

    /// Makes the partitions that rows of these times need, where they are missing.
    fn ensure_partitions(&self, pair: &str, times: &[i64]) {
        for (month, times) in months_of(times) {
            // both ends: partitions need not be of months
            if !times.first().into_iter().chain(times.last()).all(|&time| has_room_for(self.oid, time)) {
                let query = "SELECT bqx._make_followed_partition($1, $2, $3)";
                let arguments = [self.family.name().into(), pair.into(), date(month).into()];
                Spi::run_with_args(query, &arguments).unwrap_or_else(|e| error!("{e}"));
            }
        }
    }
}

/// Ascending times by their months; those that are in no month (infinite ones) are left out.
pub fn months_of(times: &[i64]) -> impl Iterator<Item = (Month, &[i64])> {
    let same_month = |a: &i64, b: &i64| Month::from_pg_micros(*a) == Month::from_pg_micros(*b);
    times.chunk_by(same_month).filter_map(|times| Some((Month::from_pg_micros(times[0])?, times)))
}

/// The first day of a month, as SQL has it.
pub fn date(month: Month) -> Date {
    Date::new(month.year(), month.month() as u8, 1).unwrap_or_else(|e| error!("{e}"))
}

/// Whether a table has room for a row of this time: it is not partitioned, or a partition holds that time. Whatever can't be
/// told here is left to the statement.
fn has_room_for(oid: pg_sys::Oid, time: i64) -> bool {
    // Safety: table_open raises an error unless the table is there; it is closed after it was looked at.
    unsafe {
        let relation = pg_sys::table_open(oid, pg_sys::AccessShareLock as i32);
        let has_room = TimePartitions::of(relation).is_none_or(|parts| parts.table_at(time).is_some());
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
        has_room
    }
}

/// Registered once, for good: a table that is altered or dropped is looked at again.
fn forget_tables_that_change() {
    static REGISTERED: std::sync::Once = std::sync::Once::new();
    // Safety: the callback is a function of this library, which is never unloaded.
    REGISTERED.call_once(|| unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(on_table_change), pg_sys::Datum::from(0));
    });
}

#[pg_guard]
unsafe extern "C-unwind" fn on_table_change(_arg: pg_sys::Datum, oid: pg_sys::Oid) {
    let concerns = |tables: &Rc<PairTables>| {
        oid == pg_sys::Oid::INVALID || tables.m1 == oid || tables.derived.iter().any(|table| table.oid == oid)
    };
    // While the cache is being changed, it is all looked at again.
    let changed =
        TABLES.try_with(|pairs| pairs.try_borrow().map_or(true, |pairs| pairs.iter().any(concerns)));
    if changed.unwrap_or(false) {
        TABLES_CHANGED.set(true);
    }
}

/// The rows of a piece, for these columns.
#[derive(Clone)]
struct RowsToStore {
    piece: Rc<Series>,
    columns: Rc<[Column]>,
}

impl RowsToStore {
    /// Lets `_rows_to_store` return them for as long as the returned value lives.
    fn offer(self) -> impl Drop {
        struct Offer;
        impl Drop for Offer {
            fn drop(&mut self) {
                TO_STORE.take();
            }
        }
        TO_STORE.set(Some(self));
        Offer
    }
}

/// The rows that are being stored, as `_computed_rows` has them; none outside of that.
#[pg_extern(sql = "
CREATE FUNCTION bqx._rows_to_store() RETURNS SETOF record LANGUAGE c VOLATILE ROWS 10
SET search_path = pg_catalog, pg_temp AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
")]
fn _rows_to_store(fcinfo: pg_sys::FunctionCallInfo) {
    let Some(RowsToStore { piece, columns }) = TO_STORE.with_borrow(Clone::clone) else {
        error!("no rows are being stored");
    };
    // Safety: it is this function's own call.
    let mut rows = unsafe { ComputedSet::start(fcinfo, columns.len()) };
    compute(&piece, &columns, |computed| rows.put(computed));
}

fn compute(piece: &Series, columns: &[Column], show: impl FnMut(&ComputedRow)) {
    for_each_computed_row(piece, columns, show)
        .unwrap_or_else(|_| Failure::out_of_memory("Rows that bars affect could not be computed.").raise());
}
