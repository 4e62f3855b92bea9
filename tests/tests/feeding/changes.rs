//! Transactions that change bars, in all ways in which bars change.

use std::fmt;
use std::time::Duration;

use rand::RngExt;
use rand::prelude::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::market::{Live, MONTHS, PAIRS, Pair};

/// A way in which bars change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    NewBar,
    NewBars,
    SameMinute,
    Copy,
    LateBars,
    Correction,
    Deletion,
    Move,
    IntoPartition,
}

impl Kind {
    pub const ALL: [Kind; 9] = [
        Kind::NewBar,
        Kind::NewBars,
        Kind::SameMinute,
        Kind::Copy,
        Kind::LateBars,
        Kind::Correction,
        Kind::Deletion,
        Kind::Move,
        Kind::IntoPartition,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NewBar => "new bars, one by one",
            Self::NewBars => "batches of new bars",
            Self::SameMinute => "upserts of the newest minute",
            Self::Copy => "COPYs",
            Self::LateBars => "batches of late bars",
            Self::Correction => "corrections",
            Self::Deletion => "deletions",
            Self::Move => "bars moved to another minute",
            Self::IntoPartition => "bars written straight into a partition",
        })
    }
}

/// A transaction of a feed.
#[derive(Debug)]
pub struct Transaction {
    pub isolation: Isolation,
    /// Those of its changes, each once.
    pub pairs: Vec<&'static Pair>,
    pub steps: Vec<Step>,
    pub commits: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

impl Isolation {
    pub fn sql(self) -> &'static str {
        match self {
            Self::ReadCommitted => "READ COMMITTED",
            Self::RepeatableRead => "REPEATABLE READ",
            Self::Serializable => "SERIALIZABLE",
        }
    }
}

#[derive(Clone, Debug)]
pub enum Step {
    Change {
        kind: Kind,
        sql: String,
    },
    Copy {
        pair: &'static Pair,
        lines: String,
    },
    /// Anything that changes no bar.
    Other(String),
    Pause(Duration),
}

impl Transaction {
    /// Most change one pair once, some several times, some several pairs in any order.
    pub fn random(rng: &mut ChaCha8Rng) -> Self {
        let mut pairs: Vec<&'static Pair> = PAIRS.iter().collect();
        pairs.shuffle(rng);
        pairs.truncate(if rng.random_ratio(1, 6) { rng.random_range(2..=3) } else { 1 });
        let changes = match (pairs.len(), rng.random_range(0..3)) {
            (1, 0..=1) => 1,
            (count, _) => rng.random_range(count..=5),
        };
        let isolation = match rng.random_range(0..10) {
            0 => Isolation::RepeatableRead,
            1 => Isolation::Serializable,
            _ => Isolation::ReadCommitted,
        };
        let mut steps = Vec::new();
        if pairs.iter().all(|pair| !pair.is_always_live()) && rng.random_ratio(1, 10) {
            steps.push(Step::Other("SET LOCAL bqx.live = off".to_owned()));
        }
        for change in 0..changes {
            let pair = pairs[change % pairs.len()];
            if rng.random_ratio(1, 6) {
                steps.push(Step::Other(format!("SELECT max(time) FROM bqx.m1_{}", pair.name)));
            }
            change_of(pair, rng, &mut steps);
            if rng.random_ratio(1, 6) {
                steps.push(Step::Pause(Duration::from_millis(rng.random_range(1..30))));
            }
        }
        Self { isolation, pairs, steps, commits: !rng.random_ratio(1, 20) }
    }

    /// A comment that tells whose statement it is, where the server's log shows one.
    pub fn tag(&self) -> String {
        let names: Vec<&str> = self.pairs.iter().map(|pair| pair.name).collect();
        format!("/* {} */ ", names.join(" "))
    }

    /// The pairs in the tag of a statement of some transaction.
    pub fn pairs_in_tag(statement: &str) -> Vec<&'static Pair> {
        let tag = statement.strip_prefix("/* ").and_then(|rest| rest.split_once(" */"));
        let names: Vec<&str> = tag.map(|(names, _)| names.split(' ').collect()).unwrap_or_default();
        PAIRS.iter().filter(|pair| names.contains(&pair.name)).collect()
    }

    /// Whether a statement of some transaction is an [`Kind::IntoPartition`] of a partitioned table.
    pub fn writes_into_partition(statement: &str) -> bool {
        let table = statement.split_once("INSERT INTO bqx.m1_").map(|(_, rest)| rest);
        table.is_some_and(|table| {
            MONTHS.iter().any(|month| table.contains(&format!("_{} (", month.replace('-', "_"))))
        })
    }
}

/// A change, sometimes in a subtransaction, which sometimes is undone.
fn change_of(pair: &'static Pair, rng: &mut ChaCha8Rng, steps: &mut Vec<Step>) {
    let kind = *Kind::ALL.choose(rng).expect("kinds");
    let step = match kind {
        Kind::Copy => Step::Copy { pair, lines: copied_lines(pair, rng) },
        _ => Step::Change { kind, sql: sql(kind, pair, rng) },
    };
    let other = |sql: &str| Step::Other(sql.to_owned());
    match rng.random_range(0..12) {
        0 => steps.extend([other("SAVEPOINT s"), step, other("ROLLBACK TO s")]),
        1 => steps.extend([other("SAVEPOINT s"), step, other("RELEASE s")]),
        2 => steps.extend([other("SAVEPOINT s"), step.clone(), other("ROLLBACK TO s"), step]),
        _ => steps.push(step),
    }
}

fn sql(kind: Kind, pair: &Pair, rng: &mut ChaCha8Rng) -> String {
    let (m1, price) = (format!("bqx.m1_{}", pair.name), price(pair, rng));
    let values = format!("{price}, {price}, {price}, {price}");
    let columns = "(time, open, high, low, close)";
    let new_bars = |count: u32, step: u32, conflict: &str| {
        format!(
            "INSERT INTO {m1} {columns} SELECT last + i * interval '{step} min', {values} \
               FROM (SELECT max(time) FROM {m1}) AS m1 (last), generate_series(1, {count}) AS i ON CONFLICT {conflict}"
        )
    };
    let upsert = "(time) DO UPDATE SET close = excluded.close";
    match kind {
        Kind::NewBar => {
            let conflict = *["DO NOTHING", upsert].choose(rng).expect("both");
            new_bars(1, rng.random_range(1..60), conflict)
        }
        Kind::NewBars => new_bars(rng.random_range(2..50), rng.random_range(1..60), "DO NOTHING"),
        Kind::SameMinute => format!(
            "INSERT INTO {m1} {columns} SELECT date_trunc('hour', max(time)), {values} FROM {m1} ON CONFLICT {upsert}"
        ),
        Kind::LateBars => format!(
            "INSERT INTO {m1} {columns} SELECT date_trunc('minute', t) + i * interval '20 min', {values} \
               FROM (SELECT {}) AS late (t), generate_series(1, {}) AS i ON CONFLICT DO NOTHING",
            some_time(pair, rng),
            rng.random_range(1..40)
        ),
        Kind::Correction => format!("UPDATE {m1} SET close = {price} WHERE {}", some_bars(pair, rng)),
        Kind::Deletion => format!("DELETE FROM {m1} WHERE {}", some_bars(pair, rng)),
        // to a minute where there is none
        Kind::Move => format!(
            "UPDATE {m1} AS b SET time = time + interval '{} min' WHERE time = (SELECT min(time) FROM {m1} WHERE {}) \
                AND NOT EXISTS (SELECT FROM {m1} AS o WHERE o.time > b.time AND o.time <= b.time + interval '10 min')",
            rng.random_range(1..=9),
            some_bars(pair, rng)
        ),
        Kind::IntoPartition => {
            let month = MONTHS.choose(rng).expect("months");
            // Who ends live mode locks the parent first: they would meet.
            let into = match pair.partitioned && pair.live != Live::Sometimes {
                true => format!("{m1}_{}", month.replace('-', "_")),
                false => m1,
            };
            format!(
                "INSERT INTO {into} {columns} VALUES ('{month}-{:02} {:02}:{:02}+00', {values}) ON CONFLICT {upsert}",
                rng.random_range(3..=30),
                rng.random_range(0..24),
                rng.random_range(0..60)
            )
        }
        Kind::Copy => unreachable!("it is no statement of its own"),
    }
}

/// SQL for a time: anywhere, or lately.
fn some_time(pair: &Pair, rng: &mut ChaCha8Rng) -> String {
    match rng.random_ratio(1, 2) {
        true => format!(
            "'{}-{:02} {:02}:{:02}+00'::timestamptz",
            MONTHS.choose(rng).expect("months"),
            rng.random_range(3..=30),
            rng.random_range(0..24),
            rng.random_range(0..60)
        ),
        false => format!(
            "(SELECT max(time) FROM bqx.m1_{}) - interval '{} min'",
            pair.name,
            rng.random_range(0..20_000)
        ),
    }
}

/// SQL that holds for the bars of some hours, or of one minute.
fn some_bars(pair: &Pair, rng: &mut ChaCha8Rng) -> String {
    let time = some_time(pair, rng);
    match rng.random_ratio(1, 2) {
        true => format!("time >= {time} AND time < {time} + interval '{} min'", rng.random_range(1..600)),
        false => {
            format!("time = (SELECT min(time) FROM bqx.m1_{} WHERE time >= {time})", pair.name)
        }
    }
}

/// Bars of some hours, in the text format of COPY. They may be there already, and then COPY fails.
fn copied_lines(pair: &Pair, rng: &mut ChaCha8Rng) -> String {
    let month = MONTHS.choose(rng).expect("months");
    let (day, hour, minute) = (rng.random_range(3..=29), rng.random_range(0..20), rng.random_range(1..20));
    let bars = 0..rng.random_range(3..12);
    bars.map(|i| {
        let (price, at) = (price(pair, rng), minute + 20 * i);
        let (hour, minute) = (hour + at / 60, at % 60);
        format!("{month}-{day:02} {hour:02}:{minute:02}+00\t{price}\t{price}\t{price}\t{price}\n")
    })
    .collect()
}

fn price(pair: &Pair, rng: &mut ChaCha8Rng) -> String {
    let factor = f64::from(rng.random_range(9_900..10_100)) / 10_000.0;
    format!("{:.5}", pair.price * factor)
}
