//! Private throw-away PostgreSQL clusters.
//!
//! ```no_run
//! use pgcluster::{Cluster, PgConfig, cluster_dir};
//!
//! # fn main() -> anyhow::Result<()> {
//! let pg_config = PgConfig::find(None)?;
//! let cluster = Cluster::start(&pg_config, &cluster_dir("example")?, &[("fsync", "off")])?;
//! cluster.connect("postgres")?.batch_execute("SELECT 1")?;
//! # Ok(())
//! # } // here the server is stopped and its directory removed
//! ```
//!
//! A cluster belongs to the process that started it. It goes when its [`Cluster`] is dropped and also when the
//! process ends without dropping it, however that happens: a watchdog beside it waits for just that.

mod account;
mod cluster;
mod pg_config;
mod place;
mod watchdog;

pub use account::ServerAccount;
pub use cluster::{Cluster, StopMode};
pub use pg_config::{PgConfig, SUPPORTED_MAJORS};
pub use place::{cluster_dir, target_dir, workspace_root};
