//! What the test programs share: a session's answers as text, and a picture of all that is stored.

#![allow(dead_code)] // each test program uses its part

pub mod backfilled;
pub mod followed;

use bqx_tests::{Db, SqlError};
use postgres::{Client, SimpleQueryMessage};

/// Runs statements that must succeed.
pub fn run(session: &mut Client, sql: &str) {
    attempt(session, sql).unwrap_or_else(|error| panic!("{sql}\n{error:?}"));
}

/// Runs statements one at a time: committing procedures must not share a message with others.
pub fn run_each(session: &mut Client, statements: &[impl AsRef<str>]) {
    for statement in statements {
        run(session, statement.as_ref());
    }
}

/// Runs statements that may fail in the server.
pub fn attempt(session: &mut Client, sql: &str) -> Result<(), SqlError> {
    session.batch_execute(sql).map_err(|error| {
        let error =
            error.as_db_error().unwrap_or_else(|| panic!("not an error of the server: {error}\n{sql}"));
        SqlError::from(error)
    })
}

/// A query's rows, each as its columns' texts with `|` between.
pub fn rows(session: &mut Client, query: &str) -> Vec<String> {
    try_rows(session, query).unwrap_or_else(|error| panic!("{query}\n{error:?}"))
}

/// The same where the query may fail, or the server end meanwhile.
pub fn try_rows(session: &mut Client, query: &str) -> Result<Vec<String>, postgres::Error> {
    let messages = session.simple_query(query)?;
    let texts = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            let columns: Vec<&str> = (0..row.len()).map(|i| row.get(i).unwrap_or("NULL")).collect();
            Some(columns.join("|"))
        }
        _ => None,
    });
    Ok(texts.collect())
}

/// The only row of a query, as [`rows`] has it.
pub fn row(session: &mut Client, query: &str) -> String {
    let mut rows = rows(session, query);
    assert_eq!(rows.len(), 1, "{query}: {rows:?}");
    rows.remove(0)
}

/// Everything that is stored in the schemas `bqx` and `public`: each table with its columns, its triggers, a
/// checksum of its rows, and each view. What a failed call must not have changed.
pub fn picture(db: &Db) -> Vec<String> {
    let mut session = db.connect();
    let tables = rows(
        &mut session,
        "SELECT c.oid::regclass, c.relkind, (SELECT string_agg(a.attname, ' ' ORDER BY a.attnum) FROM \
            pg_attribute AS a \
                  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), \
                (SELECT count(*) FROM pg_trigger AS t WHERE t.tgrelid = c.oid), \
                CASE WHEN c.relispartition THEN pg_get_expr(c.relpartbound, c.oid) END \
           FROM pg_class AS c WHERE c.relnamespace IN ('bqx'::regnamespace, 'public'::regnamespace) \
            AND c.relkind IN ('r', 'p', 'v', 'm') ORDER BY 1",
    );
    let mut picture = Vec::new();
    for table in tables {
        let (name, kind) = (table.split('|').next().unwrap_or_default(), table.split('|').nth(1));
        let checksum = match kind {
            Some("v") => String::new(), // clocks run in some
            _ => row(
                &mut session,
                &format!("SELECT count(*), md5(string_agg(t::text, ',' ORDER BY t::text)) FROM {name} AS t"),
            ),
        };
        picture.push(format!("{table} {checksum}"));
    }
    picture
}

/// A checksum over the rows of a query, the same whatever the settings of the session that wrote them.
pub fn checksum(db: &Db, query: &str) -> String {
    let mut session = db.connect();
    run(&mut session, "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET extra_float_digits = 1");
    row(
        &mut session,
        &format!("SELECT count(*), md5(string_agg(t::text, ',' ORDER BY t::text)) FROM ({query}) AS t"),
    )
}

/// A checksum of each data table over all rows and all columns of ours but created_at, as `table rows checksum`.
pub fn checksums(db: &Db) -> Vec<String> {
    let mut session = db.connect();
    let tables = rows(
        &mut session,
        "SELECT c.relname, string_agg(quote_ident(a.attname), ', ' ORDER BY a.attname) \
           FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
          WHERE c.relnamespace = 'bqx'::regnamespace AND c.relname ~ '^(m1|bqx|reg)_[a-z]{6}$' \
            AND a.attname NOT IN ('created_at', 'note') \
          GROUP BY 1 ORDER BY 1",
    );
    let checksum = |table: &String| {
        let (name, columns) = table.split_once('|').unwrap();
        let query =
            format!("SELECT count(*), sum(hash_record_extended(ROW({columns}), 0)) FROM bqx.{name} AS t");
        format!("{name} {}", row(&mut session, &query))
    };
    tables.iter().map(checksum).collect()
}
