//! The trial's checks see what they are for: each kind of damage, and nothing where there is none.

use bqx_tests::Db;
use postgres::Client;

use super::invariants::{Round, failed_jobs, misrecorded_months, torn_months};
use super::months::{Checksums, Contents, Month, PAIRS};
use super::reader::History;
use crate::common::{run, run_each};
use crate::soak::soundness::{corruption, leftovers, unfinished_business};

const AUGUST: Month = Month { family: "reg", pair: "eurusd", month: "2024-08" };

/// A database with a complete backfill of bars of its own, two a day; what it holds; and a session.
fn complete(name: &str) -> (Checksums, Contents, Client) {
    let db = Db::new(name);
    let mut session = db.connect();
    for pair in PAIRS {
        run_each(
            &mut session,
            &[
                format!("CALL bqx.create_m1('{{{pair}}}', '2024-07-01', '2024-09-01')"),
                format!(
                    "INSERT INTO bqx.m1_{pair} (time, open, high, low, close) SELECT t, p, p, p, p \
                       FROM generate_series(timestamptz '2024-07-01 00:00+00', '2024-09-30 23:00+00', '12 h') AS t, \
                            round(1 + extract(day FROM t) / 100, 4) AS p"
                ),
            ],
        );
    }
    run_each(
        &mut session,
        &[
            "CALL bqx.set_baselines()",
            "CALL bqx.index_m1()",
            "CALL bqx.create_tables()",
            "CALL bqx.backfill()",
        ],
    );
    let checksums = Checksums::new(&db);
    let contents = checksums.all_stored(&mut session).unwrap();
    (checksums, contents, session)
}

#[test]
fn a_complete_backfill_is_what_the_functions_compute() {
    let (checksums, contents, mut session) = complete("see_nothing");
    let mut computed = Contents::default();
    for pair in PAIRS {
        computed.replace_pair(pair, checksums.computed(&mut session, pair).unwrap());
    }
    assert_eq!(contents, computed);
    assert_eq!(contents.rows(), 2 * 3 * 2 * 92);
    let round = Round { before: &Contents::default(), after: &contents, computed: &contents, last_run: 0 };
    assert_eq!(torn_months(&round), [""; 0]);
    assert_eq!(misrecorded_months(&mut session, &round).unwrap(), [""; 0]);
    assert_eq!(failed_jobs(&mut session, &round).unwrap(), [""; 0]);
    assert_eq!(unfinished_business(&mut session).unwrap(), [""; 0]);
    assert_eq!(leftovers(&mut session).unwrap(), [""; 0]);
    assert_eq!(corruption(&mut session).unwrap().unwrap_or_default(), [""; 0]);
}

#[test]
fn a_month_that_is_neither_as_before_nor_complete_is_torn() {
    let (checksums, complete, mut session) = complete("see_torn");
    let empty = Contents::default();
    for (damage, is_torn, is_current) in [
        ("UPDATE bqx.reg_eurusd SET w60_reg_a = 1 WHERE ts_utc = '2024-08-07 12:00+00'", true, true),
        ("DELETE FROM bqx.reg_eurusd WHERE ts_utc = '2024-08-07 12:00+00'", true, false),
        ("DELETE FROM bqx.reg_eurusd WHERE ts_utc >= '2024-08-01' AND ts_utc < '2024-09-01'", false, false),
    ] {
        run(&mut session, "BEGIN");
        run(&mut session, damage);
        let after = checksums.all_stored(&mut session).unwrap();
        let round = Round { before: &empty, after: &after, computed: &complete, last_run: 0 };
        let torn = torn_months(&round);
        assert_eq!(torn.len(), usize::from(is_torn), "{damage}: {torn:?}");
        assert!(torn.iter().all(|line| line.starts_with("reg eurusd 2024-08: ")), "{damage}: {torn:?}");
        let misrecorded = misrecorded_months(&mut session, &round).unwrap();
        let what = if is_current { "current to the ledger" } else { "its job is done" };
        assert_eq!(misrecorded.len(), 1, "{damage}: {misrecorded:?}");
        assert!(misrecorded[0].starts_with(&format!("{AUGUST}: {what}")), "{damage}: {misrecorded:?}");
        let history = History::default();
        history.add_round(empty.clone(), complete.clone());
        assert_eq!(history.torn(history.now(), &after, Month::all()), is_torn.then_some(AUGUST), "{damage}");
        run(&mut session, "ROLLBACK");
    }
}

#[test]
fn a_reader_may_see_what_was_so_lately_but_not_what_was_so_once() {
    let (_, complete, _) = complete("see_history");
    let history = History::default();
    history.add_round(Contents::default(), complete.clone());
    let early = history.now();
    for _ in 0..3 {
        history.add_round(complete.clone(), complete.clone());
    }
    let nothing = Contents::default();
    assert_eq!(history.torn(early, &nothing, Month::all()), None);
    assert_eq!(history.torn(history.now(), &nothing, Month::all()), Month::all().next());
    assert_eq!(history.torn(history.now(), &complete, Month::all()), None);
}

#[test]
fn whatever_is_left_behind_is_seen() {
    let (_, complete, mut session) = complete("see_leftovers");
    let round = Round { before: &complete, after: &complete, computed: &complete, last_run: 0 };
    run_each(
        &mut session,
        &[
            "BEGIN",
            "CREATE TABLE bqx.bqx_eurusd_2024_10 (LIKE bqx.bqx_eurusd)",
            "ALTER TABLE bqx.bqx_eurusd_2024_09 ADD CONSTRAINT bqx_month_bounds CHECK (ts_utc > '2024-01-01')",
            "UPDATE bqx.job_ledger SET state = 'failed', error = 'nothing' WHERE job_id = 1",
            "UPDATE bqx.job_ledger SET state = 'pending' WHERE job_id = 2",
            "SELECT pg_advisory_xact_lock(bqx._lock_key('job', '2')), pg_advisory_xact_lock(bqx._lock_key('run', '1'))",
            "INSERT INTO bqx.run_ledger (called_by, arguments) VALUES ('postgres', '{}')",
            "SELECT pg_advisory_xact_lock(bqx._lock_key('run', run_id::text)) FROM bqx.run_ledger WHERE finished_at IS NULL",
        ],
    );
    let left = leftovers(&mut session).unwrap();
    assert_eq!(
        left,
        [
            "neither a partition nor of the extension: bqx.bqx_eurusd_2024_10",
            "constraint left behind: bqx.bqx_eurusd_2024_09 bqx_month_bounds"
        ]
    );
    let failed = failed_jobs(&mut session, &round).unwrap();
    assert!(failed.len() == 1 && failed[0].ends_with(" nothing"), "{failed:?}");
    let unfinished = unfinished_business(&mut session).unwrap();
    let kinds: Vec<&str> =
        unfinished.iter().filter_map(|line| line.split_once(':').map(|(kind, _)| kind)).collect();
    let lock = "advisory lock held";
    assert_eq!(kinds, ["shown as running", "closed with open jobs", lock, lock, lock], "{unfinished:?}");
    run(&mut session, "ROLLBACK");
}

#[test]
fn an_index_that_lacks_a_row_is_seen() {
    let (_, _, mut session) = complete("see_corruption");
    let index = "indexrelid = 'bqx.bqx_eurusd_2024_08_pkey'::regclass";
    run_each(
        &mut session,
        &[
            format!("UPDATE pg_index SET indisready = false WHERE {index}"),
            "INSERT INTO bqx.bqx_eurusd (ts_utc) VALUES ('2024-08-07 12:30+00')".to_owned(),
            format!("UPDATE pg_index SET indisready = true WHERE {index}"),
        ],
    );
    match corruption(&mut session) {
        Ok(found) => assert!(found.is_none(), "amcheck is there and sees nothing: {found:?}"),
        Err(error) => assert!(format!("{error:?}").contains("lacks matching index tuple"), "{error:?}"),
    }
}
