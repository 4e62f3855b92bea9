//! Which PostgreSQL installation to use, and where its parts lie.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::account::find_on_path;

/// The major versions of PostgreSQL that bqx builds for.
pub const SUPPORTED_MAJORS: RangeInclusive<u32> = 14..=18;

/// A PostgreSQL installation: server programs, headers, and the places extensions go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgConfig {
    /// The program `pg_config` that told the rest.
    pub path: PathBuf,
    /// Major version, e.g. 15.
    pub major: u32,
    /// Programs.
    pub bindir: PathBuf,
    /// Loadable modules.
    pub pkglibdir: PathBuf,
    /// Shared data; extensions' scripts go to its subdirectory `extension`.
    pub sharedir: PathBuf,
    /// Headers to build server code with.
    pub includedir_server: PathBuf,
}

impl PgConfig {
    /// Takes the first of: `explicit`, the environment variable `PG_CONFIG`, the newest supported version with
    /// server headers under `/usr/lib/postgresql`, `pg_config` on the `PATH`.
    pub fn find(explicit: Option<&Path>) -> Result<Self> {
        if let Some(path) = explicit {
            return Self::ask(path);
        }
        if let Some(path) = std::env::var_os("PG_CONFIG").filter(|value| !value.is_empty()) {
            return Self::ask(Path::new(&path)).context("the environment variable PG_CONFIG points there");
        }
        if let Some(newest) = packaged().into_iter().filter(Self::has_headers).max_by_key(|found| found.major)
        {
            return Ok(newest);
        }
        match find_on_path("pg_config") {
            Some(path) => Self::ask(&path),
            None => bail!(
                "found no PostgreSQL {} to {}: no pg_config with server headers under /usr/lib/postgresql, none on the \
                 PATH, and PG_CONFIG is not set",
                SUPPORTED_MAJORS.start(),
                SUPPORTED_MAJORS.end()
            ),
        }
    }

    /// Asks a `pg_config` program about its installation.
    pub fn ask(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path)?;
        let answer = |option: &str| answer(&path, option);
        let major = major_of(&answer("--version")?)?;
        ensure!(
            SUPPORTED_MAJORS.contains(&major),
            "{} is of PostgreSQL {major}; bqx supports {} to {}",
            path.display(),
            SUPPORTED_MAJORS.start(),
            SUPPORTED_MAJORS.end()
        );
        Ok(Self {
            major,
            bindir: answer("--bindir")?.into(),
            pkglibdir: answer("--pkglibdir")?.into(),
            sharedir: answer("--sharedir")?.into(),
            includedir_server: answer("--includedir-server")?.into(),
            path,
        })
    }

    /// Whether server code can be built against it.
    pub fn has_headers(&self) -> bool {
        self.includedir_server.join("postgres.h").is_file()
    }

    /// Whether it can run servers.
    pub fn has_server(&self) -> bool {
        ["initdb", "postgres", "pg_ctl", "psql"].iter().all(|name| self.bindir.join(name).is_file())
    }

    /// Where extensions' control files and scripts lie.
    pub fn extension_dir(&self) -> PathBuf {
        self.sharedir.join("extension")
    }

    /// The cargo feature that builds for it, e.g. `pg15`.
    pub fn feature(&self) -> String {
        format!("pg{}", self.major)
    }
}

/// The installations that Debian's packages made.
fn packaged() -> Vec<PgConfig> {
    SUPPORTED_MAJORS
        .filter_map(|major| {
            PgConfig::ask(&PathBuf::from(format!("/usr/lib/postgresql/{major}/bin/pg_config"))).ok()
        })
        .collect()
}

fn answer(pg_config: &Path, option: &str) -> Result<String> {
    let output = Command::new(pg_config)
        .arg(option)
        .output()
        .with_context(|| format!("cannot run {}", pg_config.display()))?;
    ensure!(output.status.success(), "{} {option} failed", pg_config.display());
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// The major version out of e.g. `PostgreSQL 15.18 (Debian 15.18-0+deb12u1)` or `PostgreSQL 18beta1`.
fn major_of(version: &str) -> Result<u32> {
    let number = version.split_whitespace().nth(1).unwrap_or_default();
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().with_context(|| format!("cannot read a version out of '{version}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majors_are_read_from_every_kind_of_version() {
        assert_eq!(major_of("PostgreSQL 15.18 (Debian 15.18-0+deb12u1)").unwrap(), 15);
        assert_eq!(major_of("PostgreSQL 18beta1").unwrap(), 18);
        assert!(major_of("PostgreSQL").is_err());
    }

    #[test]
    fn an_explicit_pg_config_that_is_none_is_an_error_naming_it() {
        let error = PgConfig::find(Some(Path::new("/nonexistent/pg_config"))).unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent/pg_config"), "{error:#}");
    }
}
