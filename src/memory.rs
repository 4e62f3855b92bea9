//! Memory that is not PostgreSQL's. Where the system refuses it (`ulimit -v`, `vm.overcommit_memory = 2`), Rust ends
//! the process, and PostgreSQL then restarts all sessions. So whatever grows is reserved before it is used
//! (`try_reserve`), and the many small things live on a reserve meanwhile: once it is gone, the next [`secure`] says
//! that there is no memory, while there is still some left to say it with.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::TryReserveError;
use std::sync::atomic::{AtomicPtr, Ordering};

/// What small things may take between two calls of [`secure`]: several times what a piece of bars and its windows need.
const RESERVE: Layout = Layout::new::<[u64; 64 * 1024]>();

/// Larger requests don't get the reserve: they are made with `try_reserve`.
const SMALL: usize = RESERVE.size() / 8;

/// The reserve while it is held; null before it is wanted and after it was needed.
static HELD: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());

/// Makes sure that small things will find memory for a while.
///
/// # Errors
/// If there is none to be sure of.
pub fn secure() -> Result<(), TryReserveError> {
    if HELD.load(Ordering::Relaxed).is_null() {
        let mut reserve: Vec<u64> = Vec::new();
        reserve.try_reserve_exact(RESERVE.size() / size_of::<u64>())?;
        hold(std::mem::ManuallyDrop::new(reserve).as_mut_ptr().cast());
    }
    Ok(())
}

fn hold(reserve: *mut u8) {
    let former = HELD.swap(reserve, Ordering::Relaxed);
    if !former.is_null() {
        // Safety: only `secure` puts pointers there, to memory of this layout, and whoever takes one out owns it.
        unsafe { System.dealloc(former, RESERVE) };
    }
}

/// The system's allocator, and the reserve where that has nothing for a small request.
struct WithReserve;

#[global_allocator]
static ALLOCATOR: WithReserve = WithReserve;

impl WithReserve {
    /// Asks once more, with the reserve returned to the system, where a small request found nothing.
    #[inline(always)]
    fn retried(size: usize, request: impl Fn() -> *mut u8) -> *mut u8 {
        let found = request();
        if found.is_null() { Self::retry(size, request) } else { found }
    }

    #[cold]
    fn retry(size: usize, request: impl Fn() -> *mut u8) -> *mut u8 {
        if size > SMALL {
            return std::ptr::null_mut();
        }
        hold(std::ptr::null_mut());
        request()
    }
}

// Safety: all memory is the system allocator's, asked for and given back with the layouts that the callers promise.
// A failed request changes nothing, so it may be repeated.
unsafe impl GlobalAlloc for WithReserve {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::retried(layout.size(), || unsafe { System.alloc(layout) })
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::retried(layout.size(), || unsafe { System.alloc_zeroed(layout) })
    }

    #[inline]
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        Self::retried(new_size, || unsafe { System.realloc(pointer, layout, new_size) })
    }

    #[inline]
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}
