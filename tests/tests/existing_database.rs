//! Databases that were there before bqx: their tables are used as they are, and nothing of theirs is lost.

mod common;

use bqx_tests::{Db, Notices, error_of, server};
use common::{attempt, row, rows, run, run_each};
use postgres::Client;

/// Bars as an older system might hold them: every 20 minutes but on Saturdays, parts of four months, five decimals. The
/// first bar of July has a close of 1.08, the baseline.
const BARS: &str = "\
    CREATE TABLE public.bars AS \
    SELECT t AS time, i, CASE t WHEN '2024-07-01 00:00+00' THEN 1.08 ELSE round((1.08 + 0.01 * sin(i / 97.0) + \
               0.002 * cos(i / 13.0) + (hashint4(i) % 1000) / 1000000.0)::numeric, 5) END AS close \
      FROM (SELECT t, row_number() OVER (ORDER BY t)::int AS i \
              FROM generate_series(timestamptz '2024-06-28 00:00+00', '2024-09-03 12:00+00', interval '20 min') AS t \
             WHERE extract(dow FROM t AT TIME ZONE 'UTC') <> 6) AS times";

/// A database without the extension, but with a schema `bqx` and [`BARS`]; its sessions are not in UTC.
fn older_database(name: &str) -> (Db<'static>, Client, Notices) {
    let db = Db::without_extension(name);
    run(&mut db.connect(), &format!("ALTER DATABASE {name} SET TimeZone = 'America/New_York'"));
    let (mut session, notices) = db.connect_with_notices();
    run_each(&mut session, &["SET search_path = public", "CREATE SCHEMA bqx", BARS]);
    (db, session, notices)
}

/// The default columns of a derived table, all but ts_utc, with a type that suits most of an older system.
fn columns(family: &str, sql_type: &str) -> String {
    let mut names = vec!["rate_index".to_owned()];
    if family == "bqx" {
        for w in [15, 30, 45, 60, 75] {
            for metric in ["return", "max_index", "min_index", "avg_index", "stdev_index", "endpoint"] {
                names.push(format!("w{w}_bqx_{metric}"));
            }
        }
        for metric in ["return", "max_index", "min_index", "avg_index", "stdev_index", "range", "volatility"]
        {
            names.push(format!("agg_bqx_{metric}"));
        }
    } else {
        for w in [60, 90, 150, 240, 390, 630] {
            for metric in ["a", "b", "c", "r2", "rmse", "yhat_end", "resid_end", "slope_end", "endpoint"] {
                names.push(format!("w{w}_reg_{metric}"));
            }
        }
    }
    names.iter().map(|name| format!("{name} {sql_type}")).collect::<Vec<_>>().join(", ")
}

/// Monthly partitions of a table, named as an older system did.
fn partitions(table: &str, months: &[u32], offset: &str) -> Vec<String> {
    let partition = |m: &u32| {
        format!(
            "CREATE TABLE bqx.{table}_2024m{m:02} PARTITION OF bqx.{table} \
             FOR VALUES FROM ('2024-{m:02}-01 00:00{offset}') TO ('2024-{:02}-01 00:00{offset}')",
            m + 1
        )
    };
    months.iter().map(partition).collect()
}

/// Five pairs, each with M1 and derived tables of other shapes, some with rows.
fn tables_of_every_shape() -> Vec<String> {
    let bqx = |sql_type| columns("bqx", sql_type);
    let reg = |sql_type| columns("reg", sql_type);
    let mut made: Vec<String> = vec![
        // Plain; a timestamp that means UTC; numeric prices; more columns; no key.
        "CREATE TABLE bqx.m1_eurusd (id bigserial, source text DEFAULT 'feed', time timestamp NOT NULL, \
             close numeric(12,6), open numeric(12,6), high numeric(12,6), low numeric(12,6), volume bigint, \
             rate_index numeric(12,8))"
            .into(),
        "INSERT INTO bqx.m1_eurusd (time, close, open, source) \
         SELECT time AT TIME ZONE 'UTC', close, close, 'row ' || i FROM public.bars ORDER BY hashint4(i)".into(),
        // Fewer columns, other types, old columns, a key of its own; half of the rows are there, with wrong values.
        "CREATE TABLE bqx.bqx_eurusd (id bigserial PRIMARY KEY, ts_utc timestamp NOT NULL UNIQUE, rate numeric, \
             rate_index numeric(12,8), w15_bqx_return real, w15_bqx_max numeric, w15_bqx_avg_index numeric(14,6), \
             w15_bqx_return_pct text DEFAULT 'none', w60_bqx_endpoint double precision, agg_bqx_range numeric)"
            .into(),
        "INSERT INTO bqx.bqx_eurusd (ts_utc, rate, w15_bqx_max, w15_bqx_return_pct, w15_bqx_return) \
         SELECT time AT TIME ZONE 'UTC', close, i, 'old ' || i, i FROM public.bars WHERE i % 2 = 0".into(),
        "CREATE TABLE bqx.reg_eurusd (ts_utc timestamptz PRIMARY KEY, w60_reg_a real, w60_reg_r2 numeric(10,8), \
             w630_reg_yhat_end double precision)"
            .into(),
        // Partitioned by a timestamp, with names of its own; no rate_index yet.
        "CREATE TABLE bqx.m1_gbpusd (time timestamp, close numeric, spread real, PRIMARY KEY (time)) \
         PARTITION BY RANGE (time)"
            .into(),
        format!("CREATE TABLE bqx.bqx_gbpusd (ts_utc timestamp PRIMARY KEY, note text, {}, rate double precision) \
                 PARTITION BY RANGE (ts_utc)", bqx("double precision")),
        format!("CREATE TABLE bqx.reg_gbpusd (ts_utc timestamp PRIMARY KEY, {}) PARTITION BY RANGE (ts_utc)",
                reg("double precision")),
    ];
    made.extend(partitions("m1_gbpusd", &[6, 7, 8, 9], ""));
    made.extend(partitions("bqx_gbpusd", &[7, 8], ""));
    made.extend(partitions("reg_gbpusd", &[9], ""));
    made.extend([
        "INSERT INTO bqx.m1_gbpusd SELECT time AT TIME ZONE 'UTC', close, 1.5 FROM public.bars".into(),
        "INSERT INTO bqx.bqx_gbpusd (ts_utc, note, rate, rate_index, w75_bqx_endpoint) \
         SELECT time AT TIME ZONE 'UTC', 'note ' || i, close, -1, 1 FROM public.bars \
          WHERE time >= '2024-07-10 00:00+00' AND time < '2024-08-20 00:00+00'".into(),
        // The smallest table there can be; derived tables of decimal numbers, and one partition for the year.
        "CREATE TABLE bqx.m1_usdjpy (time timestamptz PRIMARY KEY, close double precision, rate_index double precision)"
            .into(),
        "INSERT INTO bqx.m1_usdjpy SELECT time, close FROM public.bars".into(),
        format!("CREATE TABLE bqx.bqx_usdjpy (ts_utc timestamptz PRIMARY KEY, {}) PARTITION BY RANGE (ts_utc)",
                bqx("numeric(20,10)")),
        format!("CREATE TABLE bqx.reg_usdjpy (ts_utc timestamptz PRIMARY KEY, {}, created_at timestamptz DEFAULT now()) \
                 PARTITION BY RANGE (ts_utc)", reg("double precision")),
        "CREATE TABLE bqx.reg_usdjpy_y2024 PARTITION OF bqx.reg_usdjpy \
         FOR VALUES FROM ('2024-01-01 00:00+00') TO ('2025-01-01 00:00+00')".into(),
        // A generated rate_index; partitions that end amid a month, open at both ends.
        "CREATE TABLE bqx.m1_audusd (time timestamptz, close numeric(10,5) NOT NULL, rate_index double precision \
             GENERATED ALWAYS AS (close::double precision / 1.08::double precision * 100) STORED) PARTITION BY RANGE (time)"
            .into(),
        "CREATE TABLE bqx.early PARTITION OF bqx.m1_audusd FOR VALUES FROM (MINVALUE) TO ('2024-07-20 00:00+00')".into(),
        "CREATE TABLE bqx.late PARTITION OF bqx.m1_audusd FOR VALUES FROM ('2024-07-20 00:00+00') TO (MAXVALUE)".into(),
        "INSERT INTO bqx.m1_audusd SELECT time, close FROM public.bars".into(),
        format!("CREATE TABLE bqx.bqx_audusd (ts_utc timestamptz PRIMARY KEY, {}) PARTITION BY RANGE (ts_utc)",
                bqx("double precision")),
        "CREATE TABLE bqx.\"Old rows\" PARTITION OF bqx.bqx_audusd FOR VALUES FROM (MINVALUE) TO ('2024-07-20 00:00+00')".into(),
        "CREATE TABLE bqx.\"New rows\" PARTITION OF bqx.bqx_audusd FOR VALUES FROM ('2024-07-20 00:00+00') TO (MAXVALUE)".into(),
        format!("CREATE TABLE bqx.reg_audusd (quality text, {}, ts_utc timestamp PRIMARY KEY, created_at timestamp)", reg("real")),
        // M1 partitioned by day, by a column of a type with a precision; derived tables of other windows.
        "CREATE TABLE bqx.m1_usdchf (close real, time timestamp(0) NOT NULL, rate_index real) PARTITION BY RANGE (time)".into(),
        "DO $$ BEGIN FOR d IN 0..70 LOOP EXECUTE format('CREATE TABLE bqx.%I PARTITION OF bqx.m1_usdchf \
             FOR VALUES FROM (%L) TO (%L)', 'day ' || d, date '2024-06-28' + d, date '2024-06-28' + d + 1); END LOOP; END $$"
            .into(),
        "INSERT INTO bqx.m1_usdchf SELECT close, time AT TIME ZONE 'UTC' FROM public.bars".into(),
        "CREATE TABLE bqx.bqx_usdchf (w7_bqx_avg_index double precision, w7_bqx_return real, w100_bqx_max_index float8, \
             ts_utc timestamptz PRIMARY KEY, \"W15_bqx_return\" int DEFAULT 7, w1_bqx_return int DEFAULT 8)"
            .into(),
        "CREATE TABLE bqx.reg_usdchf (ts_utc timestamptz, w5_reg_slope_end numeric, created_at timestamp DEFAULT now(), \
             UNIQUE (ts_utc))"
            .into(),
    ]);
    made
}

const PAIRS: [&str; 5] = ["eurusd", "gbpusd", "usdjpy", "audusd", "usdchf"];

/// Fills bqx's own tables `…_ref<pair>` from the pair's rate_index as it's stored, and with the columns' windows.
fn fill_reference(session: &mut Client, pair: &str) {
    let instant = "CASE WHEN pg_typeof(time) = 'timestamptz'::regtype THEN time::text::timestamptz \
                   ELSE (time::text || '+00')::timestamptz END";
    run(session, &format!("INSERT INTO bqx.pairs (pair) VALUES ('ref{pair}') ON CONFLICT DO NOTHING"));
    run(session, &format!("CALL bqx.create_m1('{{ref{pair}}}', '2024-06-01', '2024-09-01')"));
    run(session, &format!("TRUNCATE bqx.m1_ref{pair}"));
    run(
        session,
        &format!(
            "INSERT INTO bqx.m1_ref{pair} (time, close, rate_index) SELECT {instant}, close, rate_index FROM bqx.m1_{pair}"
        ),
    );
    for (family, windows) in [("bqx", "{7,100}"), ("reg", "{5}")] {
        let windows = if pair == "usdchf" { format!(", windows => '{windows}'") } else { String::new() };
        run(session, &format!("CALL bqx.create_tables('{{{family}}}', '{{ref{pair}}}'{windows})"));
    }
    run(session, &format!("CALL bqx.backfill(pairs => '{{ref{pair}}}', workers => 0)"));
}

/// The columns of a derived table that are ours (or are not), as `name|type`.
fn columns_of(session: &mut Client, table: &str, ours: bool) -> Vec<(String, String)> {
    let family = &table[..3];
    rows(
        session,
        &format!(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute \
              WHERE attrelid = 'bqx.{table}'::regclass AND attnum > 0 AND attname NOT IN ('ts_utc', 'created_at') \
                AND (attname = 'rate_index' OR attname ~ '^(w([2-9]|\\d\\d+)|agg)_{family}_(return|(max|min|avg|stdev)_index|\
                     endpoint|range|volatility|a|b|c|r2|rmse|yhat_end|resid_end|slope_end)$') = {ours} ORDER BY attnum"
        ),
    )
    .iter()
    .map(|column| column.split_once('|').map(|(name, sql_type)| (name.to_owned(), sql_type.to_owned())).unwrap())
    .collect()
}

/// SQL for a table's time as an instant.
fn instant(session: &mut Client, table: &str, column: &str) -> String {
    let sql_type = row(
        session,
        &format!(
            "SELECT format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = 'bqx.{table}'::regclass AND attname = '{column}'"
        ),
    );
    if sql_type == "timestamp with time zone" {
        format!("t.{column}")
    } else {
        format!("(t.{column} AT TIME ZONE 'UTC')")
    }
}

/// Each bar has one row, and each value is that of the reference, cast to the column's type.
fn assert_equals_reference(session: &mut Client, pair: &str) {
    for family in ["bqx", "reg"] {
        let table = format!("{family}_{pair}");
        let at = instant(session, &table, "ts_utc");
        let ours = columns_of(session, &table, true);
        assert!(!ours.is_empty());
        let unlike: Vec<String> = ours
            .iter()
            .map(|(name, sql_type)| {
                format!("count(*) FILTER (WHERE t.{name} IS DISTINCT FROM r.{name}::{sql_type})")
            })
            .collect();
        let found = row(
            session,
            &format!(
                "SELECT count(*) > 4000, count(*) FILTER (WHERE r.ts_utc IS NULL OR t.ts_utc IS NULL), {} \
                   FROM bqx.{table} AS t FULL JOIN bqx.{family}_ref{pair} AS r ON r.ts_utc = {at}",
                unlike.join(", ")
            ),
        );
        let expected = format!("t|0{}", "|0".repeat(ours.len()));
        assert_eq!(found, expected, "{table}: {ours:?}");
    }
}

/// Where and by which transaction each row of a table was written.
fn row_versions(session: &mut Client, table: &str) -> String {
    row(
        session,
        &format!(
            "SELECT count(*), sum(hashtextextended(concat_ws(' ', tableoid, ctid, xmin, t), 0)) FROM bqx.{table} AS t"
        ),
    )
}

fn versions_of_all(session: &mut Client) -> Vec<String> {
    let version = |pair: &&str| {
        ["m1", "bqx", "reg"].map(|family| row_versions(session, &format!("{family}_{pair}"))).join(" ")
    };
    PAIRS.iter().map(version).collect()
}

/// A checksum of a query's rows.
fn checksum(session: &mut Client, query: &str) -> String {
    row(session, &format!("SELECT count(*), sum(hashtextextended(q::text, 0)) FROM ({query}) AS q"))
}

/// What is in the columns that are not ours, of the rows that were there, and in all of M1 but rate_index.
fn foreign_values(session: &mut Client) -> Vec<String> {
    let mut found = Vec::new();
    for pair in PAIRS {
        for family in ["bqx", "reg"] {
            let table = format!("{family}_{pair}");
            let foreign: Vec<String> = columns_of(session, &table, false)
                .into_iter()
                .map(|(name, _)| format!(", \"{name}\""))
                .collect();
            let mine = match pair {
                "eurusd" if family == "bqx" => "WHERE w15_bqx_return_pct <> 'none'",
                "gbpusd" if family == "bqx" => "WHERE note IS NOT NULL",
                _ => "WHERE false",
            };
            found.push(checksum(
                session,
                &format!("SELECT ts_utc{} FROM bqx.{table} {mine}", foreign.concat()),
            ));
        }
        let columns = row(
            session,
            &format!(
                "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute \
                 WHERE attrelid = 'bqx.m1_{pair}'::regclass AND attnum > 0 AND attname <> 'rate_index'"
            ),
        );
        found.push(checksum(session, &format!("SELECT {columns} FROM bqx.m1_{pair}")));
    }
    found
}

#[test]
fn tables_of_every_shape_go_through_all_stages() {
    let (_db, mut session, notices) = older_database("shapes");
    run_each(&mut session, &tables_of_every_shape());
    let before = foreign_values(&mut session);
    run(&mut session, "CREATE EXTENSION bqx");
    assert_eq!(notices.take(), [""; 0], "data tables are nothing to talk about");
    assert_eq!(foreign_values(&mut session), before);

    let stages = [
        "CALL bqx.set_baselines()",
        "CALL bqx.index_m1()",
        "CALL bqx.create_tables()",
        "CALL bqx.backfill(workers => 2)",
    ];
    let mut told = String::new();
    for stage in stages {
        run(&mut session, stage);
        told += &notices.take().join("\n");
        assert_eq!(foreign_values(&mut session), before, "after {stage}");
    }
    assert!(!told.contains("WARNING"), "{told}");
    for left_alone in ["w15_bqx_max", "w15_bqx_return_pct", "note", "W15_bqx_return"] {
        assert!(told.contains(left_alone), "no NOTICE names {left_alone}: {told}");
    }

    // M1 keeps its shape, and its index is close / baseline * 100, rounded as its column has it.
    for pair in PAIRS {
        let sql_type =
            "(SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attname = 'rate_index' \
                         AND attrelid = 'bqx.m1_{pair}'::regclass)"
                .replace("{pair}", pair);
        let sql_type = row(&mut session, &format!("SELECT {sql_type}"));
        let right = format!(
            "SELECT count(*) > 4000, bool_and(rate_index = (close::float8 / (SELECT baseline_rate FROM bqx.baseline_rates \
             WHERE pair = '{pair}') * 100)::{sql_type}) FROM bqx.m1_{pair}"
        );
        assert_eq!(row(&mut session, &right), "t|t", "{pair}");
        let baseline = format!(
            "SELECT to_char(baseline_time AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), baseline_rate::real, applied_at IS NOT NULL \
             FROM bqx.baseline_rates WHERE pair = '{pair}'"
        );
        assert_eq!(row(&mut session, &baseline), "2024-07-01 00:00|1.08|t", "{pair}");
        fill_reference(&mut session, pair);
        assert_equals_reference(&mut session, pair);
    }
    let faults = "SELECT check_name, family, pair, month, detail FROM bqx.verify() WHERE ok IS NOT TRUE";
    assert_eq!(rows(&mut session, faults), [""; 0]);

    // Once more, all stages: no row is touched.
    let versions = versions_of_all(&mut session);
    for again in [
        "CALL bqx.backfill(pairs => '{eurusd,gbpusd,usdjpy,audusd,usdchf}', workers => 0)",
        "CALL bqx.backfill(pairs => '{eurusd,gbpusd,usdjpy,audusd,usdchf}', workers => 0, force => true)",
        "CALL bqx.index_m1('{eurusd,gbpusd,usdjpy,audusd,usdchf}')",
        "CALL bqx.create_tables(pairs => '{eurusd,gbpusd,usdjpy,audusd,usdchf}')",
        "CALL bqx.run_pipeline('{eurusd,gbpusd,usdjpy,audusd,usdchf}', workers => 2)",
    ] {
        run(&mut session, again);
        assert_eq!(versions_of_all(&mut session), versions, "{again}");
        let wrote = "SELECT count(*) FROM bqx.jobs WHERE rows_written <> 0 AND run_id = (SELECT max(run_id) FROM bqx.runs)";
        assert!(!again.contains("backfill") || row(&mut session, wrote) == "0", "{again}");
    }

    // Corrected, new and deleted bars are followed, whatever the table looks like; a new row takes the defaults of others.
    for pair in PAIRS {
        let utc = if ["usdjpy", "audusd"].contains(&pair) { "+00" } else { "" };
        run_each(
            &mut session,
            &[
                format!("UPDATE bqx.m1_{pair} SET close = 1.0812 WHERE time = '2024-07-31 23:40{utc}'"),
                format!("DELETE FROM bqx.m1_{pair} WHERE time = '2024-08-09 10:00{utc}'"),
                format!("INSERT INTO bqx.m1_{pair} (time, close) VALUES ('2024-08-15 10:01{utc}', 1.0755)"),
            ],
        );
    }
    // Rows of a deleted bar stay where there are columns that are not ours.
    run_each(
        &mut session,
        &[
            "DELETE FROM bqx.bqx_eurusd WHERE ts_utc = '2024-08-09 10:00'",
            "DELETE FROM bqx.bqx_gbpusd WHERE ts_utc = '2024-08-09 10:00'",
            "DELETE FROM bqx.reg_audusd WHERE ts_utc = '2024-08-09 10:00'",
            "DELETE FROM bqx.bqx_usdchf WHERE ts_utc = '2024-08-09 10:00+00'",
        ],
    );
    run(
        &mut session,
        "CALL bqx.backfill(ARRAY['bqx', 'reg'], ARRAY['eurusd', 'gbpusd', 'usdjpy', 'audusd', 'usdchf'])",
    );
    for pair in PAIRS {
        fill_reference(&mut session, pair);
        assert_equals_reference(&mut session, pair);
    }
    let defaults = "SELECT (SELECT w15_bqx_return_pct FROM bqx.bqx_eurusd WHERE ts_utc = '2024-08-15 10:01'), \
                           (SELECT \"W15_bqx_return\" + w1_bqx_return FROM bqx.bqx_usdchf WHERE ts_utc = '2024-08-15 10:01+00'), \
                           (SELECT note IS NULL FROM bqx.bqx_gbpusd WHERE ts_utc = '2024-08-15 10:01')";
    assert_eq!(row(&mut session, defaults), "none|15|t");
}

#[test]
fn rows_with_others_values_are_never_deleted() {
    let (_db, mut session, _notices) = older_database("others_rows");
    run_each(
        &mut session,
        &[
            "CREATE TABLE bqx.m1_eurusd (time timestamptz PRIMARY KEY, close double precision)",
            "INSERT INTO bqx.m1_eurusd SELECT time, close FROM public.bars",
            "CREATE TABLE bqx.bqx_eurusd (ts_utc timestamptz PRIMARY KEY, rate_index double precision, rate numeric)",
            // rows of half a minute have no bar
            "INSERT INTO bqx.bqx_eurusd SELECT time + interval '30 s', 5, i FROM public.bars WHERE i % 10 = 0",
            "CREATE EXTENSION bqx",
        ],
    );
    let orphans =
        "SELECT ts_utc, rate, rate_index FROM bqx.bqx_eurusd WHERE extract(second FROM ts_utc) = 30";
    let before = checksum(&mut session, orphans);
    for stage in [
        "CALL bqx.set_baselines()",
        "CALL bqx.index_m1()",
        "CALL bqx.create_tables('{bqx}')",
        "CALL bqx.backfill('{bqx}', workers => 0)",
        "CALL bqx.backfill('{bqx}', workers => 0, force => true)",
    ] {
        run(&mut session, stage);
        assert_eq!(checksum(&mut session, orphans), before, "{stage}");
    }
    let others = "SELECT count(*), count(rate) FROM bqx.bqx_eurusd WHERE extract(second FROM ts_utc) = 0";
    let bars = row(&mut session, "SELECT count(*) FROM bqx.m1_eurusd");
    assert_eq!(row(&mut session, others), format!("{bars}|0"));
    // They are named.
    let found = "SELECT DISTINCT check_name, family, pair FROM bqx.verify('{bqx}') WHERE NOT ok";
    assert_eq!(rows(&mut session, found), ["row_count|bqx|eurusd"]);
    // Such a month is not written again and again.
    run(&mut session, "CALL bqx.backfill('{bqx}', workers => 0)");
    let wrote = "SELECT sum(rows_written) FROM bqx.jobs WHERE run_id = (SELECT max(run_id) FROM bqx.runs)";
    assert_eq!(row(&mut session, wrote), "0");
}

#[test]
fn default_partitions_are_used_as_they_are() {
    let (_db, mut session, _notices) = older_database("default_partitions");
    run_each(
        &mut session,
        &[
            "CREATE TABLE bqx.m1_eurusd (time timestamptz PRIMARY KEY, close double precision, rate_index double precision) \
             PARTITION BY RANGE (time)",
            "CREATE TABLE bqx.m1_rest PARTITION OF bqx.m1_eurusd DEFAULT",
            "INSERT INTO bqx.m1_eurusd SELECT time, close FROM public.bars",
            &format!(
                "CREATE TABLE bqx.bqx_eurusd (ts_utc timestamptz PRIMARY KEY, {}) PARTITION BY RANGE (ts_utc)",
                columns("bqx", "double precision")
            ),
            "CREATE TABLE bqx.bqx_rest PARTITION OF bqx.bqx_eurusd DEFAULT",
            "INSERT INTO bqx.bqx_eurusd (ts_utc) SELECT time FROM public.bars WHERE time < '2024-07-20 00:00+00'",
            "CREATE EXTENSION bqx",
            "CALL bqx.set_baselines()",
            "CALL bqx.index_m1()",
            "CALL bqx.create_tables()",
            "CALL bqx.backfill(workers => 0)",
        ],
    );
    fill_reference(&mut session, "eurusd");
    assert_equals_reference(&mut session, "eurusd");
}

#[test]
fn a_key_is_not_needed_but_its_lack_is_told() {
    let (_db, mut session, _notices) = older_database("no_key");
    run_each(
        &mut session,
        &[
            "CREATE TABLE bqx.m1_eurusd (time timestamp, close numeric)",
            "INSERT INTO bqx.m1_eurusd SELECT time AT TIME ZONE 'UTC', close FROM public.bars",
            &format!(
                "CREATE TABLE bqx.bqx_eurusd (ts_utc timestamptz, {})",
                columns("bqx", "double precision")
            ),
            "CREATE EXTENSION bqx",
            "CALL bqx.set_baselines()",
            "CALL bqx.index_m1()",
            "CALL bqx.create_tables()",
            "CALL bqx.backfill()",
        ],
    );
    fill_reference(&mut session, "eurusd");
    assert_equals_reference(&mut session, "eurusd");
    let faults = "SELECT check_name, family, pair FROM bqx.verify(pairs => '{eurusd}') WHERE ok IS NOT TRUE";
    assert_eq!(rows(&mut session, faults), ["indexes|bqx|eurusd"]);
    // Two rows of one minute, in a derived table: one goes. In M1: nobody can know which is right.
    run(
        &mut session,
        "INSERT INTO bqx.bqx_eurusd SELECT * FROM bqx.bqx_eurusd WHERE ts_utc = '2024-08-15 10:00+00'",
    );
    run(&mut session, "CALL bqx.backfill(workers => 0)");
    assert_equals_reference(&mut session, "eurusd");
    run(&mut session, "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-08-15 10:00', 1.0755)");
    let error = error_of(&mut session, "CALL bqx.backfill(workers => 0)");
    assert_eq!(error.code, "23505", "{error:?}");
    assert!(error.detail.contains("2024-08-15 10:00"), "{error:?}");
}

#[test]
fn relations_of_an_older_system_are_kept_aside() {
    let (_db, mut session, notices) = older_database("older_system");
    run_each(
        &mut session,
        &[
            "CREATE TABLE bqx.m1_eurusd AS SELECT time, close FROM public.bars",
            "CREATE TABLE bqx.baseline_rates (pair varchar(10) PRIMARY KEY, baseline_date date, baseline_rate numeric(12,6), \
             created_at timestamp DEFAULT now())",
            "INSERT INTO bqx.baseline_rates VALUES ('EURUSD', '2024-07-01', 1.08), ('XXXYYY', '2024-07-02', 2)",
            "CREATE TABLE bqx.runs (id serial PRIMARY KEY, what text)",
            "INSERT INTO bqx.runs (what) SELECT 'run ' || i FROM generate_series(1, 5) AS i",
            "CREATE TABLE bqx.jobs (id int REFERENCES bqx.runs, state text)",
            "INSERT INTO bqx.jobs VALUES (1, 'done'), (2, 'failed')",
            "CREATE VIEW bqx.progress AS SELECT state, count(*) FROM bqx.jobs GROUP BY state",
            "CREATE MATERIALIZED VIEW bqx.storage AS SELECT 1 AS one",
            "CREATE SEQUENCE bqx.recent",
            "CREATE TABLE bqx.dashboard_before_bqx ()", // the name it would be given
            "CREATE VIEW bqx.dashboard AS SELECT 2 AS two",
            "CREATE TABLE bqx.month_ledger (LIKE bqx.jobs) PARTITION BY LIST (state)",
            "CREATE TYPE bqx.pairs AS (a int)",
            "CREATE TABLE bqx.window_metrics AS SELECT 6 AS six", // the name of a type of ours
            "CREATE INDEX rejected_bars ON bqx.jobs (state)",
            "CREATE TABLE bqx.something_else AS SELECT 3 AS three",
            "CREATE SCHEMA bqx_ml",
            "CREATE TABLE bqx_ml.features AS SELECT 4 AS four",
        ],
    );
    notices.take();
    run(&mut session, "CREATE EXTENSION bqx");
    let told = notices.take();
    for (old, new) in [
        ("baseline_rates", "baseline_rates_before_bqx"),
        ("runs", "runs_before_bqx"),
        ("jobs", "jobs_before_bqx"),
        ("progress", "progress_before_bqx"),
        ("storage", "storage_before_bqx"),
        ("recent", "recent_before_bqx"),
        ("dashboard", "dashboard_before_bqx_2"),
        ("month_ledger", "month_ledger_before_bqx"),
        ("pairs", "pairs_before_bqx"),
        ("rejected_bars", "rejected_bars_before_bqx"),
        ("window_metrics", "window_metrics_before_bqx"),
    ] {
        let names_it = |n: &&String| {
            n.starts_with("WARNING")
                && n.contains(&format!("bqx.{old} "))
                && n.contains(&format!("bqx.{new}"))
        };
        assert_eq!(told.iter().filter(names_it).count(), 1, "bqx.{old}: {told:?}");
    }
    assert_eq!(told.len(), 11, "{told:?}");
    let kept = "SELECT (SELECT string_agg(concat_ws(' ', pair, baseline_date, baseline_rate), ', ' ORDER BY pair) \
                          FROM bqx.baseline_rates_before_bqx), \
                       (SELECT count(*) FROM bqx.runs_before_bqx), (SELECT count(*) FROM bqx.jobs_before_bqx), \
                       (SELECT count FROM bqx.progress_before_bqx WHERE state = 'failed'), \
                       (SELECT one FROM bqx.storage_before_bqx), (SELECT two FROM bqx.dashboard_before_bqx_2), \
                       nextval('bqx.recent_before_bqx'), (SELECT three FROM bqx.something_else), \
                       (SELECT four FROM bqx_ml.features), (ROW(5)::bqx.pairs_before_bqx).a, \
                       (SELECT count(*) > 4000 FROM bqx.m1_eurusd), (SELECT six FROM bqx.window_metrics_before_bqx)";
    let values = "EURUSD 2024-07-01 1.080000, XXXYYY 2024-07-02 2.000000|5|2|1|1|2|1|3|4|5|t|6";
    assert_eq!(row(&mut session, kept), values);
    // Ours are ours, theirs are not.
    let members = "SELECT string_agg(d.objid::regclass::text, ' ') FROM pg_depend AS d \
                   WHERE d.deptype = 'e' AND d.classid = 'pg_class'::regclass AND (d.objid::regclass::text ~ 'before_bqx' \
                      OR d.objid IN ('bqx.m1_eurusd'::regclass, 'bqx.something_else'::regclass, 'bqx_ml.features'::regclass))";
    assert_eq!(row(&mut session, members), "NULL");
    assert_eq!(ml_memberships(&mut session), "0");
    run_each(
        &mut session,
        &[
            "CALL bqx.run_pipeline(workers => 0)",
            "DROP EXTENSION bqx CASCADE",
            "CREATE EXTENSION bqx", // nothing is in the way any more
            "CALL bqx.run_pipeline(workers => 0)",
        ],
    );
    assert!(!notices.take().iter().any(|n| n.contains("before_bqx")));
    assert_eq!(row(&mut session, &kept.replace("nextval(", "currval(")), values);
}

/// How often the extension counts schema bqx_ml as its own.
fn ml_memberships(session: &mut Client) -> String {
    row(
        session,
        "SELECT count(*) FROM pg_depend WHERE classid = 'pg_namespace'::regclass AND objid = 'bqx_ml'::regnamespace \
         AND refclassid = 'pg_extension'::regclass",
    )
}

#[test]
fn the_schema_for_machine_learning_stays_outside_the_extension() {
    let db = Db::new("ml");
    let mut session = db.connect();
    assert_eq!(ml_memberships(&mut session), "0");
    run_each(
        &mut session,
        &[
            "CREATE TABLE bqx_ml.mine AS SELECT 1 AS one",
            "DROP EXTENSION bqx",
            "CREATE EXTENSION bqx",
            "DROP EXTENSION bqx",
        ],
    );
    assert_eq!(row(&mut session, "SELECT one FROM bqx_ml.mine"), "1");
    run_each(&mut session, &["DROP SCHEMA bqx_ml CASCADE", "DROP SCHEMA bqx", "CREATE EXTENSION bqx"]);
    assert_eq!(ml_memberships(&mut session), "0");
}

#[test]
fn a_schema_of_a_stranger_is_refused() {
    let db = Db::without_extension("strangers");
    let mut session = db.connect();
    run_each(
        &mut session,
        &[
            "CREATE ROLE existing_stranger",
            "CREATE ROLE existing_chief SUPERUSER",
            "CREATE SCHEMA bqx AUTHORIZATION existing_stranger",
            "CREATE TABLE bqx.runs AS SELECT 1 AS one",
        ],
    );
    let objects = "SELECT (SELECT count(*) FROM pg_class), (SELECT count(*) FROM pg_proc), (SELECT count(*) FROM pg_type), \
                   (SELECT count(*) FROM pg_namespace), (SELECT string_agg(extname, ' ') FROM pg_extension), \
                   (SELECT nspacl FROM pg_namespace WHERE nspname = 'bqx')";
    let before = row(&mut session, objects);
    let error = error_of(&mut session, "CREATE EXTENSION bqx");
    assert_eq!(error.code, "42501", "{error:?}");
    assert!(error.message.contains("existing_stranger"), "{error:?}");
    assert!(error.hint.contains("ALTER SCHEMA bqx OWNER TO"), "{error:?}");
    assert_eq!(row(&mut session, objects), before);
    assert_eq!(row(&mut session, "SELECT one FROM bqx.runs"), "1");
    // A superuser could do anything anyway.
    run(&mut session, "ALTER SCHEMA bqx OWNER TO existing_chief");
    run(&mut session, "CREATE EXTENSION bqx");
    run(&mut session, "DROP EXTENSION bqx");
    // The hint's own command helps.
    run(&mut session, "ALTER SCHEMA bqx OWNER TO existing_stranger");
    let hint = error_of(&mut session, "CREATE EXTENSION bqx").hint;
    run(&mut session, hint.split(';').next().unwrap());
    run(&mut session, "CREATE EXTENSION bqx");
}

/// Every relation of a schema with its rows, and the triggers of each; the extension's own left out.
fn data_tables(session: &mut Client) -> Vec<String> {
    let tables = rows(
        session,
        "SELECT c.oid::regclass FROM pg_class AS c WHERE c.relnamespace = 'bqx'::regnamespace AND c.relkind IN ('r', 'p') \
         AND c.relname ~ '^(m1|bqx|reg)_' AND c.relname <> 'm1_staging' ORDER BY 1",
    );
    tables.iter().map(|table| format!("{table} {}", row_versions(session, &table["bqx.".len()..]))).collect()
}

#[test]
fn dropping_the_extension_leaves_the_data() {
    let (_db, mut session, _notices) = older_database("dropped");
    run_each(
        &mut session,
        &[
            "CREATE EXTENSION bqx",
            "CALL bqx.create_m1('{eurusd,gbpusd}', '2024-06-01', '2024-09-01')",
            "INSERT INTO bqx.m1_eurusd (time, close) SELECT time, close FROM public.bars",
            "INSERT INTO bqx.m1_gbpusd (time, close) SELECT time, close FROM public.bars WHERE time < '2024-07-05 00:00+00'",
            "CREATE FUNCTION public.nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$",
            "CREATE TRIGGER mine BEFORE INSERT ON bqx.m1_eurusd FOR EACH ROW EXECUTE FUNCTION public.nothing()",
            "CREATE VIEW public.on_data AS SELECT count(*) FROM bqx.m1_eurusd",
            "CALL bqx.create_tables()",
        ],
    );
    // No trigger of ours: it just goes.
    let before = data_tables(&mut session);
    assert_eq!(before.len(), 5 + 5 + 2 * 5 + 2 * 3);
    run(&mut session, "DROP EXTENSION bqx");
    assert_eq!(data_tables(&mut session), before);
    run_each(&mut session, &["CREATE EXTENSION bqx", "CALL bqx.run_pipeline(workers => 0)"]);

    // With triggers: CASCADE, which takes just those.
    let before = data_tables(&mut session);
    let error = error_of(&mut session, "DROP EXTENSION bqx");
    assert_eq!(error.code, "2BP01", "{error:?}");
    assert!(error.detail.contains("trigger"), "{error:?}");
    assert_eq!(data_tables(&mut session), before);
    let triggers = "SELECT count(*) FILTER (WHERE tgname = 'mine'), count(*) FILTER (WHERE tgname LIKE 'bqx%'), count(*) \
                    FROM pg_trigger WHERE NOT tgisinternal";
    assert_eq!(row(&mut session, triggers), "5|20|25");
    run(&mut session, "DROP EXTENSION bqx CASCADE");
    assert_eq!(data_tables(&mut session), before);
    assert_eq!(row(&mut session, triggers), "5|0|5");
    assert_eq!(
        row(&mut session, "SELECT count FROM public.on_data"),
        row(&mut session, "SELECT count(*) FROM public.bars")
    );
    let rest = "SELECT string_agg(c.relname, ' ') FROM pg_class AS c WHERE c.relnamespace = 'bqx'::regnamespace \
                AND c.relkind NOT IN ('i', 'I') AND (c.relname !~ '^(m1|bqx|reg)_(eurusd|gbpusd)' OR c.relname ~ '_seq$')";
    assert_eq!(row(&mut session, rest), "NULL", "registry and ledger are gone");
    let functions = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'bqx'::regnamespace";
    assert_eq!(row(&mut session, functions), "0");
    // Without the trigger, bars still come in.
    run(
        &mut session,
        "BEGIN; INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-08-15 10:01+00', 1.08); ROLLBACK",
    );

    // Back again: everything is computed anew, and no row differs.
    run(&mut session, "CREATE EXTENSION bqx");
    assert_eq!(
        row(
            &mut session,
            "SELECT (SELECT count(*) FROM bqx.baseline_rates) + (SELECT count(*) FROM bqx.runs)"
        ),
        "0"
    );
    run(&mut session, "CALL bqx.run_pipeline(workers => 2)");
    assert_eq!(data_tables(&mut session), before);
    assert_eq!(row(&mut session, triggers), "5|20|25");
    assert_eq!(row(&mut session, "SELECT sum(rows_written) FROM bqx.jobs"), "0");
}

#[test]
fn another_kind_of_relation_by_a_tables_name_is_told_of() {
    // A view named as a data table: it can be read, as M1, but not filled.
    let (_db, mut session, _notices) = older_database("views_instead");
    run_each(
        &mut session,
        &[
            "CREATE VIEW bqx.m1_eurusd AS SELECT time, close::float8 AS close, (close / 1.08 * 100)::float8 AS rate_index \
             FROM public.bars",
            "CREATE VIEW bqx.bqx_eurusd AS SELECT time AS ts_utc FROM public.bars",
            "CREATE EXTENSION bqx",
        ],
    );
    for call in ["CALL bqx.index_m1('{eurusd}')", "CALL bqx.backfill('{bqx}', '{eurusd}', workers => 0)"] {
        let error = attempt(&mut session, call).unwrap_err();
        assert!(!error.code.starts_with("XX"), "{call}: {error:?}");
        assert!(error.message.contains("eurusd") || error.detail.contains("eurusd"), "{call}: {error:?}");
    }
}

#[test]
fn the_servers_other_databases_do_not_matter() {
    // Locks and workers are a database's own: the same pair and month at once in two of them.
    let names = ["twin_one", "twin_two"];
    let sums: Vec<String> = std::thread::scope(|scope| {
        let twins = names.map(|name| {
            scope.spawn(move || {
                let (_db, mut session, _notices) = older_database(name);
                run_each(
                    &mut session,
                    &[
                        "CREATE TABLE bqx.m1_eurusd AS SELECT time, close FROM public.bars",
                        "CREATE EXTENSION bqx",
                        "CALL bqx.run_pipeline(workers => 2)",
                    ],
                );
                checksum(&mut server().connect(name).unwrap(), "SELECT * FROM bqx.bqx_eurusd")
            })
        });
        twins.map(|twin| twin.join().unwrap()).into()
    });
    assert_eq!(sums[0], sums[1]);
}

/// Functions and operators in the schema `bqx` that match calls better than those of PostgreSQL do, and raise an error.
const BETTER_MATCHES: &str = r"
    CREATE FUNCTION bqx.format(text, text, text, text) RETURNS text LANGUAGE plpgsql
        AS $$ BEGIN RAISE EXCEPTION 'captured: format'; END $$;
    DO $do$
    DECLARE
        types CONSTANT text[] := '{text,name,varchar,numeric,int4,int8,float8,date,interval,timestamptz}';
        l text;
        r text;
        operator text;
    BEGIN
        FOREACH l IN ARRAY types LOOP
            FOREACH r IN ARRAY types LOOP
                EXECUTE format('CREATE FUNCTION bqx.captured(%s, %s) RETURNS %1$s LANGUAGE plpgsql AS '
                               '$$ BEGIN RAISE EXCEPTION ''captured: an operator''; END $$', l, r);
                FOREACH operator IN ARRAY ARRAY['+', '-', '*', '/', '||', '=', '<>', '<', '>', '~'] LOOP
                    EXECUTE format('CREATE OPERATOR bqx.%s (leftarg = %s, rightarg = %s, function = bqx.captured)',
                                   operator, l, r);
                END LOOP;
            END LOOP;
        END LOOP;
    END
    $do$";

#[test]
fn what_lies_in_the_schema_captures_nothing_of_the_extension() {
    let (db, mut session, _) = older_database("captured");
    run_each(&mut session, &[BETTER_MATCHES, "CREATE EXTENSION bqx"]);
    let captures = "SELECT pg_describe_object(d.classid, d.objid, d.objsubid), pg_describe_object(d.refclassid, d.refobjid, 0) \
                      FROM pg_depend AS d \
                     WHERE d.classid <> 'pg_operator'::regclass AND (d.refclassid, d.refobjid) IN ( \
                           SELECT 'pg_operator'::regclass, oid FROM pg_operator WHERE oprnamespace = 'bqx'::regnamespace \
                           UNION ALL SELECT 'pg_proc'::regclass, oid FROM pg_proc \
                            WHERE oid IN ('bqx.format(text, text, text, text)'::regprocedure) OR proname = 'captured')";
    assert_eq!(rows(&mut session, captures), [""; 0]);
    for stage in [
        "CALL bqx.simulate_m1('{eurusd}', '2024-07-01', '2024-07-01')",
        "CALL bqx.run_pipeline(workers => 1)",
    ] {
        run(&mut db.connect(), stage);
    }
    for view in ["runs", "jobs", "progress", "pair_progress", "recent", "storage", "dashboard"] {
        assert_ne!(rows(&mut session, &format!("SELECT * FROM bqx.{view}")), [""; 0], "{view}");
    }
}

#[test]
fn everything_of_the_extension_lies_in_its_schema() {
    let (_db, mut session, _) = older_database("own_schema");
    run(&mut session, "CREATE EXTENSION bqx");
    let elsewhere = "SELECT pg_describe_object(classid, objid, 0) FROM pg_depend, pg_identify_object(classid, objid, 0) AS o \
                      WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e' AND o.schema <> 'bqx' \
                        AND NOT (o.schema = 'bqx_ml' AND o.type = 'function') \
                        AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'bqx')";
    assert_eq!(rows(&mut session, elsewhere), [""; 0]);
}
