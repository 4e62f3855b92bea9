//! Those who keep the derived tables up to date, and an operator who changes how.

use std::time::{Duration, Instant};

use anyhow::Result;
use postgres::{Client, Error};
use rand::RngExt;
use rand::prelude::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::counts::Counts;
use super::market::{Live, MONTHS, PAIRS, Pair};
use crate::common::try_rows;
use crate::soak::bystanders::{Curfew, in_sessions};
use crate::soak::site::Site;

/// What their `application_name` begins with.
pub const UPKEEP: &str = "upkeep";

/// `CALL bqx.refresh()` every second or so. There are two who do so, as where a cron job takes longer than until the next.
pub fn refresh(
    site: &Site,
    counts: &Counts,
    number: u64,
    curfew: &Curfew,
    mut rng: ChaCha8Rng,
) -> Result<()> {
    in_sessions(site, &format!("{UPKEEP} refresh {number}"), curfew, |session| {
        if !curfew.pause(Duration::from_millis(rng.random_range(300..2_000))) {
            return Ok(Ok(())); // what is left is for the last refresh
        }
        attempt(session, "CALL bqx.refresh()", "refreshes", counts)
    })
}

/// `CALL bqx.backfill()` now and then, for all pairs or one, with workers or without.
pub fn backfill(site: &Site, counts: &Counts, curfew: &Curfew, mut rng: ChaCha8Rng) -> Result<()> {
    in_sessions(site, &format!("{UPKEEP} backfill"), curfew, |session| {
        if !curfew.pause(Duration::from_millis(rng.random_range(500..3_000))) {
            return Ok(Ok(()));
        }
        let pairs = match rng.random_ratio(1, 3) {
            true => format!("pairs => '{{{}}}', ", PAIRS.choose(&mut rng).expect("pairs").name),
            false => String::new(),
        };
        let (workers, force) = (rng.random_range(0..=2), rng.random_ratio(1, 6));
        let call = format!("CALL bqx.backfill({pairs}workers => {workers}, force => {force})");
        attempt(session, &call, "backfills", counts)
    })
}

/// Enables and disables live mode, empties, drops and attaches partitions.
pub fn operate(site: &Site, counts: &Counts, curfew: &Curfew, mut rng: ChaCha8Rng) -> Result<()> {
    let toggled = PAIRS.iter().find(|pair| pair.live == Live::Sometimes).expect("one").name;
    let noted = PAIRS.iter().find(|pair| pair.live == Live::Never).expect("one").name;
    in_sessions(site, &format!("{UPKEEP} operator"), curfew, |session| {
        if !curfew.pause(Duration::from_millis(rng.random_range(100..1_500))) {
            return Ok(Ok(()));
        }
        let month = MONTHS[rng.random_range(1..MONTHS.len())].replace('-', "_");
        match rng.random_range(0..8) {
            0 | 1 => {
                let call = format!("CALL bqx.enable_live('{{{toggled}}}')");
                attempt(session, &call, "enabled live mode", counts)
            }
            2 | 3 => {
                let call = format!("CALL bqx.disable_live('{{{toggled}}}')");
                attempt(session, &call, "disabled live mode", counts)
            }
            4 => attempt(session, "CALL bqx.create_tables()", "calls of create_tables", counts),
            5 => {
                let pair = if rng.random() { toggled } else { noted };
                let truncate = format!("TRUNCATE bqx.m1_{pair}_{month}");
                attempt(session, &truncate, "partitions of M1 truncated", counts)
            }
            6 => {
                let change = reattach(session, noted, &month)?;
                attempt(session, &change, "partitions of M1 detached and attached again", counts)
            }
            _ => {
                let pair = PAIRS.choose(&mut rng).expect("pairs");
                let kind = *["m1", "bqx", "reg"].choose(&mut rng).expect("kinds");
                drop_coming_months(session, pair, kind, counts)
            }
        }
    })
}

/// Counts a statement, and looks at how it ended: accidents and deadlocks may end it.
fn attempt(
    session: &mut Client,
    sql: &str,
    what: &str,
    counts: &Counts,
) -> Result<Result<(), String>, Error> {
    let began = Instant::now();
    let Err(error) = session.batch_execute(sql) else {
        counts.add_timed(what, began);
        return Ok(Ok(()));
    };
    let Some(said) = error.as_db_error() else { return Err(error) };
    let is_cancelled = said.code().code() == "57014" && said.message().contains("user request");
    let lost_worker = said.message().contains("their worker ended early");
    if said.code().code().starts_with("57P0") {
        return Err(error);
    } else if is_cancelled || lost_worker {
        counts.add("calls ended by accidents", 1);
    } else if said.code().code() == "40P01" {
        counts.add("calls ended by deadlocks (40P01)", 1); // the last checks look at who met
    } else {
        return Ok(Err(format!("{sql}\n{error:?}")));
    }
    Ok(Ok(()))
}

/// Whether a statement locks a partition, and then what others hold who wait for that partition.
pub fn locks_a_partition(sql: &str) -> bool {
    sql.starts_with("TRUNCATE") || sql.contains("DETACH PARTITION")
}

/// Whether a statement drops partitions, having locked their parent and then, as LOCK TABLE does, all of them. Who writes straight
/// into a partition has that locked before the parent is looked at, by PostgreSQL itself or by a trigger.
pub fn drops_partitions(sql: &str) -> bool {
    sql.starts_with("DO") && sql.contains("DROP TABLE")
}

/// SQL that takes a month's partition of M1 away, deletes bars, which nobody notes, and gives it back. One message, so one
/// transaction; the parent first, as writers lock.
fn reattach(session: &mut Client, pair: &str, month: &str) -> Result<String, Error> {
    let partition = format!("bqx.m1_{pair}_{month}");
    let bounds = format!(
        "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = '{partition}'::regclass AND relispartition"
    );
    let bounds = try_rows(session, &bounds)?.remove(0);
    Ok(format!(
        "LOCK TABLE bqx.m1_{pair} IN ACCESS EXCLUSIVE MODE; \
         ALTER TABLE bqx.m1_{pair} DETACH PARTITION {partition}; \
         DELETE FROM {partition} WHERE extract(hour FROM time) = 12; \
         ALTER TABLE bqx.m1_{pair} ATTACH PARTITION {partition} {bounds}"
    ))
}

/// Drops partitions of months that have no bars yet: whoever needs them has to make them again.
fn drop_coming_months(
    session: &mut Client,
    pair: &Pair,
    kind: &str,
    counts: &Counts,
) -> Result<Result<(), String>, Error> {
    let table = format!("bqx.{kind}_{}", pair.name);
    let empty = format!(
        "DO $$ DECLARE p regclass; has_rows boolean; BEGIN \
             LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE; \
             FOR p IN SELECT inhrelid FROM pg_inherits WHERE inhparent = '{table}'::regclass LOOP \
                 EXECUTE format('SELECT EXISTS (SELECT FROM %s)', p) INTO has_rows; \
                 IF NOT has_rows AND p::text > '{table}_{}' THEN EXECUTE format('DROP TABLE %s', p); END IF; \
             END LOOP; END $$",
        MONTHS[MONTHS.len() - 1].replace('-', "_")
    );
    attempt(session, &empty, "coming months' partitions dropped", counts)
}
