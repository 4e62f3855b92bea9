//! What a schedule has to know of the tables, to draw changes that mostly succeed and to know what must hold.

use rand::RngExt;
use rand::prelude::IndexedRandom;
use rand_chacha::ChaCha8Rng;

/// Minutes since 2024-07-01 00:00 UTC.
pub type Minute = i64;

pub const DAY: Minute = 24 * 60;
/// The prepared bars end here, at 2024-10-01.
pub const QUARTER: Minute = 92 * DAY;

/// The month of 2024 that a time is in.
pub fn month_of(minute: Minute) -> u32 {
    (8..=12).rev().find(|&month| minute >= start_of(month)).unwrap_or(7)
}

/// When a month of 2024 begins (July to December, and January after it).
pub fn start_of(month: u32) -> Minute {
    let days = [31, 31, 30, 31, 30, 31][..(month - 7) as usize].iter().sum::<i64>();
    days * DAY
}

/// SQL for a time.
pub fn instant(minute: Minute) -> String {
    format!("'{}+00'", text(minute))
}

/// A time as COPY reads it.
pub fn text(minute: Minute) -> String {
    let month = month_of(minute);
    let (day, of_day) = ((minute - start_of(month)) / DAY + 1, minute % DAY);
    format!("2024-{month:02}-{day:02} {:02}:{:02}", of_day / 60, of_day % 60)
}

/// A partition of M1, which may be detached.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Its name, with the schema.
    pub name: String,
    pub from: Minute,
    pub to: Minute,
    /// The bounds as SQL.
    pub bounds: String,
    pub attached: bool,
}

impl Part {
    pub fn month(name: &str, month: u32) -> Part {
        let (from, to) = (start_of(month), start_of(month + 1));
        let bounds = format!("FROM ({}) TO ({})", instant(from), instant(to));
        Part { name: name.to_owned(), from, to, bounds, attached: true }
    }

    fn holds(&self, minute: Minute) -> bool {
        self.from <= minute && minute < self.to
    }
}

/// A pair and its M1 table.
#[derive(Clone, Debug)]
pub struct Pair {
    pub name: &'static str,
    /// None: it is not partitioned.
    pub parts: Vec<Part>,
    pub live: bool,
    /// Whether the derived rows are those of the bars now, as far as was promised.
    pub is_current: bool,
    /// The baseline's bar, which is never touched.
    pub baseline: Minute,
    /// Stretches whose bars were deleted, from one time to before another.
    pub gaps: Vec<(Minute, Minute)>,
}

impl Pair {
    pub fn all() -> Vec<Pair> {
        let pair =
            |name, parts| Pair { name, parts, live: false, is_current: true, baseline: 0, gaps: Vec::new() };
        let months = [7, 8, 9].map(|month| Part::month(&format!("bqx.m1_eurusd_2024_{month:02}"), month));
        let odd = |name: &str, from: Minute, to: Minute, bounds: &str| Part {
            name: format!("bqx.\"{name}\""),
            from,
            to,
            bounds: bounds.to_owned(),
            attached: true,
        };
        let odd = [
            odd("until July", 0, 23 * DAY, "FROM (MINVALUE) TO ('2024-07-24 00:00+00')"),
            odd(
                "in August",
                23 * DAY,
                65 * DAY + 720,
                "FROM ('2024-07-24 00:00+00') TO ('2024-09-04 12:00+00')",
            ),
            odd(
                "in September",
                65 * DAY + 720,
                101 * DAY,
                "FROM ('2024-09-04 12:00+00') TO ('2024-10-10 00:00+00')",
            ),
        ];
        vec![pair("eurusd", months.to_vec()), pair("gbpusd", Vec::new()), pair("audusd", odd.to_vec())]
    }

    pub fn m1(&self) -> String {
        format!("bqx.m1_{}", self.name)
    }

    pub fn is_partitioned(&self) -> bool {
        !self.parts.is_empty()
    }

    /// Some time that the table has room for, often near the end.
    pub fn time(&self, rng: &mut ChaCha8Rng) -> Minute {
        let end = self.parts.iter().filter(|part| part.attached).map(|part| part.to).max().unwrap_or(QUARTER);
        loop {
            let since = if rng.random_ratio(1, 4) { end - 3 * DAY } else { 0 };
            let minute = rng.random_range(since.max(0)..end);
            if minute != self.baseline && self.part_of(minute).is_some() {
                return minute;
            }
        }
    }

    /// What holds the bars of a time: a partition, or the table itself. None: nothing does.
    pub fn part_of(&self, minute: Minute) -> Option<String> {
        if !self.is_partitioned() {
            return Some(self.m1());
        }
        let part = self.parts.iter().find(|part| part.attached && part.holds(minute))?;
        Some(part.name.clone())
    }

    /// Some partition that does not hold the baseline's bar.
    pub fn part(&self, rng: &mut ChaCha8Rng, attached: bool) -> Option<usize> {
        let suitable = |&i: &usize| self.parts[i].attached == attached && !self.parts[i].holds(self.baseline);
        (0..self.parts.len()).filter(suitable).collect::<Vec<_>>().choose(rng).copied()
    }

    /// The month that the last partition does not reach, with what will hold it.
    pub fn coming_month(&self) -> Option<u32> {
        let end = self.parts.iter().map(|part| part.to).max()?;
        (8..=11).find(|&month| start_of(month) == end)
    }
}
