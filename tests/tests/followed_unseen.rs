//! Changes that come past what live mode and refresh look at: tables that are renamed, inherited from, emptied by a crash or made
//! anew, old snapshots, and statements that end in the middle. No row may be wrong unseen.

mod common;

use std::sync::OnceLock;

use bqx_tests::error_of;
use common::followed::{Followed, differences};
use common::{row, rows, run, run_each};
use pgcluster::StopMode;
use postgres::Client;

fn server() -> &'static Followed {
    static SERVER: OnceLock<Followed> = OnceLock::new();
    SERVER.get_or_init(|| Followed::start("followed-unseen", &[("max_worker_processes", "30")]))
}

/// After a refresh, rows are those of the bars, and nothing is stale.
fn assert_refreshed(session: &mut Client, pair: &str) {
    run(session, &format!("CALL bqx.refresh('{{{pair}}}')"));
    assert_eq!(differences(session, pair), [""; 0]);
    assert_eq!(rows(session, &format!("SELECT * FROM bqx.stale('{{{pair}}}')")), [""; 0]);
}

/// The triggers of M1 ask PostgreSQL for things; an error there, or a cancellation, is the statement's end and no more.
#[test]
fn a_statement_that_is_cancelled_while_its_changes_are_noted_is_all_that_ends() {
    for (name, live) in [("cancelled_noted", false), ("cancelled_live", true)] {
        let db = if live { server().live_db(name) } else { server().db(name) };
        let (mut feed, mut other) = (db.connect(), db.connect());
        run(&mut feed, "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-09-30 23:31+00', 1.08)");
        run(&mut other, "BEGIN; LOCK TABLE pg_inherits IN ACCESS EXCLUSIVE MODE");
        run(&mut feed, "SET statement_timeout = '300ms'");
        for attempt in 0..2 {
            let insert = format!(
                "INSERT INTO bqx.m1_eurusd_2024_09 (time, close) VALUES ('2024-09-30 23:3{}+00', 1.08)",
                2 + attempt
            );
            assert_eq!(error_of(&mut feed, &insert).code, "57014", "{name}");
        }
        run(&mut other, "ROLLBACK");
        run(&mut feed, "RESET statement_timeout");
        run(&mut feed, "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-09-30 23:35+00', 1.09)");
        if live {
            assert_eq!(differences(&mut feed, "eurusd"), [""; 0]);
        }
        assert_refreshed(&mut feed, "eurusd");
    }
}

/// A trigger has the pair as its argument: under another name of the table it would note nothing.
#[test]
fn a_table_that_is_renamed_is_another_pairs() {
    for (name, live) in [("renamed_noted", false), ("renamed_live", true)] {
        let db = if live { server().live_db(name) } else { server().db(name) };
        let mut session = db.connect();
        run_each(
            &mut session,
            &[
                "INSERT INTO bqx.pairs (pair) VALUES ('eurusdx')",
                "ALTER TABLE bqx.m1_eurusd RENAME TO m1_eurusdx",
                "ALTER TABLE bqx.bqx_eurusd RENAME TO bqx_eurusdx",
                "ALTER TABLE bqx.reg_eurusd RENAME TO reg_eurusdx",
                "UPDATE bqx.m1_eurusdx SET close = close + 0.001 WHERE time = '2024-08-06 10:00+00'",
                "CALL bqx.set_baselines('2024-07-01 00:00+00', '{eurusdx}')",
                "CALL bqx.index_m1('{eurusdx}')",
                "CALL bqx.backfill(pairs => '{eurusdx}', workers => 0)",
                "UPDATE bqx.m1_eurusdx SET close = close + 0.001 WHERE time = '2024-08-06 11:00+00'",
            ],
        );
        assert_refreshed(&mut session, "eurusdx");
        run_each(
            &mut session,
            &[
                "CALL bqx.enable_live('{eurusdx}')",
                "UPDATE bqx.m1_eurusdx SET close = close - 0.001 WHERE time = '2024-08-06 10:00+00'",
                "INSERT INTO bqx.m1_eurusd_2024_09 (time, close) VALUES ('2024-09-30 23:40+00', 1.1)",
            ],
        );
        assert_eq!(differences(&mut session, "eurusdx"), [""; 0], "{name}");
    }
}

/// One row that follows a bar is no sign that the other rows are there.
#[test]
fn rows_that_went_with_their_table_come_back_though_new_ones_have_followed() {
    let db = server().live_db("made_anew");
    let mut session = db.connect();
    let bar = |minute: u32, close: f64| {
        format!("INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-09-30 23:{minute}+00', {close})")
    };
    run_each(&mut session, &["TRUNCATE bqx.bqx_eurusd_2024_09", &bar(41, 1.08)]);
    assert_refreshed(&mut session, "eurusd");
    run_each(
        &mut session,
        &["DROP TABLE bqx.reg_eurusd", "CALL bqx.create_tables('{reg}', '{eurusd}')", &bar(42, 1.09)],
    );
    assert_refreshed(&mut session, "eurusd");
    run_each(&mut session, &["DROP TABLE bqx.bqx_eurusd_2024_07", &bar(43, 1.09)]);
    assert_refreshed(&mut session, "eurusd");
}

/// An old snapshot may show a bar, and not the row that somebody else has stored for it since.
#[test]
fn a_bar_is_not_deleted_by_who_cannot_see_its_row() {
    let db = server().live_db("unseen_row");
    let (mut session, mut old) = (db.connect(), db.connect());
    let bar = "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-09-30 23:44+00', 1.08)";
    run_each(
        &mut session,
        &["UPDATE bqx.m1_eurusd SET close = close + 0.001 WHERE time = '2024-09-30 23:30+00'"],
    );
    run_each(&mut session, &["SET bqx.live = off", bar]);
    run_each(&mut old, &["BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT count(*) FROM bqx.m1_eurusd"]);
    run(&mut session, "CALL bqx.refresh('{eurusd}')");
    let delete = "DELETE FROM bqx.m1_eurusd WHERE time = '2024-09-30 23:44+00'";
    assert_eq!(error_of(&mut old, delete).code, "40001");
    run_each(&mut old, &["ROLLBACK", delete]);
    assert_eq!(differences(&mut old, "eurusd"), [""; 0]);
}

/// Bars of tables that inherit from M1 are bars of M1 to every query, but fire none of its triggers and are in none of its indexes.
#[test]
fn tables_that_inherit_are_read() {
    let db = server().db("inherited");
    let mut session = db.connect();
    run_each(
        &mut session,
        &[
            "CREATE TABLE bqx.older (LIKE bqx.m1_gbpusd INCLUDING ALL) INHERITS (bqx.m1_gbpusd)",
            "WITH moved AS (DELETE FROM ONLY bqx.m1_gbpusd WHERE time < '2024-09-10' RETURNING *) \
             INSERT INTO bqx.older SELECT * FROM moved",
            "CALL bqx.refresh('{gbpusd}')",
        ],
    );
    assert_eq!(differences(&mut session, "gbpusd"), [""; 0]);
    run_each(
        &mut session,
        &[
            "UPDATE bqx.older SET rate_index = rate_index + 1 WHERE time = '2024-08-06 10:00'",
            "CALL bqx.refresh('{gbpusd}')",
        ],
    );
    assert_eq!(differences(&mut session, "gbpusd"), [""; 0]);
    run_each(
        &mut session,
        &[
            "CALL bqx.enable_live('{gbpusd}')",
            "INSERT INTO bqx.m1_gbpusd (time, close) VALUES ('2024-09-30 23:45', 1.1)",
        ],
    );
    assert_eq!(differences(&mut session, "gbpusd"), [""; 0]);
    assert_eq!(
        row(&mut session, "SELECT (bqx._m1_span('bqx.m1_gbpusd')).first_bar = '2024-07-01 00:00+00'"),
        "t"
    );
}

/// An unlogged table is empty after a crash, and looks as if nothing had happened.
#[test]
fn bars_that_a_crash_took_take_their_rows_along() {
    let own = Followed::start("followed-crash", &[]);
    let connect = || own.cluster().connect("prepared").unwrap(); // no copy: that is not yet safe from a crash
    run_each(
        &mut connect(),
        &["ALTER TABLE bqx.m1_gbpusd SET UNLOGGED", "CALL bqx.refresh('{gbpusd}')", "CHECKPOINT"],
    );
    own.cluster().stop(StopMode::Immediate).unwrap();
    own.cluster().start_again().unwrap();
    let mut session = connect();
    run_each(
        &mut session,
        &[
            "INSERT INTO bqx.m1_gbpusd (time, close) SELECT t, 1.08 FROM generate_series(timestamp '2024-09-30 00:00', \
             '2024-09-30 10:00', interval '1 min') AS t",
            "CALL bqx.refresh('{gbpusd}')",
        ],
    );
    assert_eq!(differences(&mut session, "gbpusd"), [""; 0]);
}

/// What was noted before a savepoint is still to be done when its rows went with it.
#[test]
fn rows_that_a_savepoint_takes_along_are_computed_again() {
    let db = server().live_db("savepoints");
    let mut session = db.connect();
    run_each(
        &mut session,
        &[
            "BEGIN",
            "SET LOCAL bqx.live = off",
            "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-09-30 23:46+00', 1.08)",
            "SET LOCAL bqx.live = on",
            "SAVEPOINT one",
            "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-09-30 23:47+00', 1.09)",
            "SAVEPOINT two",
            "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-09-30 23:48+00', 1.09)",
            "RELEASE two",
            "ROLLBACK TO one",
            "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-09-30 23:49+00', 1.1)",
            "COMMIT",
        ],
    );
    assert_eq!(differences(&mut session, "eurusd"), [""; 0]);
}

/// Who runs backfills, and never a refresh, does not collect changes for ever.
#[test]
fn backfills_forget_what_they_answer_whatever_they_were_called_for() {
    let db = server().db("answered");
    let mut session = db.connect();
    let change = |month: &str| {
        format!("UPDATE bqx.m1_eurusd SET close = close + 0.0001 WHERE time = '2024-{month}-06 10:00+00'")
    };
    let noted = |session: &mut Client| row(session, "SELECT count(*) FROM bqx.bar_changes");
    run_each(&mut session, &["DELETE FROM bqx.bar_changes", &change("08"), &change("09")]);
    run(&mut session, "CALL bqx.backfill('{bqx}', '{eurusd}', '2024-08-01', '2024-08-01', workers => 0)");
    assert_eq!(noted(&mut session), "2", "the other family has not seen them");
    run(&mut session, "CALL bqx.backfill('{reg}', '{eurusd}', '2024-08-01', '2024-08-01', workers => 0)");
    assert_eq!(noted(&mut session), "1");
    run_each(&mut session, &[&change("08"), "CALL bqx.backfill(pairs => '{eurusd}', workers => 0)"]);
    assert_eq!(noted(&mut session), "0");
    // Nothing is collected for pairs whose rows nobody wants.
    run_each(
        &mut session,
        &["CALL bqx.drop_tables('{bqx,reg}', '{audusd}')", "UPDATE bqx.m1_audusd SET close = close * 1.01"],
    );
    assert_eq!(noted(&mut session), "0");
}

/// One pair that can't be refreshed keeps none of the others from it.
#[test]
fn a_pair_without_its_index_keeps_none_of_the_others_from_a_refresh() {
    let db = server().db("others");
    let mut session = db.connect();
    run_each(
        &mut session,
        &[
            "CALL bqx.set_baselines('2024-07-02 00:00+00', '{audusd}')",
            "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-09-30 23:50+00', 1.08)",
        ],
    );
    let error = error_of(&mut session, "CALL bqx.refresh()");
    assert_eq!(error.code, "55000", "{error:?}");
    assert!(error.detail.contains("audusd") && error.hint.contains("index_m1"), "{error:?}");
    assert_eq!(differences(&mut session, "eurusd"), [""; 0]);
}
