//! Vendors' own files, where they lie beside the workspace: what is in each of them. They are not part of the
//! repository; where the folder is absent the test says so and does nothing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bqx_core::bar_file::{Bar, Format, Layout, Line, layout_for, sniff};

fn raw_files() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/raw");
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("skipped: no vendors' files in {}", folder.display());
    None
}

/// What a load would count.
#[derive(Debug, Default, PartialEq)]
struct Counts {
    /// Lines that are bars, repeats and conflicts among them.
    bars: usize,
    headers: usize,
    bad: Vec<(usize, String)>,
    /// Bars that say again what the first one of their minute says.
    repeats: usize,
    /// Bars that differ from the first one of their minute.
    conflicts: usize,
    /// Minutes that have conflicting bars.
    conflicting_minutes: usize,
}

fn count(layout: &Layout, file: &str) -> Counts {
    let mut counts = Counts::default();
    let mut minutes: HashMap<_, (Bar, bool)> = HashMap::new();
    for (i, line) in file.lines().enumerate() {
        match layout.parse_line(line) {
            Line::Blank => {}
            Line::Header => counts.headers += 1,
            Line::Bad(reason) => counts.bad.push((i + 1, reason)),
            Line::Bar(bar) => {
                counts.bars += 1;
                let first = minutes.entry((bar.time, bar.utc_offset_seconds));
                first
                    .and_modify(|(first, conflict)| {
                        if first.same_values(&bar) {
                            counts.repeats += 1;
                        } else {
                            counts.conflicts += 1;
                            *conflict = true;
                        }
                    })
                    .or_insert((bar, false));
            }
        }
    }
    counts.conflicting_minutes = minutes.values().filter(|(_, conflict)| *conflict).count();
    counts
}

#[test]
fn every_file_is_recognised_and_counted() {
    let Some(folder) = raw_files() else { return };
    let plain = |bars, headers| Counts { bars, headers, ..Counts::default() };
    let torn = vec![(2839, "5 fields where 6 are needed, the line seems torn".to_string())];
    #[rustfmt::skip]
    let files = [
        ("autumn_repeat_EURUSD_2020-10.csv", Format::Csv, ';', true, Counts { repeats: 60, ..plain(1658, 1) }),
        ("broken_times_EURUSD_2025-04.csv", Format::Csv, ';', true, Counts { conflicts: 1699, conflicting_minutes: 2, ..plain(1999, 1) }),
        ("commas_crlf_no_header_AUDUSD_2021-01.csv", Format::Csv, ',', true, Counts { bad: torn, ..plain(2838, 0) }),
        ("duplicates_EURUSD_2025-04.csv", Format::MetaTrader, ';', false, Counts { repeats: 631, ..plain(1886, 1) }),
        ("fxcm_iso_offset_GBPUSD_2012-02_head.csv", Format::Csv, ',', false, plain(2999, 1)),
        ("histdata_ascii_EURUSD_2025-03_head.csv", Format::HistData, ';', true, plain(4000, 0)),
        ("histdata_ascii_EURUSD_2025-03_tail_with_dst_change.csv", Format::HistData, ';', true, plain(3000, 0)),
        ("histdata_mt_GBPUSD_2026-01_head.csv", Format::MetaTrader, ',', true, plain(3000, 0)),
        ("mt5_quoted_tabs_EURUSD_2022-01_head.csv", Format::MetaTrader, '\t', true, plain(2999, 1)),
    ];
    for (name, format, delimiter, has_volume, expected) in files {
        let file = std::fs::read_to_string(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let layout = sniff(file.lines()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(
            (layout.format(), layout.delimiter(), layout.has_volume()),
            (format, delimiter, has_volume),
            "{name}"
        );
        assert_eq!(count(&layout, &file), expected, "{name}");
        for asked in Format::ALL {
            assert_eq!(layout_for(asked, file.lines()).is_ok(), asked == format, "{name} as {asked}");
        }
    }
}
