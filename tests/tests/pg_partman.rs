//! bqx beside pg_partman in one database, and pg_partman managing tables of bqx. The SQL is that of
//! `docs/operations.md`. pg_partman goes by the clock, so months are counted from now.

mod common;

use std::thread;

use bqx_tests::document::Document;
use bqx_tests::{Db, error_of, has_extension};
use common::{checksum, row, rows, run, run_each};
use postgres::Client;

const TABLES: [&str; 3] = ["m1_eurusd", "bqx_eurusd", "reg_eurusd"];

/// A database with both extensions. pg_partman 5 has other functions.
fn prepared(name: &str) -> Option<(Db<'static>, Client)> {
    if !has_extension("pg_partman") {
        return None;
    }
    let db = Db::new(name);
    let mut session = db.connect();
    run_each(&mut session, &["CREATE SCHEMA partman", "CREATE EXTENSION pg_partman SCHEMA partman"]);
    if !row(&mut session, "SELECT extversion FROM pg_extension WHERE extname = 'pg_partman'")
        .starts_with("4.")
    {
        bqx_tests::skipped(name, "this is not pg_partman 4");
        return None;
    }
    Some((db, session))
}

/// The document's block of this name.
fn documented(block: &str) -> String {
    let document = Document::parse(include_str!("../../docs/operations.md"));
    document.sql_not_run(&format!("pg_partman, {block}")).to_owned()
}

/// The first day of the month that many months from now.
fn month(session: &mut Client, months: i32) -> String {
    row(
        session,
        &format!("SELECT (date_trunc('month', now() AT TIME ZONE 'UTC') + interval '{months} months')::date"),
    )
}

/// Hourly bars of these months from now, the first bar the baseline.
fn bars(session: &mut Client, from: i32, to: i32) {
    let (from, to) = (month(session, from), month(session, to));
    run(session, &format!("CALL bqx.simulate_m1('{{eurusd}}', '{from}', '{to}')"));
    run(session, "DELETE FROM bqx.m1_eurusd WHERE extract(minute FROM time) <> 0");
}

/// Sets the baseline at the first bar of this month from now, and indexes the bars.
fn index(session: &mut Client, months: i32) {
    let month = month(session, months);
    let baseline = format!("SELECT min(time) FROM bqx.m1_eurusd WHERE time >= '{month} 00:00+00'");
    let baseline = row(session, &baseline);
    run_each(session, &[&format!("CALL bqx.set_baselines('{baseline}')"), "CALL bqx.index_m1()"]);
}

/// Each table's partitions with their bounds.
fn partitions(session: &mut Client) -> Vec<String> {
    rows(
        session,
        "SELECT i.inhparent::regclass, c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits AS i \
           JOIN pg_class AS c ON c.oid = i.inhrelid WHERE c.relkind = 'r' AND c.relnamespace = 'bqx'::regnamespace ORDER BY 1, 2",
    )
}

/// Rows of each partition of a table, by name.
fn contents(session: &mut Client, table: &str) -> Vec<String> {
    rows(
        session,
        &format!(
            "SELECT tableoid::regclass, count(*) FROM bqx.{table} GROUP BY 1 ORDER BY tableoid::regclass::text"
        ),
    )
}

fn faults(session: &mut Client) -> Vec<String> {
    rows(session, "SELECT check_name, family, month, detail FROM bqx.verify() WHERE NOT ok")
}

#[test]
fn maintenance_and_backfill_at_once_leave_each_other_alone() {
    let Some((db, mut session)) = prepared("beside") else { return };
    bars(&mut session, -5, 0);
    index(&mut session, -5);
    run_each(
        &mut session,
        &[
            "CALL bqx.create_tables()",
            "CREATE TABLE public.events (at timestamptz NOT NULL, what text) PARTITION BY RANGE (at)",
            "SELECT partman.create_parent('public.events', 'at', 'native', 'monthly', p_premake := 1)",
            "UPDATE partman.part_config SET infinite_time_partitions = true", // without rows, too
            "CALL partman.run_maintenance_proc()",
        ],
    );
    let before = partitions(&mut session);
    let children = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'public.events'::regclass";
    let at_first: i32 = row(&mut session, children).parse().unwrap();
    let rounds = thread::scope(|scope| {
        let backfill = scope.spawn(|| run(&mut db.connect(), "CALL bqx.backfill(workers => 2)"));
        let mut rounds = 0;
        // pg_partman reckons years of months ahead in average months, and then makes one less
        while rounds == 0 || (rounds < 12 && !backfill.is_finished()) {
            run(&mut session, "UPDATE partman.part_config SET premake = premake + 1");
            run(&mut session, "CALL partman.run_maintenance_proc()");
            rounds += 1;
        }
        backfill.join().unwrap();
        rounds
    });
    assert_eq!(row(&mut session, children), (at_first + rounds).to_string(), "each round makes a partition");
    assert_eq!(partitions(&mut session), before);
    assert_eq!(faults(&mut session), [""; 0]);
}

#[test]
fn partitions_that_partman_made_are_filled() {
    let Some((db, mut session)) = prepared("made_by_partman") else { return };
    run(&mut session, "CALL bqx.create_m1('{eurusd}')");
    run(&mut session, "CALL bqx.create_tables(pairs => '{eurusd}')");
    assert_eq!(partitions(&mut session), [""; 0]);
    db.psql(&documented("the tables of a pair"));
    let made = partitions(&mut session);
    assert!(made.iter().all(|partition| partition.contains("_eurusd_p")), "{made:?}");
    let current = month(&mut session, 0)[..7].replace('-', "_");
    for table in TABLES {
        let of_the_month = format!("{table}|{table}_p{current}|");
        assert!(made.iter().any(|made| made.contains(&of_the_month)), "{of_the_month}: {made:?}");
    }

    // those of partman as far as they go, and beyond, where bqx makes its own
    bars(&mut session, -3, 1);
    index(&mut session, 0);
    run(&mut session, "CALL bqx.backfill(workers => 1)");
    assert_eq!(faults(&mut session), [""; 0]);
    let bars = contents(&mut session, "m1_eurusd");
    assert!(bars.iter().any(|line| line.contains(&format!("m1_eurusd_p{current}|"))), "{bars:?}");
    for family in ["bqx", "reg"] {
        let of_bars = bars.iter().map(|line| line.replace("m1_", &format!("{family}_"))).collect::<Vec<_>>();
        assert_eq!(contents(&mut session, &format!("{family}_eurusd")), of_bars);
    }

    let before = partitions(&mut session);
    run(&mut session, "UPDATE partman.part_config SET premake = 3");
    run(&mut session, "CALL partman.run_maintenance_proc()");
    let mut premade = partitions(&mut session);
    premade.retain(|partition| !before.contains(partition));
    for table in TABLES {
        assert!(premade.iter().any(|made| made.contains(&format!("|{table}_p"))), "{table}: {premade:?}");
    }
    assert_eq!(faults(&mut session), [""; 0]);
}

#[test]
fn tables_with_partitions_need_partmans_names_for_them() {
    let Some((db, mut session)) = prepared("renamed") else { return };
    bars(&mut session, -2, 0);
    index(&mut session, -2);
    run_each(&mut session, &["CALL bqx.create_tables()", "CALL bqx.backfill(workers => 1)"]);
    let before = partitions(&mut session);
    let rows = TABLES.map(|table| checksum(&db, &format!("SELECT * FROM bqx.{table}")));
    let create = "SELECT partman.create_parent('bqx.m1_eurusd', 'time', 'native', 'monthly', p_premake := 1)";
    let refusal = error_of(&mut session, create);
    assert!(refusal.message.contains("would overlap"), "{refusal:?}");
    assert_eq!(partitions(&mut session), before);

    db.psql(&documented("the tables of a pair"));
    let after = partitions(&mut session);
    let renamed = before.iter().map(|partition| partition.replace("eurusd_2", "eurusd_p2"));
    assert_eq!(renamed.filter(|partition| !after.contains(partition)).collect::<Vec<_>>(), [""; 0]);
    assert!(!after.iter().any(|partition| partition.contains("DEFAULT")), "{after:?}");
    run(&mut session, "CALL bqx.backfill(workers => 1)");
    assert_eq!(
        TABLES.map(|table| checksum(&db, &format!("SELECT * FROM bqx.{table}"))),
        rows,
        "nothing is written again"
    );
    assert_eq!(faults(&mut session), [""; 0]);
}

#[test]
fn retention_takes_months_from_a_pair() {
    let Some((db, mut session)) = prepared("retention") else { return };
    bars(&mut session, -6, 0);
    index(&mut session, 0);
    run_each(&mut session, &["CALL bqx.create_tables()", "CALL bqx.backfill(workers => 1)"]);
    db.psql(&documented("the tables of a pair"));
    let bars = "SELECT count(*), min(time) FROM bqx.m1_eurusd";
    let before = row(&mut session, bars);
    for _ in 0..2 {
        db.psql(&documented("retention"));
        assert_ne!(row(&mut session, bars), before);
        assert_eq!(faults(&mut session), [""; 0]);
        for table in ["bqx_eurusd", "reg_eurusd"] {
            let same = format!(
                "SELECT (SELECT array_agg(time ORDER BY time) FROM bqx.m1_eurusd) = array_agg(ts_utc ORDER BY ts_utc) FROM bqx.{table}"
            );
            assert_eq!(row(&mut session, &same), "t");
        }
    }
    // the first window is no longer full, as if the older bars had never been
    let first = "SELECT w15_bqx_return IS NULL FROM bqx.bqx_eurusd ORDER BY ts_utc LIMIT 1";
    assert_eq!(row(&mut session, first), "t");
}

#[test]
fn retention_of_a_derived_table_alone_is_in_vain() {
    let Some((db, mut session)) = prepared("in_vain") else { return };
    bars(&mut session, -4, 0);
    index(&mut session, -4);
    run_each(&mut session, &["CALL bqx.create_tables()", "CALL bqx.backfill(workers => 1)"]);
    db.psql(&documented("the tables of a pair"));
    let before = checksum(&db, "SELECT ts_utc, rate_index, w15_bqx_return FROM bqx.bqx_eurusd");
    let retain = "UPDATE partman.part_config SET retention = '2 months', retention_keep_table = true WHERE parent_table = 'bqx.bqx_eurusd'";
    run_each(&mut session, &[retain, "CALL partman.run_maintenance_proc()"]);
    assert_ne!(checksum(&db, "SELECT ts_utc, rate_index, w15_bqx_return FROM bqx.bqx_eurusd"), before);
    run(&mut session, "CALL bqx.backfill(workers => 1)");
    assert_eq!(checksum(&db, "SELECT ts_utc, rate_index, w15_bqx_return FROM bqx.bqx_eurusd"), before);
    // the next time, what it kept is in the way
    run(&mut session, "CALL partman.run_maintenance_proc()");
    let refusal = error_of(&mut session, "CALL bqx.backfill(workers => 1)");
    assert!(refusal.code == "42P07" && refusal.detail.contains("is in the way"), "{refusal:?}");
}
