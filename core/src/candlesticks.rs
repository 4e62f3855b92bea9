//! Candlestick patterns, candle by candle, as TA-Lib defines them with its default settings.
//!
//! The patterns are those of Nison, *Japanese Candlestick Charting Techniques* (1991), and Morris, *Candlestick
//! Charting Explained* (1995); what counts as long, short or near is TA-Lib's (its `CDL` functions, version 0.6).
//! No pattern asks for a trend before it: whether a hammer ends a decline is for the reader to see.
//!
//! A candle's body lies between open and close, its shadows between body and extremes. It is white if it closes no
//! lower than it opened, and black otherwise. Bodies "gap" if no price belongs to both.
//!
//! **Sums.** Limits are means over earlier candles. Here they are summed anew for each candle, oldest first, so that its
//! patterns depend on it and the [`Candlesticks::LOOKBACK`] candles before it alone. TA-Lib adds what comes to its sums and
//! takes off what goes. Where the ranges of any ten successive candles amount to less than the lowest price of the series, as those of
//! exchange rates do, either way sums are exact and the patterns the same; elsewhere they can differ where a size and its
//! limit are equal up to rounding.

/// One bar: four prices in one unit, whichever. That high is the greatest and low the least is not checked.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Candle {
    pub open: f64,
    pub high: f64,
    pub low: f64,
    pub close: f64,
}

impl Candle {
    fn is_finite(&self) -> bool {
        [self.open, self.high, self.low, self.close].iter().all(|price| price.is_finite())
    }

    fn is_white(&self) -> bool {
        self.close >= self.open
    }

    fn is_black(&self) -> bool {
        !self.is_white()
    }

    fn body(&self) -> f64 {
        (self.close - self.open).abs()
    }

    fn body_top(&self) -> f64 {
        self.open.max(self.close)
    }

    fn body_bottom(&self) -> f64 {
        self.open.min(self.close)
    }

    fn upper_shadow(&self) -> f64 {
        self.high - self.body_top()
    }

    fn lower_shadow(&self) -> f64 {
        self.body_bottom() - self.low
    }

    /// From low to high.
    fn range(&self) -> f64 {
        self.high - self.low
    }

    fn gaps_above(&self, earlier: &Candle) -> bool {
        self.body_bottom() > earlier.body_top()
    }

    fn gaps_below(&self, earlier: &Candle) -> bool {
        self.body_top() < earlier.body_bottom()
    }
}

/// A limit that sizes are compared with: `factor` times the mean `size` of the `period` candles before the one in
/// question, or with period 0 times that candle's own.
#[derive(Clone, Copy)]
struct Setting {
    size: fn(&Candle) -> f64,
    period: usize,
    factor: f64,
}

// TA-Lib's default candle settings, by its names; those that no pattern here asks for are left out.
/// A body is long above this.
const BODY_LONG: Setting = Setting { size: Candle::body, period: 10, factor: 1.0 };
/// A body is short up to this; whether it may equal it depends on the pattern.
const BODY_SHORT: Setting = Setting { size: Candle::body, period: 10, factor: 1.0 };
/// Open and close count as one price up to this.
const BODY_DOJI: Setting = Setting { size: Candle::range, period: 10, factor: 0.1 };
/// A shadow is long above this: its own candle's body.
const SHADOW_LONG: Setting = Setting { size: Candle::body, period: 0, factor: 1.0 };
/// A shadow is as good as none below this.
const SHADOW_VERY_SHORT: Setting = Setting { size: Candle::range, period: 10, factor: 0.1 };
/// Prices are near each other up to this.
const NEAR: Setting = Setting { size: Candle::range, period: 5, factor: 0.2 };
/// Sizes are far from each other from this on.
const FAR: Setting = Setting { size: Candle::range, period: 5, factor: 0.6 };

/// A candle, first, and those before it, latest first: what its sizes are judged by.
#[derive(Clone, Copy)]
struct Placed<'a>(&'a [Candle]);

impl std::ops::Deref for Placed<'_> {
    type Target = Candle;

    fn deref(&self) -> &Candle {
        &self.0[0]
    }
}

impl Placed<'_> {
    fn limit(&self, setting: Setting) -> f64 {
        let mean = match setting.period {
            0 => (setting.size)(self),
            period => self.0[1..=period].iter().rev().map(setting.size).sum::<f64>() / period as f64,
        };
        setting.factor * mean
    }

    fn is_long(&self) -> bool {
        self.body() > self.limit(BODY_LONG)
    }

    fn has_long_upper_shadow(&self) -> bool {
        self.upper_shadow() > self.limit(SHADOW_LONG)
    }

    fn has_long_lower_shadow(&self) -> bool {
        self.lower_shadow() > self.limit(SHADOW_LONG)
    }

    fn has_no_upper_shadow(&self) -> bool {
        self.upper_shadow() < self.limit(SHADOW_VERY_SHORT)
    }

    fn has_no_lower_shadow(&self) -> bool {
        self.lower_shadow() < self.limit(SHADOW_VERY_SHORT)
    }
}

/// The longest pattern's candles, latest first.
type Latest<'a> = [Placed<'a>; 4];

struct Pattern {
    name: &'static str,
    /// Candles that must precede one before TA-Lib gives it a value: some of its functions ask for one more than they
    /// look at.
    lookback: usize,
    value: fn(&Latest) -> i16,
}

/// All patterns, in the order of their columns.
const PATTERNS: [Pattern; 13] = [
    Pattern { name: "doji", lookback: 10, value: doji },
    Pattern { name: "hammer", lookback: 11, value: hammer },
    Pattern { name: "inverted_hammer", lookback: 11, value: inverted_hammer },
    Pattern { name: "hanging_man", lookback: 11, value: hanging_man },
    Pattern { name: "shooting_star", lookback: 11, value: shooting_star },
    Pattern { name: "engulfing", lookback: 2, value: engulfing },
    Pattern { name: "harami", lookback: 11, value: harami },
    Pattern { name: "piercing", lookback: 11, value: piercing },
    Pattern { name: "dark_cloud_cover", lookback: 11, value: dark_cloud_cover },
    Pattern { name: "morning_star", lookback: 12, value: morning_star },
    Pattern { name: "evening_star", lookback: 12, value: evening_star },
    Pattern { name: "three_white_soldiers", lookback: 12, value: three_white_soldiers },
    Pattern { name: "three_black_crows", lookback: 13, value: three_black_crows },
];

fn bullish(is_there: bool) -> i16 {
    if is_there { 100 } else { 0 }
}

fn bearish(is_there: bool) -> i16 {
    -bullish(is_there)
}

/// Open and close are as good as one price. 100 though it is neither bullish nor bearish.
fn doji([last, ..]: &Latest) -> i16 {
    bullish(last.body() <= last.limit(BODY_DOJI))
}

/// A short body on top of a long shadow, at or near the low before or below it.
fn hammer([last, before, ..]: &Latest) -> i16 {
    bullish(hangs(last) && last.body_bottom() <= before.low + before.limit(NEAR))
}

/// A hammer's shape, but at or near the high before or above it.
fn hanging_man([last, before, ..]: &Latest) -> i16 {
    bearish(hangs(last) && last.body_bottom() >= before.high - before.limit(NEAR))
}

/// A short body with a long shadow below and as good as none above.
fn hangs(candle: &Placed) -> bool {
    candle.body() < candle.limit(BODY_SHORT) && candle.has_long_lower_shadow() && candle.has_no_upper_shadow()
}

/// A short body under a long shadow, gapping below the body before.
fn inverted_hammer([last, before, ..]: &Latest) -> i16 {
    bullish(last.gaps_below(before) && stands(last))
}

/// An inverted hammer's shape, but gapping above the body before.
fn shooting_star([last, before, ..]: &Latest) -> i16 {
    bearish(last.gaps_above(before) && stands(last))
}

/// A short body with a long shadow above and as good as none below.
fn stands(candle: &Placed) -> bool {
    candle.body() < candle.limit(BODY_SHORT) && candle.has_long_upper_shadow() && candle.has_no_lower_shadow()
}

/// A body of the other colour around the one before, with the sign of its own colour; ±80 where they end at one
/// price.
fn engulfing([last, before, ..]: &Latest) -> i16 {
    let is_same = last.body_top() == before.body_top() && last.body_bottom() == before.body_bottom();
    match (last.is_white(), before.is_white()) {
        (true, false) if !is_same => containment(last, before),
        (false, true) if !is_same => -containment(last, before),
        _ => 0,
    }
}

/// A body not above the short limit within the long one before, whichever its own colour: bullish after a black
/// one, bearish after a white one. ±80 where they end at one price.
fn harami([last, before, ..]: &Latest) -> i16 {
    if !(before.is_long() && last.body() <= last.limit(BODY_SHORT)) {
        return 0;
    }
    let value = containment(before, last);
    if before.is_black() { value } else { -value }
}

/// 100 if the body `inner` lies within `outer` with room at both ends, 80 if at some end there is none, 0 if it
/// sticks out.
fn containment(outer: &Candle, inner: &Candle) -> i16 {
    let (above, below) = (outer.body_top(), outer.body_bottom());
    if above > inner.body_top() && below < inner.body_bottom() {
        100
    } else if above >= inner.body_top() && below <= inner.body_bottom() {
        80
    } else {
        0
    }
}

/// A long black body, then a long white one that opens below the low before it and closes within the upper half of
/// the first.
fn piercing([last, first, ..]: &Latest) -> i16 {
    bullish(
        first.is_black()
            && last.is_white()
            && last.open < first.low
            && last.close < first.open
            && last.close > first.close + 0.5 * first.body()
            && first.is_long()
            && last.is_long(),
    )
}

/// A long white body, then a black one, long or not, that opens above the high before it and closes within the lower
/// half of the first.
fn dark_cloud_cover([last, first, ..]: &Latest) -> i16 {
    bearish(
        first.is_white()
            && last.is_black()
            && last.open > first.high
            && last.close > first.open
            && last.close < first.close - 0.5 * first.body()
            && first.is_long(),
    )
}

/// How much of a star's first body the third one must take back.
const STAR_PENETRATION: f64 = 0.3;

/// A long black body, a star gapping below it, and a white body that closes well within the first or above it.
fn morning_star([third, star, first, _]: &Latest) -> i16 {
    bullish(
        first.is_black()
            && third.is_white()
            && star.gaps_below(first)
            && third.close > first.close + STAR_PENETRATION * first.body()
            && is_star_between(first, star, third),
    )
}

/// A long white body, a star gapping above it, and a black body that closes well within the first or below it.
fn evening_star([third, star, first, _]: &Latest) -> i16 {
    bearish(
        first.is_white()
            && third.is_black()
            && star.gaps_above(first)
            && third.close < first.close - STAR_PENETRATION * first.body()
            && is_star_between(first, star, third),
    )
}

/// The bodies' sizes: long, not above the short limit, above it.
fn is_star_between(first: &Placed, star: &Placed, third: &Placed) -> bool {
    first.is_long() && star.body() <= star.limit(BODY_SHORT) && third.body() > third.limit(BODY_SHORT)
}

/// Three white bodies with as good as no shadows above, each of the later two advancing from the one before, the
/// third not short.
fn three_white_soldiers([third, second, first, _]: &Latest) -> i16 {
    bullish(
        [first, second, third].into_iter().all(|soldier| soldier.is_white())
            && advances(second, first)
            && advances(third, second)
            && [first, second, third].into_iter().all(Placed::has_no_upper_shadow)
            && third.body() > third.limit(BODY_SHORT),
    )
}

/// Of white candles: opens and closes higher than the one before, opens within its body or near it, and is not far
/// shorter.
fn advances(candle: &Candle, before: &Placed) -> bool {
    candle.close > before.close
        && candle.open > before.open
        && candle.open <= before.close + before.limit(NEAR)
        && candle.body() > before.body() - before.limit(FAR)
}

/// After a white candle three with as good as no shadows below: the first closes below the white one's high, the later
/// two open within the body before and close below it, so that all three are black.
fn three_black_crows([third, second, first, before]: &Latest) -> i16 {
    bearish(
        before.is_white()
            && before.high > first.close
            && declines(second, first)
            && declines(third, second)
            && [first, second, third].into_iter().all(Placed::has_no_lower_shadow),
    )
}

/// Opens within the black body before and closes below it, and is black itself then.
fn declines(candle: &Candle, before: &Candle) -> bool {
    candle.open < before.open && candle.open > before.close && candle.close < before.close
}

/// The patterns that end at a candle: 100 if there is a bullish one (or a doji), -100 a bearish one, ±80 one whose bodies
/// end at one price, 0 none; `None` while candles are too few for TA-Lib to give a value.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Patterns([Option<i16>; Patterns::COUNT]);

impl Patterns {
    pub const COUNT: usize = PATTERNS.len();

    /// In the order of [`to_array`](Self::to_array).
    pub const NAMES: [&str; Self::COUNT] = {
        let mut names = [""; Self::COUNT];
        let mut i = 0;
        while i < Self::COUNT {
            names[i] = PATTERNS[i].name;
            i += 1;
        }
        names
    };

    pub fn to_array(self) -> [Option<i16>; Self::COUNT] {
        self.0
    }
}

/// Recognises patterns in a series of candles, in constant memory.
#[derive(Clone, Debug, Default)]
pub struct Candlesticks {
    /// Latest first.
    candles: [Candle; Candlesticks::LOOKBACK + 1],
    /// How many of them there are already.
    count: usize,
}

impl Candlesticks {
    /// Candles before one that its patterns depend on, and from which on there is a value of each.
    pub const LOOKBACK: usize = 13;

    pub fn new() -> Self {
        Self::default()
    }

    /// Patterns that end at the candle now coming. If one of its values is not finite it has none, and the series
    /// starts anew after it.
    pub fn push(&mut self, candle: Candle) -> Patterns {
        if !candle.is_finite() {
            *self = Self::default();
            return Patterns::default();
        }
        self.candles.copy_within(..Self::LOOKBACK, 1);
        self.candles[0] = candle;
        let preceding = self.count;
        self.count = self.candles.len().min(preceding + 1);
        let latest = std::array::from_fn(|ago| Placed(&self.candles[ago..]));
        Patterns(PATTERNS.map(|pattern| (preceding >= pattern.lookback).then(|| (pattern.value)(&latest))))
    }
}
