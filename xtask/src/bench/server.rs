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
    let mut config = cluster.connection_config(DATABASE);
    config.application_name(OBSERVER).connect(NoTls).context("cannot connect")
}
