//! The rows that changed bars affect, computed and stored in the transaction that changed them.
//!
//! A change of a bar affects its own row and those of as many bars after it as the longest window holds. They are computed from the
//! bars as they are now, and stored by one statement: `INSERT … ON CONFLICT DO UPDATE` where they differ.
//!
//! Two transactions that change bars of one pair at once would each miss the other's. So whoever computes holds the pair's lock until
//! the transaction ends, and looks at the bars in a snapshot taken after it got the lock.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::ffi::CString;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;

use bqx_core::calendar::Month;
use bqx_core::changed_ranges::{ChangedRange, MERGED_GAP};
use bqx_core::columns::{Column, Family};
use pgrx::datum::{Date, TimestampWithTimeZone};
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::prelude::*;
use pgrx::spi::{OwnedPreparedStatement, SpiClient};
use pgrx::{FromDatum, IntoDatum, direct_function_call_as_datum};

use crate::bar_changes::Noted;
use crate::bar_scan::{IndexedBars, Locks};
use crate::computed_rows::{ComputedSet, for_each_computed_row, lookback, own_columns, value_columns};
use crate::errors::Failure;
use crate::metric_columns::family;
use crate::rows::{for_each_row, one_value};
use crate::series::{self, Fingerprint, Series};
use crate::time_partitions::TimePartitions;

static LIVE: GucSetting<bool> = GucSetting::<bool>::new(true);
static NOTIFY: GucSetting<bool> = GucSetting::<bool>::new(false);
static MONTHS_AHEAD: GucSetting<i32> = GucSetting::<i32>::new(0);

pub fn define_settings() {
    GucRegistry::define_bool_guc(
        c"bqx.live",
        c"Whether the rows of pairs that are followed live are computed when their bars change.",
        c"Off, changes are noted for bqx.refresh, which is faster for many bars at once.",
        &LIVE,
        GucContext::Userset,
        GucFlags::empty(),
    );
    GucRegistry::define_bool_guc(
        c"bqx.notify",
        c"Whether who listens on channel bqx_bars is told of rows that were computed because bars changed.",
        c"The payload is JSON: pair, and the times of the first and the last of the rows.",
        &NOTIFY,
        GucContext::Userset,
        GucFlags::empty(),
    );
    GucRegistry::define_int_guc(
        c"bqx.months_ahead",
        c"Months after the newest bar's for which partitions are made.",
        c"By refresh (at least one), and by create_tables where to_month is left out.",
        &MONTHS_AHEAD,
        0,
        120,
        GucContext::Userset,
        GucFlags::empty(),
    );
}

/// The setting `bqx.months_ahead`.
#[pg_extern(stable)]
fn _months_ahead() -> i32 {
    MONTHS_AHEAD.get()
}

/// Changes of bars that lie no further apart are told as one.
#[pg_extern(immutable)]
fn _merged_gap() -> pgrx::datum::Interval {
    pgrx::datum::Interval::from_seconds((MERGED_GAP / 1_000_000) as f64)
}

/// Whether rows are computed at once, in this session, at this moment.
pub fn is_on() -> bool {
    LIVE.get()
}

/// The table of schema bqx that has this name; `Oid::INVALID` if none has.
pub fn table_named(name: &str) -> pg_sys::Oid {
    let Ok(name) = CString::new(name) else { return pg_sys::Oid::INVALID };
    // Safety: lookups in the catalogs, with C strings that outlive them.
    unsafe { pg_sys::get_relname_relid(name.as_ptr(), pg_sys::get_namespace_oid(c"bqx".as_ptr(), true)) }
}

/// Whether a table is this one, or a partition of it on any level.
pub fn is_part_of(relation: pg_sys::Oid, table: pg_sys::Oid) -> bool {
    if relation == table || table == pg_sys::Oid::INVALID {
        return relation == table && table != pg_sys::Oid::INVALID;
    }
    // Safety: a lookup in the catalogs; the list is one of OIDs.
    unsafe {
        pg_sys::get_rel_relispartition(relation)
            && pg_sys::list_member_oid(get_partition_ancestors(relation), table)
    }
}

#[pg_guard]
unsafe extern "C-unwind" {
    /// The tables that a partition is a part of, a list of OIDs. Not in the bindings.
    fn get_partition_ancestors(relation: pg_sys::Oid) -> *mut pg_sys::List;
}

/// Waits until nobody else computes rows of the pair, and keeps others from it until the transaction ends.
pub fn lock_pair(pair: &str) {
    // Safety: PostgreSQL's own function, with its argument.
    unsafe {
        direct_function_call_as_datum(pg_sys::pg_advisory_xact_lock_int8, &[pair_lock(pair).into_datum()])
    };
}

/// Waits as [`lock_pair`], and keeps just those waiting who have that.
fn share_pair(pair: &str) {
    // Safety: PostgreSQL's own function, with its argument.
    unsafe {
        direct_function_call_as_datum(
            pg_sys::pg_advisory_xact_lock_shared_int8,
            &[pair_lock(pair).into_datum()],
        )
    };
}

/// The key of a pair's lock: `bqx._lock_key`, which tells all of them, is asked once in a session.
fn pair_lock(pair: &str) -> i64 {
    let known = LOCK_KEYS.with_borrow(|keys| keys.get(pair).copied());
    known.unwrap_or_else(|| {
        let query = "SELECT bqx._lock_key('pair'::pg_catalog.text, $1)";
        let key = one_value(query, &[pair.into()]).expect("a key");
        LOCK_KEYS.with_borrow_mut(|keys| keys.insert(pair.to_owned(), key));
        key
    })
}

/// Computes and stores the rows that changes of a pair's bars affect, and says how many it looked at. In a repeatable-read
/// transaction that can't see all bars: 40001.
pub fn follow(pair: &str, changes: &[ChangedRange]) -> i64 {
    if changes.is_empty() {
        return 0;
    }
    lock_pair(pair);
    // Safety: takes note of what others changed about tables while we waited.
    unsafe { pg_sys::AcceptInvalidationMessages() };
    let Some(tables) = PairTables::of(pair) else { return 0 };
    check_may_read(tables.m1);
    // Safety: advances the state of this backend's transaction, so that what it did can be seen.
    unsafe { pg_sys::CommandCounterIncrement() };
    let indexed = tables.indexed_bars();
    let for_each_affected_piece = |show: &mut dyn FnMut(&Rc<Series>)| {
        series::for_each_affected_piece(tables.m1, indexed.as_ref(), changes, tables.lookback, |piece| {
            show(piece);
            Ok(())
        });
    };
    check_sees_the_newest(pair, &tables, changes, for_each_affected_piece);
    let mut stored = Stored::default();
    {
        // Safety: what it returns is pushed at once. In READ COMMITTED it is a new one, and the lock is held.
        let _snapshot = ActiveSnapshot::push(unsafe { pg_sys::GetTransactionSnapshot() });
        for_each_affected_piece(&mut |piece| {
            stored.add(piece);
            tables.derived.iter().for_each(|table| table.store(pair, piece));
        });
    }
    remove_rows_without_bars(pair, changes);
    note_followed(pair, &tables.derived, changes, &stored);
    if NOTIFY.get() {
        notify(pair, changes, &stored);
    }
    stored.rows
}

/// Deals with what is left of a transaction's changes before it commits, as the role that made them.
pub fn settle(noted: &Noted) {
    let _pinned = PinnedSearchPath::set();
    // Safety: takes no argument; what it returns is pushed at once. Without an active snapshot, a query would give the procedure that
    // commits one of its own, which would outlive the transaction.
    let _snapshot = ActiveSnapshot::push(unsafe { pg_sys::GetTransactionSnapshot() });
    if is_on() && is_followed(table_named(&format!("m1_{}", noted.pair))) {
        let _role = RoleFor::new(noted.role);
        follow(&noted.pair, noted.ranges.as_slice());
    } else {
        write_down(&noted.pair, noted.ranges.as_slice());
    }
}

/// Computes the rows that changes in these ranges affect, as live mode does. For `bqx.refresh`; says how many rows it looked
/// at.
#[pg_extern(sql = "
CREATE FUNCTION bqx._follow_changes(
    pair text, from_ts timestamp with time zone[], to_ts timestamp with time zone[], removed boolean[]) RETURNS bigint
LANGUAGE c STRICT SET search_path = pg_catalog, pg_temp AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
")]
fn _follow_changes(
    pair: &str,
    from_ts: Vec<TimestampWithTimeZone>,
    to_ts: Vec<TimestampWithTimeZone>,
    removed: Vec<bool>,
) -> i64 {
    let ranges = from_ts.into_iter().zip(to_ts).zip(removed);
    let changes: bqx_core::changed_ranges::ChangedRanges = ranges
        .map(|((from, to), removed)| ChangedRange { from: from.into(), to: to.into(), removed })
        .collect();
    follow(pair, changes.as_slice())
}

/// For each instant, the time of the first of so many bars before it; -infinity where there are fewer.
#[pg_extern(sql = "
CREATE FUNCTION bqx._lookback_starts(m1 regclass, instants timestamp with time zone[], lookback int)
RETURNS timestamp with time zone[] LANGUAGE c STABLE STRICT SET search_path = pg_catalog, pg_temp
AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
")]
fn _lookback_starts(
    m1: pg_sys::Oid,
    instants: Vec<TimestampWithTimeZone>,
    lookback: i32,
) -> Vec<TimestampWithTimeZone> {
    check_may_read(m1);
    let indexed = indexed_bars(m1);
    let instants = instants.into_iter().map(i64::from);
    let starts = series::lookback_starts(m1, indexed.as_ref(), instants, lookback.max(0) as usize);
    starts.into_iter().map(timestamp).collect()
}

/// The time of the newest bar of an M1 table, or of the oldest; NULL where it has none, or the caller may see none.
#[pg_extern(sql = "
CREATE FUNCTION bqx._end_bar(m1 regclass, newest boolean) RETURNS timestamp with time zone
LANGUAGE c STABLE STRICT SET search_path = pg_catalog, pg_temp AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
")]
fn _end_bar(m1: pg_sys::Oid, newest: bool) -> Option<TimestampWithTimeZone> {
    let indexed = if may_read(m1) { indexed_bars(m1) } else { None };
    let end = |indexed: &IndexedBars| {
        let bars = match newest {
            // one whose time is infinite, if there is one
            true => indexed.oldest_first(series::INFINITY, 1)?.ok().filter(|bars| !bars.is_empty()),
            false => None,
        };
        let bars = match bars {
            Some(bars) => bars,
            None if newest => indexed.newest_first(series::INFINITY, 1)?.ok()?,
            None => indexed.oldest_first(series::MINUS_INFINITY, 1)?.ok()?,
        };
        Some(bars.first().map(|bar| timestamp(bar.time)))
    };
    indexed.as_ref().and_then(end).unwrap_or_else(|| {
        let query = "SELECT bqx._end_bar_by_query($1::oid::pg_catalog.regclass, $2)";
        one_value(query, &[m1.into(), newest.into()])
    })
}

fn timestamp(pg_micros: i64) -> TimestampWithTimeZone {
    // Safety: a timestamptz datum is this integer.
    unsafe { TimestampWithTimeZone::from_datum(pg_sys::Datum::from(pg_micros), false) }
        .expect("it is not NULL")
}

/// An M1 table, to be asked something; `None` if a query has to.
fn indexed_bars(m1: pg_sys::Oid) -> Option<IndexedBars> {
    if is_kept_by_time(m1) { IndexedBars::of(m1, Locks::GivenBack) } else { None }
}

/// Whether an M1 table is partitioned by its time, if at all.
fn is_kept_by_time(m1: pg_sys::Oid) -> bool {
    one_value("SELECT bqx._is_kept_by_time($1)", &[m1.into()]).unwrap_or(false)
}

/// What of a pair must be known to store rows. Kept for the session.
struct PairTables {
    pair: String,
    /// The bars'.
    m1: pg_sys::Oid,
    /// Whether M1 is partitioned by its time, if at all.
    is_kept_by_time: bool,
    /// Of both families, where there are both.
    derived: Vec<DerivedTable>,
    /// The longest of their columns' windows.
    lookback: usize,
}

/// A derived table of a pair, as far as it must be known to store rows. Kept for the session.
struct DerivedTable {
    family: Family,
    oid: pg_sys::Oid,
    /// The columns whose values are computed.
    columns: Rc<[Column]>,
    upsert: OwnedPreparedStatement,
}

thread_local! {
    /// The derived tables of the pairs that this session followed, with their M1.
    static TABLES: RefCell<Vec<Rc<PairTables>>> = const { RefCell::new(Vec::new()) };
    /// What `_rows_to_store` returns.
    static TO_STORE: RefCell<Option<RowsToStore>> = const { RefCell::new(None) };
    /// The statement that every change ends with.
    static NOTE_FOLLOWED: OnceCell<OwnedPreparedStatement> = const { OnceCell::new() };
    static LOCK_KEYS: RefCell<HashMap<String, i64>> = RefCell::default();
    /// Whether something about a table changed since the cache was looked at.
    static TABLES_CHANGED: Cell<bool> = const { Cell::new(false) };
}

impl PairTables {
    /// `None` if the pair has no bars, or no derived tables.
    fn of(pair: &str) -> Option<Rc<PairTables>> {
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

    fn indexed_bars(&self) -> Option<IndexedBars> {
        if self.is_kept_by_time { IndexedBars::of(self.m1, Locks::Kept) } else { None }
    }
}

impl DerivedTable {
    fn load_all(client: &SpiClient<'_>, pair: &str) -> Vec<DerivedTable> {
        let mut found = Vec::new();
        let query =
            "SELECT t.family, t.derived::oid, t.column_names, t.upsert FROM bqx._tables_to_follow($1) AS t";
        for_each_row(client, query, &[pair.into()], |row| {
            let text = |i| row.get::<String>(i).unwrap_or_default();
            let names = row.get::<Vec<String>>(3).unwrap_or_default();
            found.push((text(1), row.get::<pg_sys::Oid>(2).unwrap_or_default(), names, text(4)));
        });
        let load = |(name, oid, names, upsert): (String, pg_sys::Oid, Vec<String>, String)| {
            let family = family(&name);
            let columns = value_columns(&own_columns(family, names.iter().map(String::as_str))).into();
            let upsert = client.prepare(upsert.as_str(), &[]).unwrap_or_else(|e| error!("{e}")).keep();
            DerivedTable { family, oid, columns, upsert }
        };
        found.into_iter().map(load).collect()
    }

    /// Stores the rows of a piece where they differ from those that are there.
    fn store(&self, pair: &str, piece: &Rc<Series>) {
        self.ensure_partitions(pair, &piece.times[piece.rows()]);
        let _offer = RowsToStore { piece: piece.clone(), columns: self.columns.clone() }.offer();
        Spi::connect_mut(|client| {
            client.update(&self.upsert, None, &[]).map(|_| ()).unwrap_or_else(|e| error!("{e}"));
        });
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
fn months_of(times: &[i64]) -> impl Iterator<Item = (Month, &[i64])> {
    let same_month = |a: &i64, b: &i64| Month::from_pg_micros(*a) == Month::from_pg_micros(*b);
    times.chunk_by(same_month).filter_map(|times| Some((Month::from_pg_micros(times[0])?, times)))
}

/// The first day of a month, as SQL has it.
fn date(month: Month) -> Date {
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
    let computed = for_each_computed_row(&piece, &columns, |computed| rows.put(computed));
    computed
        .unwrap_or_else(|_| Failure::out_of_memory("Rows that bars affect could not be computed.").raise());
}

/// What was stored, or would have been if it had differed.
#[derive(Default)]
struct Stored {
    rows: i64,
    first: Option<i64>,
    last: Option<i64>,
    /// Months with rows, ascending, and how many.
    months: Vec<(Month, i64)>,
}

impl Stored {
    fn add(&mut self, piece: &Series) {
        let times = &piece.times[piece.rows()];
        self.rows += times.len() as i64;
        self.first = self.first.or(times.first().copied());
        self.last = times.last().copied();
        for (month, times) in months_of(times) {
            let rows = times.len() as i64;
            match self.months.last_mut() {
                Some((last, known)) if *last == month => *known += rows, // pieces come in order
                _ => self.months.push((month, rows)),
            }
        }
    }
}

/// 40001 in a transaction that has one snapshot throughout, if that does not show the affected bars as they are now, or the rows
/// that may have to go with bars.
fn check_sees_the_newest(
    pair: &str,
    tables: &PairTables,
    changes: &[ChangedRange],
    for_each_affected_piece: impl Fn(&mut dyn FnMut(&Rc<Series>)),
) {
    // Safety: a plain read of this backend's state.
    if unsafe { pg_sys::XactIsoLevel } < pg_sys::XACT_REPEATABLE_READ as i32 {
        return;
    }
    let seen_in = |snapshot| {
        let _snapshot = ActiveSnapshot::push(snapshot);
        let mut seen = Vec::new();
        for_each_affected_piece(&mut |piece| {
            let mut fingerprint = Fingerprint::new(piece.first, "");
            fingerprint.add(piece);
            seen.push(Some(fingerprint.to_string()));
        });
        for range in changes.iter().filter(|range| range.removed) {
            for table in &tables.derived {
                let ends = (series::instant(range.from), series::instant(range.to));
                let query = "SELECT bqx._row_times($1::pg_catalog.oid::pg_catalog.regclass, $2, $3)";
                seen.push(one_value(query, &[table.oid.into(), ends.0, ends.1]));
            }
        }
        seen
    };
    // Safety: takes no argument, and what it returns is pushed at once.
    let now = seen_in(unsafe { pg_sys::GetLatestSnapshot() });
    // A bar that is at fault only in the old snapshot has been mended since; or it is there twice, since this transaction
    // inserted it after another had deleted it.
    let refuse = |_| refuse_old_snapshot(pair);
    // Safety: see above.
    let before = PgTryBuilder::new(AssertUnwindSafe(|| seen_in(unsafe { pg_sys::GetTransactionSnapshot() })))
        .catch_when(PgSqlErrorCode::ERRCODE_UNIQUE_VIOLATION, refuse)
        .catch_when(PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE, refuse)
        .execute();
    if now != before {
        refuse_old_snapshot(pair);
    }
}

fn refuse_old_snapshot(pair: &str) -> ! {
    Failure::new(
        PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
        format!("could not serialize access: bars of \"{pair}\" have changed since this transaction began"),
    )
    .detail("Its snapshot does not show all bars that its rows depend on.")
    .hint("Try the transaction again, or insert bars under READ COMMITTED.")
    .raise()
}

/// 42501 where the caller may not read the bars, or not all of them.
fn check_may_read(m1: pg_sys::Oid) {
    if !may_read(m1) {
        Spi::run_with_args("SELECT bqx._refuse_to_follow($1::oid::pg_catalog.regclass)", &[m1.into()])
            .unwrap_or_else(|e| error!("{e}"));
    }
}

/// Whether the caller may read all rows of a table.
fn may_read(table: pg_sys::Oid) -> bool {
    // Safety: lookups in the catalogs.
    unsafe {
        let right =
            pg_sys::pg_class_aclcheck(table, pg_sys::GetUserId(), pg_sys::ACL_SELECT as pg_sys::AclMode);
        let hidden = pg_sys::check_enable_rls(table, pg_sys::Oid::INVALID, true);
        right == pg_sys::AclResult::ACLCHECK_OK && hidden != pg_sys::CheckEnableRlsResult::RLS_ENABLED as i32
    }
}

fn remove_rows_without_bars(pair: &str, changes: &[ChangedRange]) {
    for range in changes.iter().filter(|range| range.removed) {
        let ends = [series::instant(range.from), series::instant(range.to)];
        let [from, to] = ends;
        Spi::run_with_args("SELECT bqx._remove_rows_without_bars($1, $2, $3)", &[pair.into(), from, to])
            .unwrap_or_else(|e| error!("{e}"));
    }
}

/// Notes that months' rows are no longer those of the fingerprints recorded.
fn note_followed(pair: &str, tables: &[DerivedTable], changes: &[ChangedRange], stored: &Stored) {
    let families: Vec<&str> = tables.iter().map(|table| table.family.name()).collect();
    let (months, rows): (Vec<Date>, Vec<i64>) =
        stored.months.iter().map(|&(month, rows)| (date(month), rows)).unzip();
    let removed = || changes.iter().filter(|range| range.removed);
    let month_of = |time: i64| Month::from_pg_micros(time).map(date);
    let first_removed = removed().next().map(|range| month_of(range.from).unwrap_or(date(Month::MIN)));
    let last_removed = removed().next_back().map(|range| month_of(range.to).unwrap_or(date(Month::MAX)));
    let has_new_months = NOTE_FOLLOWED.with(|prepared| {
        let statement = prepared.get_or_init(|| {
            use pgrx::pg_sys::BuiltinOid::{DATEARRAYOID, DATEOID, TEXTARRAYOID, TEXTOID};
            let types = [TEXTOID, TEXTARRAYOID, DATEARRAYOID, DATEOID, DATEOID].map(pgrx::PgOid::from);
            let query = "SELECT bqx._note_followed($1, $2, $3, $4, $5)";
            Spi::connect(|client| client.prepare(query, &types).unwrap_or_else(|e| error!("{e}")).keep())
        });
        let months = months.clone();
        let arguments =
            [pair.into(), families.clone().into(), months.into(), first_removed.into(), last_removed.into()];
        Spi::connect_mut(|client| client.update(statement, Some(1), &arguments)?.first().get_one::<bool>())
    });
    if has_new_months.unwrap_or_else(|e| error!("{e}")) == Some(true) {
        let arguments = [pair.into(), families.into(), months.into(), rows.into()];
        Spi::run_with_args("SELECT bqx._know_new_months($1, $2, $3, $4)", &arguments)
            .unwrap_or_else(|e| error!("{e}"));
    }
}

/// Tells listeners which rows are new, once the transaction commits.
fn notify(pair: &str, changes: &[ChangedRange], stored: &Stored) {
    let from = changes[0].from.min(stored.first.unwrap_or(i64::MAX));
    let to = changes[changes.len() - 1].to.max(stored.last.unwrap_or(i64::MIN));
    let arguments = [pair.into(), series::instant(from), series::instant(to)];
    Spi::run_with_args("SELECT bqx._notify_bars($1, $2, $3)", &arguments).unwrap_or_else(|e| error!("{e}"));
}

/// Writes changes down for `bqx.refresh`. Whoever may write bars need not be able to write there.
fn write_down(pair: &str, changes: &[ChangedRange]) {
    if !has_derived_tables(pair) {
        // All months are read when they are first written. Who makes the tables (create_tables) waits for us.
        share_pair(pair);
        // Safety: takes note of what others changed about tables while we waited.
        unsafe { pg_sys::AcceptInvalidationMessages() };
        if !has_derived_tables(pair) {
            return;
        }
    }
    let table = table_named("bar_changes");
    if table == pg_sys::Oid::INVALID {
        return; // the extension was dropped in this transaction
    }
    // Safety: the relation is closed again; its owner is one of a catalog's columns.
    let owner = unsafe {
        let relation = pg_sys::table_open(table, pg_sys::AccessShareLock as i32);
        let owner = (*(*relation).rd_rel).relowner;
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
        owner
    };
    let _role = RoleFor::new(owner);
    for range in changes {
        let arguments =
            [pair.into(), series::instant(range.from), series::instant(range.to), range.removed.into()];
        let insert = "INSERT INTO bqx.bar_changes (pair, from_ts, to_ts, removed) VALUES ($1, $2, $3, $4)";
        Spi::run_with_args(insert, &arguments).unwrap_or_else(|e| error!("{e}"));
    }
}

fn has_derived_tables(pair: &str) -> bool {
    Family::ALL.iter().any(|family| table_named(&format!("{}_{pair}", family.name())) != pg_sys::Oid::INVALID)
}

/// Whether a pair is followed live: its table has the trigger of `enable_live`.
fn is_followed(m1: pg_sys::Oid) -> bool {
    if m1 == pg_sys::Oid::INVALID {
        return false;
    }
    // Safety: the relation stays open while its triggers are looked at, of which there are as many as it says.
    unsafe {
        let relation = pg_sys::table_open(m1, pg_sys::AccessShareLock as i32);
        let description = (*relation).trigdesc;
        let triggers = if description.is_null() {
            &[]
        } else {
            std::slice::from_raw_parts((*description).triggers, (*description).numtriggers as usize)
        };
        let found = triggers.iter().any(|trigger| std::ffi::CStr::from_ptr(trigger.tgname) == c"bqx_live");
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
        found
    }
}

/// A snapshot that queries see for as long as it lives.
struct ActiveSnapshot;

impl ActiveSnapshot {
    fn push(snapshot: pg_sys::Snapshot) -> ActiveSnapshot {
        // Safety: the caller has just got it; it is taken off by `drop`, or by PostgreSQL after an error.
        unsafe { pg_sys::PushActiveSnapshot(snapshot) };
        ActiveSnapshot
    }
}

impl Drop for ActiveSnapshot {
    fn drop(&mut self) {
        // After an error, PostgreSQL takes it off when it aborts the transaction.
        if !std::thread::panicking() {
            // Safety: it is the one pushed by `push`: what was pushed after it is off again.
            unsafe { pg_sys::PopActiveSnapshot() };
        }
    }
}

/// Another role for as long as it lives.
struct RoleFor {
    role: pg_sys::Oid,
    context: i32,
}

impl RoleFor {
    fn new(role: pg_sys::Oid) -> RoleFor {
        let mut before = RoleFor { role: pg_sys::Oid::INVALID, context: 0 };
        // Safety: PostgreSQL's own way to act as a table's owner; undone by `drop`, or by PostgreSQL after an error. While it
        // lasts, SET ROLE is refused.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&raw mut before.role, &raw mut before.context);
            let context = before.context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32;
            pg_sys::SetUserIdAndSecContext(role, context);
        }
        before
    }
}

impl Drop for RoleFor {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // Safety: what it was before.
            unsafe { pg_sys::SetUserIdAndSecContext(self.role, self.context) };
        }
    }
}

/// `search_path` as functions of ours have it, where there is no function call that could set it.
struct PinnedSearchPath(i32);

impl PinnedSearchPath {
    fn set() -> PinnedSearchPath {
        // Safety: PostgreSQL's own way to set something for a while; undone by `drop`, or by PostgreSQL after an error.
        unsafe {
            let level = pg_sys::NewGUCNestLevel();
            pg_sys::set_config_option(
                c"search_path".as_ptr(),
                c"pg_catalog, pg_temp".as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_SESSION,
                pg_sys::GucAction::GUC_ACTION_SAVE,
                true,
                0,
                false,
            );
            PinnedSearchPath(level)
        }
    }
}

impl Drop for PinnedSearchPath {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // Safety: the level that `set` began.
            unsafe { pg_sys::AtEOXact_GUC(true, self.0) };
        }
    }
}
