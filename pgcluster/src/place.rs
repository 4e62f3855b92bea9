//! Where clusters lie.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::ServerAccount;

/// The root of the workspace.
pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in a workspace")
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
