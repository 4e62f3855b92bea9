//! Stages as jobs of pg_cron, in both of its ways to run them. The SQL is that of `docs/operations.md`.

mod common;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use bqx_tests::document::Document;
use bqx_tests::{Db, has_extension, own_server};
use common::{row, rows, run, run_each};
use pgcluster::Cluster;
use postgres::Client;

/// Jobs start at the full minute. This is how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(200);

/// The jobs that are scheduled here.
const JOBS: [&str; 4] = ["nightly backfill", "gbpusd", "usdjpy", "two statements"];

/// A server with pg_cron in its database `cron`; SQLSTATEs are in its log.
fn cron_server(name: &str, options: &[(&str, &str)]) -> Cluster {
    let usual = [
        ("shared_preload_libraries", "pg_cron"),
        ("cron.database_name", "cron"),
        ("max_worker_processes", "50"),
        ("log_line_prefix", "%e "),
    ];
    let server = own_server(name, &[&usual, options].concat());
    let socket = server.socket_dir().display().to_string();
    run(&mut server.connect("postgres").unwrap(), &format!("ALTER SYSTEM SET cron.host = '{socket}'"));
    server
}

/// The document's block of this name, to be run every minute.
fn every_minute(block: &str) -> String {
    let document = Document::parse(include_str!("../../docs/operations.md"));
    let sql = document.sql_not_run(&format!("pg_cron, {block}"));
    let schedule = ["'15 22 * * *'", "'*/5 * * * *'"].into_iter().find(|schedule| sql.contains(schedule));
    schedule.map_or(sql.to_owned(), |schedule| sql.replace(schedule, "'* * * * *'"))
}

/// Three pairs with a few bars and empty tables, and jobs that start at the next full minute.
fn schedule(db: &Db) -> Client {
    let mut session = db.connect();
    run_each(
        &mut session,
        &[
            "CREATE EXTENSION pg_cron",
            "CALL bqx.simulate_m1('{eurusd,gbpusd,usdjpy}', '2024-07-01', '2024-07-01')",
            "DELETE FROM bqx.m1_eurusd WHERE extract(minute FROM time) <> 0",
            "DELETE FROM bqx.m1_gbpusd WHERE extract(minute FROM time) <> 0",
            "DELETE FROM bqx.m1_usdjpy WHERE extract(minute FROM time) <> 0",
            "CALL bqx.set_baselines()",
            "CALL bqx.index_m1()",
            "CALL bqx.create_tables()",
            "SELECT cron.schedule('two statements', '* * * * *', 'SELECT 1; CALL bqx.backfill()')",
            "SELECT cron.schedule('usdjpy', '* * * * *', $$CALL bqx.backfill(pairs => '{usdjpy}', workers => 0)$$)",
        ],
    );
    db.psql(&every_minute("a job"));
    db.psql(&every_minute("a role"));
    session
}

/// What became of each job's first run, once all have ended.
fn outcomes(session: &mut Client) -> Vec<String> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let first_runs = rows(
            session,
            "SELECT DISTINCT ON (j.jobname) j.jobname, d.username, d.status, d.return_message \
               FROM cron.job_run_details AS d JOIN cron.job AS j USING (jobid) ORDER BY j.jobname, d.runid",
        );
        let ended = first_runs.iter().filter(|run| run.contains("|succeeded|") || run.contains("|failed|"));
        if ended.count() == JOBS.len() {
            return first_runs;
        }
        assert!(Instant::now() < give_up, "not all jobs ended: {first_runs:?}");
        thread::sleep(Duration::from_millis(200));
    }
}

fn jobs_fill_tables(server: &Cluster) {
    let db = Db::on(server, "cron");
    server.restart().unwrap(); // into pg_cron's database and with its host
    let mut session = schedule(&db);

    let outcomes = outcomes(&mut session);
    let [gbpusd, all, two_statements, usdjpy] = &outcomes[..] else { panic!("{outcomes:?}") };
    assert!(gbpusd.starts_with("gbpusd|filler|succeeded|"), "{gbpusd}");
    assert!(all.starts_with("nightly backfill|postgres|succeeded|"), "{all}");
    assert!(usdjpy.starts_with("usdjpy|postgres|succeeded|"), "{usdjpy}");
    assert!(two_statements.starts_with("two statements|postgres|failed|"), "{two_statements}");
    for words in ["cannot run inside a transaction block", "one per pg_cron job"] {
        assert!(two_statements.contains(words), "{two_statements}");
    }
    let log = fs::read_to_string(server.log_file()).unwrap();
    assert!(log.contains("25001 ERROR:  bqx.backfill cannot run inside a transaction block"), "{log}");

    let status = "SELECT DISTINCT status FROM bqx.completion_report()";
    assert_eq!(row(&mut session, status), "complete");
    assert_eq!(rows(&mut session, "SELECT * FROM bqx.verify() WHERE NOT ok"), [""; 0]);
    let callers = "SELECT DISTINCT called_by, arguments ->> 'pairs', arguments ->> 'workers' FROM bqx.runs ORDER BY 1, 2";
    assert_eq!(
        rows(&mut session, callers),
        [
            r#"filler|["gbpusd"]|1"#,
            r#"postgres|["eurusd", "gbpusd", "usdjpy"]|NULL"#,
            r#"postgres|["usdjpy"]|0"#
        ]
    );
    // the role sees its own
    let mut filler = db.connect_as("filler");
    assert_eq!(row(&mut filler, "SELECT DISTINCT called_by FROM bqx.runs"), "filler");
    let outcome = db.psql(&every_minute("the outcome"));
    assert!(
        outcome.contains("gbpusd|succeeded|") && outcome.contains("|filler|[\"gbpusd\"]|done"),
        "{outcome}"
    );
}

#[test]
fn jobs_over_connections_fill_tables() {
    if has_extension("pg_cron") {
        jobs_fill_tables(&cron_server("cron-connections", &[]));
    }
}

#[test]
fn jobs_in_background_workers_fill_tables() {
    if has_extension("pg_cron") {
        jobs_fill_tables(&cron_server("cron-workers", &[("cron.use_background_workers", "on")]));
    }
}
