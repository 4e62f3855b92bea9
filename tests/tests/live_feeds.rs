//! Several feeds at once, and feeds beside refreshes and backfills: every row is right in the end, nobody is in a deadlock,
//! and a transaction that can't know all bars is told so.

mod common;

use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use bqx_tests::{Db, SqlError};
use common::followed::{Followed, PAIRS, differences};
use common::{attempt, row, rows, run, run_each};
use postgres::Client;

fn server() -> &'static Followed {
    static SERVER: OnceLock<Followed> = OnceLock::new();
    SERVER.get_or_init(|| {
        Followed::start("live-feeds", &[("max_worker_processes", "30"), ("deadlock_timeout", "100ms")])
    })
}

fn assert_followed(db: &Db, after: &str) {
    for pair in PAIRS {
        assert_eq!(differences(&mut db.connect(), pair), [""; 0], "after {after}");
    }
    let log = std::fs::read_to_string(server().cluster().log_file()).expect("a log");
    assert!(!log.contains("deadlock detected"), "after {after}");
}

/// A new bar of eurusd, amid others or at the end.
fn bar(instant: &str, close: &str) -> String {
    format!("INSERT INTO bqx.m1_eurusd (time, close) VALUES ('{instant}+00', {close})")
}

/// Waits until so many sessions of the database wait for locks.
fn wait_for_waiting(db: &Db, sessions: usize) {
    let mut control = db.connect();
    let waiting = "SELECT count(DISTINCT l.pid) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid) \
                   WHERE NOT l.granted AND a.datname = current_database()";
    let give_up = Instant::now() + Duration::from_secs(60);
    while row(&mut control, waiting).parse::<usize>().expect("a number") < sessions {
        assert!(Instant::now() < give_up, "in vain: {sessions} sessions that wait");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a statement that has to wait for what `holder` has, who then ends its transaction; how the statement ended.
fn behind(
    db: &Db,
    holder: &mut Client,
    end: &str,
    waiting: &mut Client,
    statement: &str,
) -> Result<(), SqlError> {
    thread::scope(|scope| {
        let waiter = scope.spawn(move || attempt(waiting, statement));
        wait_for_waiting(db, 1);
        run(holder, end);
        waiter.join().expect("no panic")
    })
}

#[test]
fn overlapping_transactions_of_two_feeds_see_each_others_bars() {
    let db = server().live_db("overlapping");
    let (mut first, mut second) = (db.connect(), db.connect());
    for (end, second_of_minute) in [("COMMIT", 1), ("ROLLBACK", 2)] {
        run_each(&mut first, &["BEGIN", &bar(&format!("2024-09-30 23:41:{second_of_minute:02}"), "1.071")]);
        // the second's rows depend on the first's bar
        run(&mut second, "BEGIN");
        let later = bar(&format!("2024-09-30 23:45:{second_of_minute:02}"), "1.072");
        behind(&db, &mut first, end, &mut second, &later).expect("it had to wait");
        assert_eq!(differences(&mut second, "eurusd"), [""; 0], "before the second ends");
        run(&mut second, "COMMIT");
        assert_followed(&db, &format!("two feeds, the first of which said {end}"));
    }
    // another pair is not waited for
    run_each(&mut first, &["BEGIN", &bar("2024-09-30 23:50", "1.07")]);
    run(&mut second, "SET lock_timeout = '5s'");
    run(&mut second, "INSERT INTO bqx.m1_audusd (time, close) VALUES ('2024-09-30 23:50+00', 1.07)");
    run(&mut first, "COMMIT");
    assert_followed(&db, "two feeds of two pairs");
}

#[test]
fn two_feeds_may_bring_the_same_bar() {
    let db = server().live_db("same_bar");
    let (mut first, mut second) = (db.connect(), db.connect());
    let at = "2024-09-30 23:45";
    run_each(&mut first, &["BEGIN", &bar(at, "1.071")]);
    let ended = behind(&db, &mut first, "COMMIT", &mut second, &bar(at, "1.072"));
    assert_eq!(ended.expect_err("it is there").code, "23505");
    for (conflict, close) in
        [("DO NOTHING", "1.071"), ("(time) DO UPDATE SET close = excluded.close", "1.073")]
    {
        run(&mut first, "BEGIN; UPDATE bqx.m1_eurusd SET volume = 1 WHERE time = '2024-09-30 23:45+00'");
        let again = format!("{} ON CONFLICT {conflict}", bar(at, "1.073"));
        behind(&db, &mut first, "COMMIT", &mut second, &again).expect(conflict);
        assert_eq!(
            row(&mut first, "SELECT close FROM bqx.m1_eurusd WHERE time = '2024-09-30 23:45+00'"),
            close
        );
    }
    assert_followed(&db, "the same bar of two feeds");
}

#[test]
fn bars_in_opposite_orders_are_no_deadlock() {
    let db = server().live_db("opposite_orders");
    let (mut first, mut second) = (db.connect(), db.connect());
    let (early, late) = ("2024-09-30 23:41", "2024-09-30 23:45");
    let upsert = |at: &str, close: &str| {
        format!("{} ON CONFLICT (time) DO UPDATE SET close = excluded.close", bar(at, close))
    };
    for (a, b) in [(early, late), (late, early)] {
        run_each(&mut first, &["BEGIN", &upsert(a, "1.071")]);
        thread::scope(|scope| {
            let second = &mut second;
            let waiter = scope.spawn(move || {
                run_each(second, &["BEGIN", &upsert(b, "1.072"), &upsert(a, "1.072"), "COMMIT"])
            });
            wait_for_waiting(&db, 1);
            run_each(&mut first, &[&upsert(b, "1.071"), "COMMIT"]);
            waiter.join().expect("no deadlock");
        });
        let last = format!("SELECT DISTINCT close FROM bqx.m1_eurusd WHERE time IN ('{a}+00', '{b}+00')");
        assert_eq!(rows(&mut first, &last), ["1.072"], "who waited was last");
    }
    assert_followed(&db, "opposite orders");
}

#[test]
fn transactions_whose_rows_are_computed_in_the_end_are_no_deadlock() {
    let db = server().live_db("in_the_end");
    let mut control = db.connect();
    // partitions without triggers of statements
    for (pair, from) in [("eurusd", "2024-11-01"), ("audusd", "2024-11-01")] {
        run(
            &mut control,
            &format!(
                "CREATE TABLE bqx.late_{pair} PARTITION OF bqx.m1_{pair} FOR VALUES FROM ('{from} 00:00+00') TO ('2025-02-01 00:00+00')"
            ),
        );
    }
    let insert = |pair: &str, hour: usize, i: usize| {
        format!(
            "INSERT INTO bqx.late_{pair} (time, close) VALUES ('2024-11-04 {hour:02}:{i:02}+00', 1.0{}) ",
            7 + i % 3
        )
    };
    thread::scope(|scope| {
        for (hour, order) in [["eurusd", "audusd"], ["audusd", "eurusd"]].iter().enumerate() {
            let mut session = db.connect();
            scope.spawn(move || {
                for i in 0..30 {
                    let [a, b] = order.map(|pair| insert(pair, hour, i));
                    run_each(&mut session, &["BEGIN", &a, &b, "COMMIT"]);
                }
            });
        }
    });
    assert_eq!(
        row(&mut control, "SELECT count(*) FROM bqx.reg_audusd WHERE ts_utc >= '2024-11-01 00:00+00'"),
        "60"
    );
    assert_followed(&db, "pairs in opposite orders");
}

#[test]
fn an_old_snapshot_that_does_not_show_all_bars_is_refused() {
    let db = server().live_db("old_snapshot");
    let (mut feed, mut other) = (db.connect(), db.connect());
    let tail = ["23:41", "23:42", "23:43", "23:44", "23:45", "23:46", "23:47", "23:48"]
        .map(|m| format!("2024-09-30 {m}"));
    for (i, level) in ["REPEATABLE READ", "SERIALIZABLE"].iter().enumerate() {
        let begin = format!("BEGIN ISOLATION LEVEL {level}");
        let tail = &tail[4 * i..];
        let look = "SELECT count(*) FROM bqx.m1_gbpusd";
        // a bar that its row looks back at
        run_each(&mut feed, &[&begin, look]);
        run(&mut other, &bar(&tail[0], "1.07"));
        let error = attempt(&mut feed, &bar(&tail[1], "1.07")).expect_err(level);
        assert_eq!(error.code, "40001", "{error:?}");
        assert!(error.message.contains("eurusd") && !error.hint.is_empty(), "{error:?}");
        run(&mut feed, "ROLLBACK");
        // bars that it does not look back at, and other pairs'
        run_each(&mut feed, &[&begin, look]);
        run(
            &mut other,
            &format!(
                "UPDATE bqx.m1_eurusd SET close = 1.09 + {i} / 1000.0 WHERE time = '2024-08-01 00:00+00'"
            ),
        );
        run(&mut other, &format!("INSERT INTO bqx.m1_audusd (time, close) VALUES ('{}+00', 1.07)", tail[0]));
        run_each(&mut feed, &[&bar(&tail[2], "1.07"), "COMMIT"]);
        // and the same transaction again
        run_each(&mut feed, &[&begin, look, &bar(&tail[1], "1.07"), &bar(&tail[3], "1.07"), "COMMIT"]);
        assert_followed(&db, level);
    }
}

#[test]
fn an_old_snapshot_that_waited_is_refused_too() {
    let db = server().live_db("waited");
    let (mut first, mut second) = (db.connect(), db.connect());
    run_each(&mut first, &["BEGIN", &bar("2024-09-30 23:41", "1.07")]);
    run_each(&mut second, &["BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT 1"]);
    let ended = behind(&db, &mut first, "COMMIT", &mut second, &bar("2024-09-30 23:42", "1.07"));
    assert_eq!(ended.expect_err("a bar came").code, "40001");
    run(&mut second, "ROLLBACK");
    // what did not last is no reason
    run_each(&mut first, &["BEGIN", &bar("2024-09-30 23:43", "1.07")]);
    run_each(&mut second, &["BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT 1"]);
    behind(&db, &mut first, "ROLLBACK", &mut second, &bar("2024-09-30 23:44", "1.07")).expect("nothing came");
    run(&mut second, "COMMIT");
    assert_followed(&db, "old snapshots");
}

type Work<'a> = Box<dyn Fn(&mut Client) + Sync + 'a>;

/// What several sessions do at once, each until it is through.
fn at_once(db: &Db, works: &[Work<'_>]) {
    thread::scope(|scope| {
        let workers: Vec<_> = works.iter().map(|work| scope.spawn(move || work(&mut db.connect()))).collect();
        workers.into_iter().for_each(|worker| worker.join().expect("no error"));
    });
}

#[test]
fn feeds_refreshes_and_backfills_at_once_leave_every_row_right() {
    let db = server().live_db("at_once");
    run(&mut db.connect(), "CALL bqx.disable_live('{gbpusd}')");
    let feed = |step: i64| {
        move |session: &mut Client| {
            for i in 0..40_i64 {
                let n = 2 + (i * step) % 27;
                for pair in PAIRS {
                    let m1 = format!("bqx.m1_{pair}");
                    let statement = match (i * step) % 4 {
                        0 => format!("DELETE FROM {m1} WHERE time = '2024-08-{n:02} 10:30+00'"),
                        1 => format!(
                            "UPDATE {m1} SET close = close + 0.0001 WHERE time >= '2024-09-{n:02} 10:00+00' AND time < '2024-09-{n:02} 11:00+00'"
                        ),
                        2 => format!(
                            "INSERT INTO {m1} (time, close) SELECT max(time) + interval '1 s', 1.08 FROM {m1} ON CONFLICT DO NOTHING"
                        ),
                        _ => format!(
                            "INSERT INTO {m1} (time, close) VALUES ('2024-07-{n:02} 10:{n:02}+00', 1.08) \
                                      ON CONFLICT (time) DO UPDATE SET close = excluded.close + 0.0002"
                        ),
                    };
                    run(session, &statement);
                }
            }
        }
    };
    let calls = |session: &mut Client| {
        for call in [
            "CALL bqx.refresh()",
            "CALL bqx.backfill(workers => 1)",
            "CALL bqx.refresh('{gbpusd}')",
            "CALL bqx.backfill(workers => 0, force => true)",
        ] {
            run(session, call);
        }
    };
    at_once(&db, &[Box::new(feed(1)), Box::new(feed(3)), Box::new(feed(5)), Box::new(calls)]);
    // live pairs are right without anybody's help
    for pair in ["eurusd", "audusd"] {
        assert_eq!(differences(&mut db.connect(), pair), [""; 0]);
    }
    run(&mut db.connect(), "CALL bqx.refresh()");
    assert_followed(&db, "all at once");
    assert_eq!(rows(&mut db.connect(), "SELECT * FROM bqx.verify() WHERE ok IS NOT TRUE"), [""; 0]);
    assert_eq!(rows(&mut db.connect(), "SELECT * FROM bqx.stale()"), [""; 0]);
}

#[test]
fn live_mode_begins_and_ends_amid_feeds() {
    let db = server().db("begins_and_ends");
    let feed = |of: i64| {
        move |session: &mut Client| {
            for i in 0..150_i64 {
                let (day, minute) = (2 + (i * (of + 2)) % 27, (i * 7 + of) % 60);
                run(
                    session,
                    &format!(
                        "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-09-{day:02} 1{of}:{minute:02}:01+00', 1.08) ON CONFLICT DO NOTHING"
                    ),
                );
            }
        }
    };
    let calls = |session: &mut Client| {
        for _ in 0..4 {
            run_each(session, &["CALL bqx.enable_live('{eurusd}')", "CALL bqx.disable_live('{eurusd}')"]);
        }
        run(session, "CALL bqx.enable_live('{eurusd}')");
    };
    at_once(&db, &[Box::new(feed(0)), Box::new(feed(1)), Box::new(calls)]);
    assert_followed(&db, "live mode that began and ended");
    assert_eq!(rows(&mut db.connect(), "SELECT * FROM bqx.stale()"), [""; 0]);
}
