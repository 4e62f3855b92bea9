//! The install script under pgspot, which knows how names in a script can be taken for others' objects: functions
//! without a search_path of their own, operators looked up in whatever schema, CREATE OR REPLACE of what may be
//! somebody else's. It finds nothing, and nothing is ignored. `pgspot_runner.py` says what pgspot had to learn.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use bqx_tests::python::{environment, no_python};
use pgcluster::workspace_root;

const PGSPOT: [&str; 2] = ["pgspot==0.9.4", "pglast==7.21"];

const CLEAN: &str = "Errors: 0 Warnings: 0 Unknown: 0";

/// A Python with pgspot.
fn python() -> Option<&'static Path> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    PYTHON.get_or_init(|| environment("pgspot", &PGSPOT).ok()).as_deref()
}

fn install_script() -> String {
    let version = env!("CARGO_PKG_VERSION");
    fs::read_to_string(workspace_root().join(format!("sql/bqx--{version}.sql"))).unwrap()
}

/// Whether pgspot finds nothing in a script, and what it says.
fn spotted(python: &Path, script: &str) -> (bool, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, script).unwrap();
    let runner = workspace_root().join("tests/tests/pgspot_runner.py");
    let output = Command::new(python).arg(runner).arg(file.path()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn the_install_script_is_safe() {
    let Some(python) = python() else { return no_python("pgspot") };
    let (is_safe, said) = spotted(python, &install_script());
    assert!(is_safe && said.contains(CLEAN), "{said}");
}

#[test]
fn weaknesses_are_found() {
    let Some(python) = python() else { return no_python("pgspot") };
    let script = install_script();
    let finds = |code: &str, text: &str, weaker: &str| {
        assert!(script.contains(text), "{text}");
        let (is_safe, said) = spotted(python, &script.replacen(text, weaker, 1));
        assert!(!is_safe && said.contains(&format!("{code}: ")), "{text}: {said}");
    };
    let pinned = " SET search_path = pg_catalog, pg_temp\nAS";
    finds("PS005", pinned, "\nAS"); // of any function
    finds("PS003", &format!("SECURITY DEFINER{pinned}"), "SECURITY DEFINER\nAS");
    finds("PS004", &format!("SECURITY DEFINER{pinned}"), "SECURITY DEFINER SET search_path = public\nAS");
    let bound = "LANGUAGE sql IMMUTABLE\nRETURN";
    finds("PS003", bound, "LANGUAGE sql IMMUTABLE SECURITY DEFINER\nRETURN");
    finds("PS002", "CREATE FUNCTION bqx._lock_key", "CREATE OR REPLACE FUNCTION bqx._lock_key");
    finds("PS012", "CREATE TABLE bqx.pairs", "CREATE TABLE IF NOT EXISTS bqx.pairs");
    finds("PS015", "CREATE VIEW bqx.runs", "CREATE OR REPLACE VIEW bqx.runs");
    let end = "SET LOCAL search_path TO bqx, pg_temp;";
    finds("PS001", end, &format!("{end} SELECT 1 + 1;"));
    let begin = "SET LOCAL search_path TO pg_catalog, pg_temp;";
    finds("PS001", begin, ""); // of what lies in the way
    finds(
        "PS001",
        &format!(
            "{begin}  -- for what is parsed here: see preflight.sql\n\nCREATE FUNCTION bqx._may_see_runs_of"
        ),
        "CREATE FUNCTION bqx._may_see_runs_of",
    ); // of views
    let first_acts = "PERFORM bqx._check_workers(workers);\n    chosen_families";
    finds("PS016", &format!("{begin}\n    {first_acts}"), first_acts); // after a COMMIT
    finds("PS016", &format!("{begin}\n    SELECT array_agg"), "SELECT array_agg"); // after a CALL
}

/// As the head of `sql/arguments.sql` has it.
#[test]
fn stages_set_their_transaction_after_every_commit() {
    let script = install_script();
    let lines: Vec<&str> = script.lines().map(str::trim).collect();
    let commits = lines.windows(3).filter(|next| next[0] == "COMMIT;");
    for next in commits.clone() {
        assert_eq!(next[1], "SET TRANSACTION ISOLATION LEVEL READ COMMITTED;");
        assert_eq!(next[2], "SET LOCAL search_path TO pg_catalog, pg_temp;");
    }
    assert!(commits.count() > 10);
}

#[test]
fn a_script_that_pgspot_cannot_read_is_not_taken_for_a_safe_one() {
    let Some(python) = python() else { return no_python("pgspot") };
    for broken in [
        "CREATE FUNCTION",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET search_path = pg_catalog, pg_temp;",
    ] {
        let (is_safe, said) = spotted(python, &format!("{}\n{broken}", install_script()));
        assert!(!is_safe, "{broken}: {said}");
    }
}
