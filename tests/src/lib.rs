//! What the integration tests share: a private server for each test program, a database for each test.
//!
//! The extension must be installed (`cargo xtask install`) where `PgConfig::find` looks: the environment variable
//! `PG_CONFIG` chooses another PostgreSQL.

pub mod document;
pub mod exact;
pub mod histdata;
mod psql;
pub mod python;
mod session;

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use pgcluster::{Cluster, PgConfig, cluster_dir, workspace_root};
use postgres::Client;

pub use psql::{Transcript, transcript};
pub use session::{Notices, SqlError, error_of};

/// The server that the tests of one program share. It ends with the program.
pub fn server() -> &'static Cluster {
    static SERVER: OnceLock<Cluster> = OnceLock::new();
    SERVER.get_or_init(|| own_server("tests", &[]))
}

/// A server for one test alone, which may stop, kill or configure it as it likes.
pub fn own_server(name: &str, options: &[(&str, &str)]) -> Cluster {
    let pg_config = PgConfig::find(None).expect("a PostgreSQL installation");
    let directory = cluster_dir(&format!("{name}-{}", std::process::id())).expect("a place for a cluster");
    let usual = [("fsync", "off"), ("timezone", "UTC"), ("shared_buffers", "64MB"), ("max_wal_size", "4GB")];
    let options = [&usual, options].concat();
    Cluster::start(&pg_config, &directory, &options).expect("a running server")
}

/// A database of its own for a test, with the extension in it.
pub struct Db<'a> {
    server: &'a Cluster,
    name: String,
}

impl Db<'static> {
    /// A new database on the shared [`server`]; `name` must be unique within the test program.
    pub fn new(name: &str) -> Self {
        Self::on(server(), name)
    }

    /// The same, but still without the extension.
    pub fn without_extension(name: &str) -> Self {
        Self::empty_on(server(), name)
    }
}

impl<'a> Db<'a> {
    /// A new database on a server of the test's own.
    pub fn on(server: &'a Cluster, name: &str) -> Self {
        let db = Self::empty_on(server, name);
        let created = db.connect().batch_execute("CREATE EXTENSION bqx");
        created.unwrap_or_else(|error| {
            panic!("{} (cargo xtask install installs it)", session::describe(&error))
        });
        db
    }

    fn empty_on(server: &'a Cluster, name: &str) -> Self {
        server.create_database(name).expect("a new database");
        Self { server, name: name.to_owned() }
    }

    /// A new session of the superuser.
    pub fn connect(&self) -> Client {
        self.server.connect(&self.name).expect("a connection")
    }

    /// A new session of another role, which must be allowed to log in.
    pub fn connect_as(&self, role: &str) -> Client {
        let mut config = self.server.connection_config(&self.name);
        config.user(role).connect(postgres::NoTls).expect("a connection")
    }

    /// A new session, and what the server tells it beside results.
    pub fn connect_with_notices(&self) -> (Client, Notices) {
        session::connect_with_notices(self.server.connection_config(&self.name))
    }

    /// A `psql` command that will connect here.
    pub fn psql_command(&self) -> Command {
        self.server.psql(&self.name)
    }

    /// Runs a script of SQL and psql commands; returns what it printed, unaligned and without headers.
    /// The first error ends it, and the test.
    pub fn psql(&self, script: &str) -> String {
        let mut psql = self.psql_command();
        psql.args(["-At", "-v", "ON_ERROR_STOP=1"]);
        let ran = transcript(psql, script.as_bytes()).expect("psql runs");
        assert!(ran.success, "psql failed:\n{}", ran.output);
        ran.output
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The folder `kind` of real bars (`b_2021`, `c_2026`, `raw`), which may not be distributed with the project and so
/// are not everywhere. Where they are missing, says that the calling test is skipped; it should then return.
///
/// They lie in `data` of a folder `shared` beside the workspace, or where `BQX_REAL_BARS` says.
pub fn shared_data(kind: &str) -> Option<PathBuf> {
    let data = match std::env::var_os("BQX_REAL_BARS") {
        Some(dir) => PathBuf::from(dir),
        None => workspace_root().parent()?.join("shared/data"),
    };
    let folder = data.join(kind);
    if folder.is_dir() {
        return Some(folder);
    }
    let thread = std::thread::current();
    skipped(thread.name().unwrap_or("a test"), "no real bars here");
    None
}

/// Whether the server has this other extension, which bqx does not need. If not, says that the calling test is
/// skipped; it should then return.
pub fn has_extension(name: &str) -> bool {
    let pg_config = PgConfig::find(None).expect("a PostgreSQL installation");
    let is_there = pg_config.extension_dir().join(format!("{name}.control")).is_file();
    if !is_there {
        let thread = std::thread::current();
        let reason = format!("PostgreSQL {} has no extension {name} here", pg_config.major);
        skipped(thread.name().unwrap_or("a test"), &reason);
    }
    is_there
}

/// Says on standard output, past the test runner's capture, that a test was skipped. `cargo xtask test` counts these
/// lines, because the runner itself takes such a test for a passed one.
pub fn skipped(test: &str, reason: &str) {
    let _ = writeln!(std::io::stdout(), "skipped: {test}: {reason}");
}
