//! The tool `cargo pgrx`, which generates the install script and runs the tests inside PostgreSQL.

use anyhow::{Result, ensure};
use pgcluster::target_dir;
use xshell::{Shell, cmd};

use crate::console;

/// It has to be the version of the library.
const VERSION: &str = "0.18.1";

/// Makes sure that commands of this shell find the right `cargo pgrx`; installs it under `target` if need be.
pub fn ensure_installed(shell: &Shell) -> Result<()> {
    if is_right_version(shell) {
        return Ok(());
    }
    let root = target_dir().join("tools");
    let mut path = vec![root.join("bin")];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    shell.set_var("PATH", std::env::join_paths(path)?);
    if is_right_version(shell) {
        return Ok(());
    }
    console::headline(&format!("cargo-pgrx {VERSION}, into {} (some 4 minutes, once)", root.display()));
    // Its default features would ask for OpenSSL's headers, to download PostgreSQL with; nothing here does that.
    let options = ["--locked", "--debug", "--no-default-features"];
    cmd!(shell, "cargo install cargo-pgrx --version {VERSION} {options...} --root {root}").run()?;
    ensure!(is_right_version(shell), "cargo pgrx is not {VERSION} even after installing it");
    Ok(())
}

fn is_right_version(shell: &Shell) -> bool {
    let told = cmd!(shell, "cargo pgrx --version").quiet().ignore_stderr().read().unwrap_or_default();
    told.split_whitespace().last() == Some(VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tool_is_of_the_librarys_version() {
        let manifest = std::fs::read_to_string(pgcluster::workspace_root().join("Cargo.toml")).unwrap();
        assert!(manifest.contains(&format!("pgrx = \"={VERSION}\"")), "Cargo.toml asks for another pgrx");
    }
}
