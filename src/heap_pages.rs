//! Rows of 8-byte values as finished heap pages, appended to storage that no one else can see: with
//! `month_writer` and `index_build` the only place that touches a table's internals.
//!
//! PostgreSQL writes a table that it makes anew (CLUSTER, VACUUM FULL) past the buffer cache, as it does here: pages
//! are filled in memory, logged in batches as full images, and go to the file once. Row by row through the buffer
//! cache each page would be written twice, as zeros and then with its rows.
//!
//! Rows say that their transaction has committed before it has. That is safe, and spares the first reader
//! from finding out for each row and writing every page once more: nobody else finds this storage before that same
//! transaction commits, and if it doesn't, the storage goes with it. Snapshots that are older than the
//! transaction don't see the rows: they look at its number, which only frozen rows hide. The transaction itself
//! would not see its rows for certain, so they say nothing where it might look at them.

use std::collections::TryReserveError;

use pgrx::prelude::*;

use crate::errors::Failure;

const BLCKSZ: usize = pg_sys::BLCKSZ as usize;

/// Pages that are logged and written together: as many as one WAL record can hold.
const BATCH: usize = pg_sys::XLR_MAX_BLOCK_ID as usize;

/// Keys that are kept, three months of minutes; of a table with more rows none are. Bounds the memory for them.
const MOST_KEYS: usize = 131_072;

/// Bytes of a row's header before its bitmap of NULLs.
const HEADER: usize = std::mem::offset_of!(pg_sys::HeapTupleHeaderData, t_bits);

/// The longest row that a page can take (`MaxHeapTupleSize`, a macro that the bindings leave out).
const LONGEST_ROW: usize =
    BLCKSZ - words(size_of::<pg_sys::PageHeaderData>() + size_of::<pg_sys::ItemIdData>()) * size_of::<u64>();

const MAIN: pg_sys::ForkNumber::Type = pg_sys::ForkNumber::MAIN_FORKNUM;

/// `InvalidSubTransactionId`, a macro that the bindings leave out.
const NO_SUBTRANSACTION: pg_sys::SubTransactionId = 0;

/// As direct I/O wants it.
#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; BLCKSZ]);

/// When rows may be looked at for the first time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// By the transaction that stores them, too.
    AtOnce,
    AfterCommit,
}

/// Appends rows to an empty heap table.
pub struct HeapPages {
    relation: pg_sys::Relation,
    attributes: usize,
    /// A row being formed: header, bitmap, values.
    row: Vec<u64>,
    pages: Vec<Page>,
    /// Pages of the batch that rows went into; the last of them takes more.
    filled: usize,
    /// Rows of the page that is being filled.
    rows_in_page: u16,
    /// Pages that were written.
    written: pg_sys::BlockNumber,
    /// Bytes of a page that are to stay free.
    reserve: usize,
    rows: usize,
    /// None once there are too many to keep.
    keys: Option<StoredKeys>,
    readers: Readers,
    transaction: pg_sys::TransactionId,
    command: pg_sys::CommandId,
    is_logged: bool,
    /// Where recovery would begin, at the time of the first page.
    redo_at_start: pg_sys::XLogRecPtr,
}

impl HeapPages {
    /// # Safety
    /// The relation must be an ordinary heap table without rows, whose attributes that are not dropped are all of
    /// 8-byte types passed by value, `key` among them; its storage must have been made in the current subtransaction; it must stay open,
    /// and locked for writing, until `finish`.
    pub unsafe fn new(relation: pg_sys::Relation, key: usize, readers: Readers) -> HeapPages {
        // Safety: the relation is open; the rest takes no arguments.
        unsafe {
            HeapPages {
                relation,
                attributes: (*(*relation).rd_att).natts as usize,
                row: Vec::new(),
                pages: Vec::new(),
                filled: 0,
                rows_in_page: 0,
                written: 0,
                rows: 0,
                keys: Some(StoredKeys { attribute: key, keys: Vec::new(), first_of_page: Vec::new() }),
                reserve: BLCKSZ * (100 - fill_factor(relation)) / 100,
                readers,
                transaction: pg_sys::GetCurrentTransactionId(),
                command: pg_sys::GetCurrentCommandId(true),
                is_logged: is_logged(relation),
                redo_at_start: pg_sys::GetRedoRecPtr(),
            }
        }
    }

    /// Takes the memory that appending so many more rows needs, unless it has it.
    ///
    /// # Errors
    /// If there is none.
    pub fn reserve_memory(&mut self, rows: usize) -> Result<(), TryReserveError> {
        if self.rows + rows > MOST_KEYS {
            self.keys = None;
        }
        if let Some(StoredKeys { keys, first_of_page, .. }) = &mut self.keys {
            keys.try_reserve(rows)?;
            first_of_page.try_reserve(rows)?; // a page has one row at least
        }
        self.row.clear();
        self.row.try_reserve_exact(words(HEADER + self.attributes.div_ceil(8)) + self.attributes)?;
        self.pages.try_reserve_exact(BATCH - self.pages.len())?;
        self.pages.resize(BATCH, Page([0; BLCKSZ]));
        Ok(())
    }

    /// Adds a row, in memory that is reserved: `value` gives each attribute's 8 bytes, None for NULL, which the key is
    /// not. 54000 for a row that no page can take.
    pub fn append(&mut self, value: impl Fn(usize) -> Option<u64>) {
        if !self.form_row(0, &value) {
            self.form_row(self.attributes.div_ceil(8), &value);
        }
        let size = size_of_val(self.row.as_slice());
        if size > LONGEST_ROW {
            Failure::new(
                PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
                format!("row is too big: size {size}, maximum size {LONGEST_ROW}"),
            )
            .raise();
        }
        if self.filled == 0 || !self.has_room(size) {
            self.begin_page();
        }
        self.rows_in_page += 1;
        self.rows += 1;
        if let Some(StoredKeys { attribute, keys, .. }) = &mut self.keys {
            keys.push(value(*attribute).expect("a key is not NULL") as i64);
        }
        let block = self.written + self.filled as pg_sys::BlockNumber - 1;
        // Safety: the row begins with a header, and is as long as it says; the page has room for it.
        unsafe {
            let header = self.row.as_mut_ptr().cast::<pg_sys::HeapTupleHeaderData>();
            pgrx::itemptr::item_pointer_set_all(&mut (*header).t_ctid, block, self.rows_in_page);
            let place = pg_sys::PageAddItemExtended(
                self.current_page(),
                header.cast(),
                size,
                pg_sys::InvalidOffsetNumber,
                pg_sys::PAI_IS_HEAP as i32,
            );
            assert_eq!(place, self.rows_in_page, "a page with room takes a row");
        }
    }

    /// Forms the row with a bitmap of so many bytes; false, with half a row, if there is a NULL and no bitmap.
    #[inline]
    fn form_row(&mut self, bitmap: usize, value: &impl Fn(usize) -> Option<u64>) -> bool {
        let offset = words(HEADER + bitmap);
        self.row.clear();
        self.row.resize(offset, 0);
        for attribute in 0..self.attributes {
            match value(attribute) {
                Some(value) => {
                    self.row.push(value);
                    if bitmap > 0 {
                        // Safety: header and bitmap are in the words before `offset`.
                        unsafe {
                            let bytes = self.row.as_mut_ptr().cast::<u8>().add(HEADER);
                            *bytes.add(attribute / 8) |= 1 << (attribute % 8);
                        }
                    }
                }
                None if bitmap == 0 => return false,
                None => {}
            }
        }
        let mut infomask = pg_sys::HEAP_XMAX_INVALID;
        if self.readers == Readers::AfterCommit {
            infomask |= pg_sys::HEAP_XMIN_COMMITTED;
        }
        if bitmap > 0 {
            infomask |= pg_sys::HEAP_HASNULL;
        }
        // Safety: the row begins with room for a header, zeroed and aligned to 8 bytes.
        unsafe {
            let header = self.row.as_mut_ptr().cast::<pg_sys::HeapTupleHeaderData>();
            (*header).t_choice.t_heap.t_xmin = self.transaction;
            (*header).t_choice.t_heap.t_field3.t_cid = self.command;
            (*header).t_infomask2 = self.attributes as u16;
            (*header).t_infomask = infomask as u16;
            (*header).t_hoff = (offset * size_of::<u64>()) as u8;
        }
        true
    }

    fn current_page(&mut self) -> pg_sys::Page {
        self.pages[self.filled - 1].0.as_mut_ptr().cast()
    }

    fn has_room(&mut self, size: usize) -> bool {
        // Safety: the page was begun.
        let free = unsafe { pg_sys::PageGetHeapFreeSpace(self.current_page()) };
        free >= size + self.reserve
    }

    fn begin_page(&mut self) {
        if self.filled == self.pages.len() {
            self.write_batch();
        }
        self.filled += 1;
        self.rows_in_page = 0;
        if let Some(StoredKeys { keys, first_of_page, .. }) = &mut self.keys {
            first_of_page.push(keys.len() as u32);
        }
        // Safety: the page is as large as it says.
        unsafe { pg_sys::PageInit(self.current_page(), BLCKSZ, 0) };
    }

    /// Logs and writes the pages of the batch, in that order: their LSNs have to be those of the log.
    fn write_batch(&mut self) {
        let mut blocks = [0; BATCH];
        let mut pages = [std::ptr::null_mut::<u8>(); BATCH];
        for (i, page) in self.pages[..self.filled].iter_mut().enumerate() {
            blocks[i] = self.written + i as pg_sys::BlockNumber;
            pages[i] = page.0.as_mut_ptr();
        }
        // Safety: the relation is open; there are as many block numbers as pages, all initialised; the storage ends
        // where these pages begin.
        unsafe {
            if self.is_logged {
                pg_sys::log_newpages(
                    file_of(self.relation),
                    MAIN,
                    self.filled as i32,
                    blocks.as_mut_ptr(),
                    pages.as_mut_ptr().cast(),
                    true,
                );
            }
            let storage = pg_sys::RelationGetSmgr(self.relation);
            for (page, block) in pages.into_iter().zip(blocks).take(self.filled) {
                pg_sys::PageSetChecksumInplace(page.cast(), block);
                pg_sys::smgrextend(storage, MAIN, block, page.cast(), false);
            }
        }
        self.written += self.filled as pg_sys::BlockNumber;
        self.filled = 0;
    }

    /// Writes what is left. The rows are safe when the transaction commits. Returns their keys, unless there were too
    /// many to keep.
    pub fn finish(mut self) -> Option<StoredKeys> {
        if self.filled > 0 {
            self.write_batch();
        }
        // Safety: the relation is open. A checkpoint that began after a page was logged may have ended before the
        // page was in the file, and recovery would not come back to it: such pages have to be on the disk now.
        // Where pages are not logged, they are synced at the commit, or need not survive a crash.
        unsafe {
            if self.is_logged && pg_sys::GetRedoRecPtr() != self.redo_at_start {
                pg_sys::smgrimmedsync(pg_sys::RelationGetSmgr(self.relation), MAIN);
            }
            pg_sys::pgstat_count_heap_insert(self.relation, self.rows as _);
        }
        self.keys
    }
}

/// Which rows were stored where.
pub struct StoredKeys {
    /// The key's attribute, counted from 0.
    attribute: usize,
    /// The rows' keys, in the order of the rows.
    keys: Vec<i64>,
    /// For each page, the number of its first row.
    first_of_page: Vec<u32>,
}

impl StoredKeys {
    /// The attribute number of the key.
    pub fn attribute(&self) -> pg_sys::AttrNumber {
        self.attribute as pg_sys::AttrNumber + 1
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// For each page the places and keys of its rows, in their order.
    pub fn pages(
        &self,
    ) -> impl Iterator<Item = impl Iterator<Item = (pg_sys::ItemPointerData, i64)> + '_> + '_ {
        self.first_of_page.iter().enumerate().map(|(block, &first)| {
            let end = self.first_of_page.get(block + 1).map_or(self.keys.len(), |&next| next as usize);
            self.keys[first as usize..end].iter().enumerate().map(move |(offset, &key)| {
                let mut place = pg_sys::ItemPointerData::default();
                pgrx::itemptr::item_pointer_set_all(&mut place, block as u32, offset as u16 + 1);
                (place, key)
            })
        })
    }
}

/// The words of 8 bytes that so many bytes take.
const fn words(bytes: usize) -> usize {
    bytes.div_ceil(size_of::<u64>())
}

/// Whether the table's storage is nobody else's, now and if the current subtransaction fails: it was made by it.
///
/// # Safety
/// The relation must be open.
pub unsafe fn has_fresh_storage(relation: pg_sys::Relation) -> bool {
    // Safety: the relation is open; the other takes no argument.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        let replaced_in = (*relation).rd_newRelfilenodeSubid;
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        let replaced_in = (*relation).rd_newRelfilelocatorSubid;
        [(*relation).rd_createSubid, replaced_in].contains(&pg_sys::GetCurrentSubTransactionId())
    }
}

/// Percentage of a page that rows may fill.
///
/// # Safety
/// The relation must be an open table.
unsafe fn fill_factor(relation: pg_sys::Relation) -> usize {
    // Safety: a table's options are StdRdOptions, if it has any.
    unsafe {
        let options = (*relation).rd_options.cast::<pg_sys::StdRdOptions>();
        let percent =
            if options.is_null() { pg_sys::HEAP_DEFAULT_FILLFACTOR as i32 } else { (*options).fillfactor };
        percent.clamp(0, 100) as usize
    }
}

/// Whether the table's pages have to be logged (`RelationNeedsWAL`, a macro that the bindings leave out).
///
/// # Safety
/// The relation must be open.
unsafe fn is_logged(relation: pg_sys::Relation) -> bool {
    // Safety: the relation is open; the setting does not change while the server runs.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        let first_replaced_in = (*relation).rd_firstRelfilenodeSubid;
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        let first_replaced_in = (*relation).rd_firstRelfilelocatorSubid;
        let is_new =
            (*relation).rd_createSubid != NO_SUBTRANSACTION || first_replaced_in != NO_SUBTRANSACTION;
        let all_is_logged = pg_sys::wal_level as u32 >= pg_sys::WalLevel::WAL_LEVEL_REPLICA;
        (*(*relation).rd_rel).relpersistence as u8 == pg_sys::RELPERSISTENCE_PERMANENT
            && (all_is_logged || !is_new)
    }
}

#[cfg(any(feature = "pg14", feature = "pg15"))]
unsafe fn file_of(relation: pg_sys::Relation) -> *mut pg_sys::RelFileNode {
    // Safety: the caller's relation is open.
    unsafe { &raw mut (*relation).rd_node }
}

#[cfg(not(any(feature = "pg14", feature = "pg15")))]
unsafe fn file_of(relation: pg_sys::Relation) -> *mut pg_sys::RelFileLocator {
    // Safety: the caller's relation is open.
    unsafe { &raw mut (*relation).rd_locator }
}
