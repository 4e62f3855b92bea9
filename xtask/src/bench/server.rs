//! The server that is measured: the extension built optimised, in a private cluster that is thrown away.

use std::path::Path;

use anyhow::{Context, Result};
use pgcluster::{Cluster, cluster_dir};
use postgres::{Client, NoTls};
use xshell::Shell;

use crate::build::{self, Profile};
use crate::console;
use crate::setup::{self, Purpose};

/// The database that benchmarks work in.
pub const DATABASE: &str = "bqx";

/// A server that is to take in and write much: room for what is written between two checkpoints, in memory and in the
/// log, and nothing that comes at any time. Durability is as PostgreSQL has it.
pub const BULK_SETTINGS: [(&str, &str); 5] = [
    ("shared_buffers", "2GB"),
    ("max_wal_size", "16GB"),
    ("checkpoint_timeout", "30min"),
    ("autovacuum", "off"),
    ("timezone", "UTC"),
];

/// The name of this program's own sessions.
pub const OBSERVER: &str = "bench";

/// Builds and installs, and starts a cluster with these settings and an empty database.
pub fn start(shell: &Shell, pg_config: Option<&Path>, settings: &[(&str, &str)]) -> Result<Cluster> {
    let pg_config = setup::prepare(shell, pg_config, Purpose::Build)?;
    console::timed("build and install", || build::install(shell, &pg_config, Profile::Release)).0?;
    let directory = cluster_dir("bench")?;
    Cluster::remove_kept(&pg_config, &directory)?;
    let cluster = Cluster::start(&pg_config, &directory, settings)?;
    cluster.create_database(DATABASE)?;
    Ok(cluster)
}

/// A session of this program's own.
pub fn observer(cluster: &Cluster) -> Result<Client> {
    session(cluster, DATABASE)
}

/// A session of this program's own in another database.
pub fn session(cluster: &Cluster, database: &str) -> Result<Client> {
    let mut config = cluster.connection_config(database);
    config.application_name(OBSERVER).connect(NoTls).context("cannot connect")
}

/// Does the work in a new database with the extension, which is gone afterwards.
pub fn in_new_database<T>(cluster: &Cluster, work: impl FnOnce(&mut Client) -> Result<T>) -> Result<T> {
    let name = "scratch";
    cluster.create_database(name)?;
    let mut client = session(cluster, name)?;
    client.batch_execute("CREATE EXTENSION bqx")?;
    let result = work(&mut client)?;
    drop(client);
    cluster.connect("postgres")?.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)"))?;
    Ok(result)
}
