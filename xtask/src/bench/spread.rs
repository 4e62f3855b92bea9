//! What repeated measurements say.

use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

/// The middle and the ends of what was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// Does the work so many times; returns the seconds it took.
    pub fn of_seconds(repetitions: usize, mut work: impl FnMut() -> Result<()>) -> Result<Spread> {
        let mut seconds = Vec::new();
        for _ in 0..repetitions {
            let start = Instant::now();
            work()?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        Ok(Spread::of(seconds))
    }

    /// Amounts per second, if these are the seconds that `amount` took.
    pub fn rate_of(self, amount: f64) -> Spread {
        Spread { median: amount / self.median, min: amount / self.max, max: amount / self.min }
    }

    pub fn of(mut measured: Vec<f64>) -> Spread {
        measured.sort_by(f64::total_cmp);
        let (below, from) = measured.split_at(measured.len() / 2);
        let median =
            if below.len() < from.len() { from[0] } else { f64::midpoint(below[below.len() - 1], from[0]) };
        Spread { median, min: measured[0], max: measured[measured.len() - 1] }
    }
}

/// What most of many measurements stay below.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantiles {
    pub measurements: usize,
    pub median: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

impl Quantiles {
    pub fn of(mut measured: Vec<f64>) -> Quantiles {
        measured.sort_by(f64::total_cmp);
        // The least that so many of a hundred do not exceed.
        let percentile = |p: usize| measured[(measured.len() * p).div_ceil(100).max(1) - 1];
        Quantiles {
            measurements: measured.len(),
            median: percentile(50),
            p90: percentile(90),
            p99: percentile(99),
            max: percentile(100),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_of_a_hundred_do_not_exceed_a_percentile() {
        let hundred = Quantiles::of((1..=100).rev().map(f64::from).collect());
        let expected = Quantiles { measurements: 100, median: 50.0, p90: 90.0, p99: 99.0, max: 100.0 };
        assert_eq!(hundred, expected);
        let one = Quantiles::of(vec![7.0]);
        assert_eq!(one, Quantiles { measurements: 1, median: 7.0, p90: 7.0, p99: 7.0, max: 7.0 });
        let few = Quantiles::of(vec![3.0, 1.0, 2.0]);
        assert_eq!((few.median, few.p90), (2.0, 3.0));
    }

    #[test]
    fn the_median_is_the_middle_one_or_between_the_two_middle_ones() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 8.0]), Spread { median: 3.0, min: 1.0, max: 8.0 });
        assert_eq!(Spread::of(vec![5.0]), Spread { median: 5.0, min: 5.0, max: 5.0 });
    }

    #[test]
    fn the_longest_time_makes_the_lowest_rate() {
        let seconds = Spread { median: 2.0, min: 1.0, max: 4.0 };
        assert_eq!(seconds.rate_of(100.0), Spread { median: 50.0, min: 25.0, max: 100.0 });
    }
}
