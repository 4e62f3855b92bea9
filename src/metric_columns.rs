//! The derived columns as SQL sees them. The facts are in `bqx_core::columns`.

use bqx_core::columns::{Column, Family, MAX_WINDOW, columns};
use pgrx::prelude::*;

use crate::errors::Failure;

/// The family of a name; 22023 for an unknown one.
pub fn family(name: &str) -> Family {
    Family::parse(name).unwrap_or_else(|| {
        Failure::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, format!("unknown family '{name}'"))
            .hint("Families are 'bqx' and 'reg'.")
            .raise()
    })
}

/// Columns of a derived table with these windows (NULL: the family's own), in order.
#[pg_extern(stable, parallel_safe)]
fn _metric_columns(
    family: &str,
    windows: Option<Vec<i32>>,
) -> TableIterator<'static, (name!(position, i32), name!(name, String), name!(sql_type, String))> {
    let family = self::family(family);
    let windows = match windows {
        Some(windows) => windows.into_iter().map(|w| w as usize).collect(),
        None => family.default_windows().to_vec(),
    };
    let rows = columns(family, &windows).into_iter().zip(1..);
    TableIterator::new(rows.map(|(column, i)| (i, column.to_string(), column.sql_type().to_string())))
}

/// Bars that must precede for the column to have a value (0: it always has one); NULL for a column that is not ours.
#[pg_extern(immutable, parallel_safe)]
fn _column_window(family: &str, column_name: &str) -> Option<i32> {
    Column::parse(self::family(family), column_name).map(|column| column.window() as i32)
}

/// Shortest window that create_tables takes for the family.
#[pg_extern(immutable, parallel_safe)]
fn _min_window(family: &str) -> i32 {
    self::family(family).min_window() as i32
}

/// Longest window that create_tables takes.
#[pg_extern(immutable, parallel_safe)]
fn _max_window() -> i32 {
    MAX_WINDOW as i32
}
