//! A feed: transactions, one after the other, each tried again where PostgreSQL says that it should be.

use std::io::Write as _;
use std::thread::sleep;
use std::time::Instant;

use anyhow::Result;
use postgres::{Client, Error};
use rand_chacha::ChaCha8Rng;

use super::changes::{Isolation, Kind, Step, Transaction};
use super::counts::Counts;
use crate::soak::PATIENCE;
use crate::soak::bystanders::{Curfew, in_sessions};
use crate::soak::site::Site;

/// What the feeds' `application_name` begins with.
pub const FEED: &str = "feed";

/// So often, a transaction may be in others' way.
const TRIALS: usize = 50;

/// So often, it may want one snapshot throughout, among feeds that change the same bars; then it does what the error's hint
/// says.
const TRIALS_WITH_ONE_SNAPSHOT: usize = 20;

pub fn run(site: &Site, counts: &Counts, number: u64, curfew: &Curfew, mut rng: ChaCha8Rng) -> Result<()> {
    in_sessions(site, &format!("{FEED} {number}"), curfew, |session| {
        session.batch_execute(&format!("SET statement_timeout = '{} s'", PATIENCE.as_secs()))?;
        let mut transaction = Transaction::random(&mut rng);
        for trial in 1..=TRIALS {
            if trial > TRIALS_WITH_ONE_SNAPSHOT {
                transaction.isolation = Isolation::ReadCommitted;
            }
            let began = Instant::now();
            let error = match attempt(session, &transaction) {
                Ok(()) => {
                    count(counts, &transaction, began);
                    return Ok(Ok(()));
                }
                Err(error) => error,
            };
            if session.is_closed() {
                return Err(error);
            }
            session.batch_execute("ROLLBACK")?;
            match judge(&transaction, &error) {
                Verdict::TryAgain(what) => counts.add(what, 1),
                Verdict::GiveUp(what) => {
                    counts.add(what, 1);
                    return Ok(Ok(()));
                }
                Verdict::Wrong => return Ok(Err(format!("{error:?}\n{transaction:#?}"))),
                Verdict::Ended => return Err(error),
            }
        }
        Ok(Err(format!("in vain, {TRIALS} times: {transaction:#?}")))
    })
}

fn attempt(session: &mut Client, transaction: &Transaction) -> Result<(), Error> {
    let tag = transaction.tag();
    session.batch_execute(&format!("BEGIN ISOLATION LEVEL {}", transaction.isolation.sql()))?;
    for step in &transaction.steps {
        match step {
            Step::Change { sql, .. } | Step::Other(sql) => session.batch_execute(&format!("{tag}{sql}"))?,
            Step::Copy { pair, lines } => {
                let copy =
                    format!("{tag}COPY bqx.m1_{} (time, open, high, low, close) FROM STDIN", pair.name);
                let mut copy = session.copy_in(&copy)?;
                // Fails only where the server is gone, as finish() will say.
                let _ = copy.write_all(lines.as_bytes());
                copy.finish()?;
            }
            Step::Pause(length) => sleep(*length),
        }
    }
    session.batch_execute(&format!("{tag}{}", if transaction.commits { "COMMIT" } else { "ROLLBACK" }))
}

fn count(counts: &Counts, transaction: &Transaction, began: Instant) {
    let what = match (transaction.commits, &transaction.pairs[..]) {
        (false, _) => "transactions rolled back".to_owned(),
        (true, [pair]) => format!("transactions of {}", pair.name),
        (true, _) => "transactions over several pairs".to_owned(),
    };
    counts.add_timed(&what, began);
    for step in &transaction.steps {
        match step {
            Step::Change { kind, .. } => counts.add(&kind.to_string(), 1),
            Step::Copy { .. } => counts.add(&Kind::Copy.to_string(), 1),
            Step::Other(_) | Step::Pause(_) => {}
        }
    }
}

enum Verdict {
    TryAgain(&'static str),
    GiveUp(&'static str),
    /// The server ended the session.
    Ended,
    Wrong,
}

/// What an error means that a transaction ended with.
fn judge(transaction: &Transaction, error: &Error) -> Verdict {
    let Some(said) = error.as_db_error() else { return Verdict::Ended };
    let of_m1 = said.table().is_some_and(|table| table.starts_with("m1_"));
    let moved = said.message().contains("moved to another partition");
    match said.code().code() {
        // The last checks look at who met. Whoever waits between those is as often the one whom PostgreSQL ends.
        "40P01" => Verdict::TryAgain("deadlocks (40P01), tried again"),
        "40001" if transaction.isolation != Isolation::ReadCommitted || moved => {
            Verdict::TryAgain("serialization failures (40001), tried again")
        }
        "23505" if of_m1 => Verdict::GiveUp("transactions with a bar that was there (23505)"),
        "23514" if of_m1 => Verdict::GiveUp("transactions before the month's partition of M1 (23514)"),
        "57014" if said.message().contains("user request") => Verdict::GiveUp("transactions cancelled"),
        "57P01" | "57P02" | "57P03" => Verdict::Ended,
        _ => Verdict::Wrong,
    }
}
