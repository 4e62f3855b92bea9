//! Where a series changed: stretches of time, few however many bars changed in them.

use std::ops::RangeInclusive;

use crate::calendar::MICROS_PER_MINUTE;

/// Changes that lie no further apart, in microseconds, are told as one: as long as the longest default window of one-minute bars, so rows
/// in between have one of the changed bars in that window and must be computed anew anyway.
pub const MERGED_GAP: i64 = 630 * MICROS_PER_MINUTE;

/// A stretch of time with changed bars at its first and its last instant, in pg micros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedRange {
    pub from: i64,
    pub to: i64,
    /// Whether there may be a bar less than before.
    pub removed: bool,
}

impl ChangedRange {
    pub fn times(&self) -> RangeInclusive<i64> {
        self.from..=self.to
    }

    /// Whether the other one begins within the merged gap of this one's end, or before.
    fn reaches(&self, other: &ChangedRange) -> bool {
        other.from.saturating_sub(MERGED_GAP) <= self.to
    }

    fn absorb(&mut self, other: &ChangedRange) {
        self.from = self.from.min(other.from);
        self.to = self.to.max(other.to);
        self.removed |= other.removed;
    }
}

/// Changed stretches, ascending and apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangedRanges {
    ranges: Vec<ChangedRange>,
}

impl ChangedRanges {
    /// Notes a bar that came or changed (or has `removed` gone).
    pub fn note(&mut self, time: i64, removed: bool) {
        self.note_range(ChangedRange { from: time, to: time, removed });
    }

    pub fn note_range(&mut self, new: ChangedRange) {
        // Bars mostly come in order: the place is sought from the end.
        let first = self.ranges.iter().rposition(|range| !range.reaches(&new)).map_or(0, |before| before + 1);
        match self.ranges.get_mut(first) {
            Some(range) if new.reaches(range) => range.absorb(&new),
            _ => return self.ranges.insert(first, new),
        }
        while self.ranges.get(first + 1).is_some_and(|next| self.ranges[first].reaches(next)) {
            let next = self.ranges.remove(first + 1);
            self.ranges[first].absorb(&next);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub fn as_slice(&self) -> &[ChangedRange] {
        &self.ranges
    }
}

impl FromIterator<ChangedRange> for ChangedRanges {
    fn from_iter<I: IntoIterator<Item = ChangedRange>>(ranges: I) -> Self {
        let mut all = ChangedRanges::default();
        ranges.into_iter().for_each(|range| all.note_range(range));
        all
    }
}

/// Tells, bar by bar, which rows of a changed series have to be computed anew: those of the changed stretches, and of
/// as many bars after each as the longest window holds. A bar further back is in no window of theirs, before or after.
pub struct AffectedRows<'a> {
    /// Those that begin later than the last bar.
    to_come: &'a [ChangedRange],
    lookback: usize,
    /// The end of the last one that began.
    changed_until: i64,
    /// Rows still affected after it.
    left: usize,
}

impl<'a> AffectedRows<'a> {
    /// From the first of some ranges on (ascending and apart), for rows that look back over so many bars.
    pub fn of(ranges: &'a [ChangedRange], lookback: usize) -> Self {
        AffectedRows { to_come: ranges, lookback, changed_until: i64::MIN, left: 0 }
    }

    /// The range that begins next; `None` if none does. Between two affected stretches, bars from here on are to be shown.
    pub fn next_range(&self) -> Option<ChangedRange> {
        self.to_come.first().copied()
    }

    /// Whether the row of the next bar is affected. Bars must be shown in order.
    pub fn is_affected(&mut self, time: i64) -> bool {
        while let Some((range, later)) = self.to_come.split_first().filter(|(range, _)| range.from <= time) {
            self.changed_until = range.to;
            self.left = self.lookback;
            self.to_come = later;
        }
        if time <= self.changed_until && self.changed_until > i64::MIN {
            self.left = self.lookback;
            return true;
        }
        let affected = self.left > 0;
        self.left = self.left.saturating_sub(1);
        affected
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: i64 = MICROS_PER_MINUTE;

    fn noted(times: &[i64]) -> Vec<(i64, i64)> {
        let mut ranges = ChangedRanges::default();
        times.iter().for_each(|&time| ranges.note(time * MINUTE, false));
        ranges.as_slice().iter().map(|range| (range.from / MINUTE, range.to / MINUTE)).collect()
    }

    #[test]
    fn near_changes_are_one_stretch() {
        assert_eq!(noted(&[5, 3, 4, 1000, 600]), [(3, 1000)]);
        assert_eq!(noted(&[0, 2000, 1000]), [(0, 0), (1000, 1000), (2000, 2000)]);
        assert_eq!(noted(&[0, 1260, 630]), [(0, 1260)]);
    }

    #[test]
    fn infinite_ends_do_not_overflow() {
        let all = ChangedRange { from: i64::MIN, to: i64::MAX, removed: true };
        let mut ranges = ChangedRanges::default();
        ranges.note(0, false);
        ranges.note_range(all);
        ranges.note(i64::MAX - 1, false);
        assert_eq!(ranges.as_slice(), [all]);
    }

    proptest! {
        #[test]
        fn ranges_hold_every_change_and_are_apart(times in prop::collection::vec(0i64..100_000, 1..200)) {
            let found = noted(&times);
            for time in &times {
                prop_assert!(found.iter().any(|(from, to)| from <= time && time <= to));
            }
            for ends in found.windows(2) {
                prop_assert!(ends[0].1 + 630 < ends[1].0);
            }
            for (from, to) in &found {
                prop_assert!(times.contains(from) && times.contains(to));
            }
        }

        /// Rows are affected exactly if a bar of their window, or their own, differs between an old and a new
        /// series: where ranges are no longer than single bars, nothing else is computed anew.
        #[test]
        fn affected_rows_are_those_whose_window_changed(
            old in prop::collection::btree_map(0i64..400, 0u8..3, 0..60),
            new in prop::collection::btree_map(0i64..400, 0u8..3, 0..60),
            lookback in 1usize..8,
        ) {
            let changed: Vec<ChangedRange> = (0..400)
                .filter(|time| old.get(time) != new.get(time))
                .map(|time| ChangedRange { from: time, to: time, removed: !new.contains_key(&time) })
                .collect();
            let window = |series: &std::collections::BTreeMap<i64, u8>, time: i64| -> Vec<(i64, u8)> {
                series.range(..=time).rev().take(lookback + 1).map(|(&t, &v)| (t, v)).collect()
            };
            let mut affected = AffectedRows::of(&changed, lookback);
            for &time in new.keys() {
                let differs = old.contains_key(&time) != new.contains_key(&time)
                    || window(&old, time) != window(&new, time);
                // A bar that was replaced by others of the same window is affected, too, though it need not differ.
                let told = affected.is_affected(time);
                prop_assert!(told || !differs, "the row of {time} differs");
                if told {
                    let last = changed.iter().rfind(|range| range.from <= time).expect("a change before").from;
                    prop_assert!(new.range(last..=time).count() <= lookback + 1);
                }
            }
        }
    }
}
