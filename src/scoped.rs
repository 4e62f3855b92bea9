//! State of this backend that lasts for as long as a value lives.

use pgrx::prelude::*;

/// A snapshot that queries see for as long as it lives.
pub struct ActiveSnapshot;

impl ActiveSnapshot {
    pub fn push(snapshot: pg_sys::Snapshot) -> ActiveSnapshot {
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
pub struct RoleFor {
    role: pg_sys::Oid,
    context: i32,
}

impl RoleFor {
    pub fn new(role: pg_sys::Oid) -> RoleFor {
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
pub struct PinnedSearchPath(i32);

impl PinnedSearchPath {
    pub fn set() -> PinnedSearchPath {
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
