//! The indicators against TA-Lib, on whole series where Python has it (indicators_reference.py), and on values recorded of it
//! everywhere; and what makes them aggregates.

mod common;

use std::fs::File;
use std::io::{Write, copy};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use bqx_tests::python::{environment, no_python};
use bqx_tests::{Db, server, shared_data};
use common::{attempt, row, rows, run, run_each};
use pgcluster::workspace_root;
use postgres::Client;

/// Every indicator, with the name that indicators_reference.py has for it, over bars in the window w.
const INDICATORS: [(&str, &str); 26] = [
    ("sma_20", "bqx.sma(close, 20) OVER w"),
    ("sma_240", "bqx.sma(close, 240) OVER w"),
    ("ema_12", "bqx.ema(close, 12) OVER w"),
    ("wma_30", "bqx.wma(close, 30) OVER w"),
    ("rsi_2", "bqx.rsi(close, 2) OVER w"),
    ("rsi_14", "bqx.rsi(close, 14) OVER w"),
    ("macd_line", "(bqx.macd(close, 12, 26, 9) OVER w).line"),
    ("macd_signal", "(bqx.macd(close, 12, 26, 9) OVER w).signal"),
    ("macd_histogram", "(bqx.macd(close, 12, 26, 9) OVER w).histogram"),
    ("fast_macd_signal", "(bqx.macd(close, 3, 10, 16) OVER w).signal"),
    ("bollinger_upper", "(bqx.bollinger(close, 20, 2) OVER w).upper"),
    ("bollinger_middle", "(bqx.bollinger(close, 20, 2) OVER w).middle"),
    ("bollinger_lower", "(bqx.bollinger(close, 20, 2) OVER w).lower"),
    ("bollinger_width", "(bqx.bollinger(close, 20, 2) OVER w).width"),
    ("bollinger_percent_b", "(bqx.bollinger(close, 20, 2) OVER w).percent_b"),
    ("atr_1", "bqx.atr(high, low, close, 1) OVER w"),
    ("atr_14", "bqx.atr(high, low, close, 14) OVER w"),
    ("stochastic_k", "(bqx.stochastic(high, low, close, 14, 3, 3) OVER w).k"),
    ("stochastic_d", "(bqx.stochastic(high, low, close, 14, 3, 3) OVER w).d"),
    ("williams_r_14", "bqx.williams_r(high, low, close, 14) OVER w"),
    ("cci_20", "bqx.cci(high, low, close, 20) OVER w"),
    ("roc_10", "bqx.roc(close, 10) OVER w"),
    ("momentum_10", "bqx.momentum(close, 10) OVER w"),
    ("obv", "bqx.obv(close, volume) OVER w"),
    ("vwap", "bqx.vwap(close, volume) OVER w"),
    ("realized_volatility_60", "bqx.realized_volatility(close, 60) OVER w"),
];

/// Those that depend on the last rows alone, with how many.
const WINDOWED: [(&str, u32); 15] = [
    ("sma_20", 20),
    ("sma_240", 240),
    ("wma_30", 30),
    ("bollinger_upper", 20),
    ("bollinger_middle", 20),
    ("bollinger_lower", 20),
    ("bollinger_width", 20),
    ("bollinger_percent_b", 20),
    ("stochastic_k", 18),
    ("stochastic_d", 18),
    ("williams_r_14", 14),
    ("cci_20", 20),
    ("roc_10", 11),
    ("momentum_10", 11),
    ("realized_volatility_60", 61),
];

/// SQL for bars and their indicators, in the order of time.
fn with_indicators(bars: &str) -> String {
    let columns: Vec<_> = INDICATORS.iter().map(|(name, call)| format!("{call} AS {name}")).collect();
    format!(
        "SELECT open, high, low, close, volume, {} FROM {bars} WINDOW w AS (ORDER BY time) ORDER BY time",
        columns.join(", ")
    )
}

/// A month of simulated bars.
fn simulated() -> &'static Db<'static> {
    static SIMULATED: OnceLock<Db<'static>> = OnceLock::new();
    SIMULATED.get_or_init(|| {
        let db = Db::new("simulated_bars");
        run(&mut db.connect(), "CALL bqx.simulate_m1('{eurusd,usdjpy}', '2024-07-01', '2024-07-01', 7)");
        db
    })
}

fn python_with_talib() -> Option<&'static Path> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    PYTHON.get_or_init(|| environment("talib", &["TA-Lib>=0.6", "numpy"]).ok()).as_deref()
}

/// Whether TA-Lib agrees with the rows of a query, and what Python says.
fn said_by_talib(python: &Path, session: &mut Client, query: &str) -> (bool, String) {
    let thread = std::thread::current();
    let path = server().directory().join(format!("{}.csv", thread.name().unwrap_or_default()));
    let mut found = session.copy_out(&format!("COPY ({query}) TO STDOUT WITH (FORMAT csv, HEADER)")).unwrap();
    copy(&mut found, &mut File::create(&path).unwrap()).unwrap();
    drop(found);
    let script = workspace_root().join("tests/tests/indicators_reference.py");
    let output = Command::new(python).arg(script).arg("compare").arg(path).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn talib_agrees_on_simulated_bars() {
    let Some(python) = python_with_talib() else { return no_python("TA-Lib") };
    for pair in ["eurusd", "usdjpy"] {
        let query = with_indicators(&format!("bqx.m1_{pair}"));
        let (agrees, said) = said_by_talib(python, &mut simulated().connect(), &query);
        assert!(agrees, "{pair}: {said}");
    }
}

#[test]
fn talib_agrees_on_real_bars() {
    let Some(python) = python_with_talib() else { return no_python("TA-Lib") };
    let Some(folder) = shared_data("c_2026") else { return };
    let db = Db::new("real_bars");
    let mut session = db.connect();
    for pair in ["eurusd", "usdjpy"] {
        let bars = Command::new("xz").arg("-dc").arg(folder.join(format!("{pair}.csv.xz"))).output().unwrap();
        assert!(bars.status.success(), "xz unpacks the bars");
        let mut lines = session
            .copy_in(
                "COPY bqx.m1_staging(line) FROM STDIN WITH (FORMAT csv, DELIMITER E'\\x01', QUOTE E'\\x02')",
            )
            .unwrap();
        lines.write_all(&bars.stdout).unwrap();
        lines.finish().unwrap();
        run(&mut session, &format!("CALL bqx.ingest_m1('{pair}')"));
        let (agrees, said) = said_by_talib(python, &mut session, &with_indicators(&format!("bqx.m1_{pair}")));
        assert!(agrees, "{pair}: {said}");
    }
}

#[test]
fn python_sees_a_wrong_value() {
    let Some(python) = python_with_talib() else { return no_python("TA-Lib") };
    let right = with_indicators("bqx.m1_eurusd");
    let wrong = [
        ("bqx.ema(close, 12) OVER w", "bqx.ema(close, 12) OVER w + 2e-9"),
        ("bqx.rsi(close, 14) OVER w", "bqx.rsi(close, 15) OVER w"),
        ("bqx.roc(close, 10) OVER w", "coalesce(bqx.roc(close, 10) OVER w, 0)"),
    ];
    for (call, another) in wrong {
        let query = right.replace(call, another);
        assert_ne!(query, right);
        let (agrees, said) = said_by_talib(python, &mut simulated().connect(), &query);
        assert!(!agrees && said.lines().count() == 1 && said.contains("differ"), "{another}: {said}");
    }
}

/// Bars with what TA-Lib 0.8.1 says of them, and a column `time`.
fn recorded(session: &mut Client) {
    let csv = std::fs::read_to_string(workspace_root().join("tests/indicators/recorded.csv")).unwrap();
    let columns: Vec<_> = csv.lines().next().unwrap().split(',').collect();
    let definitions: Vec<_> = columns.iter().map(|column| format!("{column} double precision")).collect();
    let table = format!(
        "CREATE TEMP TABLE recorded (time int GENERATED ALWAYS AS IDENTITY, {})",
        definitions.join(",")
    );
    run(session, &table);
    let copy = format!("COPY recorded ({}) FROM STDIN WITH (FORMAT csv, HEADER)", columns.join(","));
    let mut rows = session.copy_in(&copy).unwrap();
    rows.write_all(csv.as_bytes()).unwrap();
    rows.finish().unwrap();
}

#[test]
fn recorded_values_agree() {
    let mut session = simulated().connect();
    recorded(&mut session);
    run(
        &mut session,
        &format!(
            "CREATE TEMP TABLE found AS SELECT row_number() OVER () AS time, f.* FROM ({}) AS f",
            with_indicators("recorded")
        ),
    );
    for (name, _) in INDICATORS {
        let compared = row(
            &mut session,
            &format!(
                "SELECT count(*) FILTER (WHERE r.{name} IS NOT NULL) > 30, count(*) FILTER (WHERE (r.{name} IS NULL) <> \
                 (f.{name} IS NULL) OR abs(r.{name} - f.{name}) > 1e-9 * greatest(1, abs(r.{name}))), count(*) \
                 FROM recorded AS r JOIN found AS f USING (time)"
            ),
        );
        assert_eq!(compared, "t|0|280", "{name}");
    }
}

#[test]
fn windowed_indicators_do_not_depend_on_where_the_series_starts() {
    let mut session = simulated().connect();
    for (name, reach) in WINDOWED {
        let (_, call) = INDICATORS.iter().find(|(known, _)| *known == name).unwrap();
        let differ = row(
            &mut session,
            &format!(
                "SELECT count(*) FILTER (WHERE whole IS DISTINCT FROM near), count(near) > 1900 \
                 FROM (SELECT {call} AS whole, {} AS near FROM (SELECT * FROM bqx.m1_usdjpy ORDER BY time LIMIT 2300) AS bars \
                       WINDOW w AS (ORDER BY time), near AS (ORDER BY time ROWS {} PRECEDING)) AS compared",
                call.replace("OVER w", "OVER near"),
                reach - 1
            ),
        );
        assert_eq!(differ, "0|t", "{name}");
    }
}

#[test]
fn rows_with_nothing_and_values_that_are_no_numbers() {
    let mut session = simulated().connect();
    let sma = |values: &str| {
        rows(
            &mut simulated().connect(),
            &format!(
                "SELECT bqx.sma(v, 2) OVER (ORDER BY i) FROM (VALUES {values}) AS list (i, v) ORDER BY i"
            ),
        )
        .join(" ")
    };
    assert_eq!(sma("(1, 1.0::float8), (2, 3), (3, NULL), (4, 5)"), "NULL 2 2 4", "a NULL is skipped");
    assert_eq!(
        sma("(1, 1.0::float8), (2, 3), (3, 'NaN'), (4, 5), (5, 7)"),
        "NULL 2 NULL NULL 6",
        "NaN ends a series"
    );
    assert_eq!(sma("(1, 'infinity'::float8), (2, 3), (3, 5)"), "NULL NULL 4");
    let flat = "SELECT bqx.rsi(1, 2), bqx.williams_r(1, 1, 1, 2), bqx.cci(1, 1, 1, 2), (bqx.bollinger(1.1, 3, 2)).*, \
                (bqx.stochastic(2, 2, 2, 2, 1, 1)).* FROM generate_series(1, 5)";
    assert_eq!(row(&mut session, flat), "0|0|0|1.1|1.1|1.1|0|NULL|0|0");
    let falling = "SELECT bqx.realized_volatility(v, 1 ORDER BY v DESC), bqx.momentum(v, 1 ORDER BY v DESC), \
                   bqx.roc(v, 1 ORDER BY v) FROM (VALUES (0.0), (1)) AS list (v)";
    assert_eq!(row(&mut session, falling), "NULL|-1|0", "no logarithm of 0, and no share of it");
    let far = "SELECT abs(bqx.realized_volatility(v, 1 ORDER BY i) / ln(1e20) - 1) < 1e-15 FROM (VALUES (1, 1.0::float8), (2, 1e-20)) AS list (i, v)";
    assert_eq!(row(&mut session, far), "t");
    let never = "SELECT bqx.rolling_corr(y, x) FROM (VALUES (1e300, 1.0::float8), (-1e300, 1), (1e300, -1), (-1e300, -1), \
                 (1e-300, -1e-300), (-1e-300, 1e-300)) AS list (y, x)";
    assert_eq!(row(&mut session, never), "0", "not -0");
    assert_eq!(
        row(
            &mut session,
            "SELECT bqx.ema(v, 2), bqx.macd(v, 2, 3, 1) IS NULL FROM (VALUES (1.0)) AS l (v) WHERE false"
        ),
        "NULL|t"
    );
}

#[test]
fn groups_and_partitions_are_series_of_their_own() {
    let mut session = simulated().connect();
    run_each(
        &mut session,
        &["CREATE TEMP TABLE both_pairs AS SELECT 'eurusd' AS pair, time, close FROM bqx.m1_eurusd \
           UNION ALL SELECT 'usdjpy', time, close FROM bqx.m1_usdjpy"],
    );
    let last_by_group = rows(
        &mut session,
        "SELECT pair, bqx.rsi(close, 14 ORDER BY time) FROM both_pairs GROUP BY pair ORDER BY pair",
    );
    let last_by_partition = rows(
        &mut session,
        "SELECT DISTINCT ON (pair) pair, bqx.rsi(close, 14) OVER (PARTITION BY pair ORDER BY time) \
         FROM both_pairs ORDER BY pair, time DESC",
    );
    assert_eq!(last_by_group, last_by_partition);
    assert_eq!(last_by_group.len(), 2);
}

#[test]
fn parameters_have_limits() {
    let mut session = simulated().connect();
    let wrong = [
        ("bqx.sma(1, 0)", "period must be between 1 and 100000, not 0"),
        ("bqx.rsi(1, 1)", "period must be between 2 and 100000, not 1"),
        ("bqx.wma(1, 100001)", "period must be between 1 and 100000, not 100001"),
        ("bqx.ema(1, NULL)", "period must be between 1 and 100000, not NULL"),
        ("bqx.macd(1, 26, 12, 9)", "fast must be less than slow, not 26 and 12"),
        ("bqx.stochastic(1, 1, 1, 14, 0, 3)", "slow_k must be between 1 and 100000, not 0"),
        ("bqx.bollinger(1, 20, 0)", "deviations must be positive and finite, not 0"),
        ("bqx.sma(1, i)", "the parameters of an indicator must be the same for all rows"),
    ];
    for (call, message) in wrong {
        let error =
            attempt(&mut session, &format!("SELECT {call} FROM generate_series(5, 6) AS i")).unwrap_err();
        assert_eq!((error.code.as_str(), error.message.as_str()), ("22023", message), "{call}");
    }
}
