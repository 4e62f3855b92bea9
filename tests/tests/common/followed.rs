//! Pairs whose derived rows are to follow their bars, and whether they do.

use bqx_tests::{Db, own_server};
use pgcluster::Cluster;
use postgres::Client;

use super::{row, rows, run, run_each};

/// SQL for the bars of a quarter: every thirtieth minute from Monday to Friday, 3,168 in three months, with five decimals.
pub const BARS: &str = "\
    SELECT t AS time, 1.08 + ((10 * sin(i / 97.0) + 2 * cos(i / 13.0) + hashint4(i) % 100 / 100.0) * 100)::int / 100000.0 AS close, \
           i AS volume \
      FROM (SELECT t, row_number() OVER (ORDER BY t)::int AS i \
              FROM generate_series(timestamptz '2024-07-01 00:00+00', '2024-09-30 23:30+00', interval '30 min') AS t \
             WHERE extract(isodow FROM t AT TIME ZONE 'UTC') < 6) AS times";

/// The pairs of [`Followed`].
pub const PAIRS: [&str; 3] = ["eurusd", "gbpusd", "audusd"];

/// Three tables of the same bars. eurusd is as bqx makes it. gbpusd is an older system's: not partitioned, a timestamp that means
/// UTC, decimal prices. The partitions of audusd begin amid months. The last two have short windows of their own.
fn tables() -> Vec<String> {
    let own = |family: &str, pair: &str, windows: &str| {
        format!("CALL bqx.create_tables('{{{family}}}', '{{{pair}}}', windows => '{{{windows}}}')")
    };
    let mut made = vec![
        "CALL bqx.create_m1('{eurusd}', '2024-07-01', '2024-09-01')".to_owned(),
        "CREATE TABLE bqx.m1_gbpusd (source text DEFAULT 'feed', time timestamp PRIMARY KEY, close numeric(12,5), volume bigint)".to_owned(),
        "CREATE TABLE bqx.m1_audusd (close double precision NOT NULL, volume double precision, time timestamptz PRIMARY KEY) \
         PARTITION BY RANGE (time)"
            .to_owned(),
        "CREATE TABLE bqx.\"until July\" PARTITION OF bqx.m1_audusd FOR VALUES FROM (MINVALUE) TO ('2024-07-24 00:00+00')"
            .to_owned(),
        "CREATE TABLE bqx.\"in August\" PARTITION OF bqx.m1_audusd FOR VALUES FROM ('2024-07-24 00:00+00') \
         TO ('2024-09-04 12:00+00')"
            .to_owned(),
        "CREATE TABLE bqx.\"in September\" PARTITION OF bqx.m1_audusd FOR VALUES FROM ('2024-09-04 12:00+00') \
         TO ('2024-10-10 00:00+00')"
            .to_owned(),
    ];
    for pair in PAIRS {
        let time = if pair == "gbpusd" { "time AT TIME ZONE 'UTC'" } else { "time" };
        made.push(format!("INSERT INTO bqx.m1_{pair} (time, close, volume) SELECT {time}, close, volume FROM ({BARS}) AS bars"));
    }
    made.extend([
        "CALL bqx.set_baselines('2024-07-01 00:00+00')".to_owned(),
        "CALL bqx.index_m1()".to_owned(),
        "CALL bqx.create_tables(pairs => '{eurusd}')".to_owned(),
        own("bqx", "gbpusd", "2,20"),
        own("reg", "gbpusd", "5,40"),
        own("bqx", "audusd", "7"),
        own("reg", "audusd", "3,50"),
    ]);
    made
}

/// A server with such pairs, filled, in a database that others are copied from.
pub struct Followed {
    cluster: Cluster,
}

impl Followed {
    /// `name` is the server's.
    pub fn start(name: &str, options: &[(&str, &str)]) -> Followed {
        let cluster = own_server(name, options);
        let db = Db::on(&cluster, "prepared");
        run_each(&mut db.connect(), &tables());
        run(&mut db.connect(), "CALL bqx.backfill(workers => 0)");
        Followed { cluster }
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// A new database with all pairs filled, none of them live.
    pub fn db(&self, name: &str) -> Db<'_> {
        let db = Db::on(&self.cluster, name);
        let mut session = self.cluster.connect("postgres").unwrap();
        run(&mut session, &format!("DROP DATABASE {name}"));
        run(&mut session, &format!("CREATE DATABASE {name} TEMPLATE prepared"));
        db
    }

    /// A new database with all pairs filled, and live.
    pub fn live_db(&self, name: &str) -> Db<'_> {
        let db = self.db(name);
        run(&mut db.connect(), "CALL bqx.enable_live()");
        db
    }
}

/// Rows of a pair's derived tables that are not those of its bars, bit for bit in all columns but created_at: what is missing,
/// other, or too much, with the number of such rows. What they ought to be comes from the bars alone.
pub fn differences(session: &mut Client, pair: &str) -> Vec<String> {
    ["bqx", "reg"].iter().filter_map(|family| difference(session, family, pair)).collect()
}

fn difference(session: &mut Client, family: &str, pair: &str) -> Option<String> {
    let columns = rows(
        session,
        &format!(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'bqx.{family}_{pair}'::regclass AND attnum > 0 \
                AND attname NOT IN ('ts_utc', 'created_at') AND NOT attisdropped ORDER BY attnum"
        ),
    );
    let (names, typed) = (columns.join(", "), columns.join(" float8, "));
    let stored = format!("SELECT ts_utc, {names} FROM bqx.{family}_{pair}");
    let computed = format!(
        "SELECT * FROM bqx._computed_rows('{family}', 'bqx.m1_{pair}', '-infinity', 'infinity', '{{{names}}}') \
         AS c (ts_utc timestamptz, {typed} float8)"
    );
    let sum = |rows: &str| format!("(SELECT (count(*), sum(hash_record_extended(t, 0))) FROM ({rows}) AS t)");
    if row(session, &format!("SELECT {} = {}", sum(&stored), sum(&computed))) == "t" {
        return None;
    }
    let counts = format!(
        "SELECT count(*) FILTER (WHERE s.ts_utc IS NULL) || ' missing, ' || count(*) FILTER (WHERE c.ts_utc IS NULL) || ' too many, ' \
             || count(*) FILTER (WHERE s.ts_utc = c.ts_utc) || ' others, from ' || min(coalesce(s.ts_utc, c.ts_utc)) || ' to ' \
             || max(coalesce(s.ts_utc, c.ts_utc)) \
           FROM ({stored}) AS s FULL JOIN ({computed}) AS c ON s.ts_utc = c.ts_utc \
          WHERE s.ts_utc IS NULL OR c.ts_utc IS NULL OR ROW(s.*)::text <> ROW(c.*)::text"
    );
    Some(format!("{family}_{pair}: {}", row(session, &counts)))
}

/// Where and by which transaction each row of a pair's derived tables was written.
pub fn row_versions(session: &mut Client, pair: &str) -> Vec<String> {
    let version = |family: &str| {
        row(
            session,
            &format!(
                "SELECT count(*), sum(hashtextextended(concat_ws(' ', tableoid, ctid, xmin), 0)) FROM bqx.{family}_{pair}"
            ),
        )
    };
    ["bqx", "reg"].map(version).to_vec()
}
