//! `cargo xtask test`: everything that CI checks, in an order in which nothing is built twice.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use pgcluster::{PgConfig, ServerAccount};
use xshell::{Cmd, Shell, cmd};

use crate::build::{self, Profile};
use crate::setup::{self, Purpose};
use crate::{cargo_pgrx, console, schema};

#[derive(clap::Args)]
pub struct TestArgs {
    /// Only this part; may be given several times
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Only tests with this in their names
    filter: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Formatting and clippy
    Lint,
    /// The crates that need no extension
    Core,
    /// The committed install script is up to date
    Schema,
    /// Names in the install script can't be taken for others' objects
    Security,
    /// Tests that run inside the server
    Pg,
    /// tests/sql against tests/expected, and the SQL in the documents
    Sql,
    /// Tests over real connections to private clusters
    Integration,
}

/// In this order: what fails fastest comes first, and the tests inside the server, which install a build with
/// themselves in it, come before those that need the real one.
const ALL: [Part; 7] =
    [Part::Lint, Part::Core, Part::Schema, Part::Security, Part::Pg, Part::Sql, Part::Integration];

impl Part {
    fn title(self) -> &'static str {
        match self {
            Self::Lint => "lint",
            Self::Core => "core tests",
            Self::Schema => "install script",
            Self::Security => "security",
            Self::Pg => "tests inside PostgreSQL",
            Self::Sql => "SQL and documents",
            Self::Integration => "integration tests",
        }
    }

    fn needs_the_extension_installed(self) -> bool {
        matches!(self, Self::Sql | Self::Integration)
    }
}

pub fn command(shell: &Shell, pg_config: Option<&Path>, args: &TestArgs) -> Result<ExitCode> {
    let pg_config = setup::prepare(shell, pg_config, Purpose::Test)?;
    let parts = ALL.into_iter().filter(|part| args.only.is_empty() || args.only.contains(part));
    let mut tests = Tests { shell, pg_config, filter: args.filter.as_deref(), totals: Totals::default() };
    let outcome = tests.run(parts);
    if let Err(error) = &outcome {
        console::error(error);
        tests.totals.count_failure_without_a_test();
    }
    println!("\n{}", tests.totals.summary());
    Ok(if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Tests<'a> {
    shell: &'a Shell,
    pg_config: PgConfig,
    filter: Option<&'a str>,
    totals: Totals,
}

impl Tests<'_> {
    /// Runs the parts up to the first that fails.
    fn run(&mut self, parts: impl Iterator<Item = Part>) -> Result<()> {
        let mut is_installed = false;
        for part in parts {
            if part.needs_the_extension_installed() && !is_installed {
                let install = || build::install(self.shell, &self.pg_config, Profile::Debug);
                console::timed("install", install).0.context("installing the extension failed")?;
                is_installed = true;
            }
            console::timed(part.title(), || self.run_part(part))
                .0
                .with_context(|| format!("{} failed", part.title()))?;
        }
        Ok(())
    }

    fn run_part(&mut self, part: Part) -> Result<()> {
        let shell = self.shell;
        let filter = self.filter;
        match part {
            Part::Lint => self.lint(),
            Part::Core => {
                let crates = ["--package", "bqx-core", "--package", "pgcluster", "--package", "xtask"];
                self.count(cmd!(shell, "cargo test --no-fail-fast {crates...} {filter...}"))
            }
            Part::Schema => schema::check(shell, &self.pg_config),
            Part::Pg => self.inside_postgres(),
            Part::Security => self.test_programs(&["--test", "security"]),
            Part::Sql => self.test_programs(&["--test", "sql_files", "--test", "docs"]),
            Part::Integration => {
                let targets = integration_targets(shell)?;
                let targets = targets.iter().map(String::as_str);
                self.test_programs(&["--lib"].into_iter().chain(targets).collect::<Vec<_>>())
            }
        }
    }

    /// Runs programs of tests/.
    fn test_programs(&mut self, targets: &[&str]) -> Result<()> {
        let (shell, filter) = (self.shell, self.filter);
        self.count(cmd!(shell, "cargo test --no-fail-fast --package bqx-tests {targets...} {filter...}"))
    }

    fn lint(&self) -> Result<()> {
        for component in ["fmt", "clippy"] {
            let is_there =
                cmd!(self.shell, "cargo {component} --version").quiet().ignore_stdout().ignore_stderr().run();
            let package = component.replace("fmt", "rustfmt");
            ensure!(is_there.is_ok(), "cargo {component} is missing: rustup component add {package}");
        }
        cmd!(self.shell, "cargo fmt --all --check").run()?;
        let features = format!("{},pg_test", self.pg_config.feature());
        let clippy =
            ["clippy", "--workspace", "--all-targets", "--no-default-features", "--features", &features];
        Ok(cmd!(self.shell, "cargo {clippy...} -- -D warnings").run()?)
    }

    /// Leaves a build of the extension installed that has the tests in it.
    fn inside_postgres(&mut self) -> Result<()> {
        cargo_pgrx::ensure_installed(self.shell)?;
        let feature = self.pg_config.feature();
        let data = ServerAccount::choose()?.temporary_dir()?;
        let account = self.account_for_pgrx()?;
        let run_as = account.iter().flat_map(|name| ["--runas", name]);
        let filter = self.filter;
        let ran = self.count(cmd!(
            self.shell,
            "cargo pgrx test {feature} {filter...} --package bqx --no-default-features {run_as...} --pgdata {data}"
        ));
        std::fs::remove_dir_all(&data).with_context(|| format!("cannot remove {}", data.display()))?;
        ran
    }

    /// As whom pgrx is to run its server: as ourselves, unless we are root, or need sudo to install the extension,
    /// which pgrx uses only together with an account.
    fn account_for_pgrx(&self) -> Result<Option<String>> {
        if let ServerAccount::Other { name, .. } = ServerAccount::choose()? {
            return Ok(Some(name));
        }
        let user = cmd!(self.shell, "id -un").quiet().read()?;
        let may_install = build::is_writable(&self.pg_config.pkglibdir)
            && build::is_writable(&self.pg_config.extension_dir());
        self.shell.set_var("USER", &user); // pgrx connects as this role
        Ok((!may_install).then_some(user))
    }

    /// Runs a test runner; shows what it prints while it does, and adds up what it says about its tests.
    fn count(&mut self, runner: Cmd<'_>) -> Result<()> {
        println!("$ {runner}");
        let mut process = Command::from(runner).stdout(Stdio::piped()).spawn()?;
        let mut output = BufReader::new(process.stdout.take().context("it is piped")?);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line)? > 0 {
            std::io::stdout().write_all(&line)?;
            self.totals.read(&String::from_utf8_lossy(&line));
            line.clear();
        }
        let status = process.wait()?;
        if !status.success() {
            bail!("the test runner ended with {status}");
        }
        Ok(())
    }
}

/// `--test NAME` for each test program of tests/tests but those that [`Part::Security`] and [`Part::Sql`] run.
fn integration_targets(shell: &Shell) -> Result<Vec<String>> {
    let mut targets = Vec::new();
    for file in shell.read_dir("tests/tests")? {
        let name = file.file_stem().context("files have names")?.to_string_lossy().into_owned();
        let is_program = file.extension().is_some_and(|extension| extension == "rs");
        if is_program && !["security", "sql_files", "docs"].contains(&&*name) {
            targets.extend(["--test".to_owned(), name]);
        }
    }
    Ok(targets)
}

/// What all test runners together said.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    passed: i64,
    failed: i64,
    skipped: i64,
}

impl Totals {
    /// Reads a line of a runner's output.
    fn read(&mut self, line: &str) {
        if let Some((_, figures)) = line.split_once("test result: ") {
            self.passed += figure(figures, "passed");
            self.failed += figure(figures, "failed");
            self.skipped += figure(figures, "ignored");
        } else if line.starts_with("skipped: ") || line.contains(" ... skipped: ") {
            // The test found out while it ran; to the runner it is one more that passed.
            self.skipped += 1;
            self.passed -= 1; // its "test result:" is still to come
        }
    }

    /// Counts a failure that no runner counted: of a lint, or of a build.
    fn count_failure_without_a_test(&mut self) {
        self.failed = self.failed.max(1);
    }

    fn summary(&self) -> String {
        let Self { passed, failed, skipped } = self;
        if *skipped > 0 {
            format!("{passed} passed, {failed} failed, {skipped} skipped")
        } else {
            format!("{passed} passed, {failed} failed")
        }
    }
}

/// The number before `what` in a line like `ok. 5 passed; 0 failed; 1 ignored; …`.
fn figure(figures: &str, what: &str) -> i64 {
    let words: Vec<&str> = figures.split([' ', ';']).collect();
    words.windows(2).find(|pair| pair[1] == what).and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals_of(lines: &[&str]) -> Totals {
        let mut totals = Totals::default();
        lines.iter().for_each(|line| totals.read(line));
        totals
    }

    #[test]
    fn figures_of_all_runners_are_added_up() {
        let totals = totals_of(&[
            "running 3 tests",
            "test a ... ok",
            "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.00s",
        ]);
        assert_eq!(totals, Totals { passed: 15, failed: 2, skipped: 1 });
        assert_eq!(totals.summary(), "15 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn a_test_that_skipped_itself_has_not_passed() {
        let totals = totals_of(&[
            "skipped: loads_real_bars: no real bars here",
            "test b ... skipped: b: no real bars here",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ]);
        assert_eq!(totals.summary(), "1 passed, 0 failed, 2 skipped");
    }

    #[test]
    fn a_failure_outside_tests_is_counted_once() {
        let mut totals = totals_of(&["test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured"]);
        totals.count_failure_without_a_test();
        assert_eq!(totals.summary(), "3 passed, 1 failed");
    }
}
