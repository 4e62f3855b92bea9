//! What `cargo xtask bench aggregates` measures.

use serde::Serialize;

/// Preceding rows of the frames.
pub const WIDTHS: [usize; 3] = [63, 630, 6300];
pub const SHORTEST: usize = WIDTHS[0];
pub const MIDDLE: usize = WIDTHS[1];
pub const LONGEST: usize = WIDTHS[2];

/// Rows of a group.
pub const GROUP: usize = 1000;

/// Rows that an aggregate may add up in one query if it starts anew for each frame: a second or two.
const ADDITIONS: usize = 20_000_000;

/// What the others are compared with.
pub const YARDSTICK: &str = "stddev_samp(v)";

pub struct Aggregate {
    /// How it is called; W stands for the rows that precede the current one.
    pub call: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    WindowMetrics,
    QuadraticReg,
    /// One of PostgreSQL's own that can take rows out of its frame.
    Sliding,
    /// One of PostgreSQL's own that adds up the whole frame for each row.
    AddingUp,
}

const AGGREGATES: [Aggregate; 8] = [
    Aggregate { call: "bqx_window_metrics(v)", kind: Kind::WindowMetrics },
    Aggregate { call: "bqx_window_metrics(v, W)", kind: Kind::WindowMetrics },
    Aggregate { call: "quadratic_reg(v)", kind: Kind::QuadraticReg },
    Aggregate { call: "quadratic_reg(v, x)", kind: Kind::QuadraticReg },
    Aggregate { call: "count(v)", kind: Kind::Sliding },
    Aggregate { call: YARDSTICK, kind: Kind::AddingUp },
    Aggregate { call: "max(v)", kind: Kind::AddingUp },
    Aggregate { call: "regr_slope(v, x)", kind: Kind::AddingUp },
];

impl Kind {
    fn is_ours(self) -> bool {
        matches!(self, Self::WindowMetrics | Self::QuadraticReg)
    }

    /// Rows that precede the current one in its frame: a regression over W rows ends with the current one.
    fn preceding(self, width: usize) -> usize {
        if self == Self::QuadraticReg { width - 1 } else { width }
    }

    /// Expressions over all results `m`, first their number.
    fn outcome(self) -> &'static str {
        match self {
            Self::WindowMetrics => "count((m).n), sum((m).bqx_avg)",
            Self::QuadraticReg => "count((m).n), sum((m).reg_a)",
            Self::Sliding | Self::AddingUp => "count(m), sum(m)",
        }
    }
}

/// What an aggregate is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Data {
    /// ROWS frames of a simulated index.
    Rows,
    /// ROWS frames of values between 1e-5 and 1e9, whose exact sums need big integers.
    MixedMagnitudes,
    /// ROWS frames of logarithmic returns: of both signs around 0 with all their digits, big integers again.
    LogReturns,
    /// RANGE frames of so many minutes; missing minutes and weekends make them shorter.
    Range,
    /// No window, but GROUP BY.
    Groups,
}

/// An aggregate over certain frames of the table `samples`, which has
/// `i` (1, 2, 3 …), `x` (the same as double), `g` (the group), `time`, `v`, `mixed` and `log_return`.
#[derive(Clone, Copy)]
pub struct Case {
    pub aggregate: &'static Aggregate,
    pub data: Data,
    pub width: usize,
}

/// All cases, in the order to report them.
pub fn all() -> Vec<Case> {
    let all_on = |data, width| AGGREGATES.iter().map(move |aggregate| Case { aggregate, data, width });
    let mut cases = Vec::new();
    for aggregate in &AGGREGATES {
        cases.extend(WIDTHS.map(|width| Case { aggregate, data: Data::Rows, width }));
    }
    for data in [Data::MixedMagnitudes, Data::LogReturns] {
        cases.extend(all_on(data, MIDDLE).filter(|case| case.aggregate.kind.is_ours()));
    }
    cases.extend(all_on(Data::Range, MIDDLE).filter(|case| case.aggregate.kind != Kind::AddingUp));
    cases.extend(all_on(Data::Groups, GROUP - 1));
    cases
}

impl Case {
    /// What the aggregate is given, in words.
    pub fn frames(&self) -> String {
        let width = self.width;
        match self.data {
            Data::Rows => format!("ROWS {width}"),
            Data::MixedMagnitudes => format!("ROWS {width}, mixed magnitudes"),
            Data::LogReturns => format!("ROWS {width}, log returns"),
            Data::Range => format!("RANGE {width} minutes"),
            Data::Groups => format!("groups of {GROUP} rows"),
        }
    }

    /// A query that computes the aggregate over the first `rows` rows and returns the number of results.
    pub fn query(&self, rows: usize) -> String {
        let call = self.aggregate.call.replace('W', &self.width.to_string());
        let preceding = self.aggregate.kind.preceding(self.width);
        let over_rows_of = |column: &str| {
            format!(
                "{call} OVER (ORDER BY i ROWS {preceding} PRECEDING) AS m \
                   FROM (SELECT i, x, {column} AS v FROM samples) AS {column} WHERE i <= {rows}"
            )
        };
        let results = match self.data {
            Data::Rows => format!(
                "{call} OVER (ORDER BY i ROWS {preceding} PRECEDING) AS m FROM samples WHERE i <= {rows}"
            ),
            Data::MixedMagnitudes => over_rows_of("mixed"),
            Data::LogReturns => over_rows_of("log_return"),
            Data::Range => format!(
                "{call} OVER (ORDER BY time RANGE '{preceding} minutes' PRECEDING) AS m \
                   FROM samples WHERE i <= {rows}"
            ),
            Data::Groups => format!("{call} AS m FROM samples WHERE i <= {rows} GROUP BY g"),
        };
        // A subquery with aggregates is not pulled up: each is evaluated once, however often `m` is named.
        format!("SELECT {} FROM (SELECT {results}) AS results", self.aggregate.kind.outcome())
    }

    /// Rows of the frames that are added up anew for each row, if they are.
    fn added_up(&self) -> Option<usize> {
        let kind = self.aggregate.kind;
        let is_added_up = kind == Kind::AddingUp && self.data != Data::Groups;
        is_added_up.then(|| kind.preceding(self.width) + 1)
    }

    /// How many of the table's rows to measure on.
    pub fn rows(&self, table_rows: usize) -> usize {
        match self.added_up() {
            Some(frame) => table_rows.min((ADDITIONS / frame).max(2 * frame)),
            None => table_rows,
        }
    }

    /// What the first `rows` rows count for. Where frames are added up, a row whose frame is still filling
    /// costs less than the others, and counts for as much as is filled.
    pub fn full_rows(&self, rows: usize) -> f64 {
        match self.added_up() {
            Some(frame) => {
                let filling = rows.min(frame);
                let added_up = filling * (filling + 1) / 2 + (rows - filling) * frame;
                added_up as f64 / frame as f64
            }
            None => rows as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(call: &str, data: Data, width: usize) -> Case {
        let aggregate = AGGREGATES.iter().find(|aggregate| aggregate.call == call).unwrap();
        Case { aggregate, data, width }
    }

    #[test]
    fn queries_name_the_width() {
        assert_eq!(
            case("bqx_window_metrics(v, W)", Data::Rows, 63).query(1000),
            "SELECT count((m).n), sum((m).bqx_avg) FROM (SELECT bqx_window_metrics(v, 63) \
             OVER (ORDER BY i ROWS 63 PRECEDING) AS m FROM samples WHERE i <= 1000) AS results"
        );
        let regression = case("quadratic_reg(v)", Data::Range, 630).query(1000);
        assert!(regression.contains("RANGE '629 minutes' PRECEDING"), "{regression}");
    }

    #[test]
    fn what_adds_frames_up_is_measured_on_fewer_rows_but_on_full_frames() {
        let long = case(YARDSTICK, Data::Rows, LONGEST);
        assert_eq!(long.rows(1_000_000), 2 * (LONGEST + 1));
        assert_eq!(case(YARDSTICK, Data::Rows, MIDDLE).rows(1_000_000), ADDITIONS / (MIDDLE + 1));
        assert_eq!(case("count(v)", Data::Rows, LONGEST).rows(1_000_000), 1_000_000);
        assert_eq!(case(YARDSTICK, Data::Groups, GROUP - 1).rows(1_000_000), 1_000_000);
    }

    #[test]
    fn rows_with_half_a_frame_count_half() {
        let frames_of_4 = case(YARDSTICK, Data::Rows, 3);
        assert_eq!(frames_of_4.full_rows(2), (1 + 2) as f64 / 4.0);
        assert_eq!(frames_of_4.full_rows(10), (1 + 2 + 3 + 7 * 4) as f64 / 4.0);
        assert_eq!(case("count(v)", Data::Rows, 3).full_rows(10), 10.0);
    }
}
