//! Candlestick patterns against TA-Lib's, recorded by `record_candlesticks.py`, and against their definitions.

use bqx_core::candlesticks::{Candle, Candlesticks, Patterns};

type Values = [Option<i16>; Patterns::COUNT];

/// One recorded row: its candle and TA-Lib's values.
type Row = (Candle, Values);

/// The rows of a recorded series.
fn recorded(series: &str) -> Vec<Row> {
    let mut lines = include_str!("data/candlesticks.csv").lines();
    let header = format!("series,open,high,low,close,{}", Patterns::NAMES.join(","));
    assert_eq!(lines.next(), Some(header.as_str()));
    lines.filter_map(|line| row(line.strip_prefix(series)?.strip_prefix(',')?)).collect()
}

fn row(line: &str) -> Option<Row> {
    let fields: Vec<&str> = line.split(',').collect();
    let (prices, values) = fields.split_at(4);
    let prices: Vec<f64> = prices.iter().map(|price| price.parse().unwrap()).collect();
    let value = |field: &&str| (!field.is_empty()).then(|| field.parse().unwrap());
    let values: Vec<Option<i16>> = values.iter().map(value).collect();
    Some((candle(prices.try_into().unwrap()), values.try_into().unwrap()))
}

fn candle([open, high, low, close]: [f64; 4]) -> Candle {
    Candle { open, high, low, close }
}

fn pushed(candles: impl IntoIterator<Item = Candle>) -> Vec<Values> {
    let mut state = Candlesticks::new();
    candles.into_iter().map(|candle| state.push(candle).to_array()).collect()
}

fn candles(rows: &[Row]) -> impl Iterator<Item = Candle> {
    rows.iter().map(|&(candle, _)| candle)
}

/// On candles of any size, on such that sizes often equal their limits, and on some made for that.
#[test]
fn values_are_those_of_ta_lib() {
    for series in ["shapes", "steady", "limits"] {
        let rows = recorded(series);
        assert!(rows.len() >= 500, "{series}");
        for (i, (found, (_, expected))) in pushed(candles(&rows)).iter().zip(&rows).enumerate() {
            assert_eq!(found, expected, "{series}, row {i}");
        }
    }
}

/// Else the comparison would prove little.
#[test]
fn every_pattern_is_among_those_recorded() {
    for (series, least) in [("shapes", 20), ("steady", 10)] {
        let rows = recorded(series);
        for (pattern, name) in Patterns::NAMES.into_iter().enumerate() {
            let count = |value: i16| rows.iter().filter(|(_, values)| values[pattern] == Some(value)).count();
            let values: &[i16] = match name {
                "engulfing" | "harami" => &[100, 80, -80, -100],
                "hanging_man" | "shooting_star" | "dark_cloud_cover" | "evening_star"
                | "three_black_crows" => &[-100],
                _ => &[100],
            };
            assert!(values.iter().all(|&value| count(value) >= least), "{series}, {name}");
        }
    }
}

/// A row depends on the candles up to [`Candlesticks::LOOKBACK`] before it, wherever the series starts, and whatever its
/// prices were: beside the greatest here all others vanish in a sum.
#[test]
fn values_do_not_depend_on_the_start() {
    let rows = recorded("steady");
    let whole = pushed(candles(&rows));
    let huge = candle([0.0, 1e30, -1e30, 1e29]);
    assert_eq!(pushed([huge].into_iter().chain(candles(&rows)))[14..], whole[13..]);
    for start in (1..rows.len()).step_by(7) {
        let window = &rows[start..rows.len().min(start + 40)];
        let found = pushed(candles(window));
        let warm = Candlesticks::LOOKBACK.min(found.len());
        assert_eq!(found[warm..], whole[start + warm..start + found.len()], "from row {start}");
        assert!(found[warm..].iter().flatten().all(Option::is_some));
    }
}

/// Whichever price it is, the candle has no values, and those after it are those of a series that starts there.
#[test]
fn what_is_not_finite_starts_the_series_anew() {
    let rows = recorded("shapes");
    let after = pushed(candles(&rows[101..200]));
    for price in 0..4 {
        for spoiled in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut series: Vec<Candle> = candles(&rows[..200]).collect();
            let broken = &mut series[100];
            *[&mut broken.open, &mut broken.high, &mut broken.low, &mut broken.close][price] = spoiled;
            let found = pushed(series);
            assert_eq!(found[100], [None; Patterns::COUNT]);
            assert_eq!(found[101..], after);
        }
    }
}

/// A price that does not move is a doji, whose body equals its limit, and white, if it comes to that; prices near
/// the ends of what doubles can hold do no harm.
#[test]
fn flat_and_extreme_prices() {
    let last = |prices: [f64; 4]| *pushed([candle(prices); 20]).last().unwrap();
    let mut only_doji = [Some(0); Patterns::COUNT];
    only_doji[0] = Some(100);
    assert_eq!(Patterns::NAMES[0], "doji");
    for price in [0.0, -0.0, 1.1, -3.0, 5e-324, f64::MAX, f64::MIN] {
        assert_eq!(last([price; 4]), only_doji, "{price}");
    }
    assert_eq!(last([f64::MIN, f64::MAX, f64::MIN, f64::MAX])[1..], [Some(0); Patterns::COUNT - 1]);
}

#[test]
fn names_are_the_patterns_in_order() {
    let mut names = Patterns::NAMES.to_vec();
    assert_eq!((names.len(), names[12]), (13, "three_black_crows"));
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Patterns::COUNT, "each is another");
}
