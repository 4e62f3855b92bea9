//! Lines of vendors' files, parsed by `bqx_core::bar_file`. Time zones are PostgreSQL's business, in `sql/bar_files.sql`.

use bqx_core::bar_file::{Format, Layout, Line, layout_for, sniff};
use bqx_core::calendar::to_pg_micros;
use pgrx::prelude::*;

use crate::errors::Failure;
use crate::rows::{ResultSet, for_each_row};

/// Lines that are looked at to tell a file's layout.
const SNIFFED_LINES: usize = 100;

fn unknown_layout(message: String, format: &str) -> ! {
    Failure::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message)
        .hint(if format == "auto" {
            "Name the format: format => 'csv', 'histdata', 'metatrader' or 'dukascopy'.".to_string()
        } else {
            "Leave the format out, to have it told from the file, or name the right one.".to_string()
        })
        .raise()
}

/// A format's name in lower case, or `auto`; 22023 for anything else.
#[pg_extern(immutable)]
fn _check_bar_format(format: Option<&str>) -> String {
    let name = format.unwrap_or("NULL").to_ascii_lowercase();
    if name == "auto" || Format::parse(&name).is_some() {
        return name;
    }
    let known: Vec<_> = Format::ALL.iter().map(|f| format!("'{}'", f.name())).collect();
    Failure::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, format!("unknown format '{name}'"))
        .hint(format!("Formats are {} and 'auto', which tells it from the file.", known.join(", ")))
        .raise()
}

fn layout(format: &str, lines: &[String]) -> Layout {
    let lines = lines.iter().map(String::as_str);
    let found = match Format::parse(format) {
        Some(format) => layout_for(format, lines),
        None => sniff(lines),
    };
    found.unwrap_or_else(|unknown| unknown_layout(unknown.to_string(), format))
}

/// The format of a file from its first lines; 22023 where it is none we know, or visibly not the one named.
#[pg_extern(immutable)]
fn _sniff_format(format: &str, first_lines: Vec<Option<String>>) -> String {
    let lines: Vec<String> = first_lines.into_iter().flatten().collect();
    layout(format, &lines).format().name().to_string()
}

const TYPES: [pg_sys::Oid; 9] = [
    pg_sys::INT8OID,
    pg_sys::TIMESTAMPOID,
    pg_sys::INTERVALOID,
    pg_sys::FLOAT8OID,
    pg_sys::FLOAT8OID,
    pg_sys::FLOAT8OID,
    pg_sys::FLOAT8OID,
    pg_sys::FLOAT8OID,
    pg_sys::TEXTOID,
];

/// Parses the lines in `pg_temp.bqx_lines (line, line_no)`: one row per bar or bad line, none for headers and
/// blank lines. A bad line has a `reason` and NULLs; `utc_offset` is set where the line carries one.
#[pg_extern(sql = "
CREATE FUNCTION bqx._parse_lines(format text) RETURNS TABLE (
    line_no bigint, local_time timestamp, utc_offset interval, open double precision, high double precision,
    low double precision, close double precision, volume double precision, reason text)
LANGUAGE c STRICT SET search_path = pg_catalog, pg_temp AS '@MODULE_PATHNAME@', '@FUNCTION_NAME@';
")]
fn _parse_lines(format: &str, fcinfo: pg_sys::FunctionCallInfo) {
    // Safety: it is this function's own call.
    let mut rows = unsafe { ResultSet::start(fcinfo, &TYPES) };
    Spi::connect(|client| {
        let mut first_lines: Vec<String> = Vec::new();
        for_each_row(
            client,
            &format!(
                "SELECT line::text FROM pg_temp.bqx_lines WHERE line IS NOT NULL ORDER BY line_no LIMIT {SNIFFED_LINES}"
            ),
            &[],
            |row| first_lines.extend(row.get::<String>(1)),
        );
        let layout = layout(format, &first_lines);
        for_each_row(
            client,
            "SELECT line_no::bigint, line::text FROM pg_temp.bqx_lines WHERE line IS NOT NULL ORDER BY line_no",
            &[],
            |row| {
                let line_no = row.get::<i64>(1).into_datum();
                match layout.parse_line(&row.get::<String>(2).unwrap_or_default()) {
                    Line::Blank | Line::Header => (),
                    Line::Bad(reason) => {
                        rows.put(&[line_no, None, None, None, None, None, None, None, reason.into_datum()])
                    }
                    Line::Bar(bar) => {
                        let offset = bar.utc_offset_seconds.map(|s| Interval::from_seconds(s as f64));
                        rows.put(&[
                            line_no,
                            to_pg_micros(bar.time).map(pg_sys::Datum::from),
                            offset.and_then(|o| o.into_datum()),
                            bar.open.into_datum(),
                            bar.high.into_datum(),
                            bar.low.into_datum(),
                            bar.close.into_datum(),
                            bar.volume.into_datum(),
                            None,
                        ]);
                    }
                }
            },
        );
    });
}
