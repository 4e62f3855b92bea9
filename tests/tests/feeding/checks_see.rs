//! The soak's checks see what they are for: each kind of damage, and nothing where there is none.

use bqx_tests::Db;
use postgres::Client;

use super::changes::{Kind, Transaction};
use super::differences::{Columns, Stretch};
use super::last_checks::what_is_left;
use super::market::{PAIRS, Pair, prepared};
use super::readers::bars_without_rows;
use crate::common::{run, run_each};
use crate::soak::Limits;

/// What the checks that compare find of a pair after some damage, which is undone.
fn seen_after(session: &mut Client, columns: &Columns, pair: &Pair, damage: &str) -> (usize, usize) {
    run(session, "BEGIN");
    run(session, damage);
    let (bars, differences) = columns.compare(session, pair, &Stretch::EVER).unwrap();
    assert!(bars > 1_000, "{bars} bars");
    let found = (differences.len(), bars_without_rows(session, pair).unwrap().len());
    run(session, "ROLLBACK");
    found
}

#[test]
fn rows_that_are_not_those_of_the_bars_are_seen_and_what_is_left_to_do() {
    let db = Db::new("see_feeding");
    run_each(&mut db.connect(), &prepared());
    let columns = Columns::new(&db);
    let mut session = db.connect();
    let noon = "'2024-08-07 12:00+00'";
    for pair in &PAIRS {
        let name = pair.name;
        for (damage, seen) in [
            ("SELECT".to_owned(), (0, 0)),
            (
                format!("UPDATE bqx.reg_{name} SET w60_reg_a = w60_reg_a + 1e-12 WHERE ts_utc = {noon}"),
                (1, 0),
            ),
            (format!("DELETE FROM bqx.bqx_{name} WHERE ts_utc = {noon}"), (1, 1)),
            (format!("INSERT INTO bqx.bqx_{name} (ts_utc) VALUES ('2024-08-07 12:01+00')"), (1, 1)),
            (format!("SET LOCAL bqx.live = off; DELETE FROM bqx.m1_{name} WHERE time = {noon}"), (2, 1)),
        ] {
            assert_eq!(seen_after(&mut session, &columns, pair, &damage), seen, "{damage}");
        }
    }
    assert_eq!(what_is_left(&mut session).unwrap(), [""; 0]);
    run(&mut session, &format!("UPDATE bqx.m1_usdjpy SET close = close * 1.001 WHERE time = {noon}"));
    let left = what_is_left(&mut session).unwrap();
    assert!(left.iter().any(|line| line.starts_with("stale: usdjpy|bqx|2024-08-01")), "{left:?}");
    assert!(left.iter().any(|line| line.starts_with("noted change: ")), "{left:?}");
}

#[test]
fn transactions_of_a_seed_are_the_same_and_of_all_kinds() {
    let drawn = || {
        let mut rng = Limits { seed: 1, time: None }.random(1);
        (0..200).map(|_| format!("{:?}", Transaction::random(&mut rng))).collect::<Vec<_>>()
    };
    let transactions = drawn();
    assert_eq!(transactions, drawn());
    for kind in Kind::ALL.iter().filter(|&&kind| kind != Kind::Copy) {
        let of_kind = format!("kind: {kind:?},");
        assert!(transactions.iter().any(|transaction| transaction.contains(&of_kind)), "{kind:?}");
    }
    assert!(transactions.iter().any(|transaction| transaction.contains("Copy { pair")));
}
