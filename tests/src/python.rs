//! Python, for tests and benchmarks that need software written in it. A test that finds none is skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use pgcluster::target_dir;

use crate::skipped;

/// The usual Python, if there is one.
pub fn python() -> Option<PathBuf> {
    let usual = PathBuf::from("python3");
    runs(&usual, &["--version"]).then_some(usual)
}

/// Whether this Python has the module.
pub fn has_module(python: &Path, module: &str) -> bool {
    runs(python, &["-c", &format!("import {module}")])
}

/// The Python of an environment of its own under `target`, with these packages of PyPI. An error where it can't be had:
/// there is no Python, it lacks `venv` (python3-venv on Debian), or PyPI is out of reach.
pub fn environment(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let environment = target_dir().join(format!("{name}-environment"));
    let python = environment.join("bin/python3");
    let installed = environment.join("installed");
    let wanted = packages.join("\n");
    if fs::read_to_string(&installed).is_ok_and(|packages| packages == wanted)
        && runs(&python, &["--version"])
    {
        return Ok(python);
    }
    let _ = fs::remove_dir_all(&environment);
    run(Path::new("python3"), &["-m", "venv", &environment.to_string_lossy()])?;
    run(&python, &[&["-m", "pip", "install", "--quiet"], packages].concat())?;
    fs::write(&installed, wanted).with_context(|| format!("cannot write {}", installed.display()))?;
    Ok(python)
}

/// Says that the calling test is skipped for want of something in Python.
pub fn no_python(what: &str) {
    let thread = std::thread::current();
    skipped(thread.name().unwrap_or("a test"), &format!("no {what} here, and none could be installed"));
}

fn runs(python: &Path, arguments: &[&str]) -> bool {
    run(python, arguments).is_ok()
}

/// Runs Python; what it said last is part of the error if it fails.
fn run(python: &Path, arguments: &[&str]) -> Result<()> {
    let command = || format!("{} {}", python.display(), arguments.join(" "));
    let output =
        Command::new(python).args(arguments).output().with_context(|| format!("cannot run {}", command()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned();
        bail!("{} failed: {}", command(), said.lines().last().unwrap_or_default());
    }
    Ok(())
}
