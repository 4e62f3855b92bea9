//! A simulated FX market of one-minute bars, for trials and benchmarks. It is no model of any real market; it
//! has the shape of one (levels, volatility through the day, the trading week, missing minutes, prices in
//! pips, crosses that agree with their majors) and is free to publish.
//!
//! # How it is made
//!
//! - **Currencies, not pairs, move.** Each currency has the logarithm of a value against a common numéraire. A
//!   pair's price is the exponential of a difference of two, so that `eurgbp` is `eurusd / gbpusd` up to the
//!   rounding to pips, whichever pairs are asked for.
//! - **Months are independent of each other, yet the path is continuous.** The value at each month's start is
//!   an *anchor*: a fading sum of hashed monthly shocks around the currency's usual level, computed in closed
//!   form, so that nothing has to start at the beginning of time, and nothing drifts away in decades. Within
//!   the month the path is a Brownian bridge from this month's anchor to the next one's.
//! - **The same bits everywhere.** All randomness is ChaCha8 keyed by (seed, currency or pair, month, purpose);
//!   normal deviates are sums of integers (Irwin–Hall); exponential and logarithm are libm's, compiled in, not
//!   the platform's; all else is IEEE addition, multiplication, division and square root.
//! - **A price is an integer of pips over a power of ten**, and therefore the very double that its decimal text
//!   is read as.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::calendar::{MICROS_PER_MINUTE, Month};

/// A simulated bar of one minute: `low <= open, close <= high`, all positive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SimBar {
    /// The start of the minute in pg micros (microseconds since 2000-01-01 00:00 UTC).
    pub time: i64,
    pub open: f64,
    pub high: f64,
    pub low: f64,
    pub close: f64,
    /// Ticks in the minute, a whole number from 1.
    pub volume: f64,
}

/// Points at which a minute's path is known: the first is its open, the last its close. Four are enough for
/// bars with wicks, and cost four exponentials.
const TICKS: usize = 4;

/// Standard deviation of a currency's log value in an average minute; √2 times that for a pair, which makes
/// 1e-4, or 6 % a year.
const MINUTE_SD: f64 = 1e-4 * std::f64::consts::FRAC_1_SQRT_2;
/// Standard deviation of a currency's log value over the weekend.
const WEEKEND_SD: f64 = 5e-4;
/// Standard deviation of the daily and the hourly factor of the volatility, in logarithms.
const DAY_FACTOR_SD: f64 = 0.2;
const HOUR_FACTOR_SD: f64 = 0.25;

/// Standard deviation of the monthly shocks: what the minutes of a month add up to.
const SHOCK_SD: f64 = 0.0125;
/// What is left of a shock a month later: half of it is gone after two years. The anchors then stay
/// within 0.0125 / √(1 − 0.97²) = 5 % (one standard deviation) of the level.
const SHOCK_DECAY: f64 = 0.97;
/// Shocks older than this many months are forgotten; by then 0.07 % of one is left.
const SHOCK_MONTHS: usize = 240;

/// Minutes of the week from Sunday 00:00 UTC at which the market opens (Sunday 22:00) and closes (Friday 22:00).
const WEEK_OPEN: i64 = 22 * 60;
const WEEK_CLOSE: i64 = 5 * MINUTES_PER_DAY + 22 * 60;
const MINUTES_PER_DAY: i64 = 24 * 60;
const MINUTES_PER_WEEK: i64 = 7 * MINUTES_PER_DAY;

/// Hours of the (UTC) day: standard deviation of a minute relative to the average one (mean square about 1), and the
/// chance that an average pair has no tick in a minute. Quiet after New York, busy from London's morning to
/// its evening.
#[rustfmt::skip]
const HOURS: [(f64, f64); 24] = [
    // Sydney, Tokyo
    (0.75, 0.022), (0.80, 0.018), (0.75, 0.020), (0.65, 0.024), (0.60, 0.026), (0.65, 0.022),
    // London's morning
    (0.90, 0.012), (1.20, 0.006), (1.25, 0.004), (1.15, 0.004), (1.05, 0.005), (1.05, 0.006),
    // London and New York
    (1.35, 0.003), (1.55, 0.002), (1.60, 0.002), (1.50, 0.002), (1.20, 0.004), (1.00, 0.008),
    // New York's afternoon
    (0.90, 0.010), (0.85, 0.013), (0.70, 0.022), (0.55, 0.110), (0.50, 0.085), (0.60, 0.040),
];

/// Value of a currency in US dollars around which it is simulated.
#[rustfmt::skip]
const LEVELS: [(&str, f64); 20] = [
    ("usd", 1.0), ("eur", 1.08), ("gbp", 1.27), ("aud", 0.66), ("nzd", 0.61), ("cad", 1.0 / 1.37),
    ("chf", 1.0 / 0.90), ("jpy", 1.0 / 158.0), ("sek", 1.0 / 10.5), ("nok", 1.0 / 10.7), ("dkk", 1.0 / 6.9),
    ("pln", 1.0 / 4.0), ("sgd", 1.0 / 1.35), ("hkd", 1.0 / 7.8), ("cnh", 1.0 / 7.25), ("zar", 1.0 / 18.2),
    ("mxn", 1.0 / 18.0), ("try", 1.0 / 33.0), ("xau", 2_400.0), ("xag", 29.0),
];

/// The bars of a pair in a month, in order of time.
///
/// They depend on nothing but the arguments: not on the machine, nor on what else is simulated. Names of
/// currencies are case-insensitive, and any text is one: the level of an unknown currency is hashed from
/// its name. A currency in itself is always 1.
///
/// A bar's time lies in the FX week, Sunday 22:00 to Friday 22:00 UTC, and in the month. About 2 % of the
/// minutes have no bar, mostly in quiet hours; which and how many depends on the pair. That makes about 30,700
/// bars a month on average, from 28,000 (a February of 28 days) to 32,900 (23 trading days).
pub fn bars(base: &str, quote: &str, month: Month, seed: u64) -> Vec<SimBar> {
    let (base, quote) = (base.to_ascii_lowercase(), quote.to_ascii_lowercase());
    let minutes = open_minutes(month);
    let base_path = currency_path(&base, month, seed, &minutes);
    let quote_path = currency_path(&quote, month, seed, &minutes);
    let pips = Pips::of_pair(&base, &quote);
    let pair = format!("{base}/{quote}");
    // One word per minute, whether it has a bar or not, decides on that and on the volume.
    let mut words = stream(Purpose::Ticks, &pair, month.index(), seed);
    // The scarcest pairs miss three times as many minutes as the most liquid ones.
    let gaps = 0.5 + unit(stream(Purpose::Pair, &pair, 0, seed).next_u32());
    let missing: [u32; 24] = HOURS.map(|(_, chance)| (chance * gaps * 65_536.0) as u32);

    let mut bars = Vec::with_capacity(minutes.len());
    for ((minute, base), quote) in minutes.iter().zip(&base_path).zip(&quote_path) {
        let word = words.next_u32();
        if (word & 0xffff) < missing[minute.hour] {
            continue;
        }
        let ticks: [i64; TICKS] = std::array::from_fn(|i| pips.round(libm::exp(base[i] - quote[i])));
        let high = ticks.iter().copied().fold(i64::MIN, i64::max);
        let low = ticks.iter().copied().fold(i64::MAX, i64::min);
        let busy = HOURS[minute.hour].0;
        bars.push(SimBar {
            time: minute.time,
            open: pips.price(ticks[0]),
            high: pips.price(high),
            low: pips.price(low),
            close: pips.price(ticks[TICKS - 1]),
            volume: 1.0 + (60.0 * busy * busy * unit(word)).floor(),
        });
    }
    bars
}

/// Decimal places of a simulated pair's prices: 5, or 3 where the quote currency is the yen, and more
/// where that would leave less than five significant digits.
pub fn decimals(base: &str, quote: &str) -> u32 {
    let (base, quote) = (base.to_ascii_lowercase(), quote.to_ascii_lowercase());
    Pips::of_pair(&base, &quote).decimals
}

/// The grid that a pair's prices lie on.
struct Pips {
    decimals: u32,
    /// 10 to the power of `decimals`; exact, since less than 10^22.
    per_unit: f64,
}

impl Pips {
    fn of_pair(base: &str, quote: &str) -> Pips {
        let level = libm::exp(log_level(base) - log_level(quote));
        let mut decimals = if quote == "jpy" { 3 } else { 5 };
        let mut per_unit: f64 = if quote == "jpy" { 1e3 } else { 1e5 };
        // Five digits are 10,000; twice that, since the price does not stay at its level.
        while level * per_unit < 20_000.0 {
            decimals += 1;
            per_unit *= 10.0;
        }
        Pips { decimals, per_unit }
    }

    fn round(&self, price: f64) -> i64 {
        ((price * self.per_unit + 0.5).floor() as i64).max(1)
    }

    /// An exact integer over an exact power of ten: correctly rounded, as reading decimal text is.
    fn price(&self, pips: i64) -> f64 {
        pips as f64 / self.per_unit
    }
}

/// A minute in which the market is open.
struct OpenMinute {
    /// Pg micros.
    time: i64,
    /// Of the day, UTC.
    hour: usize,
    /// The first of its week.
    first_of_week: bool,
    /// The first of its hour, or of the month.
    first_of_hour: bool,
    /// The first of its day, or of the month.
    first_of_day: bool,
}

/// The minutes of a month in which the market is open.
fn open_minutes(month: Month) -> Vec<OpenMinute> {
    let (start, end) = (month.start_pg_micros(), month.end_pg_micros());
    // 2000-01-01 was a Saturday, the day before a Sunday.
    let week_minute = |time: i64| (time / MICROS_PER_MINUTE - MINUTES_PER_DAY).rem_euclid(MINUTES_PER_WEEK);
    let mut minutes = Vec::with_capacity(((end - start) / MICROS_PER_MINUTE) as usize);
    let (mut hour, mut day) = (None, None);
    for time in (start..end).step_by(MICROS_PER_MINUTE as usize) {
        let week_minute = week_minute(time);
        if (WEEK_OPEN..WEEK_CLOSE).contains(&week_minute) {
            let (this_hour, this_day) = (week_minute / 60, week_minute / MINUTES_PER_DAY);
            minutes.push(OpenMinute {
                time,
                hour: (this_hour % 24) as usize,
                first_of_week: week_minute == WEEK_OPEN,
                first_of_hour: hour.replace(this_hour) != Some(this_hour),
                first_of_day: day.replace(this_day) != Some(this_day),
            });
        }
    }
    minutes
}

/// The log value of a currency at the [`TICKS`] of every open minute of a month.
fn currency_path(currency: &str, month: Month, seed: u64, minutes: &[OpenMinute]) -> Vec<[f64; TICKS]> {
    let level = log_level(currency);
    let start = level + anchor(currency, month.index(), seed);
    let end = level + anchor(currency, month.index() + 1, seed);
    let mut words = stream(Purpose::Path, currency, month.index(), seed);
    let mut factors = stream(Purpose::Volatility, currency, month.index(), seed);

    // First the free path, and the variance that it has gathered at each minute's end.
    let (mut value, mut variance) = (0.0, 0.0);
    let (mut day_factor, mut hour_factor) = (1.0, 1.0);
    let mut path = Vec::with_capacity(minutes.len());
    let mut variances = Vec::with_capacity(minutes.len());
    for minute in minutes {
        if minute.first_of_day {
            day_factor = log_normal(DAY_FACTOR_SD, &mut factors);
        }
        if minute.first_of_hour {
            hour_factor = log_normal(HOUR_FACTOR_SD, &mut factors);
        }
        let tick_sd = MINUTE_SD * HOURS[minute.hour].0 * day_factor * hour_factor / (TICKS as f64).sqrt();
        let mut ticks = [0.0; TICKS];
        for (i, tick) in ticks.iter_mut().enumerate() {
            let sd = if i == 0 && minute.first_of_week { WEEKEND_SD } else { tick_sd };
            value += sd * normal4(words.next_u64());
            variance += sd * sd;
            *tick = value;
        }
        path.push(ticks);
        variances.push(variance);
    }

    // Then what it lacks at the end is spread over it in proportion to the variance: the Brownian bridge. The
    // ticks of a minute share the correction of its end: the differences are far below a pip.
    let correction = (end - start - value) / variance;
    for (ticks, variance) in path.iter_mut().zip(variances) {
        for tick in ticks {
            *tick += start + correction * variance;
        }
    }
    path
}

/// How far a currency's log value is from its level at the start of a month (given by [`Month::index`]).
fn anchor(currency: &str, month_index: i32, seed: u64) -> f64 {
    const WORDS_PER_SHOCK: u128 = 4;
    let mut shocks = stream(Purpose::Anchor, currency, 0, seed);
    let oldest = month_index as u128 + 1 - SHOCK_MONTHS as u128;
    shocks.set_word_pos(oldest * WORDS_PER_SHOCK);
    (0..SHOCK_MONTHS).fold(0.0, |sum, _| {
        let normal =
            (normal4(shocks.next_u64()) + normal4(shocks.next_u64())) * std::f64::consts::FRAC_1_SQRT_2;
        sum * SHOCK_DECAY + SHOCK_SD * normal
    })
}

/// The logarithm of a currency's level, given in lower case.
fn log_level(currency: &str) -> f64 {
    match LEVELS.iter().find(|(name, _)| *name == currency) {
        Some((_, level)) => libm::log(*level),
        // From 0.2 to 5 US dollars.
        None => 1.6 * (2.0 * unit(stream(Purpose::Level, currency, 0, 0).next_u32()) - 1.0),
    }
}

/// What a stream of random numbers is for.
#[derive(Clone, Copy)]
enum Purpose {
    Path = 1,
    Volatility = 2,
    Anchor = 3,
    Level = 4,
    Ticks = 5,
    Pair = 6,
}

/// The random numbers for a purpose, of a currency or pair, in a month (given by [`Month::index`]). The ChaCha key
/// is these four and the seed, laid out so that no two share one (but for a hash of 64 bits of the name).
fn stream(purpose: Purpose, name: &str, month_index: i32, seed: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[24..32].copy_from_slice(b"bqx sim1");
    key[0..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&fnv1a(name.as_bytes()).to_le_bytes());
    key[16..20].copy_from_slice(&month_index.to_le_bytes());
    key[20..24].copy_from_slice(&(purpose as u32).to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// The hash FNV-1a, 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>).
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// A deviate of mean 0 and variance 1 that is nearly normal, between -3.5 and 3.5: the sum of the word's four
/// 16-bit numbers, each uniform (Irwin–Hall), standardised. Integers and one multiplication, so that it has
/// the same bits everywhere.
fn normal4(word: u64) -> f64 {
    /// Half of 4 · 65,535.
    const MEAN: i64 = 131_070;
    /// 1 / √(4 · (65,536² − 1) / 12)
    const PER_SD: f64 = 2.6428997921303014e-05;
    let sum = (word & 0xffff) + ((word >> 16) & 0xffff) + ((word >> 32) & 0xffff) + (word >> 48);
    (sum as i64 - MEAN) as f64 * PER_SD
}

/// A positive factor of which the mean square is (nearly) 1.
fn log_normal(sd: f64, words: &mut ChaCha8Rng) -> f64 {
    libm::exp(sd * normal4(words.next_u64()) - sd * sd)
}

/// A number in [0, 1).
fn unit(word: u32) -> f64 {
    f64::from(word) / 4_294_967_296.0
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const PAIRS: [&str; 28] = [
        "audcad", "audchf", "audjpy", "audnzd", "audusd", "cadchf", "cadjpy", "chfjpy", "euraud", "eurcad",
        "eurchf", "eurgbp", "eurjpy", "eurnzd", "eurusd", "gbpaud", "gbpcad", "gbpchf", "gbpjpy", "gbpnzd",
        "gbpusd", "nzdcad", "nzdchf", "nzdjpy", "nzdusd", "usdcad", "usdchf", "usdjpy",
    ];

    fn month(text: &str) -> Month {
        text.parse().unwrap()
    }

    fn pair_bars(pair: &str, month: Month) -> Vec<SimBar> {
        bars(&pair[..3], &pair[3..], month, 1)
    }

    /// FNV-1a of all bits.
    fn checksum(bars: &[SimBar]) -> u64 {
        let fields = |b: &SimBar| {
            let [o, h, l, c, v] = [b.open, b.high, b.low, b.close, b.volume].map(f64::to_bits);
            [b.time as u64, o, h, l, c, v]
        };
        fnv1a(&bars.iter().flat_map(fields).flat_map(u64::to_le_bytes).collect::<Vec<u8>>())
    }

    /// These numbers must never change: people compare results over machines and releases.
    #[test]
    fn the_market_is_the_same_everywhere() {
        let first = |pair| pair_bars(pair, month("2024-07"))[0];
        let time = month("2024-07").start_pg_micros();
        assert_eq!(
            first("eurusd"),
            SimBar { time, open: 1.08936, high: 1.08942, low: 1.08936, close: 1.08941, volume: 3.0 }
        );
        for (pair, at, count, expected) in [
            ("eurusd", "2024-07", 32_794, 0x81f5_923c_91d0_8fa3),
            ("gbpjpy", "2025-06", 29_733, 0x6d5e_bb49_d002_5b66),
            ("nzdchf", "1990-02", 28_176, 0x70ca_ba98_4f5a_c89c),
            ("abcxyz", "2100-01", 29_588, 0x8ad5_0fdb_3f96_3e86),
        ] {
            let bars = pair_bars(pair, month(at));
            assert_eq!((bars.len(), checksum(&bars)), (count, expected), "{pair} {at}");
        }
    }

    #[test]
    fn names_are_case_insensitive_and_seeds_pairs_and_months_differ() {
        let july = month("2024-07");
        let bars_of = |base, quote, seed| bars(base, quote, july, seed);
        assert_eq!(bars_of("EUR", "Usd", 1), bars_of("eur", "usd", 1));
        let sums = [
            checksum(&bars_of("eur", "usd", 1)),
            checksum(&bars_of("eur", "usd", 2)),
            checksum(&bars_of("eur", "usd", u64::MAX)),
            checksum(&bars_of("usd", "eur", 1)),
            checksum(&bars_of("gbp", "usd", 1)),
            checksum(&bars("eur", "usd", month("2024-08"), 1)),
        ];
        for (i, sum) in sums.iter().enumerate() {
            assert!(!sums[..i].contains(sum));
        }
        let times = |seed| bars_of("eur", "usd", seed).iter().map(|b| b.time).collect::<Vec<_>>();
        assert_ne!(times(1), times(2));
    }

    #[test]
    fn bars_hang_together_and_lie_on_the_pips() {
        for (pair, places) in [("eurusd", 5), ("usdjpy", 3), ("jpyusd", 7), ("abcxyz", 5)] {
            assert_eq!(decimals(&pair[..3], &pair[3..]), places, "{pair}");
            for bar in pair_bars(pair, month("2025-02")) {
                assert!(bar.low > 0.0 && bar.low <= bar.open.min(bar.close), "{pair} {bar:?}");
                assert!(bar.high >= bar.open.max(bar.close), "{pair} {bar:?}");
                assert!(bar.volume >= 1.0 && bar.volume.fract() == 0.0, "{pair} {bar:?}");
                for price in [bar.open, bar.high, bar.low, bar.close] {
                    let text = format!("{price:.*}", places as usize);
                    assert_eq!(text.parse::<f64>().unwrap().to_bits(), price.to_bits(), "{pair} {text}");
                    assert!(text.replace('.', "").trim_start_matches('0').len() >= 5, "{pair} {text}");
                }
            }
        }
        assert!(bars("eur", "EUR", month("2024-07"), 1).iter().all(|b| (b.high, b.low) == (1.0, 1.0)));
    }

    #[test]
    fn bars_lie_in_the_month_and_the_trading_week() {
        use chrono::{Datelike, Timelike, Weekday};
        let mut hours = std::collections::BTreeSet::new();
        for at in ["2024-09", "1999-12", "1900-01", "2999-12"].map(month) {
            let bars = pair_bars("eurusd", at);
            assert!(bars.is_sorted_by(|a, b| a.time < b.time));
            for bar in bars {
                assert_eq!(Month::from_pg_micros(bar.time), Some(at));
                assert_eq!(bar.time % MICROS_PER_MINUTE, 0);
                let time = crate::calendar::from_pg_micros(bar.time).unwrap();
                let open = match time.weekday() {
                    Weekday::Sun => time.hour() >= 22,
                    Weekday::Fri => time.hour() < 22,
                    day => day != Weekday::Sat,
                };
                assert!(open, "{time}");
                hours.insert((time.weekday().number_from_monday(), time.hour()));
            }
        }
        assert_eq!(hours.len(), 5 * 24);
    }

    #[test]
    fn a_pair_month_has_about_30_700_bars() {
        // The share of the minutes that have a bar, from a short month and a long one, all pairs.
        let (mut share, mut n) = (0.0, 0.0);
        for at in ["2025-02", "2024-07"].map(month) {
            for pair in PAIRS {
                let count = pair_bars(pair, at).len();
                assert!((27_900..=32_900).contains(&count), "{pair} {at}: {count}");
                share += count as f64 / open_minutes(at).len() as f64;
                n += 1.0;
            }
        }
        let year = month("2024-07").through(month("2025-06"));
        let minutes = year.map(|at| open_minutes(at).len()).sum::<usize>() as f64 / 12.0;
        let average = minutes * share / n;
        assert!((30_600.0..=30_800.0).contains(&average), "{average}");
    }

    #[test]
    fn months_join() {
        let (first, last) = (month("2024-07"), month("2025-01"));
        for pair in ["eurusd", "gbpjpy"] {
            for at in first.through(last) {
                let end = *pair_bars(pair, at).last().unwrap();
                let start = pair_bars(pair, at.next().unwrap())[0];
                let step = (start.open / end.close - 1.0).abs();
                assert!(step < 0.003, "{pair} {at}: {step}");
            }
        }
    }

    #[test]
    fn crosses_agree_with_their_majors() {
        let at = month("2024-11");
        let closes =
            |pair| pair_bars(pair, at).into_iter().map(|b| (b.time, b.close)).collect::<HashMap<_, _>>();
        let (eurusd, gbpusd, usdjpy) = (closes("eurusd"), closes("gbpusd"), closes("usdjpy"));
        let (eurgbp, eurjpy) = (closes("eurgbp"), closes("eurjpy"));
        let mut compared = 0;
        for (time, eur) in &eurusd {
            let (Some(gbp), Some(jpy)) = (gbpusd.get(time), usdjpy.get(time)) else { continue };
            let (Some(cross), Some(yen)) = (eurgbp.get(time), eurjpy.get(time)) else { continue };
            // Half a pip of each price that is rounded.
            assert!((cross - eur / gbp).abs() < 0.5e-5 * (1.0 + 1.0 / gbp + eur / gbp / gbp) + 1e-12);
            assert!((yen - eur * jpy).abs() < 0.5e-3 * (1.0 + eur) + 0.5e-5 * jpy + 1e-12);
            compared += 1;
        }
        assert!(compared > 25_000, "{compared}");
    }

    #[test]
    fn levels_hold_for_decades_and_minutes_move_plausibly() {
        for (pair, level) in [("eurusd", 1.08), ("usdjpy", 158.0)] {
            let (mut lowest, mut highest) = (f64::MAX, f64::MIN);
            for at in month("1950-01").through(month("2050-12")) {
                let index = at.index();
                let log = |c: &str| log_level(c) + anchor(c, index, 1);
                let price = libm::exp(log(&pair[..3]) - log(&pair[3..])) / level;
                (lowest, highest) = (lowest.min(price), highest.max(price));
            }
            assert!(lowest > 0.7 && lowest < 0.95, "{pair} {lowest}");
            assert!(highest < 1.4 && highest > 1.05, "{pair} {highest}");
        }
        let bars = pair_bars("eurusd", month("2024-10"));
        let squares = |quiet: bool| {
            let steps = bars.windows(2).filter(|w| w[1].time - w[0].time == MICROS_PER_MINUTE);
            let hour = |b: &SimBar| b.time.rem_euclid(86_400_000_000) / 3_600_000_000;
            let steps = steps.filter(|w| (hour(&w[0]) < 6) == quiet);
            let squares: Vec<f64> = steps.map(|w| libm::log(w[1].close / w[0].close).powi(2)).collect();
            (squares.iter().sum::<f64>() / squares.len() as f64).sqrt()
        };
        assert!((0.5e-4..0.9e-4).contains(&squares(true)), "{}", squares(true));
        assert!((0.9e-4..1.4e-4).contains(&squares(false)), "{}", squares(false));
    }

    #[test]
    fn hours_are_average_in_the_mean() {
        let mean = |f: fn(&(f64, f64)) -> f64| HOURS.iter().map(f).sum::<f64>() / 24.0;
        assert!((mean(|h| h.0 * h.0) - 1.0).abs() < 0.05);
        assert!((mean(|h| h.1) - 0.0196).abs() < 0.001);
    }

    #[test]
    fn deviates_are_standard() {
        assert_eq!(normal4(0), -normal4(u64::MAX));
        assert!((3.46..3.47).contains(&normal4(u64::MAX)));
        let mut words = stream(Purpose::Path, "test", 0, 0);
        let sample: Vec<f64> = (0..100_000).map(|_| normal4(words.next_u64())).collect();
        let mean = sample.iter().sum::<f64>() / 1e5;
        let variance = sample.iter().map(|x| x * x).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }
}
