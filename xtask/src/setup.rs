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
    if purpose == Purpose::Test {
        install_other_extensions(shell, &found);
    }
    Ok(found)
}

/// Extensions that bqx is tried beside, and what Debian's packages of them are called after `postgresql-15-`.
const OTHER_EXTENSIONS: [(&str, &str); 2] = [("pg_cron", "cron"), ("pg_partman", "partman")];

/// Installs [`OTHER_EXTENSIONS`] where that is possible without asking anybody. Where it isn't, their tests are skipped.
fn install_other_extensions(shell: &Shell, found: &PgConfig) {
    let missing = missing_extensions(found);
    let is_packaged = found.bindir.starts_with("/usr/lib/postgresql");
    let (false, true, true, Some(as_root)) =
        (missing.is_empty(), is_packaged, on_path("apt-get"), root_without_password(shell))
    else {
        return;
    };
    console::headline("packages of other extensions");
    if !missing.iter().all(|package| is_available(shell, package)) {
        let _ = cmd!(shell, "{as_root} apt-get update --quiet").run();
    }
    for package in missing.into_iter().filter(|package| is_available(shell, package)) {
        let install = cmd!(shell, "{as_root} sh -eu -c {INSTALL} install {package}").quiet();
        if let Err(error) = install.run() {
            println!("{package} cannot be installed: {error}");
        }
    }
}

/// The packages of [`OTHER_EXTENSIONS`] that this PostgreSQL has not got.
fn missing_extensions(found: &PgConfig) -> Vec<String> {
    let is_missing = |extension: &str| !found.extension_dir().join(format!("{extension}.control")).is_file();
    OTHER_EXTENSIONS
        .into_iter()
        .filter(|(extension, _)| is_missing(extension))
        .map(|(_, package)| format!("postgresql-{}-{package}", found.major))
        .collect()
}

/// Whether apt has this package.
fn is_available(shell: &Shell, package: &str) -> bool {
    let policy = cmd!(shell, "apt-cache policy {package}").quiet().ignore_stderr().read();
    policy.is_ok_and(|policy| candidate(&policy).is_some())
}

/// The program to run commands as root with: sudo, or `env` where we are root. None where we may not.
pub fn root_runner(shell: &Shell) -> Option<&'static str> {
    let with_password = || on_path("sudo") && std::io::stdin().is_terminal();
    root_without_password(shell).or_else(|| with_password().then_some("sudo"))
}

/// The same where nobody has to be asked.
fn root_without_password(shell: &Shell) -> Option<&'static str> {
    if rustix::process::geteuid().is_root() {
        return Some("env");
    }
    let may_run = || cmd!(shell, "sudo -n true").quiet().ignore_stdout().ignore_stderr().run().is_ok();
    (on_path("sudo") && may_run()).then_some("sudo")
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

/// The version out of a line like `  Candidate: 15+248+deb12u1`.
fn candidate(policy: &str) -> Option<&str> {
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?;
    Some(candidate.trim()).filter(|version| *version != "(none)")
}

fn candidate_major(policy: &str) -> Option<u32> {
    let digits: String = candidate(policy)?.chars().take_while(char::is_ascii_digit).collect();
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
        assert_eq!(candidate(policy), Some("15+248+deb12u1"));
        assert_eq!(candidate_major(policy), Some(15));
        assert_eq!(candidate("postgresql:\n  Candidate: (none)\n"), None);
        assert_eq!(candidate_major("postgresql:\n  Candidate: (none)\n"), None);
        assert_eq!(candidate_major(""), None);
    }

    #[test]
    fn only_the_library_itself_counts_as_libclang() {
        assert!(is_libclang("libclang.so") && is_libclang("libclang-14.so.1"));
        assert!(!is_libclang("libclang-cpp.so.14") && !is_libclang("libclangAST.a"));
    }
}
