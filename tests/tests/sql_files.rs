//! Runs each `tests/sql/NAME.sql` with psql in a fresh database and compares what a person would see with
//! `tests/expected/NAME.out`. `BLESS=1` accepts what was seen.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bqx_tests::{Db, transcript};
use libtest_mimic::{Arguments, Failed, Trial};
use similar::TextDiff;

fn main() -> ExitCode {
    let trials = sql_files().into_iter().map(|file| {
        let name = file.file_stem().expect("it ends in .sql").to_string_lossy().into_owned();
        Trial::test(name.clone(), move || check(&name, &file))
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

fn sql_files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql");
    let entries = fs::read_dir(&folder).into_iter().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "sql"));
    files.sort();
    files
}

fn check(name: &str, file: &Path) -> Result<(), Failed> {
    let seen = screen_of(name, file)?;
    let expected_file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("expected").join(name).with_extension("out");
    if std::env::var_os("BLESS").is_some() {
        fs::create_dir_all(expected_file.parent().expect("a folder"))?;
        return Ok(fs::write(expected_file, seen)?);
    }
    let expected = fs::read_to_string(&expected_file).unwrap_or_default();
    if seen == expected {
        return Ok(());
    }
    let diff = TextDiff::from_lines(&expected, &seen);
    let expected_name = format!("expected/{name}.out");
    let mut unified = diff.unified_diff();
    let shown = unified.context_radius(5).header(&expected_name, "seen");
    Err(format!("{shown}\n(BLESS=1 cargo test -p bqx-tests --test sql_files {name} accepts what was seen)")
        .into())
}

/// What psql shows when it is fed the file: every line of it, results and messages.
fn screen_of(name: &str, file: &Path) -> Result<String, Failed> {
    let db = Db::new(name);
    let mut psql = db.psql_command();
    psql.args(["--echo-all", "--quiet"]).env("PGTZ", "UTC").env("PGDATESTYLE", "ISO");
    Ok(transcript(psql, &fs::read(file)?)?.output)
}
