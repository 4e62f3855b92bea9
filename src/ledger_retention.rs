//! How long the ledger keeps runs: the setting `bqx.ledger_retention`.

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::prelude::*;

/// 90 days, in minutes, the largest unit that settings have.
static RETENTION: GucSetting<i32> = GucSetting::<i32>::new(90 * 24 * 60);

/// Superusers set it (for a database: `ALTER DATABASE … SET bqx.ledger_retention = '30d'`), since the ledger also tells who
/// did what.
pub fn define_setting() {
    GucRegistry::define_int_guc(
        c"bqx.ledger_retention",
        c"How long finished runs and their jobs are kept in the ledger.",
        c"Older ones are forgotten when a new run begins. -1 keeps all.",
        &RETENTION,
        -1,
        i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_MIN,
    );
    // A misspelled bqx.… is an error, not a setting that nobody reads.
    #[cfg(not(feature = "pg14"))]
    // Safety: a valid C string.
    unsafe {
        pg_sys::MarkGUCPrefixReserved(c"bqx".as_ptr())
    };
}

/// NULL: for ever.
#[pg_extern]
fn _ledger_retention_minutes() -> Option<i32> {
    Some(RETENTION.get()).filter(|&minutes| minutes >= 0)
}
