//! Files of bars: what loads from them, what is refused and why, and that nobody's settings matter. Each
//! file goes both
//! ways in: on the server (`load_m1`), and through staging (`\copy` and `ingest_m1`).

mod common;

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use bqx_tests::{Db, Notices, SqlError, error_of, server, shared_data, transcript};
use common::{attempt, checksum, picture, row, rows, run};
use postgres::Client;

/// What a client sends before its lines.
const COPY: &str =
    r"COPY bqx.m1_staging(line) FROM STDIN WITH (FORMAT csv, DELIMITER E'\x01', QUOTE E'\x02')";

/// Which way a file goes in.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Load,
    Ingest,
}

const WAYS: [Way; 2] = [Way::Load, Way::Ingest];

/// A session that loads bars.
struct Loader {
    session: Client,
    notices: Notices,
}

impl Loader {
    fn new(db: &Db) -> Self {
        let (session, notices) = db.connect_with_notices();
        Self { session, notices }
    }

    /// Loads a file; `options` are further arguments, as SQL. Returns the last notice.
    fn load(
        &mut self,
        way: Way,
        pair: &str,
        file: impl AsRef<[u8]>,
        options: &str,
    ) -> Result<String, SqlError> {
        let comma = if options.is_empty() { "" } else { ", " };
        let call = match way {
            Way::Load => {
                format!("CALL bqx.load_m1('{pair}', '{}'{comma}{options})", server_file(file.as_ref()))
            }
            Way::Ingest => {
                self.stage(file);
                format!("CALL bqx.ingest_m1('{pair}'{comma}{options})")
            }
        };
        self.notices.take();
        attempt(&mut self.session, &call)?;
        Ok(self.notices.take().pop().expect("a load says what it did"))
    }

    /// Puts a file's lines into staging.
    fn stage(&mut self, file: impl AsRef<[u8]>) {
        let mut copy = self.session.copy_in(COPY).unwrap();
        copy.write_all(file.as_ref()).unwrap();
        copy.finish().unwrap();
    }

    /// All bars of a pair, as `time|open|high|low|close|volume` in UTC.
    fn bars(&mut self, pair: &str) -> Vec<String> {
        rows(
            &mut self.session,
            &format!(
                "SELECT to_char(time AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), open, high, low, close, volume \
                 FROM bqx.m1_{pair} ORDER BY time"
            ),
        )
    }

    /// How many bars a pair has, from when to when (UTC).
    fn extent(&mut self, pair: &str) -> String {
        row(
            &mut self.session,
            &format!(
                "SELECT count(*), to_char(min(time) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), \
                        to_char(max(time) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') FROM bqx.m1_{pair}"
            ),
        )
    }

    /// Whether the pair has no bar, or not even a table.
    fn has_nothing(&mut self, pair: &str) -> bool {
        row(&mut self.session, &format!("SELECT to_regclass('bqx.m1_{pair}') IS NULL")) == "t"
            || self.extent(pair) == "0|NULL|NULL"
    }

    fn forget(&mut self, pair: &str) {
        run(&mut self.session, &format!("DROP TABLE IF EXISTS bqx.m1_{pair}; TRUNCATE bqx.rejected_bars"));
    }
}

/// Puts a file where the server can read it; returns its path. It goes with the server.
fn server_file(contents: &[u8]) -> String {
    static FILES: AtomicU32 = AtomicU32::new(0);
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    let path = server().directory().join(format!("bars-{number}.csv"));
    std::fs::write(&path, contents).unwrap();
    server().account().own(&path).unwrap();
    path.to_str().unwrap().to_owned()
}

fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

/// A vendor's file and what is to come of it.
struct Vendor {
    file: &'static str,
    format: &'static str,
    lines: usize,
    /// For files that don't say their zone.
    zone: Option<&'static str>,
    bars: usize,
    repeats: usize,
    /// First and last bar in UTC.
    span: [&'static str; 2],
    /// Bad rows, with line and reason of the first.
    bad: Option<(usize, usize, &'static str)>,
}

#[rustfmt::skip]
const VENDORS: [Vendor; 9] = [
    Vendor { file: "autumn_repeat_EURUSD_2020-10.csv", format: "csv", lines: 1659, zone: None, bars: 1598, repeats: 60,
             span: ["2020-10-25 21:00", "2020-10-26 23:59"], bad: None },
    Vendor { file: "broken_times_EURUSD_2025-04.csv", format: "csv", lines: 2000, zone: None, bars: 300, repeats: 0,
             span: ["2025-04-01 00:00", "2025-04-02 05:00"],
             bad: Some((1699, 301, "the same minute with other values stands in line 300")) },
    Vendor { file: "commas_crlf_no_header_AUDUSD_2021-01.csv", format: "csv", lines: 2839, zone: None, bars: 2838, repeats: 0,
             span: ["2021-01-24 22:05", "2021-01-26 21:42"],
             bad: Some((1, 2839, "5 fields where 6 are needed, the line seems torn")) },
    Vendor { file: "duplicates_EURUSD_2025-04.csv", format: "metatrader", lines: 1887, zone: Some("histdata"), bars: 1255,
             repeats: 631, span: ["2025-04-24 16:00", "2025-04-25 12:54"], bad: None },
    Vendor { file: "fxcm_iso_offset_GBPUSD_2012-02_head.csv", format: "csv", lines: 3000, zone: None, bars: 2999, repeats: 0,
             span: ["2012-02-01 00:00", "2012-02-03 02:10"], bad: None },
    Vendor { file: "histdata_ascii_EURUSD_2025-03_head.csv", format: "histdata", lines: 4000, zone: None, bars: 4000, repeats: 0,
             span: ["2025-03-02 22:00", "2025-03-05 16:41"], bad: None },
    Vendor { file: "histdata_ascii_EURUSD_2025-03_tail_with_dst_change.csv", format: "histdata", lines: 3000, zone: None,
             bars: 3000, repeats: 0, span: ["2025-03-28 00:48", "2025-04-01 03:58"], bad: None },
    Vendor { file: "histdata_mt_GBPUSD_2026-01_head.csv", format: "metatrader", lines: 3000, zone: Some("histdata"), bars: 3000,
             repeats: 0, span: ["2026-01-01 22:00", "2026-01-06 00:08"], bad: None },
    Vendor { file: "mt5_quoted_tabs_EURUSD_2022-01_head.csv", format: "metatrader", lines: 3000, zone: Some("Europe/Helsinki"),
             bars: 2999, repeats: 0, span: ["2022-01-04 16:00", "2022-01-06 18:14"], bad: None },
];

impl Vendor {
    fn options(&self, skip: bool) -> String {
        let zone = self.zone.map(|zone| format!("time_zone => '{zone}'"));
        let skip = skip.then(|| "on_bad_row => 'skip'".to_owned());
        zone.into_iter().chain(skip).collect::<Vec<_>>().join(", ")
    }

    fn notice(&self) -> String {
        let rejected = self.bad.map_or(0, |(n, _, _)| n);
        let [first, last] = self.span;
        format!(
            "{} bars loaded, 0 corrected, 0 equal, {} repeated minutes dropped, {rejected} rejected ({} lines, format {}, \
             {first} to {last} UTC)",
            self.bars, self.repeats, self.lines, self.format
        )
    }

    fn check(&self, folder: &Path, loader: &mut Loader, way: Way) {
        let name = self.file;
        let file = std::fs::read_to_string(folder.join(name)).unwrap();
        let pair = "eurusd";
        if self.zone.is_some() {
            let error = loader.load(way, pair, &file, "").unwrap_err();
            assert_eq!(error.code, "22023", "{name}: {error:?}");
            assert_contains(&error.hint, &["time_zone =>"]);
            assert!(loader.has_nothing(pair), "{name}");
            if way == Way::Ingest {
                // An argument was wrong: the lines are still there, and would otherwise come twice.
                run(&mut loader.session, "DELETE FROM bqx.m1_staging");
            }
        }
        if let Some((bad, line_no, reason)) = self.bad {
            let error = loader.load(way, pair, &file, &self.options(false)).unwrap_err();
            assert_eq!(error.code, "22P04", "{name}: {error:?}");
            assert!(error.message.ends_with(&format!(", line {line_no}: {reason}")), "{error:?}");
            let line = file.lines().nth(line_no - 1).unwrap();
            assert_contains(&error.detail, &[line, &format!("Bad rows in all: {bad}"), "Nothing was loaded"]);
            assert_contains(&error.hint, &["on_bad_row => 'skip'", "bqx.rejected_bars"]);
            assert!(loader.has_nothing(pair), "{name}");
            assert_eq!(row(&mut loader.session, "SELECT count(*) FROM bqx.rejected_bars"), "0", "{name}");
        }
        let notice = loader.load(way, pair, &file, &self.options(self.bad.is_some())).unwrap();
        assert!(notice.ends_with(&self.notice()), "{name}:\n{notice}\n{}", self.notice());
        assert_eq!(loader.extent(pair), format!("{}|{}|{}", self.bars, self.span[0], self.span[1]), "{name}");
        let rejects = rows(
            &mut loader.session,
            "SELECT line_no, reason FROM bqx.rejected_bars WHERE pair = 'eurusd' AND loaded_by = 'postgres' \
                ORDER BY line_no",
        );
        let (bad, first) = self.bad.map_or((0, None), |(n, line, why)| (n, Some(format!("{line}|{why}"))));
        assert_eq!((rejects.len(), rejects.first()), (bad, first.as_ref()), "{name}");
        loader.forget(pair);
    }
}

#[test]
fn every_vendors_file_loads_or_says_what_is_wrong() {
    let Some(folder) = shared_data("raw") else { return };
    let db = Db::new("vendors");
    let mut loader = Loader::new(&db);
    for way in WAYS {
        for vendor in &VENDORS {
            vendor.check(&folder, &mut loader, way);
        }
    }
    let known: Vec<_> = VENDORS.iter().map(|vendor| vendor.file.to_owned()).collect();
    let mut there: Vec<_> =
        folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    there.sort();
    assert_eq!(there, known, "each file is loaded here");
}

/// Of a file whose time column is broken, the first bar of each minute is kept and each later one rejected,
/// with its line.
#[test]
fn every_rejected_line_is_kept_with_its_number() {
    let Some(folder) = shared_data("raw") else { return };
    let file = std::fs::read_to_string(folder.join("broken_times_EURUSD_2025-04.csv")).unwrap();
    let mut first_lines = HashMap::new();
    let mut expected = Vec::new();
    for (i, line) in file.lines().enumerate().skip(1) {
        let minute = line.split(';').next().unwrap();
        match first_lines.get(minute) {
            None => drop(first_lines.insert(minute, i + 1)),
            Some(first) => {
                expected.push(format!(
                    "{}|{line}|the same minute with other values stands in line {first}",
                    i + 1
                ));
            }
        }
    }
    let db = Db::new("rejected_lines");
    let mut loader = Loader::new(&db);
    loader.load(Way::Load, "eurusd", &file, "on_bad_row => 'skip'").unwrap();
    let rejected =
        rows(&mut loader.session, "SELECT line_no, line, reason FROM bqx.rejected_bars ORDER BY rejected_id");
    assert_eq!(rejected.len(), 1699);
    assert_eq!(rejected, expected);
}

/// HistData's clock is five hours behind London's: UTC-5 in European winter, UTC-4 in European summer.
#[test]
fn histdata_files_follow_the_european_spring_change() {
    let Some(folder) = shared_data("raw") else { return };
    let file = std::fs::read_to_string(folder.join("histdata_ascii_EURUSD_2025-03_tail_with_dst_change.csv"))
        .unwrap();
    let db = Db::new("spring_change");
    let mut loader = Loader::new(&db);
    loader.load(Way::Load, "eurusd", &file, "").unwrap();
    for (written, instant) in
        [("20250328 155900", "2025-03-28 20:59"), ("20250330 170000", "2025-03-30 21:00")]
    {
        let line = file.lines().find(|line| line.starts_with(written)).unwrap();
        let close: f64 = line.split(';').nth(4).unwrap().parse().unwrap();
        let query = format!("SELECT close FROM bqx.m1_eurusd WHERE time = '{instant}+00'");
        assert_eq!(loader.session.query_one(&query, &[]).unwrap().get::<_, f64>(0), close, "{written}");
    }
    let weekend = "SELECT count(*) FROM bqx.m1_eurusd WHERE time > '2025-03-28 20:59+00' AND time < \
        '2025-03-30 21:00+00'";
    assert_eq!(row(&mut loader.session, weekend), "0");
}

#[test]
fn histdatas_clock_is_londons_and_not_new_yorks() {
    let bars = [
        // written, UTC: in weeks when only America has summer time, too
        ("20241025 165900", "2024-10-25 20:59"),
        ("20241027 170000", "2024-10-27 22:00"),
        ("20241029 120000", "2024-10-29 17:00"),
        ("20241104 120000", "2024-11-04 17:00"),
        ("20250307 120000", "2025-03-07 17:00"),
        ("20250312 120000", "2025-03-12 17:00"),
        ("20250328 165900", "2025-03-28 21:59"),
        ("20250330 170000", "2025-03-30 21:00"),
        ("20250701 120000", "2025-07-01 16:00"),
    ];
    let ascii: String =
        bars.iter().map(|(written, _)| format!("{written};1.5;1.75;1.25;1.625;7\n")).collect();
    let metatrader: String = bars
        .iter()
        .map(|(w, _)| {
            format!(
                "{}.{}.{},{}:{},1.5,1.75,1.25,1.625,7\n",
                &w[..4],
                &w[4..6],
                &w[6..8],
                &w[9..11],
                &w[11..13]
            )
        })
        .collect();
    let expected: Vec<_> = bars.iter().map(|(_, utc)| format!("{utc}|1.5|1.75|1.25|1.625|7")).collect();
    let db = Db::new("histdata_clock");
    let mut loader = Loader::new(&db);
    for way in WAYS {
        let options = [
            "",
            "format => 'histdata'",
            "format => 'HistData'",
            "time_zone => 'histdata'",
            "'auto', 'HistData'",
        ];
        for options in options {
            loader.load(way, "eurusd", &ascii, options).unwrap();
            assert_eq!(loader.bars("eurusd"), expected, "{options}");
            loader.forget("eurusd");
        }
        loader.load(way, "eurusd", &metatrader, "time_zone => 'histdata'").unwrap();
        assert_eq!(loader.bars("eurusd"), expected);
        loader.forget("eurusd");
    }
    // Another clock takes its place where one is named.
    loader
        .load(Way::Load, "eurusd", "20250312 120000;1.5;1.75;1.25;1.625;7", "time_zone => 'EST5EDT'")
        .unwrap();
    assert_eq!(loader.extent("eurusd"), "1|2025-03-12 16:00|2025-03-12 16:00");
}

/// The same two bars in every way of writing them.
#[test]
fn every_way_of_writing_a_bar_loads_the_same() {
    const ISO: &str = "2024-07-01 12:00,1.5,1.75,1.25,1.625,7\n2024-07-01 12:01,1.625,1.625,1.5,1.5625,0\n";
    const HEADER: &str = "time,open,high,low,close,volume\n";
    let with_volume = ["2024-07-01 12:00|1.5|1.75|1.25|1.625|7", "2024-07-01 12:01|1.625|1.625|1.5|1.5625|0"];
    let without = with_volume.map(|bar| format!("{}|NULL", bar.rsplit_once('|').unwrap().0));
    let no_volume = |text: &str| text.replace(",7\n", "\n").replace(",0\n", "\n").replace(",volume\n", "\n");
    let dots = ISO.replace("2024-07-01", "2024.07.01").replace(" 12", ",12");
    let dukascopy = ISO
        .replace("2024-07-01 12:00", "01.07.2024 12:00:00.000")
        .replace("2024-07-01 12:01", "01.07.2024 12:01:00.000");
    let mt5 = dots.replace(',', "\t").replace("12:00", "12:00:00").replace("12:01", "12:01:00");
    let mt5 = format!("<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\n{mt5}");
    let histdata = ISO
        .replace("2024-07-01 12:00", "20240701 080000")
        .replace("2024-07-01 12:01", "20240701 080100")
        .replace(',', ";");
    let utc = "time_zone => 'UTC'";
    #[rustfmt::skip]
    let files = [
        // what, file, options, has a volume
        ("no header", ISO.to_owned(), "", true),
        ("header", format!("{HEADER}{ISO}"), "", true),
        ("header in capitals", format!("{}{ISO}", HEADER.to_uppercase()), "", true),
        ("no volume", no_volume(ISO), "", false),
        ("header, no volume", no_volume(&format!("{HEADER}{ISO}")), "", false),
        ("empty volume", ISO.replace(",7\n", ",\n").replace(",0\n", ",\n"), "", false),
        ("semicolons", format!("{HEADER}{ISO}").replace(',', ";"), "", true),
        ("named csv", ISO.to_owned(), "format => 'csv'", true),
        ("CRLF", format!("{HEADER}{ISO}").replace('\n', "\r\n"), "", true),
        ("no last newline", ISO.trim_end().to_owned(), "", true),
        ("CRLF, no last newline", format!("{HEADER}{ISO}").replace('\n', "\r\n").trim_end().to_owned(), "", true),
        ("byte order mark, header", format!("\u{feff}{HEADER}{ISO}"), "", true),
        ("byte order mark, no header", format!("\u{feff}{ISO}"), "", true),
        ("blank lines", format!("\n{HEADER}\n  \n{}\n\n", ISO.replacen('\n', "\n\n", 1)), "", true),
        ("blank lines, CRLF", format!("{HEADER}\n{ISO}\n\n").replace('\n', "\r\n"), "", true),
        ("white space", ISO.replace(',', " , "), "", true),
        ("quoted fields", ISO.replace("2024-07-01 12:00", "\"2024-07-01 \
            12:00\"").replace("1.625,7", "1.625,\"7\""), "", true),
        ("quoted fields alone", format!("\"{}\"\n", ISO.trim_end().replace('\n', "\"\n\"").replace(',', "\",\"")), "", true),
        ("T between", ISO.replace("01 12", "01T12"), "", true),
        ("seconds", ISO.replace(":00,", ":00:00,").replace(":01,", ":01:00,"), "", true),
        ("fractions", ISO.replace(":00,", ":00:00.000,").replace(":01,", ":01:00.000000,"), "", true),
        ("Z", ISO.replace(":00,", ":00:00Z,").replace(":01,", ":01Z,"), "", true),
        ("+02:00", ISO.replace("12:00,", "14:00:00+02:00,").replace("12:01,", "14:01:00+02:00,"), "", true),
        ("+0000", ISO.replace(":00,", ":00:00+0000,").replace(":01,", ":01:00+00,"), "", true),
        ("-05:30", ISO.replace("12:00,", "06:30-05:30,").replace("12:01,", "06:31-05:30,"), "", true),
        ("over midnight", ISO.replace("01 12:00,", "02 02:00:00.0+14:00,").replace("01 12:01,", "02 \
            02:01:00.0+14:00,"), "", true),
        ("offset, and a zone", ISO.replace(":00,", ":00:00Z,").replace(":01,", ":01Z,"), "time_zone => \
            'Asia/Tokyo'", true),
        ("a zone", ISO.replace(" 12:", " 21:"), "time_zone => 'Asia/Tokyo'", true),
        ("a zone with summer time", ISO.replace(" 12:", " 14:"), "'csv', 'Europe/Berlin'", true),
        ("csv on HistData's clock", ISO.replace(" 12:", " 08:"), "time_zone => 'histdata'", true),
        ("other order of columns", "volume,close,low,high,open,time\n7,1.625,1.25,1.75,1.5,2024-07-01 \
            12:00\n0,1.5625,1.5,1.625,1.625,2024-07-01 12:01\n".into(), "", true),
        ("more columns", "time,open,high,low,close,volume,spread\n2024-07-01 \
            12:00,1.5,1.75,1.25,1.625,7,2\n2024-07-01 12:01,1.625,1.625,1.5,1.5625,0,3\n".into(), "", true),
        ("exponents", ISO.replace("1.75", "17.5e-1"), "", true),
        ("backwards", format!("{}\n{}\n", ISO.lines().last().unwrap(), ISO.lines().next().unwrap()), "", true),
        ("a last line of COPY's text format", format!("{ISO}\\.\n"), "", true),
        ("histdata", histdata.clone(), "", true),
        ("histdata, CRLF", histdata.replace('\n', "\r\n"), "format => 'histdata'", true),
        ("metatrader", dots.clone(), utc, true),
        ("metatrader, named", dots.clone(), "format => 'metatrader', time_zone => 'utc'", true),
        ("metatrader, header", format!("Date,Time,Open,High,Low,Close,Volume\n{dots}"), utc, true),
        ("metatrader, one field", dots.replace(",12:", " 12:"), utc, true),
        ("metatrader, a broker's clock", dots.replace(",12:", ",15:"), "time_zone => \
            'Europe/Helsinki'", true),
        ("MetaTrader 5", mt5.clone(), utc, true),
        ("MetaTrader 5, CRLF", mt5.replace('\n', "\r\n"), utc, true),
        ("MetaTrader 5, more columns", mt5.replace("<TICKVOL>", "<TICKVOL>\t<VOL>\t<SPREAD>").replace("\t7\n", "\t7\t0\t2\n").replace("\t0\n", "\t0\t0\t2\n"), utc, true),
        ("quoted tabs", "\"Time\tOpen\tHigh\tLow\tClose\tVolume\"\r\n\"2024-07-01 \
            12:00:00\t1.5\t1.75\t1.25\t1.625\t7\"\r\n\"2024-07-01 12:01:00\t1.625\t1.625\t1.5\t1.5625\t0\"\r\n".into(), utc, true),
        ("dukascopy", dukascopy.clone(), "", true),
        ("dukascopy, named", dukascopy.clone(), "format => 'dukascopy'", true),
        ("dukascopy, header", format!("Gmt time,Open,High,Low,Close,Volume\n{dukascopy}"), "", true),
        ("dukascopy, local time", dukascopy.replace("12:00:00.000", "13:00:00.000 \
            GMT+0100").replace("12:01:00.000", "13:01:00.000 GMT+0100"), "", true),
        ("dukascopy, no volume", no_volume(&dukascopy), "", false),
    ];
    let db = Db::new("writings");
    let mut loader = Loader::new(&db);
    let mut wrong = Vec::new();
    for way in WAYS {
        for (what, file, options, has_volume) in &files {
            let expected = if *has_volume { with_volume.map(str::to_owned) } else { without.clone() };
            match loader.load(way, "eurusd", file, options) {
                Ok(_) if loader.bars("eurusd") == expected => {}
                Ok(notice) => {
                    wrong.push(format!("{way:?}, {what}: {:?}\n    {notice}", loader.bars("eurusd")))
                }
                Err(error) => wrong.push(format!("{way:?}, {what}: {error:?}")),
            }
            loader.forget("eurusd");
            run(&mut loader.session, "DELETE FROM bqx.m1_staging");
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_kind_of_bad_row_is_named() {
    #[rustfmt::skip]
    let bad_rows = [
        // row, what the reason must say
        ("2024-07-01 12:01,NaN,1.75,1.25,1.625,7", &["open", "NaN", "not finite"][..]),
        ("2024-07-01 12:01,1.5,inf,1.25,1.625,7", &["high", "inf", "not finite"]),
        ("2024-07-01 12:01,1.5,1.75,-Infinity,1.625,7", &["low", "-Infinity", "not finite"]),
        ("2024-07-01 12:01,1.5,1.75,1.25,1e999,7", &["close", "1e999", "not finite"]),
        ("2024-07-01 12:01,1.5,1.75,1.25,0,7", &["close", "not positive"]),
        ("2024-07-01 12:01,1.5,1.75,0,1.625,7", &["low", "not positive"]),
        ("2024-07-01 12:01,-1.5,1.75,1.25,1.625,7", &["open", "-1.5", "not positive"]),
        ("2024-07-01 12:01,1.5,1.2,1.3,1.25,7", &["high", "1.2", "low", "1.3"]),
        ("2024-07-01 12:01,1.76,1.75,1.25,1.625,7", &["open", "1.76", "above high", "1.75"]),
        ("2024-07-01 12:01,1.24,1.75,1.25,1.625,7", &["open", "1.24", "below low", "1.25"]),
        ("2024-07-01 12:01,1.5,1.75,1.25,1.76,7", &["close", "1.76", "above high", "1.75"]),
        ("2024-07-01 12:01,1.5,1.75,1.25,1.24,7", &["close", "1.24", "below low", "1.25"]),
        ("2024-07-01 12:01,1.5,1.75,1.25", &["fields", "torn"]),
        ("2024-07-01 12:01,1.5,1.75,1.25,,7", &["close", "missing"]),
        ("2024-07-01 12:01,1.5,1.75,abc,1.625,7", &["low", "abc", "not a number"]),
        ("2024-07-01 12:01,1.5,1.75,1.25,1.625,-7", &["volume", "negative"]),
        ("2024-07-01 12:01,1.5,1.75,1.25,1.625,NaN", &["volume", "not finite"]),
        ("2024-07-01 12:01,1.5,1.75,1.25,1.625,x", &["volume", "not a number"]),
        ("2024-07-01 12:01:30,1.5,1.75,1.25,1.625,7", &["12:01:30", "whole minute"]),
        ("2024-07-01 12:01:00.500,1.5,1.75,1.25,1.625,7", &["12:01:00.500", "whole minute"]),
        ("2024-02-30 12:01,1.5,1.75,1.25,1.625,7", &["2024-02-30", "no such day"]),
        ("2024-07-01 24:01,1.5,1.75,1.25,1.625,7", &["24:01", "no such time"]),
        ("01/07/2024 12:01,1.5,1.75,1.25,1.625,7", &["01/07/2024", "expected YYYY-MM-DD"]),
        ("12:01 somewhere", &["12:01 somewhere", "expected"]),
        ("2024-07-01 12:00,1.5,1.75,1.25,1.626,7", &["same minute", "other values", "line 2"]),
        ("2024-07-01 12:00,1.5,1.75,1.25,1.625,8", &["same minute", "other values", "line 2"]),
    ];
    let db = Db::new("bad_rows");
    let mut loader = Loader::new(&db);
    let good = "2024-07-01 12:00,1.5,1.75,1.25,1.625,7";
    let more = "2024-07-01 12:02,1.5,1.75,1.25,1.625,7\n2024-07-01 12:03,1.5,1.75,1.25,1.625,7\n";
    for way in WAYS {
        for (bad, reason) in bad_rows {
            let file = format!("time,open,high,low,close,volume\n{good}\n{bad}\n{more}");
            let error = loader.load(way, "eurusd", &file, "").unwrap_err();
            assert_eq!(error.code, "22P04", "{bad}: {error:?}");
            assert_contains(&error.message, &["line 3: "]);
            assert_contains(&error.message, reason);
            assert_contains(&error.detail, &[bad, "Nothing was loaded"]);
            assert!(loader.has_nothing("eurusd"), "{bad}");

            let notice = loader.load(way, "eurusd", &file, "on_bad_row => 'skip'").unwrap();
            assert_contains(&notice, &["3 bars loaded", "1 rejected", "5 lines"]);
            assert_eq!(loader.extent("eurusd"), "3|2024-07-01 12:00|2024-07-01 12:03", "{bad}");
            let rejected =
                row(&mut loader.session, "SELECT pair, line_no, line, reason FROM bqx.rejected_bars");
            assert!(rejected.starts_with(&format!("eurusd|3|{bad}|")), "{rejected}");
            assert_contains(&rejected, reason);
            loader.forget("eurusd");
        }
    }
    // Several bad rows: the first is named, and all are counted.
    let file = format!("{good}\n{}\n{}\n{more}", bad_rows[0].0, bad_rows[4].0);
    let error = loader.load(Way::Load, "eurusd", &file, "").unwrap_err();
    assert_contains(&error.message, &["bars-", ".csv, line 2: open"]);
    assert_contains(&error.detail, &["Bad rows in all: 2"]);
    // None is good: no bars, and the table need not be there.
    let notice = loader.load(Way::Load, "eurusd", bad_rows[0].0, "on_bad_row => 'skip'").unwrap();
    assert_contains(&notice, &["no bars", "1 rejected"]);
    assert!(loader.has_nothing("eurusd"));
}

/// A minute repeated with the same values is dropped and counted, in whatever notation.
#[test]
fn exact_repeats_of_a_minute_are_dropped_and_counted() {
    let file = "2024-07-01 12:00,1.5,1.75,1.25,1.625,7\n2024-07-01 12:00:00,1.50,1.750,1.25,1.625,7.0\n\
                2024-07-01 14:00+02:00,1.5,1.75,1.25,1.625,7\n2024-07-01 12:01,1.5,1.75,1.25,1.625,\n\
                2024-07-01 12:01,1.5,1.75,1.25,1.625,\n";
    let db = Db::new("repeats");
    let mut loader = Loader::new(&db);
    for way in WAYS {
        let notice = loader.load(way, "eurusd", file, "").unwrap();
        assert_contains(&notice, &["2 bars loaded", "3 repeated minutes dropped", "0 rejected"]);
        let bars = ["2024-07-01 12:00|1.5|1.75|1.25|1.625|7", "2024-07-01 12:01|1.5|1.75|1.25|1.625|NULL"];
        assert_eq!(loader.bars("eurusd"), bars);
        loader.forget("eurusd");
    }
}

const JULY: &str =
    "time,open,high,low,close\n2024-07-31 23:58,1.5,1.75,1.25,1.5\n2024-07-31 23:59,1.5,1.75,1.25,1.625\n";
const AUGUST: &str = "2024-08-01 00:00,1.5,1.75,1.25,1.75\n";

#[test]
fn bars_loaded_again_are_equal_or_corrections() {
    let db = Db::new("reload");
    let mut loader = Loader::new(&db);
    let both = format!("{JULY}{AUGUST}");
    for way in WAYS {
        let notice = loader.load(way, "eurusd", JULY, "").unwrap();
        assert_contains(&notice, &["2 bars loaded, 0 corrected, 0 equal"]);
        let before = picture(&db);
        let notice = loader.load(way, "eurusd", JULY, "").unwrap();
        assert_contains(&notice, &["0 bars loaded, 0 corrected, 2 equal"]);
        assert_eq!(picture(&db), before);

        run(&mut loader.session, "CALL bqx.set_baselines('2024-07-31', '{eurusd}')");
        run(&mut loader.session, "CALL bqx.index_m1('{eurusd}')");
        let corrected = both.replace("1.25,1.625", "1.25,1.6875");
        let notice = loader.load(way, "eurusd", corrected, "").unwrap();
        assert_contains(&notice, &["1 bars loaded, 1 corrected, 1 equal"]);
        let indexes = rows(&mut loader.session, "SELECT close, rate_index FROM bqx.m1_eurusd ORDER BY time");
        assert_eq!(indexes, ["1.5|100", "1.6875|112.5", "1.75|116.66666666666667"], "{way:?}");
        // A volume that comes later is a correction, too.
        let notice = loader.load(way, "eurusd", "2024-08-01 00:00,1.5,1.75,1.25,1.75,3", "").unwrap();
        assert_contains(&notice, &["0 bars loaded, 1 corrected, 0 equal"]);
        loader.forget("eurusd");
    }
}

#[test]
fn bars_of_two_months_go_into_their_utc_partitions() {
    let db = Db::new("partitions");
    let mut loader = Loader::new(&db);
    run(&mut loader.session, "SET TimeZone = 'Asia/Tokyo'");
    loader.load(Way::Load, "EURUSD", format!("{JULY}{AUGUST}"), "").unwrap();
    let partitions = "SELECT tableoid::regclass, count(*) FROM bqx.m1_eurusd GROUP BY 1 ORDER BY 1";
    assert_eq!(rows(&mut loader.session, partitions), ["bqx.m1_eurusd_2024_07|2", "bqx.m1_eurusd_2024_08|1"]);
}

/// A pair's table that was there before is used as it is.
#[test]
fn existing_tables_take_bars_as_they_are() {
    #[rustfmt::skip]
    let tables = [
        ("plain, with a key",
         "CREATE TABLE bqx.m1_eurusd (time timestamptz PRIMARY KEY, open float8, high float8, low float8, \
             close float8, volume float8)"),
        ("timestamps are UTC",
         "CREATE TABLE bqx.m1_eurusd (time timestamp PRIMARY KEY, open float8, high float8, low float8, \
             close float8, volume float8)"),
        ("numeric, no key, columns of its own",
         "CREATE TABLE bqx.m1_eurusd (source text DEFAULT 'old', time timestamp NOT NULL, open \
             numeric(12,5), high numeric(12,5), \
          low numeric(12,5), close numeric(12,5), volume bigint, rate_index numeric(12,8), note text)"),
        ("numeric without scale, no volume",
         "CREATE TABLE bqx.m1_eurusd (time timestamptz NOT NULL, open numeric, high numeric, low numeric, \
             close numeric)"),
        ("a column was dropped",
         "CREATE TABLE bqx.m1_eurusd (gone int, time timestamptz, open real, high real, low real, close \
             real, volume int); \
          ALTER TABLE bqx.m1_eurusd DROP COLUMN gone"),
        ("partitioned, by other bounds and names",
         "CREATE TABLE bqx.m1_eurusd (time timestamptz PRIMARY KEY, open float8, high float8, low float8, \
             close float8, volume float8) \
          PARTITION BY RANGE (time); CREATE TABLE bqx.until_july_2024 PARTITION OF bqx.m1_eurusd \
          FOR VALUES FROM (MINVALUE) TO ('2024-08-01 00:00+00')"),
        ("partitioned by timestamp",
         "CREATE TABLE bqx.m1_eurusd (time timestamp PRIMARY KEY, open float8, high float8, low float8, \
             close float8, volume float8) \
          PARTITION BY RANGE (time); CREATE TABLE bqx.july PARTITION OF bqx.m1_eurusd \
          FOR VALUES FROM ('2024-07-01') TO ('2024-08-01')"),
    ];
    let db = Db::new("existing_tables");
    let mut loader = Loader::new(&db);
    run(&mut loader.session, "SET TimeZone = 'America/New_York'");
    let file = format!("{JULY}{AUGUST}");
    let mut wrong = Vec::new();
    for way in WAYS {
        for (what, create) in tables {
            run(&mut loader.session, create);
            let told = [
                "3 bars loaded, 0 corrected, 0 equal",
                "0 bars loaded, 0 corrected, 3 equal",
                "0 bars loaded, 1 corrected, 2 equal",
            ];
            let files = [file.clone(), file.clone(), file.replace("1.25,1.625", "1.25,1.6875")];
            for (file, told) in files.iter().zip(told) {
                match loader.load(way, "eurusd", file, "") {
                    Ok(notice) if notice.contains(told) => {}
                    other => wrong.push(format!("{way:?}, {what}: not {told} but {other:?}")),
                }
            }
            let bars = "SELECT CASE pg_typeof(time) WHEN 'timestamp'::regtype THEN time::text ELSE \
                (time::timestamptz AT TIME ZONE 'UTC')::text END, \
                        close::float8 FROM bqx.m1_eurusd ORDER BY time";
            let bars = rows(&mut loader.session, bars);
            if bars != ["2024-07-31 23:58:00|1.5", "2024-07-31 23:59:00|1.6875", "2024-08-01 00:00:00|1.75"] {
                wrong.push(format!("{way:?}, {what}: {bars:?}"));
            }
            run(&mut loader.session, "DROP TABLE bqx.m1_eurusd");
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Partitions that were made with the bounds of local months leave parts of UTC months out.
#[test]
fn partitions_are_made_for_what_existing_ones_leave_out() {
    let db = Db::new("local_months");
    let mut loader = Loader::new(&db);
    run(
        &mut loader.session,
        "CREATE TABLE bqx.m1_eurusd (time timestamptz PRIMARY KEY, open float8, high float8, low float8, \
            close float8, \
             volume float8) PARTITION BY RANGE (time); \
         CREATE TABLE bqx.m1_eurusd_july PARTITION OF bqx.m1_eurusd \
             FOR VALUES FROM ('2024-07-01 00:00-04') TO ('2024-08-01 00:00-04')",
    );
    let notice = loader
        .load(Way::Load, "eurusd", format!("{JULY}{AUGUST}2024-08-02 00:00,1.5,1.75,1.25,1.75\n"), "")
        .unwrap();
    assert_contains(&notice, &["4 bars loaded"]);
}

/// A bar far from the others costs its own month, not all those between.
#[test]
fn only_months_with_bars_get_partitions() {
    let db = Db::new("far_months");
    let mut loader = Loader::new(&db);
    loader.load(Way::Load, "eurusd", format!("{JULY}2014-07-01 00:00,1.5,1.75,1.25,1.75\n"), "").unwrap();
    let partitions = "SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = \
        'bqx.m1_eurusd'::regclass ORDER BY 1::text";
    assert_eq!(rows(&mut loader.session, partitions), ["bqx.m1_eurusd_2014_07", "bqx.m1_eurusd_2024_07"]);
}

/// Bytes that are no text in the database's encoding are a bad row like any other.
#[test]
fn stray_bytes_are_a_bad_row() {
    let db = Db::new("stray_bytes");
    let mut loader = Loader::new(&db);
    let file = [JULY.as_bytes(), b"2024-08-01 00:00,1.5,1.75,1.25,1.\xff75\n", AUGUST.as_bytes()].concat();
    let error = loader.load(Way::Load, "eurusd", &file, "").unwrap_err();
    assert!(error.code.starts_with("22"), "{error:?}");
    assert!(loader.has_nothing("eurusd"));
    assert_contains(&error.message, &[".csv, line 4: close"]);
    let notice = loader.load(Way::Load, "eurusd", &file, "on_bad_row => 'skip'").unwrap();
    assert_contains(&notice, &["3 bars loaded", "1 rejected"]);
}

/// A file that was put together from others may have lines of both kinds, which COPY refuses.
#[test]
fn mixed_ends_of_lines_are_reported_with_file_and_line() {
    let db = Db::new("mixed_lines");
    let mut loader = Loader::new(&db);
    let bare_after_crlf = JULY.replacen('\n', "\r\n", 1);
    let crlf_after_bare = JULY.replace('\n', "\r\n").replacen("\r\n", "\n", 1);
    for file in [bare_after_crlf, crlf_after_bare] {
        match loader.load(Way::Load, "eurusd", &file, "") {
            Ok(notice) => assert_contains(&notice, &["2 bars loaded"]), // better still
            Err(error) => {
                assert_eq!(error.code, "22P04", "{error:?}");
                assert_contains(&format!("{}\n{}", error.message, error.detail), &[".csv", "line 2"]);
                assert!(loader.has_nothing("eurusd"));
            }
        }
        loader.forget("eurusd");
    }
}

#[test]
fn names_with_quotes_and_pairs_of_ones_own_work() {
    let db = Db::new("names");
    let mut loader = Loader::new(&db);
    run(&mut loader.session, "INSERT INTO bqx.pairs (pair, base, quote) VALUES ('xau24', 'XAU', 'USD')");
    let path = server().directory().join("it's \"bars\"; %s \\ $1.csv");
    std::fs::write(&path, JULY.replace("1.25,1.625", "1.25,-1")).unwrap();
    server().account().own(&path).unwrap();
    let literal = path.to_str().unwrap().replace('\'', "''");
    let error = error_of(&mut loader.session, &format!("CALL bqx.load_m1('XAU24', '{literal}')"));
    assert_contains(&error.message, &[path.to_str().unwrap(), "line 3: close"]);
    run(&mut loader.session, &format!("CALL bqx.load_m1('XAU24', '{literal}', on_bad_row => 'skip')"));
    assert_eq!(loader.extent("xau24"), "1|2024-07-31 23:58|2024-07-31 23:58");
    let source = "SELECT source FROM bqx.rejected_bars WHERE pair = 'xau24'";
    assert_eq!(row(&mut loader.session, source), path.to_str().unwrap());
}

/// Reloading prices with more digits than the table's numeric columns keep changes nothing.
#[test]
fn what_a_column_rounds_is_equal_when_loaded_again() {
    let db = Db::new("rounding_columns");
    let mut loader = Loader::new(&db);
    let types = ["numeric(10,3)", "real", "numeric"];
    for column in types {
        run(
            &mut loader.session,
            &format!(
                "CREATE TABLE bqx.m1_eurusd (time timestamp, open {column}, high {column}, low {column}, \
                    close {column}, volume int)"
            ),
        );
        let file =
            "2024-07-01 12:00,1.23456789012345,1.34567890123456,1.12345678901234,1.3333333333333333,3.4";
        loader.load(Way::Load, "eurusd", file, "").unwrap();
        let notice = loader.load(Way::Load, "eurusd", file, "").unwrap();
        assert_contains(&notice, &["0 bars loaded, 0 corrected, 1 equal"]);
        loader.forget("eurusd");
    }
}

#[test]
fn prices_are_stored_to_the_last_bit() {
    let db = Db::new("exact_prices");
    let mut loader = Loader::new(&db);
    run(&mut loader.session, "SET extra_float_digits = -15");
    let file =
        "2024-07-01 12:00,1.2345678901234567,1.2345678901234569,1.2345678901234565,1.2345678901234569,0.1";
    loader.load(Way::Ingest, "eurusd", file, "").unwrap();
    let stored = loader.session.query_one("SELECT open, high, low, close FROM bqx.m1_eurusd", &[]).unwrap();
    let stored: Vec<f64> = (0..4).map(|i| stored.get(i)).collect();
    let written: Vec<f64> = file.split(',').skip(1).take(4).map(|price| price.parse().unwrap()).collect();
    assert_eq!(stored, written);
}

#[test]
fn rejects_of_staged_lines_are_kept_under_their_source_and_role() {
    let db = Db::new("rejects_of_roles");
    let mut owner = Loader::new(&db);
    run(&mut owner.session, "CREATE ROLE rejects_feeder LOGIN; CREATE ROLE rejects_stranger LOGIN");
    owner.load(Way::Load, "eurusd", format!("{JULY}{AUGUST}"), "").unwrap();
    run(&mut owner.session, "GRANT SELECT, INSERT, UPDATE ON bqx.m1_eurusd TO rejects_feeder");
    let mut feeder = db.connect_as("rejects_feeder");
    stage(&mut feeder, "2024-07-31 23:57,1.5,1.75,1.25,1.5\n2024-07-31 23:56,1.5,1.75,1.25,9\n");
    run(&mut feeder, "CALL bqx.ingest_m1('eurusd', on_bad_row => 'skip')");
    let rejects = "SELECT source, line_no, loaded_by FROM bqx.rejected_bars";
    assert_eq!(rows(&mut feeder, rejects), ["m1_staging|2|rejects_feeder"]);
    assert_eq!(rows(&mut owner.session, rejects), ["m1_staging|2|rejects_feeder"]);
    assert_eq!(rows(&mut db.connect_as("rejects_stranger"), rejects), [""; 0], "not theirs to see");
}

fn stage(session: &mut Client, file: &str) {
    let mut copy = session.copy_in(COPY).unwrap();
    copy.write_all(file.as_bytes()).unwrap();
    copy.finish().unwrap();
}

#[test]
fn psql_copies_a_clients_file_with_tabs() {
    let db = Db::new("psql_copy");
    let folder = tempfile::tempdir().unwrap();
    let quoted =
        "\"Time\tOpen\tHigh\tLow\tClose\tVolume\"\r\n\"2024-07-01 12:00:00\t1.5\t1.75\t1.25\t1.625\t7\"\r\n";
    let exported = "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\n2024.07.01\t12:00:00\t1.5\t1.75\t1.25\t1.625\t7";
    for (pair, file) in [("eurusd", quoted), ("gbpusd", exported)] {
        let path = folder.path().join(format!("{pair}.csv"));
        std::fs::write(&path, file).unwrap();
        let script = format!(
            "\\copy bqx.m1_staging(line) from '{}' with (format csv, delimiter E'\\x01', quote E'\\x02')\n\
             CALL bqx.ingest_m1('{pair}', time_zone => 'UTC');\n\
             SELECT time AT TIME ZONE 'UTC', open, high, low, close, volume FROM bqx.m1_{pair};\n",
            path.display()
        );
        let printed = db.psql(&script);
        assert_contains(&printed, &["COPY 2", "1 bars loaded", "2024-07-01 12:00:00|1.5|1.75|1.25|1.625|7"]);
    }
    // One transaction for both is none of ours to commit in.
    let mut psql = db.psql_command();
    psql.args(["-c", "CALL bqx.ingest_m1('eurusd'); SELECT 1"]);
    let ran = transcript(psql, b"").unwrap();
    assert!(!ran.success && ran.output.contains("transaction block"), "{}", ran.output);
}

#[test]
fn sessions_stage_lines_for_themselves_alone() {
    let db = Db::new("staging_sessions");
    let (mut one, mut other) = (Loader::new(&db), Loader::new(&db));
    one.stage(JULY);
    other.stage("2024-06-03 00:00,2.5,2.75,2.25,2.5\n2024-06-03 00:01,2.5,2.75,2.25,oops\n");
    one.stage(AUGUST); // a second file of the same session
    let error = error_of(&mut other.session, "CALL bqx.ingest_m1('gbpusd')");
    assert_contains(&error.message, &["m1_staging, line 2: close"]);
    run(&mut one.session, "CALL bqx.ingest_m1('eurusd')");
    assert_eq!(one.extent("eurusd"), "3|2024-07-31 23:58|2024-08-01 00:00");
    assert!(one.has_nothing("gbpusd"));
    assert_eq!(row(&mut one.session, "SELECT count(*) FROM bqx.m1_staging"), "0");
}

/// What a session staged and left is nobody's, and does not stay.
#[test]
fn lines_of_ended_sessions_are_forgotten() {
    let db = Db::new("staging_leftovers");
    let mut gone = Loader::new(&db);
    gone.stage("2024-06-03 00:00,2.5,2.75,2.25,2.5\n");
    drop(gone);
    let mut loader = Loader::new(&db);
    let give_up = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while row(
        &mut loader.session,
        "SELECT count(*) FROM pg_stat_activity WHERE datname = 'staging_leftovers'",
    ) != "1"
    {
        assert!(std::time::Instant::now() < give_up, "the other session does not end");
    }
    let notice = loader.load(Way::Ingest, "eurusd", JULY, "").unwrap();
    assert_contains(&notice, &["2 bars loaded", "3 lines"]);
    assert_eq!(row(&mut loader.session, "SELECT count(*) FROM bqx.m1_staging"), "0");
}

#[test]
fn staging_is_closed_to_ordinary_roles() {
    let db = Db::new("staging_rights");
    let mut owner = Loader::new(&db);
    run(&mut owner.session, "CREATE ROLE staging_user LOGIN");
    owner.stage("somebody's own lines\n");
    let mut user = db.connect_as("staging_user");
    for sql in [
        "SELECT * FROM bqx.m1_staging",
        "SELECT count(*) FROM bqx.m1_staging",
        "COPY bqx.m1_staging TO STDOUT",
        "INSERT INTO bqx.m1_staging (line) VALUES ('x') RETURNING line",
        "INSERT INTO bqx.m1_staging (line, session_id) VALUES ('x', 'somebody')",
        "UPDATE bqx.m1_staging SET line = 'x'",
        "DELETE FROM bqx.m1_staging",
        "TRUNCATE bqx.m1_staging",
        "BEGIN; LOCK TABLE bqx.m1_staging IN ACCESS EXCLUSIVE MODE",
    ] {
        assert_eq!(error_of(&mut user, sql).code, "42501", "{sql}");
        run(&mut user, "ROLLBACK");
    }
    assert_eq!(
        row(&mut user, "SELECT count(*) FROM bqx._take_staged_lines()"),
        "0",
        "not another session's lines"
    );
    stage(&mut user, JULY); // that is allowed
    let error = error_of(&mut user, "CALL bqx.ingest_m1('eurusd')");
    assert_eq!(error.code, "42501", "it may not make tables: {error:?}");
    assert!(owner.has_nothing("eurusd"));
    assert_eq!(
        row(&mut owner.session, "SELECT line FROM bqx.m1_staging WHERE session_id = bqx._session_id()"),
        "somebody's own lines"
    );
}

#[test]
fn a_wrong_argument_leaves_the_lines_staged_and_a_bad_file_does_not() {
    let db = Db::new("staging_errors");
    let mut loader = Loader::new(&db);
    let nothing_staged = |loader: &mut Loader| {
        let error = error_of(&mut loader.session, "CALL bqx.ingest_m1('eurusd')");
        assert_eq!(error.code, "55000", "{error:?}");
        assert_contains(&error.message, &["m1_staging"]);
        assert_contains(
            &error.hint,
            &[r"\copy bqx.m1_staging(line) from", r"(format csv, delimiter E'\x01', quote E'\x02')"],
        );
    };
    nothing_staged(&mut loader);

    loader.stage(JULY);
    let before = picture(&db);
    for (call, named) in [
        ("CALL bqx.ingest_m1('eurxxx')", "'eurxxx'"),
        ("CALL bqx.ingest_m1(NULL)", "NULL"),
        ("CALL bqx.ingest_m1('eurusd', 'excel')", "excel"),
        ("CALL bqx.ingest_m1('eurusd', 'histdata')", "histdata"),
        ("CALL bqx.ingest_m1('eurusd', time_zone => 'Mars/Olympus')", "Mars/Olympus"),
        ("CALL bqx.ingest_m1('eurusd', on_bad_row => 'ignore')", "'ignore'"),
        ("CALL bqx.ingest_m1('eurusd', on_bad_row => NULL)", "NULL"),
    ] {
        let error = error_of(&mut loader.session, call);
        assert_eq!(error.code, "22023", "{call}: {error:?}");
        assert_contains(&error.message, &[named]);
        assert!(!error.hint.is_empty(), "{call}: {error:?}");
        assert_eq!(picture(&db), before, "{call}");
    }
    let error = error_of(&mut loader.session, "BEGIN; CALL bqx.ingest_m1('eurusd')");
    assert_eq!(error.code, "25001");
    run(&mut loader.session, "ROLLBACK");
    run(&mut loader.session, "CALL bqx.ingest_m1('eurusd')");
    assert_eq!(loader.extent("eurusd"), "2|2024-07-31 23:58|2024-07-31 23:59");
    nothing_staged(&mut loader);

    loader.stage("2024-07-01 12:00,1.5,1.75,1.25,0\n");
    assert_eq!(error_of(&mut loader.session, "CALL bqx.ingest_m1('eurusd')").code, "22P04");
    nothing_staged(&mut loader);
}

#[test]
fn files_that_hold_no_bars_at_all() {
    let db = Db::new("no_bars");
    let mut loader = Loader::new(&db);
    for way in WAYS {
        // a header alone: nothing to load, and nothing wrong
        let notice = loader.load(way, "eurusd", "time,open,high,low,close\n", "").unwrap();
        assert_contains(&notice, &["no bars", "0 rejected"]);
        assert!(loader.has_nothing("eurusd"));
        for file in ["<html><body>404</body></html>\n", "a;b;c;d;e\n1;2;3;4;5\n", "\n\n"] {
            let error = loader.load(way, "eurusd", file, "").unwrap_err();
            assert_eq!(error.code, "22023", "{file}: {error:?}");
            assert!(loader.has_nothing("eurusd"));
            run(&mut loader.session, "DELETE FROM bqx.m1_staging");
        }
    }
    let error = loader.load(Way::Load, "eurusd", "", "").unwrap_err();
    assert_eq!(error.code, "22023", "{error:?}");
    let error = error_of(&mut loader.session, "CALL bqx.load_m1('eurusd', '/nowhere/bars.csv')");
    assert_eq!(error.code, "58P01", "{error:?}");
    assert_contains(&error.message, &["/nowhere/bars.csv"]);
    assert!(loader.has_nothing("eurusd"));
    // a load after one that failed works
    loader.load(Way::Load, "eurusd", JULY, "").unwrap();
}

#[test]
fn a_server_file_needs_the_callers_own_copy_right() {
    let db = Db::new("file_rights");
    let mut owner = Loader::new(&db);
    run(
        &mut owner.session,
        "CREATE ROLE file_reader LOGIN; CREATE ROLE file_nobody LOGIN; GRANT pg_read_server_files TO \
            file_reader",
    );
    owner.load(Way::Load, "eurusd", JULY, "").unwrap();
    run(&mut owner.session, "GRANT SELECT, INSERT, UPDATE ON bqx.m1_eurusd TO file_reader, file_nobody");
    let corrected = JULY.replace("1.25,1.625", "1.25,1.6875");
    let call = format!("CALL bqx.load_m1('eurusd', '{}')", server_file(corrected.as_bytes()));
    let before = picture(&db);

    let mut nobody = db.connect_as("file_nobody");
    let error = error_of(&mut nobody, &call);
    assert_eq!(error.code, "42501", "{error:?}");
    assert_eq!(picture(&db), before);
    stage(&mut nobody, &corrected);
    run(&mut nobody, "CALL bqx.ingest_m1('eurusd')"); // but its own lines it may load
    assert_eq!(row(&mut nobody, "SELECT max(close) FROM bqx.m1_eurusd"), "1.6875");
    run(&mut owner.session, "UPDATE bqx.m1_eurusd SET close = 1.625 WHERE close = 1.6875");

    let mut reader = db.connect_as("file_reader");
    run(&mut reader, &call);
    assert_eq!(row(&mut reader, "SELECT max(close) FROM bqx.m1_eurusd"), "1.6875");
    // Rights are the current role's, not the login's.
    run(&mut owner.session, "SET ROLE file_nobody");
    assert_eq!(error_of(&mut owner.session, &call).code, "42501");
    // Nothing new may be made: a month without a partition, another pair
    for (pair, file) in [("eurusd", AUGUST), ("gbpusd", JULY)] {
        stage(&mut nobody, file);
        assert_eq!(error_of(&mut nobody, &format!("CALL bqx.ingest_m1('{pair}')")).code, "42501", "{pair}");
    }
    assert_eq!(row(&mut reader, "SELECT count(*) FROM bqx.m1_eurusd"), "2");
}

/// Two loads of one file at once, into a table that has no key to guard it.
#[test]
fn loads_at_once_take_turns() {
    let db = Db::new("loads_at_once");
    let mut owner = Loader::new(&db);
    run(
        &mut owner.session,
        "CREATE TABLE bqx.m1_eurusd (time timestamptz, open float8, high float8, low float8, close float8, \
            volume float8)",
    );
    let file: String = (0..1440)
        .map(|i| format!("2024-07-01 {:02}:{:02},1.5,1.75,1.25,1.625,7\n", i / 60, i % 60))
        .collect();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| Loader::new(&db).load(Way::Ingest, "eurusd", &file, "").unwrap());
        }
    });
    assert_eq!(owner.extent("eurusd"), "1440|2024-07-01 00:00|2024-07-01 23:59");
}

/// Schemas of objects (`evil`) and of types (`evil_types`) that raise an error when used, to be put before
/// all others in a
/// search_path.
fn make_hostile_schemas(session: &mut Client) {
    run(
        session,
        r"CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC;
        DO $do$
        DECLARE
            t text;
            o text;
            f text;
        BEGIN
            FOREACH t IN ARRAY ARRAY['text', 'float8', 'int4', 'int8', 'bool', 'date', 'timestamp', 'timestamptz', 'name',
                                     'regclass', 'oid', 'numeric', 'text[]', 'regclass[]', 'int4[]', 'date[]', 'name[]'] LOOP
                FOREACH o IN ARRAY ARRAY['=', '<>', '<', '>', '<=', '>=', '+', '-', '*', '/', '||', '~'] LOOP
                    f := pg_catalog.format('%s_%s', CASE o WHEN '=' THEN 'eq' WHEN '<>' THEN 'ne' WHEN '<' THEN 'lt' WHEN '>' THEN 'gt'
                        WHEN '<=' THEN 'le' WHEN '>=' THEN 'ge' WHEN '+' THEN 'plus' WHEN '-' THEN 'minus' WHEN '*' THEN 'times'
                        WHEN '/' THEN 'by' WHEN '||' THEN 'cat' ELSE 'like' END, pg_catalog.translate(t, '[]', '_a'));
                    EXECUTE pg_catalog.format('CREATE FUNCTION evil.%I(a %s, b %s) RETURNS %s LANGUAGE plpgsql AS '
                        '$$ BEGIN RAISE EXCEPTION ''captured: %s of %s''; END $$', f, t, t,
                        CASE WHEN o IN ('+', '-', '*', '/', '||') THEN t ELSE 'bool' END, o, t);
                    EXECUTE pg_catalog.format('CREATE OPERATOR evil.%s (leftarg = %s, rightarg = %s, function = evil.%I)', o, t, t, f);
                END LOOP;
            END LOOP;
            FOREACH f IN ARRAY ARRAY['format(text)', 'format(text, text)', 'format(text, text, text)', 'format(text, name)', 'format(text, regclass)',
                                     'format(text, text, bigint)', 'format(text, text, text, text)', 'lower(text)', 'upper(text)', 'quote_literal(text)',
                                     'to_regclass(text)', 'to_char(date, text)', 'to_char(timestamp, text)', 'to_char(timestamptz, text)', 'now()',
                                     'clock_timestamp()', 'jsonb_build_object(text, text[])', 'array_to_string(text[], text)', 'cardinality(text[])',
                                     'unnest(text[])', 'to_regclass(name)', 'round(float8)', 'left(text, int)', 'current_setting(text)',
                                     'has_table_privilege(oid, text)', 'pg_has_role(oid, text)', 'bool(text)', 'text(name)', 'rate_index(float8, float8)'] LOOP
                EXECUTE pg_catalog.format('CREATE FUNCTION evil.%s RETURNS text LANGUAGE plpgsql AS '
                    '$$ BEGIN RAISE EXCEPTION ''captured: %s''; END $$', f, f);
            END LOOP;
        END $do$;
        CREATE SCHEMA evil_types;
        CREATE FUNCTION evil_types.refuse() RETURNS boolean LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'captured: a type'; END $$;
        CREATE DOMAIN evil_types.text AS pg_catalog.text CHECK (VALUE IS NULL OR evil_types.refuse());
        CREATE DOMAIN evil_types.date AS pg_catalog.date CHECK (VALUE IS NULL OR evil_types.refuse());
        CREATE DOMAIN evil_types.regclass AS pg_catalog.regclass CHECK (VALUE IS NULL OR evil_types.refuse());
        CREATE DOMAIN evil_types.timestamptz AS pg_catalog.timestamptz CHECK (VALUE IS NULL OR evil_types.refuse())",
    );
}

/// All of a session's work, from files to derived rows.
const WORK: [&str; 11] = [
    "CALL bqx.ingest_m1('eurusd', on_bad_row => 'skip')",
    "CALL bqx.create_m1('{usdchf}', '2024-06-30', '2024-08-01')",
    "CALL bqx.load_m1('usdchf', '{dukascopy}')",
    "CALL bqx.set_baselines('2024-07-01 00:00+00', '{eurusd}')",
    "CALL bqx.index_m1('{eurusd}')",
    "CALL bqx.create_tables(NULL, '{eurusd}', windows => NULL)",
    "CALL bqx.backfill(families => '{bqx,reg}', pairs => '{eurusd}', workers => 0)",
    "CALL bqx.create_tables('{bqx}', '{usdchf}', '2024-07-01', '2024-08-15', '{5,20}')",
    "CALL bqx.drop_tables('{bqx}', '{usdchf}')",
    "CALL bqx.drop_tables('{bqx}', '{usdchf}', cascade => true)",
    // a bar that comes another way
    "INSERT INTO bqx.m1_eurusd VALUES ('2024-07-30 00:00+00', 1.1, 1.1, 1.1, 1.1)",
];

/// What the contract names, and any path with hostile objects.
const NAMED_SETTINGS: [&str; 9] = [
    "SET TimeZone = 'Asia/Tokyo'",
    "SET TimeZone = 'America/St_Johns'; SET DateStyle = 'German, DMY'",
    "SET DateStyle = 'SQL, DMY'",
    "SET DateStyle = 'Postgres, MDY'; SET IntervalStyle = 'sql_standard'",
    "SET extra_float_digits = -15",
    "SET extra_float_digits = 3; SET bytea_output = 'escape'",
    "SET search_path = evil, public, pg_catalog",
    "SET search_path = ''",
    "SET search_path = bqx, pg_temp",
];

const OTHER_SETTINGS: [&str; 4] = [
    "SET client_encoding = 'LATIN1'",
    "SET quote_all_identifiers = on; SET transform_null_equals = on; SET array_nulls = off",
    "SET default_transaction_isolation = 'serializable'",
    "SET plpgsql.variable_conflict = 'use_column'; SET row_security = off; SET synchronize_seqscans = off",
];

fn hours(first_day: u32, line: impl Fn(u32, u32, u32, f64) -> String) -> String {
    (0..4800u32)
        .map(|i| {
            let price = 1.05 + f64::from(i * 7919 % 1009) / 9973.0;
            line(first_day + i / 1440, i / 60 % 24, i % 60, price)
        })
        .collect()
}

/// Does the same work in a database for each setting, beginning with none, and compares what is then stored,
/// to the
/// last bit.
fn assert_no_difference(name: &str, settings: &[&str]) {
    let iso = hours(1, |day, hour, minute, p| {
        let (high, low) = (p + 0.00012345678901234, p - 0.0002);
        format!("2024-07-{day:02} {hour:02}:{minute:02}:00+00:00,{p},{high},{low},{p},{minute}\n")
    });
    let dukascopy = hours(1, |day, hour, minute, p| {
        format!("{day:02}.07.2024 {hour:02}:{minute:02}:00.000,{p},{},{},{p},0.5\n", p + 0.0001, p - 0.0002)
    });
    let histdata =
        "20240702 100000;1.5;1.75;1.25;1.625;7\n20240702 100100;1.5;1.75;1.25;1.6250000000000002;7\n";
    let dukascopy = server_file(format!("\u{feff}{dukascopy}").as_bytes());
    let mut usual = None;
    let mut wrong = Vec::new();
    for (i, setting) in [""].iter().chain(settings).enumerate() {
        let db = Db::new(&format!("{name}_{i}"));
        let mut loader = Loader::new(&db);
        make_hostile_schemas(&mut loader.session);
        if !setting.is_empty() {
            run(&mut loader.session, setting);
        }
        loader.stage(&iso);
        for call in WORK {
            if let Err(error) = attempt(&mut loader.session, &call.replace("{dukascopy}", &dukascopy)) {
                wrong.push(format!("{setting}: {call}: {error:?}"));
            }
        }
        if let Err(error) = loader.load(Way::Load, "gbpusd", histdata, "format => 'histdata'") {
            wrong.push(format!("{setting}: histdata: {error:?}"));
        }
        let stored = stored(&db);
        match &usual {
            None => {
                assert!(stored[0].starts_with("4801|") && stored[3].starts_with("4800|"), "{stored:?}");
                usual = Some(stored);
            }
            Some(usual) => wrong.extend(
                stored
                    .iter()
                    .zip(usual)
                    .filter(|(got, usual)| got != usual)
                    .map(|(got, usual)| format!("{setting}: got {got}, usual {usual}")),
            ),
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Checksums of all that WORK leaves.
fn stored(db: &Db) -> Vec<String> {
    let tables = [
        ("m1_eurusd", "SELECT * FROM bqx.m1_eurusd"),
        ("m1_gbpusd", "SELECT * FROM bqx.m1_gbpusd"),
        ("m1_usdchf", "SELECT * FROM bqx.m1_usdchf"),
        ("bqx_eurusd", "SELECT * FROM bqx.bqx_eurusd"),
        ("reg_eurusd", "SELECT to_jsonb(r) - 'created_at' FROM bqx.reg_eurusd AS r"),
        (
            "baseline_rates",
            "SELECT pair, baseline_date, baseline_time, baseline_rate, applied_at IS NULL FROM \
                bqx.baseline_rates",
        ),
        (
            "pairs", // is always there: the partitions' bounds
            "SELECT c.oid::regclass, pg_get_expr(c.relpartbound, c.oid) FROM pg_class AS c WHERE \
                c.relispartition",
        ),
        ("month_ledger", "SELECT family, pair, month, input_fingerprint, bars FROM bqx.month_ledger"),
    ];
    let mut session = db.connect();
    let sums = tables.map(|(name, query)| {
        let is_there = row(&mut session, &format!("SELECT to_regclass('bqx.{name}') IS NOT NULL")) == "t";
        let sum = if is_there { checksum(db, query) } else { "no table".to_owned() };
        format!("{sum} {query}")
    });
    sums.to_vec()
}

#[test]
fn time_zones_styles_and_paths_do_not_matter() {
    assert_no_difference("named_settings", &NAMED_SETTINGS);
}

#[test]
fn other_settings_do_not_matter() {
    assert_no_difference("other_settings", &OTHER_SETTINGS);
}

/// Off, it changes what a backslash in a function's strings means.
#[test]
fn nonconforming_strings_do_not_matter() {
    assert_no_difference("strings", &["SET standard_conforming_strings = off"]);
}

#[test]
fn types_of_other_schemas_are_not_used() {
    assert_no_difference("hostile_types", &["SET search_path = evil_types, pg_catalog"]);
}

/// The whole pipeline with background workers, whose sessions get the hostile path, too.
#[test]
fn hostile_objects_are_never_called_by_the_pipeline() {
    let mut wrong = Vec::new();
    for schema in ["evil", "evil_types"] {
        let name = format!("pipeline_{schema}");
        let db = Db::new(&name);
        let mut session = db.connect();
        make_hostile_schemas(&mut session);
        stage(&mut session, JULY);
        run(&mut session, "CALL bqx.ingest_m1('gbpusd')");
        run(&mut session, "INSERT INTO bqx.pairs VALUES ('smallx', 'SML', 'USD')");
        run(&mut session, &format!("ALTER DATABASE {name} SET search_path = {schema}, pg_catalog"));
        let mut session = db.connect();
        for call in [
            "CALL bqx.simulate_m1('{smallx}', '2024-07-01', '2024-07-01')",
            "CALL bqx.set_baselines('2024-07-01 00:00+00', '{gbpusd}')",
            "CALL bqx.index_m1('{gbpusd}')",
            "CALL bqx.create_tables(pairs => '{gbpusd}')",
            "CALL bqx.backfill(pairs => '{gbpusd}', workers => 1)",
            "CALL bqx.backfill(pairs => '{gbpusd}', workers => 0, force => true)",
            "CALL bqx.run_pipeline('{gbpusd}', '2024-07-01 00:00+00', workers => 1)",
            "SELECT FROM bqx.verify(pairs => '{gbpusd}')",
            "SELECT FROM bqx.completion_report()",
            "TABLE bqx.progress",
            "TABLE bqx.pair_progress",
            "TABLE bqx.recent",
            "TABLE bqx.storage",
            "TABLE bqx.dashboard",
            "TABLE bqx.runs",
            "TABLE bqx.jobs",
        ] {
            if let Err(error) = attempt(&mut session, call) {
                wrong.push(format!("{schema}: {call}: {error:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
