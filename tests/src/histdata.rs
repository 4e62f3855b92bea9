//! Small files of simulated bars in the layout of HistData's downloads, for the documents' examples.

use std::fmt::Write;

const DAYS: u32 = 3;

/// Names like `DAT_ASCII_EURUSD_M1_2024.csv` in a text, each once.
pub fn file_names(text: &str) -> Vec<&str> {
    let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    let mut names: Vec<&str> =
        text.split(|c| !is_of_a_name(c)).filter(|word| pair_and_year(word).is_some()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// What a file of that name holds: three days of minutes from July 1st of its year, as `YYYYMMDD HHMMSS;o;h;l;c;v`.
/// The same name gives the same bars. None if the name is not of that kind.
pub fn file(name: &str) -> Option<String> {
    let (pair, year) = pair_and_year(name)?;
    let (decimals, start) = if pair.ends_with("JPY") { (3, 150_000) } else { (5, 110_000) };
    let mut walk = Walk { price: start, state: pair.bytes().map(u64::from).sum::<u64>() + u64::from(year) };
    let mut text = String::new();
    for minute in 0..DAYS * 24 * 60 {
        let [open, high, low, close] = walk.next_bar().map(|points| price(points, decimals));
        let (day, hour, minute) = (1 + minute / 1440, minute / 60 % 24, minute % 60);
        writeln!(text, "{year}07{day:02} {hour:02}{minute:02}00;{open};{high};{low};{close};0")
            .expect("strings take everything");
    }
    Some(text)
}

fn pair_and_year(name: &str) -> Option<(&str, u32)> {
    let (pair, year) = name.strip_prefix("DAT_ASCII_")?.strip_suffix(".csv")?.split_once("_M1_")?;
    let is_pair = pair.len() == 6 && pair.bytes().all(|c| c.is_ascii_uppercase());
    if is_pair && year.len() == 4 { Some((pair, year.parse().ok()?)) } else { None }
}

/// A price that moves by at most two points at a time, in points: 0.00001, or 0.001 against the yen.
struct Walk {
    price: i64,
    state: u64,
}

impl Walk {
    /// Open, high, low and close.
    fn next_bar(&mut self) -> [i64; 4] {
        let open = self.price;
        let (low_step, high_step) = (self.step(), self.step());
        self.price += self.step();
        let close = self.price;
        [open, open.max(close) + high_step.abs(), open.min(close) - low_step.abs(), close]
    }

    /// A number from -2 to 2 out of a linear congruential generator (Knuth's MMIX).
    fn step(&mut self) -> i64 {
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) as i64 % 5 - 2
    }
}

fn price(points: i64, decimals: u32) -> String {
    let unit = 10_i64.pow(decimals);
    format!("{}.{:0width$}", points / unit, points % unit, width = decimals as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_commands() {
        let text = r"\copy t from 'DAT_ASCII_EURUSD_M1_2024.csv' with (x)  DAT_ASCII_USDJPY_M1_2024.csv, DAT_EURUSD.csv";
        assert_eq!(file_names(text), ["DAT_ASCII_EURUSD_M1_2024.csv", "DAT_ASCII_USDJPY_M1_2024.csv"]);
    }

    #[test]
    fn bars_are_those_of_the_vendor_in_shape_and_always_the_same() {
        let bars = file("DAT_ASCII_USDJPY_M1_2024.csv").unwrap();
        assert_eq!(bars.lines().count(), 3 * 24 * 60);
        assert!(bars.lines().last().unwrap().starts_with("20240703 235900;"));
        for bar in bars.lines() {
            let prices: Vec<f64> =
                bar.split(';').skip(1).take(4).map(|field| field.parse().unwrap()).collect();
            let [open, high, low, close] = prices[..] else { panic!("{bar}") };
            assert!(low <= open.min(close) && open.max(close) <= high && low > 100.0, "{bar}");
        }
        assert_eq!(Some(bars), file("DAT_ASCII_USDJPY_M1_2024.csv"));
    }
}
