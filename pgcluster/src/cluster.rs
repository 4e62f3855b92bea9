//! One server with its data directory, from initdb to its removal.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use postgres::{Client, Config, NoTls};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::watchdog::Watchdog;
use crate::{PgConfig, ServerAccount};

/// The superuser of every cluster.
const SUPERUSER: &str = "postgres";

/// The longest path of a Unix socket, in bytes.
const LONGEST_SOCKET_PATH: usize = 107;

/// How long a start after a crash may be refused because processes of the dead server still end.
const CRASH_PATIENCE: Duration = Duration::from_secs(30);

/// How a server is told to stop, as in `pg_ctl stop --mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Waits for all sessions to end.
    Smart,
    /// Ends all sessions, then shuts down cleanly.
    Fast,
    /// Without a shutdown checkpoint: the next start recovers as after a crash.
    Immediate,
}

impl StopMode {
    fn name(self) -> &'static str {
        match self {
            Self::Smart => "smart",
            Self::Fast => "fast",
            Self::Immediate => "immediate",
        }
    }
}

/// A private server, reachable through a Unix socket in a directory of its own and through nothing else.
///
/// Dropping it stops the server at once and removes its directory, see the [crate's](crate) description.
/// The environment variable `BQX_KEEP_CLUSTERS` leaves server and directory, to look into what happened.
#[derive(Debug)]
pub struct Cluster {
    pg_config: PgConfig,
    account: ServerAccount,
    directory: PathBuf,
    socket_dir: PathBuf,
    watchdog: Option<Watchdog>,
}

impl Cluster {
    /// Makes a cluster in `directory`, which must not exist yet, and starts it with these configuration parameters.
    /// Data are UTF-8 in the C locale; the superuser is `postgres` and needs no password.
    pub fn start(pg_config: &PgConfig, directory: &Path, options: &[(&str, &str)]) -> Result<Self> {
        ensure!(pg_config.has_server(), "{} has no server programs", pg_config.bindir.display());
        let account = ServerAccount::choose()?;
        account.create_private_dir(directory)?;
        let mut cluster = Self {
            socket_dir: make_socket_dir(&account, directory)?,
            pg_config: pg_config.clone(),
            account,
            directory: directory.to_owned(),
            watchdog: None,
        };
        if std::env::var_os("BQX_KEEP_CLUSTERS").is_none() {
            let mut stop = cluster.server_command("pg_ctl");
            stop.args(["stop", "-m", "immediate", "-D"]).arg(cluster.data_dir());
            cluster.watchdog = Some(Watchdog::start(&stop, &[directory, &cluster.socket_dir])?);
        }
        cluster.initialize(options)?;
        cluster.start_again()?;
        Ok(cluster)
    }

    /// Removes what an earlier [`Cluster::keep`] left in `directory`; stops its server first. Nothing there is fine.
    pub fn remove_kept(pg_config: &PgConfig, directory: &Path) -> Result<()> {
        if !directory.try_exists()? {
            return Ok(());
        }
        let data = directory.join("data");
        ensure!(
            data.join("PG_VERSION").exists() || directory.read_dir()?.next().is_none(),
            "{} holds no cluster: remove it by hand if nobody needs it",
            directory.display()
        );
        if data.join("postmaster.pid").exists() {
            let mut stop = ServerAccount::choose()?.command(pg_config.bindir.join("pg_ctl"));
            // Fails where the server is dead already, and then the directory may go, too.
            stop.args(["stop", "-m", "immediate", "-D"]).arg(&data).output()?;
        }
        std::fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))
    }

    /// Leaves the server running and its directory in place, for good.
    pub fn keep(mut self) -> Result<()> {
        self.watchdog.take().map_or(Ok(()), Watchdog::dismiss)
    }

    fn initialize(&self, options: &[(&str, &str)]) -> Result<()> {
        let mut initdb = self.server_command("initdb");
        initdb
            .args([
                "--encoding=UTF8",
                "--locale=C",
                "--auth-local=trust",
                "--auth-host=scram-sha-256",
                "--no-sync",
            ])
            .args(["--username", SUPERUSER, "--pgdata"])
            .arg(self.data_dir());
        run(&mut initdb)?;
        self.configure(options)
    }

    /// Appends to postgresql.conf; the last setting of a name counts.
    fn configure(&self, options: &[(&str, &str)]) -> Result<()> {
        let path = self.data_dir().join("postgresql.conf");
        let mut lines = String::from("\n");
        let socket_dir = self.socket_dir.to_string_lossy();
        let ours = [("listen_addresses", ""), ("unix_socket_directories", &*socket_dir)];
        for (name, value) in ours.iter().chain(options) {
            writeln!(lines, "{name} = '{}'", value.replace('\'', "''"))?;
        }
        let mut file = OpenOptions::new().append(true).open(&path)?;
        file.write_all(lines.as_bytes()).with_context(|| format!("cannot write to {}", path.display()))
    }

    /// Starts the server of a cluster that was stopped or that crashed.
    pub fn start_again(&self) -> Result<()> {
        let give_up = Instant::now() + CRASH_PATIENCE;
        loop {
            let mut start = self.server_command("pg_ctl");
            start.args(["start", "--wait", "--timeout=60", "--pgdata"]).arg(self.data_dir());
            start.arg("--log").arg(self.log_file());
            let Err(error) = run(&mut start) else { return Ok(()) };
            let log = self.last_log_lines(20);
            let still_ending = log.contains("is still in use") || log.contains("already exists");
            if !still_ending || Instant::now() > give_up {
                return Err(error.context(format!("the server does not start; its log ends:\n{log}")));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Stops the server; its data stay.
    pub fn stop(&self, mode: StopMode) -> Result<()> {
        let mut stop = self.server_command("pg_ctl");
        stop.args(["stop", "--wait", "--timeout=60", "--mode", mode.name(), "--pgdata"]).arg(self.data_dir());
        run(&mut stop).map(drop)
    }

    /// Stops the server cleanly and starts it again.
    pub fn restart(&self) -> Result<()> {
        self.stop(StopMode::Fast)?;
        self.start_again()
    }

    /// Kills the postmaster with SIGKILL, as a crash of the machine would end it, and waits until it is gone and its
    /// parent has taken note (until then the server would not start again).
    /// [`Cluster::start_again`] then recovers from the write-ahead log.
    pub fn kill_postmaster(&self) -> Result<()> {
        let pid = self.postmaster_pid()?;
        kill_process(pid, Signal::KILL).context("cannot kill the postmaster")?;
        let give_up = Instant::now() + CRASH_PATIENCE;
        while test_kill_process(pid).is_ok() {
            ensure!(Instant::now() < give_up, "the postmaster {pid:?} survived SIGKILL");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Kills one server process, a backend or a worker, with SIGKILL: the postmaster then restarts all others.
    pub fn kill_backend(&self, pid: i32) -> Result<()> {
        let pid = Pid::from_raw(pid).with_context(|| format!("{pid} is no process id"))?;
        kill_process(pid, Signal::KILL).with_context(|| format!("cannot kill backend {pid:?}"))
    }

    /// The process id of the running server's first process.
    pub fn postmaster_pid(&self) -> Result<Pid> {
        let path = self.data_dir().join("postmaster.pid");
        let text = std::fs::read_to_string(&path).context("the server is not running")?;
        let number = text.lines().next().and_then(|line| line.trim().parse().ok());
        number.and_then(Pid::from_raw).with_context(|| format!("{} holds no process id", path.display()))
    }

    /// How to reach a database as superuser, for connections with settings of their own.
    pub fn connection_config(&self, database: &str) -> Config {
        let mut config = Config::new();
        config.host_path(&self.socket_dir).user(SUPERUSER).dbname(database);
        config
    }

    /// Connects to a database as superuser.
    pub fn connect(&self, database: &str) -> Result<Client> {
        self.connection_config(database)
            .connect(NoTls)
            .with_context(|| format!("cannot connect to database {database}"))
    }

    /// A `psql` that will connect to a database as superuser and that ignores the user's psqlrc and `PG…` variables.
    pub fn psql(&self, database: &str) -> Command {
        let mut psql = Command::new(self.pg_config.bindir.join("psql"));
        self.lead_to(database, &mut psql);
        psql.arg("--no-psqlrc");
        psql
    }

    /// Has a program that uses libpq connect to a database as superuser, whatever the user's `PG…` variables say.
    pub fn lead_to(&self, database: &str, command: &mut Command) {
        forget_pg_variables(command);
        command.env("PGHOST", &self.socket_dir).env("PGUSER", SUPERUSER).env("PGDATABASE", database);
    }

    /// Creates an empty database.
    pub fn create_database(&self, name: &str) -> Result<()> {
        let quoted = name.replace('"', "\"\"");
        self.connect("postgres")?
            .batch_execute(&format!("CREATE DATABASE \"{quoted}\""))
            .with_context(|| format!("cannot create database {name}"))
    }

    /// The installation whose programs run it.
    pub fn pg_config(&self) -> &PgConfig {
        &self.pg_config
    }

    /// The account it runs as.
    pub fn account(&self) -> &ServerAccount {
        &self.account
    }

    /// The directory with everything of this cluster.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The directory with the server's data, `PGDATA`.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The directory of the server's socket, for `psql --host`.
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// What the server wrote about itself.
    pub fn log_file(&self) -> PathBuf {
        self.directory.join("server.log")
    }

    fn last_log_lines(&self, count: usize) -> String {
        let log = std::fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }

    /// One of the installation's programs, to run under the server's account.
    fn server_command(&self, program: &str) -> Command {
        let mut command = self.account.command(self.pg_config.bindir.join(program));
        forget_pg_variables(&mut command);
        command.env("LC_ALL", "C");
        // Meant for our own programs: in a server, each error that passes Rust code would take a tenth of a second.
        command.env_remove("RUST_BACKTRACE");
        command
    }
}

/// Keeps the user's `PG…` variables from a program.
fn forget_pg_variables(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
}

/// The directory for the server's socket: in the cluster's, or under `/tmp` where the path would get too long.
fn make_socket_dir(account: &ServerAccount, directory: &Path) -> Result<PathBuf> {
    let usual = directory.join("socket");
    if usual.join(".s.PGSQL.65535").as_os_str().len() <= LONGEST_SOCKET_PATH {
        account.create_private_dir(&usual)?;
        return Ok(usual);
    }
    account.temporary_dir()
}

/// Runs a command to its end; what it printed becomes part of the error if it fails.
fn run(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        let printed = [output.stdout, output.stderr].concat();
        bail!("{command:?} failed:\n{}", String::from_utf8_lossy(&printed).trim_end());
    }
    Ok(output)
}
