//! The stored numbers against Python: numpy over whole pairs, exact fractions over rows chosen at random. The Python
//! side is `numpy_reference.py`.

mod common;

use std::fs::File;
use std::io::{Write, copy};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use bqx_tests::python::{environment, has_module, no_python, python};
use bqx_tests::{Db, server, shared_data};
use common::{row, run};
use pgcluster::workspace_root;
use postgres::Client;

/// A Python with numpy: the usual one, or one of an environment made for the purpose. None where neither can be had.
fn python_with_numpy() -> Option<&'static Path> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    PYTHON
        .get_or_init(|| {
            let usual = python().filter(|python| has_module(python, "numpy"));
            usual.or_else(|| environment("numpy", &["numpy"]).ok())
        })
        .as_deref()
}

/// Writes a query's rows in PostgreSQL's binary COPY format, which loses no bit.
fn export(session: &mut Client, query: &str, file: &str) -> PathBuf {
    let path = server().directory().join(file);
    let rows = session.copy_out(&format!("COPY ({query}) TO STDOUT WITH (FORMAT binary)"));
    copy(&mut rows.unwrap(), &mut File::create(&path).unwrap()).unwrap();
    path
}

/// Has Python compare a pair's tables; what it finds wrong fails the test.
fn compare(python: &Path, how: &str, db: &Db, pair: &str) {
    let families: &[&str] = if how == "numpy" { &["bqx"] } else { &["bqx", "reg"] };
    for family in families {
        let columns = row(
            &mut db.connect(),
            &format!(
                "SELECT string_agg(attname, ',' ORDER BY attnum) FROM pg_attribute WHERE attrelid = \
                 'bqx.{family}_{pair}'::regclass AND attnum > 0 AND attname NOT IN ('ts_utc', 'created_at')"
            ),
        );
        let (agrees, said) = said_by_python(python, how, db, &format!("{family}_{pair}"), &columns, &columns);
        assert!(agrees, "{family}_{pair}, {how}: {said}");
    }
}

/// Whether Python finds the columns of a table to be what their names say, and what it says. `values` are the columns'
/// values, as SQL.
fn said_by_python(
    python: &Path,
    how: &str,
    db: &Db,
    table: &str,
    columns: &str,
    values: &str,
) -> (bool, String) {
    let mut session = db.connect();
    let pair = &table[4..];
    let file = format!("{how}-{}-{table}", std::thread::current().name().unwrap_or_default());
    let bars = export(
        &mut session,
        &format!("SELECT rate_index FROM bqx.m1_{pair} ORDER BY time"),
        &format!("{file}.m1"),
    );
    let rows = export(&mut session, &format!("SELECT {values} FROM bqx.{table} ORDER BY ts_utc"), &file);
    let mut command = Command::new(python);
    command.arg(workspace_root().join("tests/tests/numpy_reference.py"));
    let output = command.arg(how).arg(columns).arg(bars).arg(rows).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// Two simulated pairs of one month. The index of usdjpy is around 64, where doubles get finer.
fn simulated() -> &'static Db<'static> {
    static SIMULATED: OnceLock<Db<'static>> = OnceLock::new();
    SIMULATED.get_or_init(|| {
        let db = Db::new("simulated");
        let mut session = db.connect();
        for stage in [
            "CALL bqx.simulate_m1('{eurusd,usdjpy}', '2024-07-01', '2024-07-01', 7)",
            "CALL bqx.set_baselines()",
            "UPDATE bqx.baseline_rates SET baseline_rate = (SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY close) \
             FROM bqx.m1_usdjpy) / 0.64 WHERE pair = 'usdjpy'",
            "CALL bqx.index_m1()",
            "CALL bqx.create_tables()",
            "CALL bqx.backfill(workers => 1)",
        ] {
            run(&mut session, stage);
        }
        let around_64 = "SELECT min(rate_index) < 64 AND max(rate_index) > 64 FROM bqx.m1_usdjpy";
        assert_eq!(row(&mut session, around_64), "t");
        db
    })
}

/// Real bars of a whole pair, loaded as a client would; None where there are none.
fn real(pair: &str) -> Option<&'static Db<'static>> {
    static REAL: OnceLock<Db<'static>> = OnceLock::new();
    let file = shared_data("c_2026")?.join(format!("{pair}.csv.xz"));
    Some(REAL.get_or_init(|| {
        let db = Db::new("real");
        let mut session = db.connect();
        let bars = Command::new("xz").arg("-dc").arg(file).output().expect("xz unpacks the bars");
        assert!(bars.status.success());
        let staging =
            "COPY bqx.m1_staging(line) FROM STDIN WITH (FORMAT csv, DELIMITER E'\\x01', QUOTE E'\\x02')";
        let mut lines = session.copy_in(staging).unwrap();
        lines.write_all(&bars.stdout).unwrap();
        lines.finish().unwrap();
        for stage in [
            format!("CALL bqx.ingest_m1('{pair}')"),
            format!("CALL bqx.run_pipeline('{{{pair}}}', workers => 2)"),
        ] {
            run(&mut session, &stage);
        }
        let loaded = format!("SELECT count(*) FROM bqx.m1_{pair}");
        let bars = bars.stdout.iter().filter(|&&byte| byte == b'\n').count() - 1;
        assert_eq!(row(&mut session, &loaded), bars.to_string());
        db
    }))
}

#[test]
fn numpy_agrees_over_simulated_pairs() {
    let Some(python) = python_with_numpy() else { return no_python("numpy") };
    for pair in ["eurusd", "usdjpy"] {
        compare(python, "numpy", simulated(), pair);
    }
}

#[test]
fn numpy_agrees_over_a_whole_real_pair() {
    let Some(python) = python_with_numpy() else { return no_python("numpy") };
    if let Some(db) = real("eurusd") {
        compare(python, "numpy", db, "eurusd");
    }
}

#[test]
fn exact_fractions_agree_on_simulated_pairs() {
    let Some(python) = python() else { return no_python("python3") };
    for pair in ["eurusd", "usdjpy"] {
        compare(&python, "fractions", simulated(), pair);
    }
}

#[test]
fn exact_fractions_agree_on_a_real_pair() {
    let Some(python) = python() else { return no_python("python3") };
    if let Some(db) = real("eurusd") {
        compare(&python, "fractions", db, "eurusd");
    }
}

#[test]
fn python_sees_a_wrong_value() {
    let Some(python) = python() else { return no_python("python3") };
    let sees = |how: &str, table: &str, column: &str, value: &str| {
        let columns = format!("rate_index,{column}");
        let values = format!("rate_index, {value}");
        let python = if how == "numpy" { python_with_numpy() } else { Some(python.as_path()) };
        let Some(python) = python else { return };
        let (agrees, said) = said_by_python(python, how, simulated(), table, &columns, &values);
        assert!(!agrees && said.contains("differ"), "{value} of {table}, {how}: {said}");
    };
    sees("fractions", "bqx_eurusd", "w15_bqx_avg_index", "w15_bqx_avg_index * (1 + 1.5e-13)");
    sees("fractions", "bqx_eurusd", "w60_bqx_max_index", "w60_bqx_max_index + 1.5e-14");
    sees("fractions", "bqx_usdjpy", "agg_bqx_volatility", "agg_bqx_volatility * (1 - 1.5e-13)");
    sees("numpy", "bqx_eurusd", "w15_bqx_stdev_index", "w15_bqx_stdev_index * (1 + 2e-9)");
    sees("numpy", "bqx_eurusd", "w75_bqx_return", "lag(w75_bqx_return) OVER (ORDER BY ts_utc)");
    let metrics = ["a", "b", "c", "r2", "rmse", "yhat_end", "resid_end", "slope_end", "endpoint"];
    let fit = metrics.map(|metric| format!("w630_reg_{metric}")).join(",");
    let wrong = |metric: &str, by: &str| fit.replace(&format!("_{metric}"), &format!("_{metric} {by}"));
    sees("fractions", "reg_usdjpy", &fit, &wrong("c", "+ 1e-12"));
    sees("fractions", "reg_usdjpy", &fit, &wrong("r2", "+ 2e-12"));
    sees("fractions", "reg_usdjpy", &fit, &wrong("slope_end", "* (1 + 2e-13)"));
}
