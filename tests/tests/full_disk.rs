//! A disk that fills up while a backfill writes: what does not fit fails by itself, and is done once there is room.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use bqx_tests::{Db, error_of, skipped};
use common::backfilled::{Prepared, checksums, failures, faults};
use common::{row, rows, run, run_each};
use pgcluster::Cluster;
use postgres::Client;

/// A small file system of its own for a tablespace, gone with this value.
struct SmallDisk {
    mount_point: PathBuf,
}

impl SmallDisk {
    /// None, after saying so, where mounting is not permitted.
    fn mount(cluster: &Cluster, test: &str, megabytes: u32) -> Option<SmallDisk> {
        let mount_point = cluster.directory().join("small-disk");
        cluster.account().create_private_dir(&mount_point).expect("a directory");
        let disk = SmallDisk { mount_point };
        let mounted = disk.run(Command::new("mount").args(["-t", "tmpfs", "-o", &size(megabytes), "tmpfs"]));
        if !mounted {
            skipped(test, "mounting is not permitted here");
            return None;
        }
        cluster.account().own(&disk.mount_point).expect("the server's own");
        Some(disk)
    }

    fn resize(&self, megabytes: u32) {
        let remount = format!("remount,{}", size(megabytes));
        assert!(self.run(Command::new("mount").args(["-o", &remount])), "no larger disk");
    }

    fn run(&self, command: &mut Command) -> bool {
        command.arg(&self.mount_point).output().is_ok_and(|output| output.status.success())
    }

    fn path(&self) -> &Path {
        &self.mount_point
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the server may still have files open there, which go with it.
        self.run(Command::new("umount").arg("--lazy"));
    }
}

fn size(megabytes: u32) -> String {
    format!("size={megabytes}m")
}

/// Rows by month of each derived table, as `table rows of month, …`.
fn rows_by_month(session: &mut Client) -> Vec<String> {
    let months = |session: &mut Client, table: &str, time: &str| {
        rows(
            session,
            &format!(
                "SELECT concat_ws(' ', to_char({time} AT TIME ZONE 'UTC', 'YYYY-MM'), count(*)) FROM bqx.{table} \
                 GROUP BY to_char({time} AT TIME ZONE 'UTC', 'YYYY-MM') ORDER BY 1"
            ),
        )
    };
    let mut found = Vec::new();
    for pair in ["eurusd", "usdjpy"] {
        let bars = months(session, &format!("m1_{pair}"), "time");
        for family in ["bqx", "reg"] {
            let rows = months(session, &format!("{family}_{pair}"), "ts_utc");
            let partial: Vec<_> = rows.iter().filter(|month| !bars.contains(month)).collect();
            assert!(partial.is_empty(), "{family}_{pair} has part of a month: {partial:?} of {bars:?}");
            found.extend(rows.iter().map(|month| format!("{family} {pair} {}", &month[..7])));
        }
    }
    found
}

/// Runs a backfill for which there is not enough room; what it failed at, and that it did all else.
fn fill_up(db: &Db, call: &str) -> Vec<String> {
    let mut session = db.connect();
    let error = error_of(&mut session, call);
    assert_eq!(error.code, "53100", "{error:?}");
    assert!(error.detail.contains("No space left on device"), "{error:?}");
    assert!(error.hint.contains("CALL bqx.backfill()"), "{error:?}");
    let failed = failures(&mut session);
    assert!((1..12).contains(&failed.len()), "{failed:?}");
    assert!(failed.iter().all(|job| job.ends_with(" failed 53100")), "{failed:?}");
    assert_eq!(row(&mut session, "SELECT state FROM bqx.runs ORDER BY run_id DESC LIMIT 1"), "failed");
    failed
}

#[test]
fn what_fits_no_more_fails_alone_and_is_done_when_there_is_room() {
    let prepared = Prepared::start("full-disk", &[]);
    let test = "what_fits_no_more_fails_alone_and_is_done_when_there_is_room";
    let Some(disk) = SmallDisk::mount(prepared.cluster(), test, 8) else { return };
    let mut admin = prepared.cluster().connect("postgres").unwrap();
    run(&mut admin, &format!("CREATE TABLESPACE small LOCATION '{}'", disk.path().display()));
    let postmaster = prepared.cluster().postmaster_pid().unwrap();
    for workers in [0, 2] {
        disk.resize(8);
        let db = prepared.db(&format!("full_{workers}"));
        let mut session = db.connect();
        run(&mut session, "CALL bqx.create_tables(from_month => '2024-07-01', to_month => '2024-07-01')");
        for table in ["bqx_eurusd", "reg_eurusd", "bqx_usdjpy", "reg_usdjpy"] {
            run_each(
                &mut session,
                &[
                    format!("ALTER TABLE bqx.{table} SET TABLESPACE small"),
                    format!("ALTER TABLE bqx.{table}_2024_07 SET TABLESPACE small"),
                ],
            );
        }

        // New months.
        let call = format!("CALL bqx.backfill(workers => {workers})");
        let failed = fill_up(&db, &call);
        assert_eq!(rows_by_month(&mut session).len(), 12 - failed.len(), "{failed:?}");
        disk.resize(64);
        run(&mut session, &call);
        assert_eq!(checksums(&db), prepared.expected());

        // Months that have rows: the old ones stay.
        let used = row(&mut session, "SELECT pg_tablespace_size('small') / (1 << 20) + 2");
        disk.resize(used.parse().unwrap());
        run(&mut session, "UPDATE bqx.m1_usdjpy SET close = close + 1 WHERE rate_index <> 100");
        let failed = fill_up(&db, &call);
        assert!(failed.iter().all(|job| job.contains(" usdjpy ")), "{failed:?}");
        assert_eq!(rows_by_month(&mut session).len(), 12);
        let rewritten = "SELECT count(*) FROM (SELECT DISTINCT to_char(t.ts_utc, 'YYYY-MM') FROM bqx.bqx_usdjpy AS t \
                       JOIN bqx.m1_usdjpy AS m ON m.time = t.ts_utc WHERE m.rate_index = t.rate_index AND m.rate_index <> 100) AS months";
        let failed_bqx = failed.iter().filter(|job| job.starts_with("bqx ")).count();
        assert_eq!(row(&mut session, rewritten), (3 - failed_bqx).to_string(), "{failed:?}");
        disk.resize(64);
        run(&mut session, &call);
        assert_eq!(faults(&mut session), [""; 0]);
        drop(session);
        run(&mut admin, &format!("DROP DATABASE {}", db.name()));
    }
    assert_eq!(prepared.cluster().postmaster_pid().unwrap(), postmaster);
    run(&mut admin, "DROP TABLESPACE small");
}
