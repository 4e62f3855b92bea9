//! Where clusters lie.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Context, Result, ensure};

use crate::ServerAccount;

/// The root of the workspace: of the one that cargo runs us from, else (a program started without cargo) of the one
/// that this was compiled in. They differ where checkouts share a target directory, since cargo does not compile
/// a program again for having moved.
pub fn workspace_root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let run_from = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let compiled_in = Path::new(env!("CARGO_MANIFEST_DIR"));
        run_from.as_deref().and_then(root_above).or_else(|| root_above(compiled_in)).unwrap_or_else(|| {
            panic!("{} is no longer part of the workspace", compiled_in.display());
        })
    });
    &ROOT
}

/// The workspace that a package belongs to, if it is ours.
fn root_above(package: &Path) -> Option<PathBuf> {
    package.ancestors().find(|dir| dir.join("bqx.control").is_file()).map(Path::to_path_buf)
}

/// Where cargo puts what it builds.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => workspace_root().join(dir),
        None => workspace_root().join("target"),
    }
}

/// The directory for the cluster called `name`: `target/clusters/name`, or one under `/tmp` where the account
/// that servers run as can't get into `target` (a checkout in root's home, say).
///
/// The directory's parents are there afterwards, the directory itself is as it was.
pub fn cluster_dir(name: &str) -> Result<PathBuf> {
    let usual = target_dir().join("clusters");
    create_all(&usual)?;
    if ServerAccount::choose()?.can_enter(&usual) {
        return Ok(usual.join(name));
    }
    let us = rustix::process::geteuid().as_raw();
    let instead = std::env::temp_dir().join(format!("bqx-clusters-{us}"));
    eprintln!(
        "The server's account can't enter {}: its clusters go to {} instead",
        usual.display(),
        instead.display()
    );
    create_all(&instead)?;
    ensure!(instead.metadata()?.uid() == us, "{} belongs to somebody else", instead.display());
    Ok(instead.join(name))
}

fn create_all(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_lies_above_every_package_and_is_one_itself() {
        let root = workspace_root();
        assert!(root.join("Cargo.lock").is_file());
        assert_eq!(root_above(&root.join("pgcluster")).as_deref(), Some(root));
        assert_eq!(root_above(root).as_deref(), Some(root));
        assert_eq!(root_above(root.parent().unwrap()), None);
    }
}
