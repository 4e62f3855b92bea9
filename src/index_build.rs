//! Building the indexes of a table whose rows were just written, without reading them back.
//!
//! REINDEX asks the table's access method for its rows. While it does, the method is a copy of the heap's in which the
//! one function that is asked gives the keys that are known, and leaves all other questions to the heap.

use std::cell::Cell;
use std::ptr;

use pgrx::prelude::*;

use crate::heap_pages::StoredKeys;

thread_local! {
    /// What is being built; null most of the time. (PostgreSQL's callback has no argument for it.)
    static CURRENT: Cell<*const Build> = const { Cell::new(ptr::null()) };
}

/// A table whose indexes are being built.
struct Build {
    relation: pg_sys::Relation,
    keys: StoredKeys,
    heap: *const pg_sys::TableAmRoutine,
    /// The heap's, but for one function.
    known_keys: pg_sys::TableAmRoutine,
}

/// Rebuilds all indexes of a table, which has just these rows; without keys by reading them.
///
/// # Safety
/// The relation must be a heap, open and locked against everybody else; `keys` must name every row that it has.
pub unsafe fn reindex(relation: pg_sys::Relation, name: &str, keys: Option<StoredKeys>) {
    let build = keys.map(|keys| {
        // Safety: the relation is open, and a heap's routine lives as long as the server.
        unsafe {
            let heap = (*relation).rd_tableam;
            let known_keys =
                pg_sys::TableAmRoutine { index_build_range_scan: Some(show_known_keys), ..*heap };
            Build { relation, keys, heap, known_keys }
        }
    });
    let _installed = build.as_ref().map(Installed::new);
    // The lock is held until the transaction ends: the name still means this table.
    Spi::run(&format!("REINDEX TABLE {name}")).unwrap_or_else(|e| error!("{e}"));
}

/// The access method is ours as long as this value lives, whatever ends it.
struct Installed<'a> {
    build: &'a Build,
    /// What was being built: an event trigger may write another month meanwhile.
    outer: *const Build,
}

impl<'a> Installed<'a> {
    fn new(build: &'a Build) -> Self {
        let outer = CURRENT.replace(build);
        // Safety: the relation is open. If PostgreSQL loads it anew meanwhile, it has the heap's routine again.
        unsafe { (*build.relation).rd_tableam = &raw const build.known_keys };
        Installed { build, outer }
    }
}

impl Drop for Installed<'_> {
    fn drop(&mut self) {
        CURRENT.set(self.outer);
        // Safety: the relation stays open until after this, or after an error until the transaction ends.
        unsafe {
            let Build { relation, heap, known_keys, .. } = self.build;
            if ptr::eq((**relation).rd_tableam, known_keys) {
                (**relation).rd_tableam = *heap;
            }
        }
    }
}

/// `index_build_range_scan` of the access method: shows all rows' keys to the callback; returns how many there are.
/// What is not a plain index over the key alone, built by one process, is the heap's business.
#[pg_guard]
#[allow(clippy::too_many_arguments)] // PostgreSQL's
unsafe extern "C-unwind" fn show_known_keys(
    table: pg_sys::Relation,
    index: pg_sys::Relation,
    info: *mut pg_sys::IndexInfo,
    allow_sync: bool,
    any_visible: bool,
    progress: bool,
    start_block: pg_sys::BlockNumber,
    blocks: pg_sys::BlockNumber,
    callback: pg_sys::IndexBuildCallback,
    state: *mut std::ffi::c_void,
    scan: pg_sys::TableScanDesc,
) -> f64 {
    // Safety: set while the routine that this function is part of is installed, and so while it can be called.
    let build = unsafe { &*CURRENT.get() };
    let is_whole = start_block == 0 && blocks == pg_sys::InvalidBlockNumber && scan.is_null();
    // Safety: the arguments are those of an index build; the callback takes a row's place and its index values.
    unsafe {
        let is_of_key = ptr::eq(table, build.relation)
            && (*info).ii_NumIndexAttrs == 1
            && (*info).ii_IndexAttrNumbers[0] == build.keys.attribute()
            && (*info).ii_Expressions.is_null()
            && (*info).ii_Predicate.is_null();
        let (true, true, Some(callback)) = (is_whole, is_of_key, callback) else {
            let of_heap = (*build.heap).index_build_range_scan.expect("heaps can be indexed");
            // Its scans insist on its own routine. After an error there is no going on.
            (*table).rd_tableam = build.heap;
            let shown = pg_sys::ffi::pg_guard_ffi_boundary(|| {
                of_heap(
                    table,
                    index,
                    info,
                    allow_sync,
                    any_visible,
                    progress,
                    start_block,
                    blocks,
                    callback,
                    state,
                    scan,
                )
            });
            (*table).rd_tableam = &raw const build.known_keys;
            return shown;
        };
        for page in build.keys.pages() {
            pg_sys::check_for_interrupts!();
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                for (mut place, key) in page {
                    callback(index, &mut place, &mut pg_sys::Datum::from(key), &mut false, true, state);
                }
            });
        }
        build.keys.len() as f64
    }
}
