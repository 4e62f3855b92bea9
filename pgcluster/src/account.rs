//! Whose processes the servers are: PostgreSQL refuses to run as root.

use std::ffi::OsStr;
use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// The operating-system account that servers run as.
#[derive(Clone, Debug)]
pub enum ServerAccount {
    /// Ours.
    Own,
    /// Another one, which we, being root, can turn into.
    Other { name: String, uid: u32, gid: u32, switch: Switch },
}

/// A program that starts another one under a different account.
#[derive(Clone, Copy, Debug)]
pub enum Switch {
    Runuser,
    Sudo,
}

impl ServerAccount {
    /// The account `postgres` for root, ourselves for everyone else.
    pub fn choose() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self::Own);
        }
        let name = "postgres";
        let switch = if is_on_path("runuser") {
            Switch::Runuser
        } else if is_on_path("sudo") {
            Switch::Sudo
        } else {
            bail!("servers can't run as root, and there is neither runuser nor sudo to start them as {name}");
        };
        let uid = id_of("-u", name)?;
        let gid = id_of("-g", name)?;
        Ok(Self::Other { name: name.to_owned(), uid, gid, switch })
    }

    /// A command that will run under this account, started in a directory that every account can enter.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = match self {
            Self::Own => Command::new(program),
            Self::Other { name, switch, .. } => {
                let mut command = Command::new(switch.program());
                command.args(["-u", name.as_str(), "--"]).arg(program);
                command
            }
        };
        command.current_dir("/");
        command
    }

    /// What to type before a command to run it under this account; empty for our own.
    pub fn shell_prefix(&self) -> String {
        match self {
            Self::Own => String::new(),
            Self::Other { name, switch, .. } => format!("{} -u {name} -- ", switch.program()),
        }
    }

    /// Makes a new directory that belongs to this account, and that only it (and root) can enter.
    pub fn create_private_dir(&self, dir: &Path) -> Result<()> {
        DirBuilder::new()
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
        self.own(dir)
    }

    /// Makes such a directory under `/tmp`, with a short path; the caller removes it.
    pub fn temporary_dir(&self) -> Result<PathBuf> {
        let for_us_alone = Permissions::from_mode(0o700);
        let dir = tempfile::Builder::new().prefix("bqx-").permissions(for_us_alone).tempdir_in("/tmp")?;
        self.own(dir.path())?;
        Ok(dir.keep())
    }

    /// Hands a file or directory over to this account.
    pub fn own(&self, path: &Path) -> Result<()> {
        if let Self::Other { name, uid, gid, .. } = self {
            chown(path, Some(*uid), Some(*gid))
                .with_context(|| format!("cannot give {} to {name}", path.display()))?;
        }
        Ok(())
    }

    /// Whether this account can get at what lies in `dir`.
    pub fn can_enter(&self, dir: &Path) -> bool {
        let test = self.command("test").arg("-x").arg(dir).stderr(Stdio::null()).status();
        test.is_ok_and(|status| status.success())
    }
}

impl Switch {
    fn program(self) -> &'static str {
        match self {
            Self::Runuser => "runuser",
            Self::Sudo => "sudo",
        }
    }
}

/// The full name of `program` where the shell would find it.
pub fn find_on_path(program: &str) -> Option<PathBuf> {
    let directories = std::env::var_os("PATH")?;
    std::env::split_paths(&directories).map(|dir| dir.join(program)).find(|file| file.is_file())
}

fn is_on_path(program: &str) -> bool {
    find_on_path(program).is_some()
}

/// The user (`-u`) or group (`-g`) id of an account.
fn id_of(which: &str, account: &str) -> Result<u32> {
    let output = Command::new("id").args([which, account]).output().context("cannot run id")?;
    ensure!(
        output.status.success(),
        "servers can't run as root, and there is no account {account} to run them as"
    );
    String::from_utf8(output.stdout)?.trim().parse().context("id printed something else than a number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_runs_under_the_account() {
        let account = ServerAccount::choose().unwrap();
        let output = account.command("id").arg("-u").output().unwrap();
        let uid: u32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        assert_ne!(uid, 0, "servers never run as root");
    }

    #[test]
    fn only_the_account_enters_a_private_dir() {
        let account = ServerAccount::choose().unwrap();
        let ours = ServerAccount::Own.temporary_dir().unwrap();
        assert_eq!(account.can_enter(&ours), matches!(account, ServerAccount::Own));
        std::fs::remove_dir(ours).unwrap();
        let its_own = account.temporary_dir().unwrap();
        assert!(account.can_enter(&its_own));
        std::fs::remove_dir(its_own).unwrap();
        assert!(account.can_enter(Path::new("/tmp")));
    }
}
