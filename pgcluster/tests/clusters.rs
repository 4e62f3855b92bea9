//! Clusters from start to end, with a real server.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use pgcluster::{Cluster, PgConfig, StopMode, cluster_dir};
use rustix::process::test_kill_process;

/// Set in the process that a test starts to see what remains after its death.
const DOOMED: &str = "PGCLUSTER_TEST_DOOMED";

fn new_dir(test: &str) -> PathBuf {
    cluster_dir(&format!("{test}-{}", std::process::id())).unwrap()
}

fn start(dir: &Path) -> Cluster {
    let pg_config = PgConfig::find(None).unwrap();
    Cluster::start(&pg_config, dir, &[("fsync", "off"), ("shared_buffers", "16MB")]).unwrap()
}

fn count(cluster: &Cluster, query: &str) -> i64 {
    cluster.connect("postgres").unwrap().query_one(query, &[]).unwrap().get(0)
}

#[test]
fn a_cluster_serves_until_it_is_dropped() {
    let dir = new_dir("serves");
    let cluster = start(&dir);
    cluster.create_database("with \"quotes\"").unwrap();
    let output =
        cluster.psql("with \"quotes\"").args(["-AtX", "-c", "SHOW shared_buffers"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "16MB\n", "{output:?}");
    drop(cluster);
    assert!(!dir.exists());
}

#[test]
fn data_survive_a_restart_and_a_killed_postmaster() {
    let cluster = start(&new_dir("crash"));
    cluster.connect("postgres").unwrap().batch_execute("CREATE TABLE t AS SELECT 1 AS i").unwrap();
    cluster.restart().unwrap();
    assert_eq!(count(&cluster, "SELECT count(*) FROM t"), 1);
    let mut session = cluster.connect("postgres").unwrap();
    session.batch_execute("INSERT INTO t VALUES (2)").unwrap();
    cluster.kill_postmaster().unwrap();
    cluster.start_again().unwrap();
    assert_eq!(count(&cluster, "SELECT count(*) FROM t"), 2);
    cluster.stop(StopMode::Immediate).unwrap();
    assert!(cluster.postmaster_pid().is_err());
}

#[test]
fn a_long_path_gets_its_socket_elsewhere() {
    let dir = new_dir(&"long".repeat(30));
    let cluster = start(&dir);
    let socket_dir = cluster.socket_dir().to_owned();
    assert!(!socket_dir.starts_with(&dir) && socket_dir.exists());
    drop(cluster);
    assert!(!dir.exists() && !socket_dir.exists());
}

#[test]
fn a_kept_cluster_runs_on_until_it_is_removed() {
    let dir = new_dir("kept");
    let cluster = start(&dir);
    let pg_config = cluster.pg_config().clone();
    let postmaster = cluster.postmaster_pid().unwrap();
    cluster.keep().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    test_kill_process(postmaster).unwrap();
    Cluster::remove_kept(&pg_config, &dir).unwrap();
    assert!(!dir.exists());
    within_20_seconds("the server is gone", || test_kill_process(postmaster).is_err());
}

#[test]
fn what_is_no_cluster_is_not_removed() {
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("letter"), "dear diary").unwrap();
    assert!(Cluster::remove_kept(&PgConfig::find(None).unwrap(), other.path()).is_err());
    assert!(other.path().join("letter").exists());
}

#[test]
fn nothing_remains_after_its_process_died_without_a_word() {
    let name = "nothing_remains_after_its_process_died_without_a_word";
    if let Some(dir) = std::env::var_os(DOOMED) {
        let _cluster = start(Path::new(&dir));
        std::process::abort();
    }
    let dir = new_dir("doomed");
    let test = std::env::current_exe().unwrap();
    let status = Command::new(test).args(["--exact", name]).env(DOOMED, &dir).output().unwrap().status;
    assert!(!status.success(), "it was to abort");
    within_20_seconds("its directory is gone", || !dir.exists());
}

/// Servers end a moment after they were told to.
fn within_20_seconds(what: &str, is_so: impl Fn() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < give_up, "not within 20 seconds: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
