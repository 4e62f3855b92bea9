//! Who takes part: each does the same job, rows of both families from bars to fresh tables with a key.

use serde::Serialize;

/// How much of the job a contender is given, so that slow ones end some day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    AllPairs,
    /// A quarter of the pairs.
    FewPairs,
    /// So many rows of each month, the last ones, of as many pairs as there are sessions.
    Sample(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    Backfill,
    CopyingRows,
    CopyingFiles,
    TunedSql,
    NamedWindows,
    Numpy,
    Polars,
    Duckdb,
    RowLoop,
}

impl Way {
    pub fn title(self) -> &'static str {
        match self {
            Way::Backfill => "bqx.backfill",
            Way::CopyingRows => "floor: INSERT … SELECT",
            Way::CopyingFiles => "COPY, binary",
            Way::TunedSql => "plain SQL, tuned",
            Way::NamedWindows => "plain SQL, named windows",
            Way::Numpy => "numpy",
            Way::Polars => "polars",
            Way::Duckdb => "DuckDB",
            Way::RowLoop => "Python row by row (sample)",
        }
    }

    /// Whether it does the job with other means than bqx.
    pub fn is_peer(self) -> bool {
        !matches!(self, Way::Backfill | Way::CopyingRows | Way::CopyingFiles)
    }

    /// Rows that it makes of each month, if not all.
    pub fn sample(self) -> Option<u32> {
        match self.share() {
            Share::Sample(rows) => Some(rows),
            Share::AllPairs | Share::FewPairs => None,
        }
    }

    /// The script of those that work in Python.
    pub fn python_script(self) -> Option<&'static str> {
        match self {
            Way::Numpy => Some("with_numpy.py"),
            Way::Polars => Some("with_polars.py"),
            Way::Duckdb => Some("with_duckdb.py"),
            Way::RowLoop => Some("row_loop.py"),
            _ => None,
        }
    }

    pub fn share(self) -> Share {
        match self {
            Way::NamedWindows => Share::FewPairs,
            Way::RowLoop => Share::Sample(1000),
            _ => Share::AllPairs,
        }
    }
}

/// A way, with so many sessions: workers of bqx, connections, processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contender {
    pub way: Way,
    pub sessions: usize,
}

/// What all are compared with.
pub const YARDSTICK: Contender = Contender { way: Way::Backfill, sessions: 2 };

/// What writing alone takes.
pub const FLOOR: Contender = Contender { way: Way::CopyingRows, sessions: 2 };

/// How much the server writes to its log of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WalLevel {
    /// PostgreSQL's default: everything.
    Replica,
    /// Nothing of tables made in the same transaction, which are synced instead.
    Minimal,
}

impl WalLevel {
    pub fn name(self) -> &'static str {
        match self {
            WalLevel::Replica => "replica",
            WalLevel::Minimal => "minimal",
        }
    }

    /// In the table's order. Peers take part once: little of their time goes into writing.
    pub fn contenders(self) -> Vec<Contender> {
        let writers = [Way::Backfill, Way::CopyingRows, Way::CopyingFiles];
        let mut contenders: Vec<Contender> =
            writers.into_iter().flat_map(|way| [1, 2].map(|sessions| Contender { way, sessions })).collect();
        if self == WalLevel::Replica {
            let peers =
                [Way::TunedSql, Way::NamedWindows, Way::Numpy, Way::Polars, Way::Duckdb, Way::RowLoop];
            contenders.extend(peers.map(|way| Contender { way, sessions: 2 }));
        }
        contenders
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_are_compared_with_always_takes_part() {
        for wal_level in [WalLevel::Replica, WalLevel::Minimal] {
            let contenders = wal_level.contenders();
            assert!(contenders.contains(&YARDSTICK) && contenders.contains(&FLOOR));
        }
    }

    #[test]
    fn peers_are_those_who_compute_without_bqx() {
        let peers = WalLevel::Replica.contenders().into_iter().filter(|contender| contender.way.is_peer());
        assert_eq!(peers.count(), 6);
        assert!(!WalLevel::Minimal.contenders().iter().any(|contender| contender.way.is_peer()));
    }
}
