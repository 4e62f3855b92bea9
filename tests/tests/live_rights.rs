//! Live mode asks for no more rights than the rows that it stores, takes nobody's, and loses nothing where one is missing.

mod common;

use std::sync::OnceLock;

use bqx_tests::{Db, error_of};
use common::followed::{Followed, PAIRS, differences};
use common::{picture, row, rows, run, run_each};
use postgres::Client;

fn server() -> &'static Followed {
    static SERVER: OnceLock<Followed> = OnceLock::new();
    SERVER.get_or_init(|| Followed::start("live-rights", &[]))
}

/// A database of live pairs, and a role of the test's own that may do this with their tables.
fn live_db_with(role: &str, rights: &str) -> (Db<'static>, Client, Client) {
    let db = server().live_db(role);
    let mut owner = db.connect();
    run(&mut owner, &format!("CREATE ROLE {role} LOGIN"));
    for pair in PAIRS {
        run(
            &mut owner,
            &format!("GRANT {rights} ON bqx.m1_{pair}, bqx.bqx_{pair}, bqx.reg_{pair} TO {role}"),
        );
    }
    let feed = db.connect_as(role);
    (db, owner, feed)
}

const NEW_BAR: &str = "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-09-30 23:40+00', 1.07)";

fn assert_followed(session: &mut Client, after: &str) {
    for pair in PAIRS {
        assert_eq!(differences(session, pair), [""; 0], "after {after}");
    }
}

#[test]
fn a_feed_needs_the_rights_on_rows_and_no_others() {
    let (_db, mut owner, mut feed) = live_db_with("live_feed", "SELECT, INSERT, UPDATE, DELETE");
    for pair in PAIRS {
        for statement in [
            "INSERT INTO {m1} (time, close) VALUES ('2024-09-30 23:40+00', 1.07)",
            "INSERT INTO {m1} (time, close) VALUES ('2024-09-30 23:40+00', 1.08) ON CONFLICT (time) DO UPDATE SET close = excluded.close",
            "UPDATE {m1} SET close = 1.075 WHERE time = '2024-08-06 10:00+00'",
            "DELETE FROM {m1} WHERE time = '2024-08-06 11:00+00'",
        ] {
            let statement = statement.replace("{m1}", &format!("bqx.m1_{pair}"));
            run(&mut feed, &statement);
            assert_eq!(differences(&mut owner, pair), [""; 0], "after {statement}");
        }
    }
    // straight into a partition, which PostgreSQL asks the rights of
    run(&mut owner, "GRANT INSERT ON bqx.m1_eurusd_2024_09 TO live_feed");
    run(&mut feed, "INSERT INTO bqx.m1_eurusd_2024_09 (time, close) VALUES ('2024-09-30 23:41+00', 1.07)");
    assert_followed(&mut owner, "a bar straight into a partition");
    // what is noted, too
    run_each(
        &mut feed,
        &[
            "BEGIN",
            "SET LOCAL bqx.live = off",
            "UPDATE bqx.m1_eurusd SET close = 1.076 WHERE time = '2024-08-06 10:00+00'",
            "COMMIT",
        ],
    );
    assert_eq!(row(&mut owner, "SELECT count(*) FROM bqx.stale()"), "2");
    assert_eq!(error_of(&mut feed, "SELECT * FROM bqx.bar_changes").code, "42501");
    assert_eq!(error_of(&mut feed, "INSERT INTO bqx.bar_changes (pair, from_ts, to_ts, removed) VALUES ('eurusd', now(), now(), true)").code, "42501");
    run(&mut feed, "CALL bqx.refresh('{eurusd}')");
    assert_followed(&mut owner, "the feed's refresh");
}

#[test]
fn a_missing_right_is_named_and_nothing_is_lost() {
    for (role, revoked, statement, named) in [
        ("live_no_select", "SELECT ON bqx.m1_eurusd", NEW_BAR, "m1_eurusd"),
        ("live_no_insert", "INSERT ON bqx.reg_eurusd", NEW_BAR, "reg_eurusd"),
        (
            "live_no_update",
            "UPDATE ON bqx.bqx_eurusd",
            "UPDATE bqx.m1_eurusd SET close = 1.075",
            "bqx_eurusd",
        ),
        ("live_no_delete", "DELETE ON bqx.reg_eurusd", "DELETE FROM bqx.m1_eurusd", "reg_eurusd"),
    ] {
        let (db, mut owner, mut feed) = live_db_with(role, "SELECT, INSERT, UPDATE, DELETE");
        run(&mut owner, &format!("REVOKE {revoked} FROM {role}"));
        let before = picture(&db);
        let error = error_of(&mut feed, statement);
        assert_eq!(
            (error.code.as_str(), error.message.contains(named)),
            ("42501", true),
            "{role}: {error:?}"
        );
        assert_eq!(picture(&db), before, "{role}");
        // whoever is not followed needs none
        run(&mut owner, "CALL bqx.disable_live()");
        run(&mut owner, &format!("REVOKE ALL ON bqx.bqx_eurusd, bqx.reg_eurusd FROM {role}"));
        run(&mut feed, NEW_BAR);
        run(&mut owner, "CALL bqx.refresh()");
        assert_followed(&mut owner, role);
    }
}

#[test]
fn a_partition_that_is_missing_is_for_the_owner_to_make() {
    let (db, mut owner, mut feed) = live_db_with("live_no_owner", "SELECT, INSERT, UPDATE, DELETE");
    run(&mut owner, "DROP TABLE bqx.reg_eurusd_2024_10");
    let october = "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-10-01 00:00+00', 1.07)";
    let before = picture(&db);
    let error = error_of(&mut feed, october);
    assert_eq!(error.code, "42501", "{error:?}");
    assert!(error.message.contains("reg_eurusd has no partition for 2024-10"), "{error:?}");
    assert!(
        error.hint.contains("CALL bqx.create_tables(pairs => ARRAY['eurusd'], from_month => '2024-10-01'"),
        "{error:?}"
    );
    assert_eq!(picture(&db), before);
    run(&mut owner, october);
    assert_followed(&mut owner, "the owner's bar");
    run(&mut feed, "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-10-01 00:01+00', 1.07)");
    assert_followed(&mut owner, "the feed's bar");
    // the owner's refresh makes the next month's in time, for everybody
    run(&mut owner, "CALL bqx.refresh()");
    run(&mut feed, "INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-11-01 00:01+00', 1.07)");
    assert_followed(&mut owner, "the next month's bar");
}

#[test]
fn rows_that_a_policy_hides_are_not_guessed() {
    let (db, mut owner, mut feed) = live_db_with("live_policy", "SELECT, INSERT, UPDATE, DELETE");
    run_each(
        &mut owner,
        &[
            "ALTER TABLE bqx.m1_eurusd ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY recent ON bqx.m1_eurusd USING (time > '2024-09-15')",
        ],
    );
    let before = picture(&db);
    let error = error_of(&mut feed, NEW_BAR);
    assert_eq!(error.code, "42501", "{error:?}");
    assert!(error.message.contains("m1_eurusd"), "{error:?}");
    assert_eq!(picture(&db), before);
    run(&mut owner, NEW_BAR); // whom it does not bind
    run_each(
        &mut owner,
        &[
            "ALTER TABLE bqx.m1_eurusd DISABLE ROW LEVEL SECURITY",
            "ALTER TABLE bqx.reg_eurusd ENABLE ROW LEVEL SECURITY",
        ],
    );
    let before = picture(&db);
    assert_eq!(
        error_of(&mut feed, "UPDATE bqx.m1_eurusd SET close = 1.09 WHERE time = '2024-09-30 23:40+00'").code,
        "42501"
    );
    assert_eq!(picture(&db), before);
    assert_followed(&mut owner, "policies");
}

#[test]
fn rows_are_computed_as_the_role_that_changed_the_bars() {
    let (db, mut owner, mut feed) = live_db_with("live_changer", "SELECT, INSERT, UPDATE, DELETE");
    run_each(
        &mut owner,
        &[
            "CREATE ROLE live_stranger",
            "GRANT live_stranger TO live_changer",
            "CREATE TABLE bqx.late PARTITION OF bqx.m1_eurusd FOR VALUES FROM ('2024-11-01 00:00+00') TO ('2025-01-01 00:00+00')",
            "GRANT INSERT ON bqx.late TO live_changer",
            "CALL bqx.create_tables(pairs => '{eurusd}', from_month => '2024-11-01', to_month => '2024-11-01')",
            "CREATE FUNCTION public.new_bar() RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp \
             AS $$ INSERT INTO bqx.m1_eurusd (time, close) VALUES ('2024-09-30 23:45+00', 1.08) $$",
        ],
    );
    // in the end of the transaction, when the role is another
    run_each(
        &mut feed,
        &[
            "BEGIN",
            "INSERT INTO bqx.late (time, close) VALUES ('2024-11-04 00:00+00', 1.08)",
            "SET LOCAL ROLE live_stranger",
            "COMMIT",
        ],
    );
    assert_followed(&mut owner, "another role in the end");
    // by a function that has its owner's rights, called by who has none
    let mut stranger = db.connect();
    run_each(&mut stranger, &["SET ROLE live_stranger", "SELECT public.new_bar()"]);
    assert_followed(&mut owner, "a function of its owner's");
}

#[test]
fn only_owners_begin_and_end_live_mode() {
    let (db, mut owner, mut feed) = live_db_with("live_caller", "ALL");
    let before = picture(&db);
    for call in ["CALL bqx.disable_live('{eurusd}')", "CALL bqx.disable_live()"] {
        assert_eq!(error_of(&mut feed, call).code, "42501", "{call}");
        assert_eq!(picture(&db), before, "{call}");
    }
    run(&mut owner, "CALL bqx.disable_live()");
    let before = picture(&db);
    assert_eq!(error_of(&mut feed, "CALL bqx.enable_live('{eurusd}')").code, "42501");
    assert_eq!(picture(&db), before);
}

#[test]
fn strangers_learn_nothing_of_what_is_stale() {
    let (db, mut owner, _feed) = live_db_with("live_reader", "SELECT");
    run_each(&mut owner, &["CREATE ROLE live_nobody LOGIN", "CALL bqx.disable_live()", NEW_BAR]);
    assert_eq!(row(&mut db.connect_as("live_reader"), "SELECT count(*) > 0 FROM bqx.stale()"), "t");
    let mut nobody = db.connect_as("live_nobody");
    assert_eq!(error_of(&mut nobody, "SELECT * FROM bqx.stale('{eurusd}')").code, "42501");
    assert_eq!(rows(&mut nobody, "SELECT * FROM bqx._noted_changes('eurusd')"), [""; 0]);
    let before = picture(&db);
    assert_eq!(error_of(&mut nobody, "CALL bqx.refresh('{eurusd}')").code, "42501");
    assert_eq!(error_of(&mut nobody, "SELECT bqx._forget_changes('eurusd', '{1,2,3}')").code, "42501");
    assert_eq!(picture(&db), before);
}
