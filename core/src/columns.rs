//! The derived columns: their names, order, windows and SQL types. DDL, composite types, the month writer and
//! the documentation all derive from this file.

use std::fmt;

/// Longest window, in bars, that a derived table may have.
pub const MAX_WINDOW: usize = 10_000;
/// Window of the `agg_*` columns, in bars.
pub const AGG_WINDOW: usize = 75;

/// The two families of derived tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// Backward-window metrics, `bqx.bqx_<pair>`.
    Bqx,
    /// Rolling quadratic regressions, `bqx.reg_<pair>`.
    Reg,
}

impl Family {
    pub const ALL: [Family; 2] = [Family::Bqx, Family::Reg];

    /// `bqx` or `reg`.
    pub fn name(self) -> &'static str {
        match self {
            Family::Bqx => "bqx",
            Family::Reg => "reg",
        }
    }

    /// Case-insensitive inverse of [`Family::name`].
    pub fn parse(name: &str) -> Option<Family> {
        Family::ALL.into_iter().find(|f| f.name().eq_ignore_ascii_case(name))
    }

    /// Windows, in bars, of a table made without asking for others.
    pub fn default_windows(self) -> &'static [usize] {
        match self {
            Family::Bqx => &[15, 30, 45, 60, 75],
            Family::Reg => &[60, 90, 150, 240, 390, 630],
        }
    }

    /// Shortest window that has all metrics: a deviation needs two values, a parabola three.
    pub fn min_window(self) -> usize {
        match self {
            Family::Bqx => 2,
            Family::Reg => 3,
        }
    }
}

macro_rules! metrics {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $suffix:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($variant),* }

        impl $name {
            /// In column order.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// The column name's last part.
            pub fn suffix(self) -> &'static str {
                match self { $($name::$variant => $suffix),* }
            }

            fn from_suffix(s: &str) -> Option<Self> {
                match s { $($suffix => Some($name::$variant),)* _ => None }
            }
        }
    };
}

metrics! {
    /// Metrics of one backward window, columns `w{W}_bqx_…`.
    WindowMetric {
        Return = "return", Max = "max_index", Min = "min_index", Avg = "avg_index",
        Stdev = "stdev_index", Endpoint = "endpoint",
    }
}
metrics! {
    /// Metrics over the longest default window, columns `agg_bqx_…`.
    AggMetric {
        Return = "return", Max = "max_index", Min = "min_index", Avg = "avg_index",
        Stdev = "stdev_index", Range = "range", Volatility = "volatility",
    }
}
metrics! {
    /// Metrics of one quadratic fit, columns `w{W}_reg_…`.
    RegMetric {
        A = "a", B = "b", C = "c", R2 = "r2", Rmse = "rmse", YhatEnd = "yhat_end",
        ResidEnd = "resid_end", SlopeEnd = "slope_end", Endpoint = "endpoint",
    }
}

/// One column of a derived table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Column {
    /// `ts_utc`, the bar's time.
    Time,
    /// `rate_index` of the bar itself.
    RateIndex,
    Window {
        window: usize,
        metric: WindowMetric,
    },
    Agg(AggMetric),
    Reg {
        window: usize,
        metric: RegMetric,
    },
    /// `created_at`, filled by its default; part of no comparison.
    CreatedAt,
}

impl Column {
    /// The column that `name` stands for in a table of `family`; `None` for columns that are not ours,
    /// also for windows out of range.
    pub fn parse(family: Family, name: &str) -> Option<Column> {
        let column = match (family, name) {
            (_, "ts_utc") => Column::Time,
            (_, "rate_index") => Column::RateIndex,
            (Family::Reg, "created_at") => Column::CreatedAt,
            (Family::Bqx, _) if name.starts_with("agg_bqx_") => {
                Column::Agg(AggMetric::from_suffix(name.strip_prefix("agg_bqx_")?)?)
            }
            _ => {
                let (window, metric) = name.strip_prefix('w')?.split_once('_')?;
                let window = window.parse().ok()?;
                let metric = metric.strip_prefix(family.name())?.strip_prefix('_')?;
                match family {
                    Family::Bqx => Column::Window { window, metric: WindowMetric::from_suffix(metric)? },
                    Family::Reg => Column::Reg { window, metric: RegMetric::from_suffix(metric)? },
                }
            }
        };
        let in_range = column.window() == 0 || (family.min_window()..=MAX_WINDOW).contains(&column.window());
        // Names are canonical: "w015_bqx_return" is somebody else's column.
        (in_range && column.to_string() == name).then_some(column)
    }

    /// Bars that must precede for the column to have a value: 0 for columns that always have one.
    pub fn window(self) -> usize {
        match self {
            Column::Time | Column::RateIndex | Column::CreatedAt => 0,
            Column::Window { window, .. } | Column::Reg { window, .. } => window,
            Column::Agg(_) => AGG_WINDOW,
        }
    }

    /// PostgreSQL type of the column in tables that bqx makes.
    pub fn sql_type(self) -> &'static str {
        match self {
            Column::Time | Column::CreatedAt => "timestamp with time zone",
            _ => "double precision",
        }
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Column::Time => f.write_str("ts_utc"),
            Column::RateIndex => f.write_str("rate_index"),
            Column::Window { window, metric } => write!(f, "w{window}_bqx_{}", metric.suffix()),
            Column::Agg(metric) => write!(f, "agg_bqx_{}", metric.suffix()),
            Column::Reg { window, metric } => write!(f, "w{window}_reg_{}", metric.suffix()),
            Column::CreatedAt => f.write_str("created_at"),
        }
    }
}

/// All columns of a derived table with these windows, in order.
pub fn columns(family: Family, windows: &[usize]) -> Vec<Column> {
    let mut columns = vec![Column::Time, Column::RateIndex];
    for &window in windows {
        match family {
            Family::Bqx => {
                columns.extend(WindowMetric::ALL.iter().map(|&metric| Column::Window { window, metric }))
            }
            Family::Reg => {
                columns.extend(RegMetric::ALL.iter().map(|&metric| Column::Reg { window, metric }))
            }
        }
    }
    match family {
        Family::Bqx => columns.extend(AggMetric::ALL.iter().map(|&metric| Column::Agg(metric))),
        Family::Reg => columns.push(Column::CreatedAt),
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_tables_have_39_and_57_columns() {
        assert_eq!(columns(Family::Bqx, Family::Bqx.default_windows()).len(), 39);
        assert_eq!(columns(Family::Reg, Family::Reg.default_windows()).len(), 57);
    }

    #[test]
    fn names_parse_back() {
        for family in Family::ALL {
            for column in columns(family, family.default_windows()) {
                assert_eq!(Column::parse(family, &column.to_string()), Some(column));
            }
        }
    }

    #[test]
    fn foreign_names_are_not_ours() {
        for name in [
            "w015_bqx_return",
            "w1_bqx_return",
            "w10001_bqx_return",
            "w15_bqx_max",
            "w15_reg_a",
            "rate",
            "w15_bqx_return_pct",
            "agg_bqx_endpoint",
            "w_bqx_return",
            "created_at",
            "W15_bqx_return",
        ] {
            assert_eq!(Column::parse(Family::Bqx, name), None, "{name}");
        }
        assert_eq!(Column::parse(Family::Reg, "w2_reg_a"), None);
    }
}
