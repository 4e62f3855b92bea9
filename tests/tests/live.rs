//! Live mode: the derived rows are there with the bars, whatever statement changed them and however the tables are made.

mod common;

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use bqx_tests::{Db, error_of};
use common::followed::{Followed, PAIRS, differences, row_versions};
use common::{attempt, checksums, picture, row, rows, run, run_each};
use postgres::Client;
use postgres::fallible_iterator::FallibleIterator;

fn server() -> &'static Followed {
    static SERVER: OnceLock<Followed> = OnceLock::new();
    SERVER.get_or_init(|| Followed::start("live", &[("max_prepared_transactions", "5")]))
}

fn live_db(name: &str) -> (Db<'static>, Client) {
    let db = server().live_db(name);
    let session = db.connect();
    (db, session)
}

/// The derived rows of all pairs are those of their bars.
fn assert_followed(session: &mut Client, after: &str) {
    for pair in PAIRS {
        assert_eq!(differences(session, pair), [""; 0], "after {after}");
    }
}

/// The same statement, for each pair's M1.
fn run_for_all(session: &mut Client, statement: &str) {
    for pair in PAIRS {
        run(session, &statement.replace("{m1}", &format!("bqx.m1_{pair}")));
    }
    assert_followed(session, statement);
}

/// How many rows both derived tables of a pair have at an instant.
fn rows_at(session: &mut Client, pair: &str, instant: &str) -> String {
    let count = |family| format!("(SELECT count(*) FROM bqx.{family}_{pair} WHERE ts_utc = '{instant}')");
    row(session, &format!("SELECT {}, {}", count("bqx"), count("reg")))
}

#[test]
fn a_pair_is_followed_from_when_it_is_asked_for_to_when_it_is_no_longer() {
    let db = server().db("on_and_off");
    let (mut session, notices) = db.connect_with_notices();
    let insert = |minute: u32| {
        format!("INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-09-30 23:{minute}+00', 1.0812)")
    };
    run(&mut session, &insert(31));
    assert_eq!(rows_at(&mut session, "eurusd", "2024-09-30 23:31+00"), "0|0", "off by default");
    notices.take();
    run(&mut session, "CALL bqx.enable_live('{eurusd}')");
    let said = notices.take().join("\n");
    for part in ["eurusd: live from now on", "about a millisecond", "rows computed for"] {
        assert!(said.contains(part), "no word of {part:?}: {said}");
    }
    assert_eq!(rows_at(&mut session, "eurusd", "2024-09-30 23:31+00"), "1|1", "what was missing before");
    run(&mut session, &insert(32));
    assert_eq!(rows_at(&mut session, "eurusd", "2024-09-30 23:32+00"), "1|1");
    run(&mut session, "CALL bqx.enable_live('{eurusd}')");
    assert!(notices.take().contains(&"NOTICE: eurusd: was live".to_owned()));
    assert_followed(&mut session, "two new bars");
    // others are not
    run(&mut session, "INSERT INTO bqx.m1_gbpusd (time, close) VALUES ('2024-09-30 23:31', 1.0812)");
    assert_eq!(rows_at(&mut session, "gbpusd", "2024-09-30 23:31+00"), "0|0");

    run(&mut session, "CALL bqx.disable_live()");
    assert_eq!(notices.take(), ["NOTICE: eurusd: not live any more; changes are noted for bqx.refresh"]);
    run(&mut session, "CALL bqx.disable_live('{eurusd}')");
    assert_eq!(notices.take(), ["NOTICE: eurusd: was not live"]);
    run(&mut session, &insert(33));
    assert_eq!(rows_at(&mut session, "eurusd", "2024-09-30 23:33+00"), "0|0");
    let triggers = "SELECT count(*) FROM pg_trigger WHERE tgname ~ '^bqx_live'";
    assert_eq!(row(&mut session, triggers), "0", "on no partition either");
    run(&mut session, "CALL bqx.refresh()");
    assert_followed(&mut session, "a refresh");
}

#[test]
fn rows_are_there_after_the_statement_and_for_others_after_the_transaction() {
    let (db, mut session) = live_db("at_once");
    let mut other = db.connect();
    for pair in PAIRS {
        let (at, insert) = (
            "2024-09-30 23:45+00",
            format!("INSERT INTO bqx.m1_{pair} (time, close) VALUES ('2024-09-30 23:45+00', 1.0799)"),
        );
        let before = row_versions(&mut session, pair);
        run_each(&mut session, &["BEGIN", &insert]);
        assert_eq!(rows_at(&mut session, pair, at), "1|1", "{pair}");
        assert_eq!(differences(&mut session, pair), [""; 0], "within the transaction");
        assert_eq!(rows_at(&mut other, pair, at), "0|0", "{pair}: not committed yet");
        run(&mut session, "ROLLBACK");
        assert_eq!(row_versions(&mut session, pair), before, "{pair}: as if nothing had happened");
        run(&mut session, &insert);
        assert_eq!(rows_at(&mut other, pair, at), "1|1", "{pair}");
    }
    assert_followed(&mut session, "a new bar");
}

/// Rows that the last statement wrote, as `first|last|rows`, counted in bars from the one at an instant.
fn written_since(session: &mut Client, family: &str, pair: &str, instant: &str, before: &str) -> String {
    row(
        session,
        &format!(
            "SELECT min(n), max(n), count(*) FROM ( \
                 SELECT ts_utc, t.xmin::text::bigint >= {before} AS is_new, \
                        row_number() OVER (ORDER BY ts_utc) - 1 AS n FROM bqx.{family}_{pair} AS t WHERE ts_utc >= '{instant}' \
                 UNION ALL SELECT ts_utc, t.xmin::text::bigint >= {before}, -1 FROM bqx.{family}_{pair} AS t WHERE ts_utc < '{instant}' \
             ) AS rows WHERE is_new"
        ),
    )
}

#[test]
fn a_correction_rewrites_the_rows_that_look_back_at_the_bar_and_no_others() {
    let (_db, mut session) = live_db("correction");
    let at = "2024-08-07 10:00+00";
    for (pair, bqx, reg) in [("eurusd", 75, 630), ("gbpusd", 75, 40), ("audusd", 75, 50)] {
        for change in [
            format!("UPDATE bqx.m1_{pair} SET close = close + 0.00321 WHERE time = '{at}'"),
            format!("DELETE FROM bqx.m1_{pair} WHERE time = '{at}'"),
            format!("INSERT INTO bqx.m1_{pair} (time, close) VALUES ('{at}', 1.0701)"),
        ] {
            let before = row(&mut session, "SELECT pg_current_xact_id()::text");
            run(&mut session, &change);
            // the bar itself is gone, or one of them; after an UPDATE or INSERT it is bar 0
            let gone = i32::from(change.starts_with("DELETE"));
            for (family, longest) in [("bqx", bqx), ("reg", reg)] {
                let found = written_since(&mut session, family, pair, at, &before);
                let expected = format!("0|{}|{}", longest - gone, longest + 1 - gone);
                assert_eq!(found, expected, "{family}_{pair}: {change}");
            }
        }
    }
    assert_followed(&mut session, "corrections");
}

#[test]
fn what_rows_do_not_depend_on_writes_none() {
    let (_db, mut session) = live_db("nothing_to_do");
    for pair in PAIRS {
        let before = row_versions(&mut session, pair);
        let fingerprints = "SELECT count(*) FROM bqx.month_ledger WHERE input_fingerprint IS NULL";
        let followed = row(&mut session, fingerprints);
        for statement in [
            "UPDATE {m1} SET volume = volume + 1",
            "UPDATE {m1} SET close = close WHERE time < '2024-07-09 00:00+00'",
            "DELETE FROM {m1} WHERE time = '2024-08-07 10:01+00'",
            "INSERT INTO {m1} (time, close) SELECT time, 1 FROM {m1} WHERE time < '2024-07-09 00:00+00' ON CONFLICT DO NOTHING",
            // the same bar once more
            "INSERT INTO {m1} (time, close) SELECT time, close FROM {m1} WHERE time >= '2024-09-30 22:00+00' \
             ON CONFLICT (time) DO UPDATE SET close = excluded.close",
        ] {
            run(&mut session, &statement.replace("{m1}", &format!("bqx.m1_{pair}")));
            assert_eq!(row_versions(&mut session, pair), before, "{pair}: {statement}");
            assert_eq!(row(&mut session, fingerprints), followed, "{pair}: {statement}");
        }
    }
    assert_followed(&mut session, "nothing");
}

#[test]
fn every_kind_of_statement_is_followed() {
    let (_db, mut session) = live_db("statements");
    for statement in [
        "INSERT INTO {m1} (time, close) VALUES ('2024-09-30 23:50+00', 1.07), ('2024-09-30 23:40+00', 1.08), ('2024-08-01 00:10+00', 1.09)",
        "INSERT INTO {m1} (time, close) VALUES ('2024-09-30 23:50+00', 1.11), ('2024-09-30 23:55+00', 1.08) \
         ON CONFLICT (time) DO UPDATE SET close = excluded.close",
        "INSERT INTO {m1} (time, close) VALUES ('2024-09-30 23:50+00', 1.12), ('2024-09-30 23:56+00', 1.08) ON CONFLICT DO NOTHING",
        "UPDATE {m1} SET close = close * 1.01 WHERE time >= '2024-07-30 00:00+00' AND time < '2024-08-03 00:00+00'",
        "UPDATE {m1} SET time = time + interval '7 min' WHERE time = '2024-08-12 10:00+00'",
        // into another partition
        "UPDATE {m1} SET time = time + interval '31 days' WHERE time = '2024-07-12 10:00+00'",
        "DELETE FROM {m1} WHERE time >= '2024-08-20 00:00+00' AND time < '2024-08-27 00:00+00'",
        "WITH moved AS (DELETE FROM {m1} WHERE time >= '2024-09-09 00:00+00' AND time < '2024-09-10 00:00+00' RETURNING *) \
         INSERT INTO {m1} (time, close) SELECT time + interval '1 min', close FROM moved",
        // a gap is filled a week later, in no order
        "INSERT INTO {m1} (time, close) SELECT t, 1.08 + hashint8(extract(epoch FROM t)::int8) % 1000 / 100000.0 \
           FROM generate_series(timestamptz '2024-08-20 00:00+00', '2024-08-26 23:59+00', '10 min') AS t \
          ORDER BY hashint8(extract(epoch FROM t)::int8)",
    ] {
        run_for_all(&mut session, statement);
    }
}

#[test]
fn bars_by_copy_are_followed() {
    let (_db, mut session) = live_db("copy");
    let lines: Vec<String> = (0..1440)
        .map(|m| format!("2024-09-29 {:02}:{:02}+00\t1.{:05}\n", m / 60, m % 60, 7000 + m * 7 % 1000))
        .collect();
    for (pair, table) in PAIRS.iter().zip(["m1_eurusd_2024_09", "m1_gbpusd", "m1_audusd"]) {
        let copy = format!("COPY bqx.{table} (time, close) FROM stdin");
        let mut writer = session.copy_in(&copy).unwrap();
        writer.write_all(lines.concat().as_bytes()).unwrap();
        assert_eq!(writer.finish().unwrap(), 1440);
        assert_eq!(differences(&mut session, pair), [""; 0]);
        // one that fails leaves nothing behind
        let before = row_versions(&mut session, pair);
        let mut writer = session.copy_in(&copy).unwrap();
        writer.write_all("2024-09-28 00:00+00\t1.2\nrubbish\n".as_bytes()).unwrap();
        assert!(writer.finish().is_err());
        assert_eq!(row_versions(&mut session, pair), before);
    }
    assert_followed(&mut session, "COPY");
}

#[test]
fn truncating_removes_the_rows() {
    let (_db, mut session) = live_db("truncate");
    let count = |session: &mut Client, pair: &str| {
        row(
            session,
            &format!(
                "SELECT (SELECT count(*) FROM bqx.bqx_{pair}), (SELECT count(*) FROM bqx.reg_{pair}), (SELECT count(*) FROM bqx.m1_{pair})"
            ),
        )
    };
    run(&mut session, "TRUNCATE bqx.m1_eurusd_2024_08");
    assert_eq!(count(&mut session, "eurusd"), "2112|2112|2112", "a third is gone");
    assert_followed(&mut session, "TRUNCATE of a month");
    run(&mut session, "TRUNCATE bqx.\"in August\", bqx.\"in September\"");
    assert_followed(&mut session, "TRUNCATE of partitions amid months");
    run_each(&mut session, &["BEGIN", "TRUNCATE bqx.m1_eurusd"]);
    assert_eq!(count(&mut session, "eurusd"), "0|0|0");
    run(&mut session, "ROLLBACK");
    assert_followed(&mut session, "TRUNCATE that did not last");
    for pair in PAIRS {
        run(&mut session, &format!("TRUNCATE bqx.m1_{pair}"));
        assert_eq!(count(&mut session, pair), "0|0|0");
        run(&mut session, &format!("TRUNCATE bqx.m1_{pair}"));
        run(
            &mut session,
            &format!(
                "INSERT INTO bqx.m1_{pair} (time, close) VALUES ('2024-08-30 12:00+00', 1.1), ('2024-09-02 12:00+00', 1.2)"
            ),
        );
        assert_eq!(count(&mut session, pair), "2|2|2");
    }
    assert_followed(&mut session, "new bars in an empty table");
}

#[test]
fn what_is_rolled_back_leaves_nothing_and_what_stays_is_followed() {
    let (_db, mut session) = live_db("savepoints");
    let bar = |day: u32, close: &str| {
        format!(
            "INSERT INTO {{m1}} (time, close) VALUES ('2024-08-{day} 10:10+00', {close}) ON CONFLICT (time) DO UPDATE SET close = excluded.close"
        )
    };
    for pair in PAIRS {
        let m1 = format!("bqx.m1_{pair}");
        let of = |statement: &str| statement.replace("{m1}", &m1);
        let statements = [
            "BEGIN".to_owned(),
            of(&bar(12, "1.07")),
            "SAVEPOINT a".into(),
            of(&bar(12, "1.10")),
            of(&bar(13, "1.10")),
            "SAVEPOINT b".into(),
            of(&bar(14, "1.10")),
            "ROLLBACK TO b".into(),
            of("DELETE FROM {m1} WHERE time = '2024-08-12 10:10+00'"),
            "ROLLBACK TO a".into(),
            of(&bar(15, "1.09")),
            "RELEASE a".into(),
            "COMMIT".into(),
        ];
        run_each(&mut session, &statements);
        let left = format!(
            "SELECT string_agg(to_char(time, 'DD') || ' ' || close::numeric(5,2), ', ' ORDER BY time) FROM {m1} \
                            WHERE to_char(time, 'HH24:MI') = '10:10'"
        );
        assert_eq!(row(&mut session, &left), "12 1.07, 15 1.09");
    }
    assert_followed(&mut session, "savepoints");
    // an error amid a function that goes on
    run(
        &mut session,
        "DO $$ BEGIN FOR i IN 1..20 LOOP BEGIN \
             INSERT INTO bqx.m1_eurusd (time, close) VALUES (timestamptz '2024-08-16 11:01+00' + i * interval '1 min', 1.08); \
             IF i % 2 = 0 THEN PERFORM 1 / 0; END IF; \
         EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$",
    );
    assert_eq!(
        row(
            &mut session,
            "SELECT count(*) FROM bqx.reg_eurusd WHERE ts_utc > '2024-08-16 11:01+00' AND ts_utc < '2024-08-16 11:30+00'"
        ),
        "10"
    );
    assert_followed(&mut session, "a function's EXCEPTION blocks");
}

#[test]
fn partitions_that_others_make_are_followed_too() {
    let (db, mut session) = live_db("new_partitions");
    run_each(
        &mut session,
        &[
            "DROP TABLE bqx.m1_eurusd_2024_10, bqx.bqx_eurusd_2024_10, bqx.reg_eurusd_2024_10",
            "CREATE TABLE bqx.october PARTITION OF bqx.m1_eurusd FOR VALUES FROM ('2024-10-01 00:00+00') TO ('2024-11-01 00:00+00')",
            "INSERT INTO bqx.october (time, close) VALUES ('2024-10-01 00:00+00', 1.0833), ('2024-10-02 00:00+00', 1.0822)",
        ],
    );
    assert_eq!(rows_at(&mut session, "eurusd", "2024-10-01 00:00+00"), "1|1");
    assert_followed(&mut session, "a partition of somebody's");
    let made = "SELECT to_regclass('bqx.bqx_eurusd_2024_10') IS NOT NULL AND to_regclass('bqx.reg_eurusd_2024_10') IS NOT NULL";
    assert_eq!(row(&mut session, made), "t", "the derived month was made");
    // written straight in a transaction, with other changes
    run_each(
        &mut session,
        &[
            "BEGIN",
            "UPDATE bqx.october SET close = 1.09 WHERE time = '2024-10-02 00:00+00'",
            "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-10-03 00:00+00', 1.084)",
            "DELETE FROM bqx.october WHERE time = '2024-10-01 00:00+00'",
            "COMMIT",
        ],
    );
    assert_eq!(rows_at(&mut session, "eurusd", "2024-10-01 00:00+00"), "0|0");
    assert_followed(&mut session, "a transaction in a partition of somebody's");
    // and by somebody whose session is as replication's
    let mut replica = db.connect();
    run_each(
        &mut replica,
        &[
            "SET session_replication_role = replica",
            "CALL bqx.create_m1('{eurusd}', '2024-11-01', '2024-11-01')",
            "INSERT INTO bqx.m1_eurusd_2024_11 (time, close) VALUES ('2024-11-04 00:00+00', 1.085)",
            "UPDATE bqx.m1_eurusd SET close = 1.0861 WHERE time = '2024-10-02 00:00+00'",
            "DELETE FROM bqx.m1_gbpusd WHERE time = '2024-09-02 00:00'",
        ],
    );
    assert_eq!(rows_at(&mut session, "eurusd", "2024-11-04 00:00+00"), "1|1");
    assert_followed(&mut session, "a session as replication has it");
    // with a partition that is partitioned again
    run_each(
        &mut session,
        &[
            "CREATE TABLE bqx.december PARTITION OF bqx.m1_eurusd FOR VALUES FROM ('2024-12-01 00:00+00') TO ('2025-01-01 00:00+00') \
             PARTITION BY RANGE (time)",
            "CREATE TABLE bqx.advent PARTITION OF bqx.december FOR VALUES FROM ('2024-12-01 00:00+00') TO ('2024-12-24 00:00+00')",
            "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-12-02 00:00+00', 1.0833)",
            "INSERT INTO bqx.december (time, close) VALUES ('2024-12-03 00:00+00', 1.0834)",
            "INSERT INTO bqx.advent (time, close) VALUES ('2024-12-04 00:00+00', 1.0835)",
        ],
    );
    assert_eq!(rows_at(&mut session, "eurusd", "2024-12-04 00:00+00"), "1|1");
    assert_followed(&mut session, "partitions of partitions");
}

#[test]
fn a_detached_partition_is_nobodys_bars() {
    let (db, mut session) = live_db("detached");
    run(&mut session, "ALTER TABLE bqx.m1_eurusd DETACH PARTITION bqx.m1_eurusd_2024_08");
    let before = row_versions(&mut session, "eurusd");
    for statement in [
        "UPDATE bqx.m1_eurusd_2024_08 SET close = 2",
        "INSERT INTO bqx.m1_eurusd_2024_08 (time, close) VALUES ('2024-08-12 10:10+00', NULL)",
        "DELETE FROM bqx.m1_eurusd_2024_08 WHERE time < '2024-08-12 10:10+00'",
        "TRUNCATE bqx.m1_eurusd_2024_08",
    ] {
        run(&mut session, statement);
        assert_eq!(row_versions(&mut session, "eurusd"), before, "{statement}");
        assert_eq!(row(&mut db.connect(), "SELECT count(*) FROM bqx.bar_changes"), "0", "{statement}");
    }
    // The bars are gone, which refresh finds; whose index nobody sets, until they are back.
    run(&mut session, "CALL bqx.refresh()");
    assert_followed(&mut session, "DETACH and refresh");
    run_each(
        &mut session,
        &[
            "INSERT INTO bqx.m1_eurusd_2024_08 (time, close) VALUES ('2024-08-12 10:10+00', 1.0835)",
            "ALTER TABLE bqx.m1_eurusd ATTACH PARTITION bqx.m1_eurusd_2024_08 FOR VALUES FROM ('2024-08-01 00:00+00') TO ('2024-09-01 00:00+00')",
            "CALL bqx.index_m1('{eurusd}')",
            "CALL bqx.refresh()",
        ],
    );
    assert_followed(&mut session, "ATTACH and refresh");
    run(
        &mut session,
        "INSERT INTO bqx.m1_eurusd_2024_08 (time, close) VALUES ('2024-08-12 10:20+00', 1.0836)",
    );
    assert_followed(&mut session, "a bar in a partition that came back");
}

#[test]
fn a_partition_that_is_attached_is_followed_from_then_on() {
    let (_db, mut session) = live_db("attached");
    run_each(
        &mut session,
        &[
            "DROP TABLE bqx.m1_eurusd_2024_10",
            "CREATE TABLE bqx.autumn (LIKE bqx.m1_eurusd INCLUDING ALL)",
            "INSERT INTO bqx.autumn (time, close) VALUES ('2024-10-01 00:00+00', 1.0835)",
            "ALTER TABLE bqx.m1_eurusd ATTACH PARTITION bqx.autumn FOR VALUES FROM ('2024-10-01 00:00+00') TO ('2024-12-01 00:00+00')",
            "CALL bqx.index_m1('{eurusd}')",
            "CALL bqx.refresh()",
        ],
    );
    assert_followed(&mut session, "ATTACH");
    run(&mut session, "INSERT INTO bqx.autumn (time, close) VALUES ('2024-11-29 00:00+00', 1.0836)");
    assert_followed(&mut session, "a bar in the new partition");
}

#[test]
fn the_sessions_settings_and_the_nights_of_summer_time_change_no_bit() {
    let settings = ["UTC", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia"];
    let mut pictures = Vec::new();
    for (i, zone) in settings.iter().enumerate() {
        let (db, mut session) = live_db(&format!("zone_{i}"));
        run_each(
            &mut session,
            &[
                format!("SET TimeZone = '{zone}'"),
                "SET DateStyle = 'SQL, DMY'".into(),
                "SET IntervalStyle = 'sql_standard'".into(),
                "SET extra_float_digits = -10".into(),
                "SET search_path = ''".into(),
                "SET enable_indexscan = off".into(),
                "CALL bqx.create_m1('{eurusd}', '2024-10-01', '2024-11-01')".into(),
            ],
        );
        for pair in PAIRS {
            // summer time ends on October 27 in Europe, on November 3 in America, and began on October 6 in Australia
            let days = if pair == "eurusd" {
                &["09-30", "10-06", "10-26", "10-27", "10-31", "11-03"][..]
            } else {
                &["09-30"]
            };
            for day in days {
                let every = format!(
                    "INSERT INTO bqx.m1_{pair} (time, close) SELECT (t AT TIME ZONE 'UTC')::text::timestamp AT TIME ZONE 'UTC', \
                            1.08 + (extract(epoch FROM t)::int8 % 997) / 100000.0 \
                       FROM generate_series(timestamptz '2024-{day} 00:07+00', '2024-{day} 23:57+00', '10 min') AS t"
                );
                // a timestamp means UTC, whatever the session's zone
                let every = if pair == "gbpusd" {
                    every.replace("timestamp AT TIME ZONE 'UTC'", "timestamp")
                } else {
                    every
                };
                run(&mut session, &every);
            }
            run(
                &mut session,
                &format!("UPDATE bqx.m1_{pair} SET close = 1.0791 WHERE time = '2024-09-30 00:07+00'"),
            );
            run(&mut session, &format!("DELETE FROM bqx.m1_{pair} WHERE time = '2024-09-30 00:17+00'"));
        }
        assert_followed(&mut db.connect(), zone);
        pictures.push(checksums(&db));
    }
    assert!(pictures.windows(2).all(|two| two[0] == two[1]), "{pictures:#?}");
}

/// What a listener hears, without waiting for more than is there.
fn heard(listener: &mut Client) -> Vec<String> {
    run(listener, "SELECT 1");
    let mut notifications = listener.notifications();
    let mut found = Vec::new();
    let mut iterator = notifications.timeout_iter(Duration::from_millis(200));
    while let Some(notification) = iterator.next().unwrap() {
        assert_eq!(notification.channel(), "bqx_bars");
        found.push(notification.payload().to_owned());
    }
    found
}

#[test]
fn listeners_are_told_of_new_rows_if_that_is_asked_for() {
    let (db, mut session) = live_db("notify");
    let mut listener = db.connect();
    run(&mut listener, "LISTEN bqx_bars");
    let bar = "INSERT INTO bqx.m1_gbpusd (time, close) VALUES ('2024-09-30 23:45+00', 1.08) ON CONFLICT (time) DO UPDATE SET close = 1.09";
    run(&mut session, bar);
    assert_eq!(heard(&mut listener), [""; 0], "off by default");
    run_each(&mut session, &["SET TimeZone = 'Asia/Tokyo'", "SET bqx.notify = on", "BEGIN", bar, "ROLLBACK"]);
    assert_eq!(heard(&mut listener), [""; 0], "nothing happened");
    run(&mut session, bar);
    let told = |from: &str, to: &str| {
        format!(
            "{{\"pair\" : \"gbpusd\", \"from\" : \"2024-09-30T{from}:00+00:00\", \"to\" : \"2024-09-30T{to}:00+00:00\"}}"
        )
    };
    assert_eq!(heard(&mut listener), [told("23:45", "23:45")]);
    // a correction: rows of later bars are new, too
    run(&mut session, "UPDATE bqx.m1_gbpusd SET close = 1.07 WHERE time = '2024-09-30 22:00'");
    assert_eq!(heard(&mut listener), [told("22:00", "23:45")]);
    run(&mut session, "UPDATE bqx.m1_gbpusd SET volume = 5");
    assert_eq!(heard(&mut listener), [""; 0], "no row is new");
}

#[test]
fn a_bar_that_is_none_is_refused_and_named() {
    let (db, mut session) = live_db("bad_bars");
    let before = picture(&db);
    for (statement, named) in [
        (
            "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-09-30 23:45+00', NULL)",
            "close NULL at 2024-09-30 23:45:00 UTC",
        ),
        (
            "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-09-30 23:45+00', 'NaN')",
            "close NaN at 2024-09-30 23:45:00 UTC",
        ),
        (
            "UPDATE bqx.m1_eurusd SET close = -1 WHERE time = '2024-08-07 10:00+00'",
            "close -1 at 2024-08-07 10:00:00 UTC",
        ),
        (
            "UPDATE bqx.m1_eurusd_2024_08 SET close = 'Infinity' WHERE time = '2024-08-07 10:00+00'",
            "close inf at 2024-08-07 10:00:00 UTC",
        ),
        (
            "UPDATE bqx.m1_gbpusd SET close = 0 WHERE time = '2024-08-07 10:00'",
            "close 0 at 2024-08-07 10:00:00 UTC",
        ),
        ("UPDATE bqx.m1_gbpusd SET time = 'infinity' WHERE time = '2024-08-07 10:00'", "time is infinite"),
    ] {
        let error = error_of(&mut session, statement);
        assert_eq!(
            (error.code.as_str(), error.message.contains(named)),
            ("22003", true),
            "{statement}: {error:?}"
        );
        assert_ne!(error.hint, "", "{statement}");
        assert_eq!(picture(&db), before, "{statement}");
    }
    // Without live mode it comes in, and is named when its rows are to be computed.
    run(
        &mut session,
        "BEGIN; SET LOCAL bqx.live = off; UPDATE bqx.m1_gbpusd SET close = -1 WHERE time = '2024-08-07 10:00'; COMMIT",
    );
    let error = error_of(&mut session, "CALL bqx.refresh()");
    assert_eq!(error.code, "22003", "{error:?}");
    run(&mut session, "UPDATE bqx.m1_gbpusd SET close = 1.08 WHERE time = '2024-08-07 10:00'");
    run(&mut session, "CALL bqx.refresh()");
    assert_followed(&mut session, "a correction");
}

#[test]
fn a_derived_table_without_its_key_cannot_follow() {
    let (db, mut session) = live_db("no_key");
    run(&mut session, "ALTER TABLE bqx.reg_gbpusd DROP CONSTRAINT reg_gbpusd_pkey");
    let before = picture(&db);
    let error =
        error_of(&mut session, "INSERT INTO bqx.m1_gbpusd (time, close) VALUES ('2024-09-30 23:45', 1.08)");
    assert_eq!(error.code, "55000", "{error:?}");
    assert!(error.message.contains("reg_gbpusd has no unique index on ts_utc"), "{error:?}");
    assert!(error.hint.contains("ALTER TABLE bqx.reg_gbpusd ADD PRIMARY KEY (ts_utc)"), "{error:?}");
    assert_eq!(picture(&db), before);
    assert_eq!(error_of(&mut session, "CALL bqx.enable_live('{gbpusd}')").code, "55000");
    run_each(
        &mut session,
        &[
            "ALTER TABLE bqx.reg_gbpusd ADD PRIMARY KEY (ts_utc)",
            "INSERT INTO bqx.m1_gbpusd (time, close) VALUES ('2024-09-30 23:45', 1.08)",
        ],
    );
    assert_followed(&mut session, "a new key");
}

#[test]
fn derived_tables_may_change_while_a_pair_is_live() {
    let (_db, mut session) = live_db("altered");
    let bar = |minute: u32| {
        format!("INSERT INTO bqx.m1_gbpusd (time, close) VALUES ('2024-09-30 23:{minute}', 1.0844)")
    };
    for (minute, change) in [
        "ALTER TABLE bqx.reg_gbpusd DROP COLUMN w40_reg_r2",
        "ALTER TABLE bqx.reg_gbpusd ADD COLUMN note text DEFAULT 'mine'",
        "ALTER TABLE bqx.bqx_gbpusd ALTER COLUMN w20_bqx_return TYPE numeric",
        "ALTER TABLE bqx.bqx_gbpusd ALTER COLUMN w20_bqx_return TYPE double precision",
        "ALTER TABLE bqx.reg_gbpusd DROP COLUMN created_at",
        "CALL bqx.drop_tables('{bqx}', '{gbpusd}')",
        "CALL bqx.create_tables('{bqx}', '{gbpusd}', windows => '{3}')",
    ]
    .iter()
    .enumerate()
    {
        run(&mut session, change);
        run(&mut session, &bar(minute as u32 + 31));
        let row_there =
            format!("SELECT count(*) FROM bqx.reg_gbpusd WHERE ts_utc = '2024-09-30 23:{}+00'", minute + 31);
        assert_eq!(row(&mut session, &row_there), "1", "{change}");
    }
    run(&mut session, "ALTER TABLE bqx.reg_gbpusd DROP COLUMN note");
    run(&mut session, "CALL bqx.refresh()");
    assert_followed(&mut session, "changes of tables");
}

#[test]
fn a_prepared_transaction_has_its_rows() {
    let (db, mut session) = live_db("prepared_transactions");
    for (table, time) in [("m1_eurusd", "2024-09-30 23:45+00"), ("m1_gbpusd", "2024-09-30 23:45")] {
        run(
            &mut session,
            &format!(
                "BEGIN; INSERT INTO bqx.{table} (time, close) VALUES ('{time}', 1.08); PREPARE TRANSACTION 'bars'"
            ),
        );
        run(&mut session, "COMMIT PREPARED 'bars'");
        assert_followed(&mut db.connect(), "COMMIT PREPARED");
        run(
            &mut session,
            &format!("BEGIN; DELETE FROM bqx.{table} WHERE time = '{time}'; PREPARE TRANSACTION 'bars'"),
        );
        run(&mut session, "ROLLBACK PREPARED 'bars'");
        assert_followed(&mut db.connect(), "ROLLBACK PREPARED");
    }
    // of a pair that is not live, too
    run(&mut session, "CALL bqx.disable_live('{eurusd}')");
    run(
        &mut session,
        "BEGIN; INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-09-30 23:46+00', 1.08); PREPARE TRANSACTION 'bars'",
    );
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.stale()"), "0");
    run(&mut session, "COMMIT PREPARED 'bars'");
    let stale = "SELECT DISTINCT pair, month, reason FROM bqx.stale() ORDER BY 3";
    let expected = ["eurusd|2024-09-01|bars came or changed", "eurusd|2024-09-01|rows are missing"];
    assert_eq!(rows(&mut session, stale), expected);
    run(&mut session, "CALL bqx.refresh()");
    assert_followed(&mut session, "a refresh");
}

#[test]
fn a_restored_pair_is_as_live_as_it_was() {
    let (db, mut session) = live_db("dumped");
    run_each(
        &mut session,
        &[
            "CALL bqx.disable_live('{gbpusd}')",
            "UPDATE bqx.m1_gbpusd SET close = 1.07 WHERE time = '2024-08-06 10:00'",
            "UPDATE bqx.m1_eurusd SET close = 1.07 WHERE time = '2024-08-06 10:00+00'",
        ],
    );
    let cluster = server().cluster();
    let bin = &cluster.pg_config().bindir;
    cluster.create_database("restored").unwrap();
    let program = |name: &str, database: &str| {
        let mut command = Command::new(bin.join(name));
        command.env("PGHOST", cluster.socket_dir()).env("PGUSER", "postgres").args(["-d", database]);
        command
    };
    let dump = program("pg_dump", db.name()).output().unwrap();
    assert!(dump.status.success(), "{dump:?}");
    let mut restoring = program("psql", "restored")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    restoring.stdin.take().unwrap().write_all(&dump.stdout).unwrap();
    assert!(restoring.wait().unwrap().success());

    let mut restored = cluster.connect("restored").unwrap();
    for pair in ["eurusd", "audusd"] {
        assert_eq!(differences(&mut restored, pair), [""; 0]);
        run(
            &mut restored,
            &format!("UPDATE bqx.m1_{pair} SET close = 1.09 WHERE time = '2024-08-06 10:00+00'"),
        );
        run(
            &mut restored,
            &format!("INSERT INTO bqx.m1_{pair} (time, close) VALUES ('2024-09-30 23:40+00', 1.07)"),
        );
        assert_eq!(differences(&mut restored, pair), [""; 0], "live");
    }
    assert_ne!(differences(&mut restored, "gbpusd"), [""; 0]);
    run(&mut restored, "CALL bqx.refresh()");
    assert_followed(&mut restored, "what was noted before the dump");
}

#[test]
fn without_the_extension_the_tables_go_on() {
    let (_db, mut session) = live_db("dropped");
    run(&mut session, "DROP EXTENSION bqx CASCADE");
    let triggers = "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal";
    assert_eq!(row(&mut session, triggers), "0");
    run(&mut session, "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-09-30 23:45+00', 1.08)");
    run(&mut session, "INSERT INTO bqx.m1_gbpusd (time, close) VALUES ('2024-09-30 23:45', 1.08)");
    assert_eq!(row(&mut session, "SELECT count(*) FROM bqx.reg_eurusd"), "3168");
    // and come back
    run_each(
        &mut session,
        &[
            "CREATE EXTENSION bqx",
            "CALL bqx.set_baselines('2024-07-01 00:00+00')",
            "CALL bqx.index_m1()",
            "CALL bqx.enable_live()",
        ],
    );
    assert_followed(&mut session, "CREATE EXTENSION");
    run(&mut session, "UPDATE bqx.m1_eurusd SET close = 1.09 WHERE time = '2024-09-30 23:45+00'");
    assert_followed(&mut session, "a correction");
}

#[test]
fn calls_say_what_is_wrong_before_they_do_anything() {
    let (db, mut session) = live_db("arguments");
    run_each(
        &mut session,
        &[
            "CALL bqx.create_m1('{usdjpy}', '2024-07-01', '2024-07-01')",
            "CALL bqx.create_m1('{usdchf}', '2024-07-01', '2024-07-01')",
            "INSERT INTO bqx.m1_usdchf (time, close) VALUES ('2024-07-01 00:00+00', 0.9)",
            "CALL bqx.create_tables(pairs => '{usdchf}')",
        ],
    );
    let before = picture(&db);
    for call in ["enable_live", "disable_live", "refresh"] {
        let called = |pairs: &str| format!("CALL bqx.{call}('{pairs}')");
        for (sql, code, part) in [
            (called("{nosuch}"), "22023", "nosuch"),
            (called("{}"), "22023", ""),
            (called("{eurusd,NULL}"), "22023", ""),
            (called("{eurusd,nzdusd}"), "42P01", "m1_nzdusd does not exist"),
            (format!("BEGIN; CALL bqx.{call}(); COMMIT"), "25001", call),
        ] {
            let error = error_of(&mut session, &sql);
            run(&mut session, "ROLLBACK");
            assert_eq!((error.code.as_str(), error.message.contains(part)), (code, true), "{sql}: {error:?}");
        }
    }
    for call in ["enable_live", "refresh"] {
        for (pair, code, hint) in [("usdjpy", "42P01", "create_tables"), ("usdchf", "55000", "set_baselines")]
        {
            let error = error_of(&mut session, &format!("CALL bqx.{call}('{{eurusd,{pair}}}')"));
            assert_eq!(
                (error.code.as_str(), error.hint.contains(hint)),
                (code, true),
                "{call} {pair}: {error:?}"
            );
        }
    }
    assert_eq!(error_of(&mut session, "SELECT * FROM bqx.stale('{nosuch}')").code, "22023");
    let after = picture(&db);
    for (a, b) in before.iter().zip(&after) {
        if a != b {
            println!("{a}\n{b}");
        }
    }
    assert_eq!(picture(&db), before);
    assert!(attempt(&mut session, "CALL bqx.disable_live('{usdchf}')").is_ok());
}

#[test]
fn a_live_pair_without_derived_tables_takes_bars() {
    let (_db, mut session) = live_db("no_tables");
    run_each(
        &mut session,
        &[
            "CALL bqx.drop_tables('{bqx,reg}', '{eurusd}')",
            "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-09-30 23:45+00', 1.08)",
            "CALL bqx.create_tables('{bqx}', '{eurusd}')",
            "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-09-30 23:46+00', 1.08)",
            "CALL bqx.create_tables('{reg}', '{eurusd}')",
            "CALL bqx.refresh()",
        ],
    );
    assert_followed(&mut session, "new tables");
    assert_eq!(rows(&mut session, "SELECT * FROM bqx.verify() WHERE ok IS NOT TRUE"), [""; 0]);
}
