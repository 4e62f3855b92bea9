//! What must hold when all feeds have ended.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use postgres::Client;

use super::accidents::CRASHES;
use super::changes::Transaction;
use super::counts::Counts;
use super::differences::{Columns, Stretch};
use super::feed::FEED;
use super::market::PAIRS;
use super::readers::{READER, bars_without_rows};
use super::upkeep::{UPKEEP, drops_partitions, locks_a_partition};
use crate::common::try_rows;
use crate::soak::site::Site;
use crate::soak::soundness::{corruption, faults, leftovers, unfinished_business};

/// SQLSTATEs that feeds and upkeep have to live with.
const USUAL_ERRORS: [&str; 4] = ["40P01", "40001", "23505", "23514"];

/// One refresh brings all tables up to date; nothing is left behind, and nobody had to complain.
pub fn check(site: &Site, columns: &Columns, counts: &Counts) -> Result<()> {
    let mut control = site.connect()?;
    site.settle(&mut control, &[FEED, READER, UPKEEP])?;
    let stale = try_rows(&mut control, "SELECT count(*) FROM bqx.stale()")?[0].parse()?;
    ensure!(stale > 0, "feeds went on without a refresh, and nothing was stale");
    counts.add("months and stretches left to the last refresh", stale);
    control.batch_execute("CALL bqx.refresh()").context("the last refresh")?;
    let mut wrong = what_is_left(&mut control)?;
    for pair in &PAIRS {
        let (rows, differences) = columns.compare(&mut control, pair, &Stretch::EVER)?;
        counts.add("rows compared in the end", rows);
        wrong.extend(differences);
        wrong.extend(bars_without_rows(&mut control, pair)?);
    }
    wrong.extend(faults(&mut control)?.into_iter().map(|fault| format!("verify() finds: {fault}")));
    let corrupt = corruption(&mut control)?;
    counts.add("checks by amcheck", u64::from(corrupt.is_some()));
    wrong.extend(corrupt.into_iter().flatten().map(|finding| format!("amcheck finds: {finding}")));
    wrong.extend(site.unexplained_errors(&USUAL_ERRORS)?);
    let deadlocks = deadlocks(&site.log()?);
    counts.add("deadlocks in the server's log", deadlocks.len() as u64);
    let ours = deadlocks.into_iter().filter(|deadlock| is_our_doing(deadlock));
    wrong.extend(ours.map(|statements| format!("deadlock: {statements:#?}")));
    ensure!(wrong.is_empty(), "what does not hold in the end:\n{}", wrong.join("\n"));
    let (recoveries, crashes) = (site.recoveries()?, counts.of(CRASHES));
    ensure!(recoveries as u64 == crashes, "{recoveries} recoveries of the server, but {crashes} crashes");
    Ok(())
}

/// What there should be nothing of after a refresh that nobody disturbed.
pub fn what_is_left(control: &mut Client) -> Result<Vec<String>> {
    let mut left = unfinished_business(control)?;
    left.extend(leftovers(control)?);
    let stale = try_rows(control, "SELECT * FROM bqx.stale()")?;
    left.extend(stale.into_iter().map(|line| format!("stale: {line}")));
    let noted = try_rows(control, "SELECT * FROM bqx.bar_changes")?;
    left.extend(noted.into_iter().map(|line| format!("noted change: {line}")));
    Ok(left)
}

/// The statements that each deadlock in a server's log was between. The log has to have all statements.
fn deadlocks(log: &str) -> Vec<Vec<String>> {
    let mut latest = HashMap::new();
    let mut deadlocks: Vec<Vec<String>> = Vec::new();
    let mut within = false;
    for line in log.lines() {
        let process = line.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(pid, _)| pid);
        if let (Some(process), Some(statement)) = (process, logged_statement(line)) {
            latest.insert(process, statement);
        }
        let begins = line.contains("DETAIL:  Process ");
        within = begins || within && line.starts_with('\t');
        let waiting = line.split_once("Process ").and_then(|(_, rest)| rest.split_once(" waits for "));
        if let Some((process, _)) = waiting.filter(|_| within) {
            let statement = latest.get(process).copied().unwrap_or("a process that got no statement");
            match deadlocks.last_mut().filter(|_| !begins) {
                Some(deadlock) => deadlock.push(statement.to_owned()),
                None => deadlocks.push(vec![statement.to_owned()]),
            }
        }
    }
    deadlocks
}

/// The statement that a line of the log says somebody sent, in either of the protocol's ways: drivers prepare a COPY.
fn logged_statement(line: &str) -> Option<&str> {
    let (_, said) = line.split_once(" LOG:  00000: ")?;
    said.strip_prefix("statement: ").or_else(|| Some(said.strip_prefix("execute ")?.split_once(": ")?.1))
}

/// Only feeds that change several pairs, or rows of pairs that are not live, in any order, may meet in a deadlock, with others
/// in between; and no call may end for it. Who locks a partition first may meet anyone; who writes straight into one, whoever
/// drops some.
fn is_our_doing(deadlock: &[String]) -> bool {
    let in_any_order = |statement: &&String| match Transaction::pairs_in_tag(statement)[..] {
        [] => false,
        [pair] => !pair.is_always_live(),
        _ => true,
    };
    let ends_call = deadlock.first().is_some_and(|victim| victim.starts_with("CALL"));
    let among_feeds = deadlock.iter().filter(in_any_order).count() >= 2;
    let drops = deadlock.iter().any(|statement| drops_partitions(statement));
    let is_usual = deadlock.iter().any(|statement| locks_a_partition(statement))
        || drops && deadlock.iter().any(|statement| Transaction::writes_into_partition(statement));
    !is_usual && (ends_call || !among_feeds)
}

#[test]
fn deadlocks_are_read_from_the_log() {
    let log = "2024-07-01 12:00:00.000 UTC [8] LOG:  00000: statement: BEGIN\n\
               2024-07-01 12:00:00.000 UTC [8] LOG:  00000: execute s0: /* eurusd gbpusd */ COPY bqx.m1_eurusd FROM STDIN\n\
               2024-07-01 12:00:00.000 UTC [7] LOG:  00000: statement: BEGIN\n\
               2024-07-01 12:00:00.000 UTC [7] LOG:  00000: statement: CALL bqx.refresh()\n\
               2024-07-01 12:00:00.000 UTC [7] ERROR:  40P01: deadlock detected\n\
               2024-07-01 12:00:00.000 UTC [7] DETAIL:  Process 7 waits for ShareLock on transaction 1; blocked by process 8.\n\
               \tProcess 8 waits for ExclusiveLock on advisory lock [1,2,3,1]; blocked by process 7.\n\
               2024-07-01 12:00:00.000 UTC [7] HINT:  See server log for query details.\n\
               \tProcess 9 waits for something else\n";
    let found = deadlocks(log);
    assert_eq!(found, [["CALL bqx.refresh()", "/* eurusd gbpusd */ COPY bqx.m1_eurusd FROM STDIN"]]);
    let feeds = ["/* eurusd gbpusd */ COMMIT", "/* gbpusd eurusd */ COPY"];
    for (deadlock, ours) in [
        (vec!["CALL bqx.refresh()", feeds[0]], true),
        (vec!["CALL bqx.refresh()", feeds[0], feeds[1]], true),
        (vec![feeds[0], "CALL bqx.refresh()", feeds[1]], false),
        (vec!["/* eurusd */ COMMIT", "/* eurusd */ COPY"], true),
        (vec!["/* eurusd */ COMMIT", feeds[0]], true),
        (vec!["/* eurusd */ COMMIT", feeds[0], feeds[1]], false),
        (vec!["CALL bqx.refresh()", "TRUNCATE bqx.m1_gbpusd_2024_08"], false),
        (vec!["DO $$ DROP TABLE $$", "/* eurusd */ INSERT INTO bqx.m1_eurusd_2024_08 (time"], false),
        (vec!["DO $$ DROP TABLE $$", "/* eurusd */ INSERT INTO bqx.m1_eurusd (time"], true),
        (vec!["CALL bqx.refresh()", "/* eurusd */ INSERT INTO bqx.m1_eurusd_2024_08 (time"], true),
    ] {
        let deadlock: Vec<String> = deadlock.into_iter().map(str::to_owned).collect();
        assert_eq!(is_our_doing(&deadlock), ours, "{deadlock:?}");
    }
}
