//! How benchmarks tell their results: a table for people, a file for programs.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use pgcluster::target_dir;
use postgres::Client;
use serde::Serialize;
use xshell::{Shell, cmd};

/// A table with its first columns aligned to the left, the others to the right.
pub struct Table<const COLUMNS: usize> {
    left: usize,
    /// The header first.
    lines: Vec<[String; COLUMNS]>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    /// With `left` columns of words, the others of numbers.
    pub fn new(header: [&str; COLUMNS], left: usize) -> Self {
        Table { left, lines: vec![header.map(str::to_owned)] }
    }

    pub fn add(&mut self, line: [String; COLUMNS]) {
        self.lines.push(line);
    }

    fn widths(&self) -> [usize; COLUMNS] {
        std::array::from_fn(|column| {
            self.lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)
        })
    }
}

impl<const COLUMNS: usize> fmt::Display for Table<COLUMNS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        for (number, line) in self.lines.iter().enumerate() {
            let cells: [String; COLUMNS] = std::array::from_fn(|column| {
                let (cell, width) = (&line[column], widths[column]);
                if column < self.left { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            writeln!(f, "{}", cells.join("  ").trim_end())?;
            if number == 0 {
                writeln!(f, "{}", widths.map(|width| "─".repeat(width)).join("  "))?;
            }
        }
        Ok(())
    }
}

/// A ratio with three significant digits, or more before the point.
pub fn ratio(ratio: f64) -> String {
    let decimals = match ratio {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{ratio:.decimals$}")
}

/// Where, when and of what figures were taken.
#[derive(Serialize)]
pub struct Circumstances {
    date: String,
    /// `-dirty` at its end: with changes on top. None outside a git repository.
    commit: Option<String>,
    postgresql: String,
    cpu: Option<String>,
    cores: usize,
}

impl Circumstances {
    pub fn now(shell: &Shell, client: &mut Client) -> Result<Circumstances> {
        let row = client.query_one(
            "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), \
                    current_setting('server_version')",
            &[],
        )?;
        let options = ["--always", "--dirty", "--abbrev=40", "--exclude=*"];
        let commit = cmd!(shell, "git describe {options...}").quiet().ignore_stderr().read().ok();
        let cpu_info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Ok(Circumstances {
            date: row.get(0),
            commit,
            postgresql: row.get(1),
            cpu: cpu_model(&cpu_info),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        })
    }
}

impl fmt::Display for Circumstances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpu = self.cpu.as_deref().unwrap_or("unknown processor");
        let commit = self.commit.as_deref().unwrap_or("unknown");
        write!(f, "PostgreSQL {}, {cpu}, {} cores, ", self.postgresql, self.cores)?;
        write!(f, "{}, commit {commit}", self.date)
    }
}

/// The processor's name out of `/proc/cpuinfo`, where the architecture tells it there.
fn cpu_model(cpu_info: &str) -> Option<String> {
    let line = cpu_info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Writes results to `target/bench/<benchmark>.json`; returns that path.
pub fn write_json(benchmark: &str, results: &impl Serialize) -> Result<PathBuf> {
    let folder = target_dir().join("bench");
    let path = folder.join(format!("{benchmark}.json"));
    let json = serde_json::to_string_pretty(results)? + "\n";
    std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(&path, json))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned() {
        let mut table = Table::new(["name", "rows/s", "×"], 1);
        table.add(["a long name", "1", ""].map(str::to_owned));
        table.add(["b", "1,000,000", "2.5"].map(str::to_owned));
        let lines = [
            "name            rows/s    ×",
            "───────────  ─────────  ───",
            "a long name          1",
            "b            1,000,000  2.5",
        ];
        assert_eq!(table.to_string().lines().collect::<Vec<_>>(), lines);
    }

    #[test]
    fn ratios_have_three_digits() {
        assert_eq!(
            [0.5, 1.307, 9.999, 49.96, 99.96, 1234.5].map(ratio),
            ["0.50", "1.31", "10.0", "50.0", "100", "1234"]
        );
    }

    #[test]
    fn the_processor_is_told_where_it_is_known() {
        let cpu_info = "processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\nprocessor\t: 1\nmodel name\t: x\n";
        assert_eq!(cpu_model(cpu_info).as_deref(), Some("Some CPU @ 2.00GHz"));
        assert_eq!(cpu_model("processor\t: 0\n"), None);
    }
}
