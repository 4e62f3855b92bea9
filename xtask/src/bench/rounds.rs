//! Rounds of measurements on a machine that others may use, too.

use std::time::{Duration, Instant};

use anyhow::Result;

/// Processors that others may use in a quiet round.
const QUIET: f64 = 0.15;

/// How often to measure, and how long to wait for a quiet machine.
#[derive(Clone, Copy)]
pub struct Effort {
    pub rounds: usize,
    /// Afterwards disturbed rounds have to do.
    pub patience: Duration,
}

/// Makes rounds, told their number, until enough were quiet or patience ends. Returns those in which others did least;
/// `disturbance` is the number of processors that they used in a round.
pub fn quietest<R>(
    effort: Effort,
    disturbance: impl Fn(&R) -> f64,
    mut make: impl FnMut(usize) -> Result<R>,
) -> Result<Vec<R>> {
    let mut rounds: Vec<R> = Vec::new();
    let start = Instant::now();
    while rounds.iter().filter(|round| disturbance(round) <= QUIET).count() < effort.rounds
        && (rounds.len() < effort.rounds || start.elapsed() < effort.patience)
    {
        rounds.push(make(rounds.len())?);
    }
    rounds.sort_by(|one, other| disturbance(one).total_cmp(&disturbance(other)));
    rounds.truncate(effort.rounds);
    Ok(rounds)
}

/// Does something for each of these, in the order of their numbers or, in every second round, backwards: what changes with
/// time, such as the machine's load, changes for all alike. Returned in their own order.
pub fn to_and_fro<T, R>(round: usize, items: &[T], mut work: impl FnMut(&T) -> Result<R>) -> Result<Vec<R>> {
    let backwards = round % 2 == 1;
    let mut results = if backwards {
        items.iter().rev().map(&mut work).collect::<Result<Vec<R>>>()?
    } else {
        items.iter().map(&mut work).collect::<Result<Vec<R>>>()?
    };
    if backwards {
        results.reverse();
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMPATIENT: Effort = Effort { rounds: 2, patience: Duration::ZERO };
    const PATIENT: Effort = Effort { rounds: 2, patience: Duration::from_secs(3600) };

    #[test]
    fn rounds_go_on_until_enough_were_quiet_and_only_those_count() {
        let disturbances = [0.1, 0.9, 0.2, 0.0, 0.7];
        let rounds = quietest(PATIENT, |&disturbance| disturbance, |number| Ok(disturbances[number]));
        assert_eq!(rounds.unwrap(), [0.0, 0.1]);
    }

    #[test]
    fn disturbed_rounds_have_to_do_when_patience_ends() {
        let disturbances = [0.9, 0.7, 0.0];
        let rounds = quietest(IMPATIENT, |&disturbance| disturbance, |number| Ok(disturbances[number]));
        assert_eq!(rounds.unwrap(), [0.7, 0.9]);
    }

    #[test]
    fn every_second_round_goes_backwards_and_results_stay_in_order() {
        for (round, expected_order) in [(0, [1, 2, 3]), (1, [3, 2, 1]), (2, [1, 2, 3])] {
            let mut order = Vec::new();
            let tenfold = to_and_fro(round, &[1, 2, 3], |&item| {
                order.push(item);
                Ok(10 * item)
            });
            assert_eq!(order, expected_order);
            assert_eq!(tenfold.unwrap(), [10, 20, 30]);
        }
    }
}
