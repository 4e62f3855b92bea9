//! The rows that changed bars affect, computed and stored in the transaction that changed them.
//!
//! A change of a bar affects its own row and those of as many bars after it as the longest window holds. They are computed from the
//! bars as they are now, and stored by one statement: `INSERT … ON CONFLICT DO UPDATE` where they differ.
//!
//! Two transactions that change bars of one pair at once would each miss the other's. So whoever computes holds the pair's lock until
//! the transaction ends, and looks at the bars in a snapshot taken after it got the lock.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;

use bqx_core::calendar::Month;
use bqx_core::changed_ranges::{ChangedRange, MERGED_GAP};
use bqx_core::columns::Family;
use pgrx::datum::{Date, TimestampWithTimeZone};
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::prelude::*;
use pgrx::spi::OwnedPreparedStatement;
use pgrx::{IntoDatum, direct_function_call_as_datum};

use crate::bar_changes::Noted;
use crate::errors::Failure;
use crate::followed_tables::{DerivedTable, PairTables, date, months_of};
use crate::m1_tables::{check_may_read, is_followed, owner_of, table_named};
use crate::rows::one_value;
use crate::scoped::{ActiveSnapshot, PinnedSearchPath, RoleFor};
use crate::series::{self, Fingerprint, Series};

static LIVE: GucSetting<bool> = GucSetting::<bool>::new(true);
static NOTIFY: GucSetting<bool> = GucSetting::<bool>::new(false);
static MONTHS_AHEAD: GucSetting<i32> = GucSetting::<i32>::new(0);

thread_local! {
    /// The query that every change ends with.
    static IS_NOTED: OnceCell<OwnedPreparedStatement> = const { OnceCell::new() };
    static LOCK_KEYS: RefCell<HashMap<String, i64>> = RefCell::default();
}

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
    if removed().next().is_none() && is_noted(pair, &families, &months) {
        return;
    }
    let month_of = |time: i64| Month::from_pg_micros(time).map(date);
    let first_removed = removed().next().map(|range| month_of(range.from).unwrap_or(date(Month::MIN)));
    let last_removed = removed().next_back().map(|range| month_of(range.to).unwrap_or(date(Month::MAX)));
    let arguments = [
        pair.into(),
        families.clone().into(),
        months.clone().into(),
        first_removed.into(),
        last_removed.into(),
    ];
    let note = "SELECT bqx._note_followed($1, $2, $3, $4, $5)";
    let has_new_months = Spi::get_one_with_args::<bool>(note, &arguments);
    if has_new_months.unwrap_or_else(|e| error!("{e}")) == Some(true) {
        let arguments = [pair.into(), families.into(), months.into(), rows.into()];
        Spi::run_with_args("SELECT bqx._know_new_months($1, $2, $3, $4)", &arguments)
            .unwrap_or_else(|e| error!("{e}"));
    }
}

/// Whether that is noted of these months already, as it is where bars come one by one. Nothing is told to the caller that it did not
/// just write, so the ledger is read as its owner. With one snapshot throughout that can't be told.
fn is_noted(pair: &str, families: &[&str], months: &[Date]) -> bool {
    // Safety: a plain read of this backend's state.
    if unsafe { pg_sys::XactIsoLevel } >= pg_sys::XACT_REPEATABLE_READ as i32 {
        return false;
    }
    let _role = RoleFor::new(owner_of(table_named("month_ledger")));
    let noted = IS_NOTED.with(|prepared| {
        let statement = prepared.get_or_init(|| {
            use pgrx::pg_sys::BuiltinOid::{DATEARRAYOID, TEXTARRAYOID, TEXTOID};
            let types = [TEXTARRAYOID, TEXTOID, DATEARRAYOID].map(pgrx::PgOid::from);
            let query = "SELECT count(*) FROM bqx.month_ledger AS m WHERE m.family = ANY ($1) AND m.pair = $2 \
                         AND m.month = ANY ($3) AND m.input_fingerprint IS NULL AND m.bars > 0";
            Spi::connect(|client| client.prepare(query, &types).unwrap_or_else(|e| error!("{e}")).keep())
        });
        let arguments = [families.to_vec().into(), pair.into(), months.to_vec().into()];
        Spi::connect(|client| client.select(statement, Some(1), &arguments)?.first().get_one::<i64>())
    });
    noted.unwrap_or_else(|e| error!("{e}")) == Some((families.len() * months.len()) as i64)
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
    let _role = RoleFor::new(owner_of(table));
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
