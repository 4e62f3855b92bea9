//! `cargo xtask install`: builds the extension with plain cargo and puts its files where PostgreSQL looks for them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use pgcluster::{PgConfig, target_dir};
use xshell::{Shell, cmd};

use crate::setup::{self, Purpose};

/// Version of the extension, which is the workspace's.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(clap::Args)]
pub struct InstallArgs {
    /// Optimise: takes longer to build, and is what to measure and to use
    #[arg(long)]
    release: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    Debug,
    Release,
}

impl Profile {
    fn folder(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Release => "release",
        }
    }

    fn flag(self) -> Option<&'static str> {
        (self == Self::Release).then_some("--release")
    }
}

pub fn command(shell: &Shell, pg_config: Option<&Path>, args: &InstallArgs) -> Result<ExitCode> {
    let pg_config = setup::prepare(shell, pg_config, Purpose::Build)?;
    let profile = if args.release { Profile::Release } else { Profile::Debug };
    install(shell, &pg_config, profile)?;
    Ok(ExitCode::SUCCESS)
}

/// Builds the extension's library; returns its path.
pub fn library(shell: &Shell, pg_config: &PgConfig, profile: Profile) -> Result<PathBuf> {
    let feature = pg_config.feature();
    let release = profile.flag();
    cmd!(shell, "cargo build --package bqx --lib --no-default-features --features {feature} {release...}")
        .run()?;
    Ok(target_dir().join(profile.folder()).join("libbqx.so"))
}

/// Builds the extension and installs it into PostgreSQL.
pub fn install(shell: &Shell, pg_config: &PgConfig, profile: Profile) -> Result<()> {
    let script = install_script(shell);
    ensure!(script.is_file(), "{} is missing: cargo xtask schema makes it", script.display());
    let library = library(shell, pg_config, profile)?;
    place(shell, &library, &pg_config.pkglibdir.join("bqx.so"), 0o755)?;
    for script in scripts(&shell.current_dir().join("sql"))? {
        let name = script.file_name().context("scripts have names")?;
        place(shell, &script, &pg_config.extension_dir().join(name), 0o644)?;
    }
    place(shell, &control_file(shell)?, &pg_config.extension_dir().join("bqx.control"), 0o644)?;
    println!("Installed bqx {VERSION} ({}) for PostgreSQL {}", profile.folder(), pg_config.major);
    Ok(())
}

/// The committed script that `CREATE EXTENSION` runs.
pub fn install_script(shell: &Shell) -> PathBuf {
    shell.current_dir().join("sql").join(format!("bqx--{VERSION}.sql"))
}

/// All install and upgrade scripts, `bqx--*.sql`.
fn scripts(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut scripts = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("bqx--") && name.ends_with(".sql") {
            scripts.push(entry.path());
        }
    }
    Ok(scripts)
}

/// The control file with the version filled in.
fn control_file(shell: &Shell) -> Result<PathBuf> {
    let control = shell.read_file("bqx.control")?.replace("@CARGO_VERSION@", VERSION);
    let finished = target_dir().join("bqx.control");
    shell.write_file(&finished, control)?;
    Ok(finished)
}

/// Copies a file to where PostgreSQL looks, by way of a new file that then takes the old one's name: a server that
/// runs keeps the library it has mapped.
fn place(shell: &Shell, source: &Path, target: &Path, mode: u32) -> Result<()> {
    let name = target.file_name().context("files have names")?.to_string_lossy();
    let new = target.with_file_name(format!(".{name}.new"));
    if is_writable(target.parent().context("files lie in folders")?) {
        let copied =
            fs::copy(source, &new).and_then(|_| fs::set_permissions(&new, fs::Permissions::from_mode(mode)));
        copied
            .and_then(|()| fs::rename(&new, target))
            .with_context(|| format!("cannot write {}", target.display()))
    } else {
        let as_root = setup::root_runner(shell)
            .with_context(|| format!("cannot write {}: run this as root, or allow sudo", target.display()))?;
        let mode = format!("{mode:o}");
        cmd!(shell, "{as_root} install -m {mode} {source} {new}").run()?;
        Ok(cmd!(shell, "{as_root} mv -f {new} {target}").run()?)
    }
}

/// Whether we may make files in a folder.
pub fn is_writable(folder: &Path) -> bool {
    rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_extensions_own_scripts_are_installed() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["bqx--0.1.0.sql", "bqx--0.1.0--0.2.0.sql", "views.sql", "bqx--0.1.0.sql~"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let mut found = scripts(folder.path()).unwrap();
        found.sort();
        assert_eq!(found, ["bqx--0.1.0--0.2.0.sql", "bqx--0.1.0.sql"].map(|name| folder.path().join(name)));
    }

    #[test]
    fn a_placed_file_is_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let (source, target) = (folder.path().join("new"), folder.path().join("installed"));
        fs::write(&source, "new").unwrap();
        fs::write(&target, "old").unwrap();
        let mapped = fs::File::open(&target).unwrap();
        place(&Shell::new().unwrap(), &source, &target, 0o755).unwrap();
        assert_eq!(std::io::read_to_string(mapped).unwrap(), "old");
        assert_eq!(fs::read_to_string(&target).unwrap(), "new");
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o755);
    }
}
