//! refresh and stale: what changed is known, just that is computed, and it is all there afterwards.

mod common;

use std::sync::OnceLock;

use bqx_tests::{Db, Notices, error_of};
use common::followed::{Followed, PAIRS, differences, row_versions};
use common::{attempt, row, rows, run, run_each};
use postgres::Client;

fn server() -> &'static Followed {
    static SERVER: OnceLock<Followed> = OnceLock::new();
    SERVER.get_or_init(|| Followed::start("refresh", &[("max_worker_processes", "30")]))
}

fn filled(name: &str) -> (Db<'static>, Client, Notices) {
    let db = server().db(name);
    let (session, notices) = db.connect_with_notices();
    (db, session, notices)
}

/// What is stale, as `pair|month|from|to|reason`, the same for both families.
fn stale(session: &mut Client) -> Vec<String> {
    run(session, "SET TimeZone = 'UTC'");
    let query = |family: &str| {
        format!(
            "SELECT pair, to_char(month, 'YYYY-MM'), to_char(from_ts, 'MM-DD HH24:MI'), to_char(to_ts, 'MM-DD HH24:MI'), reason \
               FROM bqx.stale() WHERE family = '{family}' ORDER BY pair, month, from_ts"
        )
    };
    let both = ["bqx", "reg"].map(|family| rows(session, &query(family)));
    assert_eq!(both[0], both[1]);
    let [found, _] = both;
    found
}

/// Refreshes; after it all rows are right, nothing is stale, and a second call does nothing.
fn refresh(session: &mut Client, notices: &Notices, why: &str) -> Vec<String> {
    notices.take();
    run(session, "CALL bqx.refresh()");
    let said = notices.take();
    for pair in PAIRS {
        assert_eq!(differences(session, pair), [""; 0], "{why}");
    }
    assert_eq!(stale(session), [""; 0], "{why}");
    let before = PAIRS.map(|pair| row_versions(session, pair));
    notices.take();
    run(session, "CALL bqx.refresh()");
    let again = notices.take();
    assert!(again.iter().all(|notice| notice.ends_with(": up to date")), "{why}: {again:?}");
    assert_eq!(PAIRS.map(|pair| row_versions(session, pair)), before, "{why}");
    said
}

/// Rows of a derived table that transactions from this one on have written.
fn rows_written(session: &mut Client, table: &str, since: &str) -> String {
    row(session, &format!("SELECT count(*) FROM bqx.{table} AS t WHERE t.xmin::text::bigint >= {since}"))
}

#[test]
fn few_changes_are_known_and_just_their_rows_computed() {
    let (_db, mut session, notices) = filled("few_changes");
    assert_eq!(stale(&mut session), [""; 0]);
    run_each(
        &mut session,
        &[
            "UPDATE bqx.m1_eurusd SET close = 1.07 WHERE time = '2024-08-06 10:00+00'",
            "DELETE FROM bqx.m1_gbpusd WHERE time = '2024-08-30 20:00'",
            "INSERT INTO bqx.m1_audusd (time, close) VALUES ('2024-09-30 23:40+00', 1.07), ('2024-09-30 23:35+00', 1.08)",
            "UPDATE bqx.m1_audusd SET volume = 7",
        ],
    );
    assert_eq!(
        stale(&mut session),
        [
            "audusd|2024-09|09-30 23:35|09-30 23:40|bars came or changed",
            "audusd|2024-09|09-30 23:30|09-30 23:40|rows are missing",
            "eurusd|2024-08|08-06 10:00|08-06 10:00|bars came or changed",
            "gbpusd|2024-08|08-30 20:00|08-30 20:00|bars were removed",
            "gbpusd|2024-09|08-30 20:00|08-30 20:00|bars were removed",
        ]
        .map(str::to_owned)
        .into_iter()
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect::<Vec<_>>(),
    );
    let since = row(&mut session, "SELECT pg_current_xact_id()::text");
    let said = refresh(&mut session, &notices, "few changes").join("\n");
    assert!(said.contains("eurusd: 631 rows computed for 1 changes"), "{said}");
    assert!(!said.contains("months to read"), "{said}");
    let written = ["bqx_eurusd", "reg_eurusd", "bqx_gbpusd", "reg_gbpusd", "bqx_audusd", "reg_audusd"];
    let written = written.map(|table| rows_written(&mut session, table, &since));
    assert_eq!(written, ["76", "631", "75", "40", "2", "2"]);
}

#[test]
fn many_changes_are_computed_by_the_month() {
    let (_db, mut session, notices) = filled("many_changes");
    run(
        &mut session,
        "UPDATE bqx.m1_eurusd SET close = close + 0.001 WHERE time >= '2024-08-02 00:00+00' AND time < '2024-08-23 00:00+00'",
    );
    run(
        &mut session,
        "DELETE FROM bqx.m1_gbpusd WHERE time >= '2024-08-02 00:00' AND time < '2024-08-23 00:00'",
    );
    let said = refresh(&mut session, &notices, "many changes").join("\n");
    assert!(said.contains("eurusd: 2 months to read") && said.contains("gbpusd: 1 months to read"), "{said}");
    let jobs = "SELECT string_agg(DISTINCT pair || ' ' || to_char(month, 'MM'), ', ' ORDER BY pair || ' ' || to_char(month, 'MM')) \
                  FROM bqx.jobs WHERE run_id = (SELECT max(run_id) FROM bqx.runs)";
    assert_eq!(row(&mut session, jobs), "eurusd 08, eurusd 09, gbpusd 08");
}

#[test]
fn bars_that_came_or_went_unnoted_are_found() {
    let (_db, mut session, notices) = filled("unnoted");
    for (change, months) in [
        // what follows looks back at it
        (&["TRUNCATE bqx.m1_eurusd_2024_08"][..], "eurusd: 2 months to read"),
        (&["TRUNCATE bqx.m1_eurusd_2024_09"], "eurusd: 1 months to read"),
        (
            &[
                "TRUNCATE bqx.m1_gbpusd",
                "INSERT INTO bqx.m1_gbpusd (time, close) VALUES ('2024-08-06 10:00', 1.08)",
            ],
            "gbpusd: 3 months to read",
        ),
        (&["ALTER TABLE bqx.m1_audusd DETACH PARTITION bqx.\"in August\""], "audusd: 3 months to read"),
        (
            &[
                "DELETE FROM bqx.\"in August\" WHERE time >= '2024-08-10 00:00+00' AND time < '2024-08-12 00:00+00'",
                "ALTER TABLE bqx.m1_audusd ATTACH PARTITION bqx.\"in August\" FOR VALUES FROM ('2024-07-24 00:00+00') TO ('2024-09-04 12:00+00')",
            ],
            "audusd: 3 months to read",
        ),
        (
            &[
                "ALTER TABLE bqx.\"in August\" DISABLE TRIGGER bqx_note_change",
                "UPDATE bqx.m1_audusd SET close = close + 0.0001 WHERE time >= '2024-08-20 00:00+00' AND time < '2024-08-21 00:00+00'",
                "ALTER TABLE bqx.\"in August\" ENABLE ALWAYS TRIGGER bqx_note_change",
            ],
            "audusd: 3 months to read",
        ),
        (&["VACUUM FULL bqx.m1_eurusd_2024_07"], "eurusd: 1 months to read"),
    ] {
        run_each(&mut session, change);
        let said = refresh(&mut session, &notices, &format!("{change:?}")).join("\n");
        assert!(said.contains(months), "{change:?}: {said}");
    }
}

#[test]
fn derived_rows_that_are_gone_come_back() {
    let (_db, mut session, notices) = filled("gone");
    for (change, reason) in [
        (
            "DELETE FROM bqx.reg_eurusd WHERE ts_utc >= '2024-09-30 20:00+00'",
            "eurusd|2024-09|09-30 19:30|09-30 23:30|rows are missing",
        ),
        (
            "DELETE FROM bqx.bqx_eurusd WHERE ts_utc >= '2024-09-05 20:00+00'",
            "eurusd|2024-09|09-05 19:30|09-30 23:30|rows are missing",
        ),
        ("TRUNCATE bqx.bqx_eurusd_2024_08, bqx.reg_eurusd_2024_08", "eurusd|2024-08|NULL|NULL|rows are gone"),
        (
            "DROP TABLE bqx.bqx_eurusd_2024_07, bqx.reg_eurusd_2024_07",
            "eurusd|2024-07|NULL|NULL|rows are gone",
        ),
        ("TRUNCATE bqx.bqx_audusd, bqx.reg_audusd", "audusd|2024-07|NULL|NULL|rows are gone"),
    ] {
        run(&mut session, change);
        let found = stale(&mut session);
        assert!(found.contains(&reason.to_owned()), "{change}: {found:#?}");
        refresh(&mut session, &notices, change);
    }
}

#[test]
fn months_that_were_never_computed_are_computed_whole() {
    let (_db, mut session, notices) = filled("never_computed");
    run_each(
        &mut session,
        &[
            "CALL bqx.create_m1('{eurusd}', '2024-06-01', '2024-06-01')",
            "INSERT INTO bqx.m1_eurusd (time, close) SELECT t, 1.08 + extract(day FROM t) / 1000.0 \
               FROM generate_series(timestamptz '2024-06-03 00:00+00', '2024-06-28 23:30+00', '20 min') AS t",
        ],
    );
    assert!(stale(&mut session).contains(&"eurusd|2024-06|NULL|NULL|never computed".to_owned()));
    let said = refresh(&mut session, &notices, "an earlier month").join("\n");
    assert!(said.contains("eurusd: 2 months to read"), "{said}");
    // all that was there is dropped
    run_each(
        &mut session,
        &["CALL bqx.drop_tables('{bqx,reg}', '{eurusd}')", "CALL bqx.create_tables(pairs => '{eurusd}')"],
    );
    assert_eq!(stale(&mut session).iter().filter(|line| line.contains("never computed")).count(), 4);
    refresh(&mut session, &notices, "tables made anew");
    assert_eq!(rows(&mut session, "SELECT * FROM bqx.verify() WHERE ok IS NOT TRUE"), [""; 0]);
}

#[test]
fn another_baseline_makes_everything_stale_and_says_so() {
    let (_db, mut session, notices) = filled("baseline");
    run_each(
        &mut session,
        &[
            "CALL bqx.enable_live('{eurusd}')",
            "CALL bqx.set_baselines('2024-08-07 00:00+00', '{eurusd,gbpusd}')",
        ],
    );
    notices.take();
    run(&mut session, "CALL bqx.index_m1('{eurusd,gbpusd}')");
    let said = notices.take().join("\n");
    for pair in ["eurusd", "gbpusd"] {
        assert!(said.contains(&format!("{pair}: rows of its derived tables are stale now")), "{said}");
    }
    let found = stale(&mut session);
    for month in [
        "eurusd|2024-07",
        "eurusd|2024-08",
        "eurusd|2024-09",
        "gbpusd|2024-07",
        "gbpusd|2024-08",
        "gbpusd|2024-09",
    ] {
        assert!(found.iter().any(|line| line.starts_with(month)), "{month}: {found:#?}");
    }
    refresh(&mut session, &notices, "another baseline");
    assert_eq!(rows(&mut session, "SELECT * FROM bqx.verify() WHERE ok IS NOT TRUE"), [""; 0]);
    // and bars that come then have the new index
    run(&mut session, "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-09-30 23:40+00', 1.07)");
    assert_eq!(differences(&mut session, "eurusd"), [""; 0]);
}

#[test]
fn coming_months_have_partitions_in_time() {
    let (_db, mut session, notices) = filled("months_ahead");
    let partitions = |session: &mut Client, table: &str| {
        row(
            session,
            &format!(
                "SELECT string_agg(to_char(p.to_ts - interval '1 day', 'MM'), ' ' ORDER BY 1) FROM bqx._partitions('bqx.{table}') AS p \
                  WHERE p.from_ts >= '2024-09-30'"
            ),
        )
    };
    assert_eq!(partitions(&mut session, "m1_eurusd"), "NULL");
    let said = refresh(&mut session, &notices, "a quiet day").join("\n");
    for table in ["m1_eurusd", "bqx_eurusd", "reg_eurusd", "bqx_gbpusd"] {
        assert_eq!(partitions(&mut session, table), "10", "{table}: {said}");
    }
    assert!(said.contains("eurusd: 3 partition(s) made"), "{said}");
    run_each(&mut session, &["SET bqx.months_ahead = 3", "CALL bqx.create_tables('{reg}', '{eurusd}')"]);
    assert_eq!(partitions(&mut session, "reg_eurusd"), "10 11 12");
    assert_eq!(partitions(&mut session, "bqx_eurusd"), "10");
    run(&mut session, "CALL bqx.refresh()");
    for table in ["m1_eurusd", "bqx_eurusd", "reg_eurusd"] {
        assert_eq!(partitions(&mut session, table), "10 11 12", "{table}");
    }
    for value in ["-1", "121", "'many'"] {
        assert_eq!(
            error_of(&mut session, &format!("SET bqx.months_ahead = {value}")).code,
            "22023",
            "{value}"
        );
    }
    // bars of the new months have room for rows
    run(&mut session, "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-12-02 00:00+00', 1.08)");
    refresh(&mut session, &notices, "a bar far ahead");
}

#[test]
fn a_table_in_the_way_of_a_coming_month_is_named_and_rows_are_computed() {
    let (_db, mut session, notices) = filled("in_the_way");
    run_each(
        &mut session,
        &[
            "CREATE TABLE bqx.reg_eurusd_2024_10 (mine int)",
            "UPDATE bqx.m1_eurusd SET close = 1.07 WHERE time = '2024-08-06 10:00+00'",
            "UPDATE bqx.m1_gbpusd SET close = 1.07 WHERE time = '2024-08-06 10:00'",
        ],
    );
    notices.take();
    run(&mut session, "CALL bqx.refresh()");
    let said = notices.take();
    assert!(
        said.iter().any(|line| {
            line.starts_with("WARNING: ") && line.contains("bqx.reg_eurusd_2024_10 is in the way")
        }),
        "{said:?}"
    );
    for pair in PAIRS {
        assert_eq!(differences(&mut session, pair), [""; 0]);
    }
    run(&mut session, "DROP TABLE bqx.reg_eurusd_2024_10");
    refresh(&mut session, &notices, "nothing in the way");
}

#[test]
fn tables_with_an_index_of_their_own_are_read_by_the_month() {
    let (_db, mut session, notices) = filled("own_index");
    run_each(
        &mut session,
        &[
            "CREATE TABLE bqx.m1_usdchf (time timestamptz PRIMARY KEY, close float8 NOT NULL, rate_index float8 NOT NULL)",
            "INSERT INTO bqx.m1_usdchf SELECT time, close, close * 90 FROM bqx.m1_eurusd",
            "CALL bqx.create_tables(pairs => '{usdchf}')",
        ],
    );
    let check = |session: &mut Client, after: &str| {
        notices.take();
        run(session, "CALL bqx.refresh('{usdchf}')");
        assert_eq!(differences(session, "usdchf"), [""; 0], "{after}");
        assert_eq!(rows(session, "SELECT * FROM bqx.stale('{usdchf}')"), [""; 0], "{after}");
        let before = row_versions(session, "usdchf");
        run(session, "CALL bqx.refresh('{usdchf}')");
        assert_eq!(row_versions(session, "usdchf"), before, "{after}");
    };
    check(&mut session, "the first");
    run(&mut session, "UPDATE bqx.m1_usdchf SET rate_index = 97 WHERE time = '2024-08-06 10:00+00'");
    let stale = "SELECT DISTINCT to_char(month, 'MM'), reason FROM bqx.stale('{usdchf}') ORDER BY 1";
    assert_eq!(rows(&mut session, stale), ["08|bars have changed"]);
    check(&mut session, "an UPDATE that nobody noted");
    run(&mut session, "CALL bqx.enable_live('{usdchf}')");
    run(&mut session, "UPDATE bqx.m1_usdchf SET rate_index = 98 WHERE time = '2024-08-06 10:00+00'");
    assert_eq!(differences(&mut session, "usdchf"), [""; 0], "live");
    check(&mut session, "live mode");
}

#[test]
fn a_month_that_fails_is_stale_until_its_bars_are_right() {
    let (db, mut session, notices) = filled("fails");
    for (change, range) in [
        ("UPDATE {m1} SET close = NULL WHERE time = '2024-08-06 10:00'", "few"),
        (
            "UPDATE {m1} SET close = NULL WHERE time >= '2024-08-06 10:00' AND time < '2024-08-12 10:00'",
            "many",
        ),
    ] {
        run_each(
            &mut session,
            &["CREATE TABLE kept AS SELECT * FROM bqx.m1_gbpusd", &change.replace("{m1}", "bqx.m1_gbpusd")],
        );
        run(
            &mut session,
            "UPDATE bqx.m1_eurusd SET close = close + 0.001 WHERE time = '2024-08-06 10:00+00'",
        );
        let error = error_of(&mut session, "CALL bqx.refresh()");
        assert_eq!(error.code, "22003", "{range}: {error:?}");
        assert!(
            format!("{error:?}").contains("m1_gbpusd has close NULL at 2024-08-06 10:00:00 UTC"),
            "{error:?}"
        );
        assert!(!stale(&mut db.connect()).is_empty(), "{range}");
        assert_eq!(differences(&mut session, "eurusd"), [""; 0], "{range}: another pair's trouble");
        run_each(
            &mut session,
            &[
                "UPDATE bqx.m1_gbpusd AS m SET close = k.close FROM kept AS k WHERE k.time = m.time AND m.close IS NULL",
                "DROP TABLE kept",
            ],
        );
        refresh(&mut session, &notices, range);
    }
}

#[test]
fn a_live_pair_is_never_stale() {
    let (_db, mut session, notices) = filled("live");
    run(&mut session, "CALL bqx.enable_live()");
    for change in [
        "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-09-30 23:40+00', 1.07)",
        // the first bar of a month
        "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-10-01 00:00+00', 1.07)",
        "UPDATE bqx.m1_eurusd SET close = close + 0.001 WHERE time >= '2024-08-02 00:00+00' AND time < '2024-08-23 00:00+00'",
        "DELETE FROM bqx.m1_gbpusd WHERE time >= '2024-08-02 00:00' AND time < '2024-08-23 00:00'",
        "DELETE FROM bqx.m1_eurusd WHERE time = '2024-10-01 00:00+00'",
    ] {
        run(&mut session, change);
        assert_eq!(stale(&mut session), [""; 0], "{change}");
    }
    refresh(&mut session, &notices, "live");
    assert_eq!(rows(&mut session, "SELECT * FROM bqx.verify() WHERE ok IS NOT TRUE"), [""; 0]);
}

#[test]
fn pairs_are_refreshed_as_asked_for() {
    let (_db, mut session, notices) = filled("as_asked");
    for pair in PAIRS {
        run(
            &mut session,
            &format!("UPDATE bqx.m1_{pair} SET close = 1.07 WHERE time = '2024-08-06 10:00+00'"),
        );
    }
    run(&mut session, "CALL bqx.refresh('{GBPUSD,audusd}')");
    assert_ne!(differences(&mut session, "eurusd"), [""; 0]);
    for pair in ["gbpusd", "audusd"] {
        assert_eq!(differences(&mut session, pair), [""; 0]);
    }
    // a pair of one family
    run(&mut session, "CALL bqx.drop_tables('{reg}', '{eurusd}')");
    run(&mut session, "CALL bqx.refresh()");
    assert_eq!(rows(&mut session, "SELECT * FROM bqx.stale()"), [""; 0]);
    run(&mut session, "CALL bqx.create_tables('{reg}', '{eurusd}')");
    refresh(&mut session, &notices, "the other family");
    assert!(attempt(&mut session, "CALL bqx.refresh('{}')").is_err());
}
