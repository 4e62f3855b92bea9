//! Steps of a schedule, drawn at random.

use std::fmt;

use rand::RngExt;
use rand::prelude::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::model::{self, DAY, Minute, Pair, Part, instant, text};

/// What is sent to the server.
#[derive(Clone, Debug)]
pub enum Act {
    Sql(String),
    /// Bars by COPY.
    Copy {
        table: String,
        lines: String,
    },
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Act::Sql(sql) => f.write_str(sql),
            Act::Copy { table, lines } => {
                let (first, last) = (lines.lines().next(), lines.lines().last());
                write!(
                    f,
                    "COPY {table} (time, close) FROM stdin;  -- {} lines, {first:?} to {last:?}",
                    lines.lines().count()
                )
            }
        }
    }
}

/// What a step means for what is known of its pair, if it succeeds.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Bars change, in this transaction.
    Bars,
    /// Bars change, and live mode is off.
    BarsUnfollowed,
    /// As if nothing had happened.
    Nothing,
    /// Of a partition.
    Truncate(usize),
    Detach(usize),
    Attach(usize),
    NewPart,
    NewBaseline(Minute),
    EnableLive,
    DisableLive,
    Refresh,
    Backfill,
}

#[derive(Clone, Debug)]
pub struct Step {
    pub acts: Vec<Act>,
    pub effect: Effect,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.acts.iter().try_for_each(|act| writeln!(f, "{act};"))
    }
}

impl Step {
    fn call(sql: String, effect: Effect) -> Step {
        Step { acts: vec![Act::Sql(sql)], effect }
    }

    pub fn random(rng: &mut ChaCha8Rng, pair: &mut Pair) -> Step {
        let name = pair.name;
        let chance = rng.random_range(0..100);
        match chance {
            0..15 if !pair.is_current => {
                Self::call(format!("CALL bqx.refresh('{{{name}}}')"), Effect::Refresh)
            }
            _ if chance < 20 && !pair.is_current || (22..25).contains(&chance) => {
                let call = format!("CALL bqx.backfill(pairs => '{{{name}}}', workers => {})", chance % 2);
                Self::call(call, Effect::Backfill)
            }
            25..40 if !pair.live => {
                Self::call(format!("CALL bqx.enable_live('{{{name}}}')"), Effect::EnableLive)
            }
            20..22 => Self::call(format!("CALL bqx.disable_live('{{{name}}}')"), Effect::DisableLive),
            40..42 => Self::call("CALL bqx.refresh()".to_owned(), Effect::Refresh),
            42..44 => Self::baseline(rng, pair),
            44 => Self::call(format!("VACUUM FULL {}", pair.m1()), Effect::Nothing),
            45..55 => Self::of_partitions(rng, pair),
            _ => Self::transaction(rng, pair),
        }
    }

    /// Some statements that change bars, perhaps not all to last.
    fn transaction(rng: &mut ChaCha8Rng, pair: &mut Pair) -> Step {
        let unfollowed = rng.random_ratio(1, 15);
        let effect = if unfollowed { Effect::BarsUnfollowed } else { Effect::Bars };
        let gaps = pair.gaps.clone();
        let mut acts = Vec::new();
        if unfollowed {
            acts.push(sql("SET LOCAL bqx.live = off"));
        } else if rng.random_ratio(1, 2) {
            return Step { acts: change(rng, pair), effect }; // without BEGIN
        }
        acts.insert(
            0,
            sql(["BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ", "BEGIN ISOLATION LEVEL SERIALIZABLE"]
                .choose(rng)
                .expect("levels")),
        );
        for _ in 0..rng.random_range(1..=4) {
            let in_savepoint = rng.random_ratio(1, 4);
            if in_savepoint {
                acts.push(sql("SAVEPOINT s"));
            }
            acts.extend(change(rng, pair));
            if in_savepoint {
                acts.push(sql(["RELEASE s", "ROLLBACK TO s"].choose(rng).expect("ends")));
            }
        }
        let lasts = !rng.random_ratio(1, 8);
        acts.push(sql(if lasts { "COMMIT" } else { "ROLLBACK" }));
        if !lasts {
            pair.gaps = gaps;
            return Step { acts, effect: Effect::Nothing };
        }
        Step { acts, effect }
    }

    fn of_partitions(rng: &mut ChaCha8Rng, pair: &mut Pair) -> Step {
        let m1 = pair.m1();
        if !pair.is_partitioned() {
            return Step { acts: rewrite(&m1), effect: Effect::Bars };
        }
        if let Some(i) = pair.part(rng, false).filter(|_| rng.random_ratio(2, 3)) {
            return attach(pair, &pair.parts[i], Effect::Attach(i));
        }
        let some = pair.part(rng, true);
        match (rng.random_range(0..4), some, pair.coming_month()) {
            (0, Some(i), _) => {
                let detach = format!("ALTER TABLE {m1} DETACH PARTITION {}", pair.parts[i].name);
                Self::call(detach, Effect::Detach(i))
            }
            (1, Some(i), _) => Self::call(format!("TRUNCATE {}", pair.parts[i].name), Effect::Truncate(i)),
            (2, _, Some(month)) => {
                let (pair, first) = (pair.name, format!("2024-{month:02}-01"));
                Self::call(format!("CALL bqx.create_m1('{{{pair}}}', '{first}', '{first}')"), Effect::NewPart)
            }
            (3, _, Some(month)) => {
                let Part { name, bounds, .. } =
                    Part::month(&format!("bqx.\"M1 of {}, {month}\"", pair.name), month);
                Self::call(
                    format!("CREATE TABLE {name} PARTITION OF {m1} FOR VALUES {bounds}"),
                    Effect::NewPart,
                )
            }
            _ => Self::transaction(rng, pair),
        }
    }

    /// Another bar as baseline, or the same one.
    fn baseline(rng: &mut ChaCha8Rng, pair: &Pair) -> Step {
        let mut times = vec![pair.baseline, 0, model::start_of(8), model::start_of(9) + DAY];
        times.retain(|&minute| pair.part_of(minute).is_some());
        let baseline = *times.choose(rng).expect("the one in force");
        let acts = vec![
            // which may have gone
            Act::Sql(format!(
                "INSERT INTO {} (time, close) VALUES ({}, 1.07654) ON CONFLICT DO NOTHING",
                pair.m1(),
                instant(baseline)
            )),
            Act::Sql(format!("CALL bqx.set_baselines({}, '{{{}}}')", instant(baseline), pair.name)),
            Act::Sql(format!("CALL bqx.index_m1('{{{}}}')", pair.name)),
        ];
        Step { acts, effect: Effect::NewBaseline(baseline) }
    }
}

fn sql(text: &str) -> Act {
    Act::Sql(text.to_owned())
}

/// A partition comes back. What was made in its place meanwhile goes. The baseline may have changed since it went.
fn attach(pair: &Pair, part: &Part, effect: Effect) -> Step {
    let m1 = pair.m1();
    let Part { name, bounds, from, to, .. } = part;
    let drop = format!(
        "DO $$ DECLARE meanwhile regclass; BEGIN FOR meanwhile IN SELECT p.partition FROM bqx._partitions('{m1}') AS p \
         WHERE p.from_ts < {} AND p.to_ts > {} LOOP EXECUTE format('DROP TABLE %s', meanwhile); END LOOP; END $$",
        instant(*to),
        instant(*from)
    );
    let attach = format!("ALTER TABLE {m1} ATTACH PARTITION {name} FOR VALUES {bounds}");
    let index = format!("CALL bqx.index_m1('{{{}}}')", pair.name);
    Step { acts: [drop, attach, index].map(Act::Sql).to_vec(), effect }
}

/// All bars are taken out and put back, but for some.
fn rewrite(m1: &str) -> Vec<Act> {
    [
        "BEGIN".to_owned(),
        format!("CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT * FROM {m1}"),
        format!("TRUNCATE {m1}"),
        format!("INSERT INTO {m1} (time, close) SELECT time, close FROM kept WHERE abs(hashint8(extract(epoch FROM time)::int8)) % 500 > 0 \
                 OR time IN (SELECT baseline_time AT TIME ZONE 'UTC' FROM bqx.baseline_rates)"),
        "COMMIT".to_owned(),
    ]
    .map(Act::Sql)
    .to_vec()
}

fn price(rng: &mut ChaCha8Rng) -> String {
    format!("{:.5}", f64::from(rng.random_range(105_000..110_000)) / 1e5)
}

/// SQL for the bars of some minutes or days, the baseline's excepted.
fn stretch(rng: &mut ChaCha8Rng, pair: &Pair) -> (Minute, Minute, String) {
    let from = pair.time(rng);
    let length = *[60, 300, DAY, 4 * DAY].choose(rng).expect("lengths");
    let to = from + rng.random_range(1..=length);
    let of_it = format!(
        "time >= {} AND time < {} AND time <> {}",
        instant(from),
        instant(to),
        instant(pair.baseline)
    );
    (from, to, of_it)
}

/// New bars in a stretch, every so many minutes, as far as there is a partition for them.
fn bars(rng: &mut ChaCha8Rng, pair: &Pair, from: Minute, to: Minute) -> Vec<Minute> {
    let every = rng.random_range(1..=20);
    let holds = |minute: &Minute| *minute != pair.baseline && pair.part_of(*minute).is_some();
    (from..to).step_by(every).filter(holds).take(2000).collect()
}

/// A statement that changes bars (or some that belong together).
fn change(rng: &mut ChaCha8Rng, pair: &mut Pair) -> Vec<Act> {
    let m1 = pair.m1();
    let minute = pair.time(rng);
    let (at, price) = (instant(minute), price(rng));
    // the table, or just the partition
    let table = if rng.random_ratio(1, 3) { pair.part_of(minute).expect("room") } else { m1.clone() };
    let update = ["ON CONFLICT DO NOTHING", "ON CONFLICT (time) DO UPDATE SET close = excluded.close"];
    let on_conflict = *update.choose(rng).expect("two");
    let one = |text: String| vec![Act::Sql(text)];
    match rng.random_range(0..15) {
        0..=2 => one(format!(
            "INSERT INTO {m1} (time, close, volume) SELECT max(time) + interval '{} min', {price}, 3 FROM {m1}",
            rng.random_range(1..=30)
        )),
        3..=4 => one(format!("INSERT INTO {table} (time, close) VALUES ({at}, {price}) {on_conflict}")),
        5 => one(format!(
            "UPDATE {table} SET close = {price} WHERE time = (SELECT max(time) FROM {table} WHERE time <> {})",
            instant(pair.baseline)
        )),
        6 => {
            let (_, _, of_it) = stretch(rng, pair);
            one(format!("UPDATE {m1} SET close = close + 0.0001 WHERE {of_it}"))
        }
        7 => {
            let (_, _, of_it) = stretch(rng, pair);
            one(format!("UPDATE {m1} SET volume = coalesce(volume, 0) + 1 WHERE {of_it}"))
        }
        8 => one(format!(
            "UPDATE {m1} SET time = time + interval '{}' WHERE time = (SELECT max(time) FROM {m1} WHERE time <= {at} AND time <> {})",
            ["30 s", "7 min", "-31 min", "20 days", "-31 days"].choose(rng).expect("shifts"),
            instant(pair.baseline)
        )),
        9 => {
            let (from, to, of_it) = stretch(rng, pair);
            pair.gaps.push((from, to));
            one(format!("DELETE FROM {m1} WHERE {of_it}"))
        }
        10 => one(format!(
            "DELETE FROM {table} WHERE time = (SELECT min(time) FROM {table} WHERE time >= {at} AND time <> {})",
            instant(pair.baseline)
        )),
        11 => {
            let (from, to, _) = stretch(rng, pair);
            let minutes = bars(rng, pair, from, to);
            insert(rng, &m1, &minutes, on_conflict)
        }
        12 => {
            let (_, _, of_it) = stretch(rng, pair);
            one(format!(
                "WITH moved AS (DELETE FROM {m1} WHERE {of_it} RETURNING *) \
                 INSERT INTO {m1} (time, close) SELECT time + interval '1 s', close FROM moved {on_conflict}"
            ))
        }
        _ => fill_gap(rng, pair),
    }
}

fn insert(rng: &mut ChaCha8Rng, m1: &str, minutes: &[Minute], on_conflict: &str) -> Vec<Act> {
    if minutes.is_empty() {
        return Vec::new();
    }
    let mut values: Vec<String> =
        minutes.iter().map(|&m| format!("({}, {})", instant(m), price(rng))).collect();
    if rng.random_ratio(1, 2) {
        values.reverse();
    }
    let columns = format!("INSERT INTO {m1} (time, close) VALUES");
    vec![Act::Sql(format!("{columns} {} {on_conflict}", values.join(", ")))]
}

/// Bars come back where some were deleted, late, in order or not.
fn fill_gap(rng: &mut ChaCha8Rng, pair: &mut Pair) -> Vec<Act> {
    if pair.gaps.is_empty() {
        return Vec::new();
    }
    let (from, to) = pair.gaps.remove(rng.random_range(0..pair.gaps.len()));
    let minutes = bars(rng, pair, from, to);
    let (Some(&first), Some(&last)) = (minutes.first(), minutes.last()) else { return Vec::new() };
    if rng.random_ratio(1, 3) {
        return insert(rng, &pair.m1(), &minutes, "ON CONFLICT DO NOTHING");
    }
    let table = match pair.part_of(first) {
        Some(part) if pair.part_of(last).as_ref() == Some(&part) && rng.random_ratio(1, 2) => part,
        _ => pair.m1(),
    };
    let mut lines: Vec<String> =
        minutes.iter().map(|&m| format!("{}+00\t{}\n", text(m), price(rng))).collect();
    if rng.random_ratio(1, 3) {
        lines.reverse();
    }
    vec![Act::Copy { table, lines: lines.concat() }]
}
