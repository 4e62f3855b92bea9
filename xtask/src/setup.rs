//! What the machine must have: PostgreSQL with its headers, and what building against them takes. Installs what is
//! missing where that is possible, on Debian and its kin.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use pgcluster::{PgConfig, SUPPORTED_MAJORS};
use xshell::{Shell, cmd};

use crate::console;

/// What the machine is to be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Build,
    /// Building, and the tests inside PostgreSQL, which pgrx runs through sudo when called by root.
    Test,
}

/// Installs packages without the cluster that Debian's PostgreSQL packages would make and start: only ours are used.
const INSTALL: &str = r#"
export DEBIAN_FRONTEND=noninteractive
setting=/etc/postgresql-common/createcluster.d/zz-no-main-cluster.conf
mkdir -p "$(dirname $setting)"
echo 'create_main_cluster = false' > $setting
trap 'rm -f $setting' EXIT
apt-get install -y --no-install-recommends "$@"
"#;

/// Makes sure that everything is there, and returns the PostgreSQL to build for. Every cargo that this shell starts
/// builds for it from then on.
pub fn prepare(shell: &Shell, explicit: Option<&Path>, purpose: Purpose) -> Result<PgConfig> {
    if explicit.is_some() {
        PgConfig::find(explicit)?; // no package could mend a wrong path
    }
    if !missing_things(explicit, purpose).is_empty() {
        install_missing(shell, explicit, purpose)?;
    }
    let found = PgConfig::find(explicit)?;
    ensure!(found.has_headers(), "there is no postgres.h in {}", found.includedir_server.display());
    ensure!(found.has_server(), "{} lacks server programs", found.bindir.display());
    shell.set_var("PG_CONFIG", &found.path);
    shell.set_var("PGRX_PG_CONFIG_PATH", &found.path);
    // Without this, cargo-pgrx builds everything a second time with another linker flag, which nothing here needs.
    shell.set_var("CARGO_PGRX_DISABLE_GC_SECTIONS_WORKAROUND", "1");
    Ok(found)
}

/// The program to run commands as root with: sudo, or `env` where we are root. None where we may not.
pub fn root_runner(shell: &Shell) -> Option<&'static str> {
    if rustix::process::geteuid().is_root() {
        return Some("env");
    }
    let without_password =
        || cmd!(shell, "sudo -n true").quiet().ignore_stdout().ignore_stderr().run().is_ok();
    let with_password = || std::io::stdin().is_terminal();
    (on_path("sudo") && (without_password() || with_password())).then_some("sudo")
}

/// Something that has to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thing {
    PostgreSql,
    Clang,
    LibClang,
    Cc,
    Sudo,
}

fn missing_things(explicit: Option<&Path>, purpose: Purpose) -> Vec<Thing> {
    let sudo_needed = purpose == Purpose::Test && rustix::process::geteuid().is_root();
    let postgres_is_complete =
        PgConfig::find(explicit).is_ok_and(|found| found.has_headers() && found.has_server());
    let all = [
        (Thing::PostgreSql, postgres_is_complete || explicit.is_some()),
        (Thing::Clang, on_path("clang")),
        (Thing::LibClang, has_libclang()),
        (Thing::Cc, on_path("cc")),
        (Thing::Sudo, !sudo_needed || on_path("sudo")),
    ];
    all.into_iter().filter(|(_, is_there)| !is_there).map(|(thing, _)| thing).collect()
}

fn install_missing(shell: &Shell, explicit: Option<&Path>, purpose: Purpose) -> Result<()> {
    let missing = missing_things(explicit, purpose);
    let as_root = root_runner(shell);
    let (true, Some(as_root)) = (on_path("apt-get"), as_root) else {
        bail!(
            "missing: {missing:?}. As root, on Debian or Ubuntu:\n    apt-get update && apt-get install -y {}",
            packages(shell, &missing)?.join(" ")
        );
    };
    console::headline("packages");
    cmd!(shell, "{as_root} apt-get update --quiet").run()?;
    let packages = packages(shell, &missing)?;
    let names = packages.join(" ");
    println!("Installing {names}");
    cmd!(shell, "{as_root} sh -eu -c {INSTALL} install {packages...}").quiet().run()?;
    let still = missing_things(explicit, purpose);
    ensure!(still.is_empty(), "still missing after installing {names}: {still:?}");
    Ok(())
}

/// The Debian packages with these things.
fn packages(shell: &Shell, things: &[Thing]) -> Result<Vec<String>> {
    let mut packages = Vec::new();
    for thing in things {
        match thing {
            Thing::PostgreSql => {
                let major = match installed_server() {
                    Some(major) => major,
                    None => packaged_server(shell)?,
                };
                packages.push(format!("postgresql-{major}"));
                packages.push(format!("postgresql-server-dev-{major}"));
            }
            Thing::Clang => packages.push("clang".to_owned()),
            Thing::LibClang => packages.push("libclang-dev".to_owned()),
            Thing::Cc => packages.extend(["build-essential".to_owned(), "pkg-config".to_owned()]),
            Thing::Sudo => packages.push("sudo".to_owned()),
        }
    }
    Ok(packages)
}

/// The newest server that is there, perhaps without headers.
fn installed_server() -> Option<u32> {
    SUPPORTED_MAJORS
        .rev()
        .find(|major| Path::new(&format!("/usr/lib/postgresql/{major}/bin/postgres")).is_file())
}

/// The server that the distribution has.
fn packaged_server(shell: &Shell) -> Result<u32> {
    let policy =
        cmd!(shell, "apt-cache policy postgresql").quiet().ignore_stderr().read().unwrap_or_default();
    match candidate_major(&policy) {
        Some(major) if SUPPORTED_MAJORS.contains(&major) => Ok(major),
        Some(major) => bail!("the distribution has PostgreSQL {major}, which is not supported"),
        None => bail!(
            "PostgreSQL {} to {} with its server headers is missing, and no package source has it",
            SUPPORTED_MAJORS.start(),
            SUPPORTED_MAJORS.end()
        ),
    }
}

/// The major version out of a line like `  Candidate: 15+248+deb12u1`.
fn candidate_major(policy: &str) -> Option<u32> {
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?;
    let digits: String = candidate.trim().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Whether bindgen will find the library it reads headers with.
fn has_libclang() -> bool {
    if std::env::var_os("LIBCLANG_PATH").is_some() {
        return true;
    }
    let mut places: Vec<PathBuf> = ["/usr/lib64", "/usr/lib", "/usr/local/lib"].map(PathBuf::from).to_vec();
    for entry in std::fs::read_dir("/usr/lib").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("llvm-") {
            places.push(entry.path().join("lib"));
        } else if name.ends_with("-linux-gnu") {
            places.push(entry.path());
        }
    }
    places.iter().any(|place| {
        std::fs::read_dir(place)
            .into_iter()
            .flatten()
            .flatten()
            .any(|file| is_libclang(&file.file_name().to_string_lossy()))
    })
}

fn is_libclang(file: &str) -> bool {
    (file.starts_with("libclang.so") || file.starts_with("libclang-"))
        && file.contains(".so")
        && !file.contains("cpp")
}

fn on_path(program: &str) -> bool {
    let directories = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&directories).any(|dir| dir.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distributions_version_is_read_from_apt() {
        let policy = "postgresql:\n  Installed: (none)\n  Candidate: 15+248+deb12u1\n  Version table:\n";
        assert_eq!(candidate_major(policy), Some(15));
        assert_eq!(candidate_major("postgresql:\n  Candidate: (none)\n"), None);
        assert_eq!(candidate_major(""), None);
    }

    #[test]
    fn only_the_library_itself_counts_as_libclang() {
        assert!(is_libclang("libclang.so") && is_libclang("libclang-14.so.1"));
        assert!(!is_libclang("libclang-cpp.so.14") && !is_libclang("libclangAST.a"));
    }
}
