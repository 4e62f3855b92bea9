//! Files of bars: finding them, telling whose they are, unpacking them.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::read::MultiGzDecoder;
use liblzma::read::XzDecoder;

/// A file with bars of one pair.
#[derive(Debug, PartialEq, Eq)]
pub struct BarFile {
    pub path: PathBuf,
    pub pair: String,
}

/// What a folder holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// By pair, then by name.
    pub bars: Vec<BarFile>,
    /// Files of the right kind whose names have no pair in them.
    pub without_pair: Vec<PathBuf>,
}

/// Looks for `*.csv` and `*.txt`, also packed as `.gz` or `.xz`, whose names have one of `pairs` in them, in any case:
/// `eurusd.csv.xz`, `DAT_ASCII_EURUSD_M1_2024.csv`.
pub fn find(folder: &Path, pairs: &[String]) -> Result<Found> {
    let mut found = Found::default();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if !is_bar_file(&name) {
            continue;
        }
        match pair_in(&name, pairs) {
            Some(pair) => found.bars.push(BarFile { path, pair: pair.to_owned() }),
            None => found.without_pair.push(path),
        }
    }
    found.bars.sort_by(|a, b| (&a.pair, &a.path).cmp(&(&b.pair, &b.path)));
    found.without_pair.sort();
    Ok(found)
}

/// Opens a file; what is packed is unpacked while it is read.
pub fn open(path: &Path) -> Result<Box<dyn Read>> {
    let file = BufReader::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?);
    Ok(match path.extension().unwrap_or_default().to_string_lossy().to_lowercase().as_str() {
        "gz" => Box::new(MultiGzDecoder::new(file)),
        "xz" => Box::new(XzDecoder::new_multi_decoder(file)),
        _ => Box::new(file),
    })
}

fn is_bar_file(name: &str) -> bool {
    let unpacked = name.strip_suffix(".gz").or(name.strip_suffix(".xz")).unwrap_or(name);
    unpacked.ends_with(".csv") || unpacked.ends_with(".txt")
}

/// The pair that a name has first in it; of two that begin there, the longer one.
fn pair_in<'a>(name: &str, pairs: &'a [String]) -> Option<&'a str> {
    let places = pairs.iter().filter_map(|pair| Some((name.find(pair.as_str())?, pair)));
    places.min_by_key(|(place, pair)| (*place, usize::MAX - pair.len())).map(|(_, pair)| pair.as_str())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn pairs() -> Vec<String> {
        ["audusd", "eurusd", "usdjpy"].map(str::to_owned).to_vec()
    }

    #[test]
    fn names_tell_the_pair() {
        assert_eq!(pair_in("dat_ascii_eurusd_m1_2024.csv", &pairs()), Some("eurusd"));
        assert_eq!(pair_in("audusdjpy.csv", &pairs()), Some("audusd"));
        assert_eq!(pair_in("readme.txt", &pairs()), None);
    }

    #[test]
    fn a_folder_is_sorted_by_pair_and_tells_what_is_nobodys() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["USDJPY.TXT", "eurusd-2.csv", "eurusd-1.csv.gz", "notes.txt", "eurusd.xlsx"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let found = find(folder.path(), &pairs()).unwrap();
        let names: Vec<_> = found.bars.iter().map(|file| file.path.strip_prefix(&folder).unwrap()).collect();
        assert_eq!(names, ["eurusd-1.csv.gz", "eurusd-2.csv", "USDJPY.TXT"].map(Path::new));
        assert_eq!(found.without_pair, [folder.path().join("notes.txt")]);
    }

    #[test]
    fn packed_files_read_as_their_contents() {
        let folder = tempfile::tempdir().unwrap();
        let text = "2024-07-01 00:00,1,1,1,1\n".repeat(1000);
        let file = |name: &str| File::create(folder.path().join(name)).unwrap();
        file("a.csv").write_all(text.as_bytes()).unwrap();
        let mut gz = flate2::write::GzEncoder::new(file("a.csv.gz"), flate2::Compression::default());
        gz.write_all(text.as_bytes()).unwrap();
        gz.finish().unwrap();
        let mut xz = liblzma::write::XzEncoder::new(file("a.csv.xz"), 6);
        xz.write_all(text.as_bytes()).unwrap();
        xz.finish().unwrap();
        for name in ["a.csv", "a.csv.gz", "a.csv.xz"] {
            let read = std::io::read_to_string(open(&folder.path().join(name)).unwrap()).unwrap();
            assert!(read == text, "{name}");
        }
    }
}
